"""Ideogram: a form in, pictures' URLs out, several at a time; by a mask, by an input picture, or from words alone.

Models are named by their version, with the tier of quality that decides the price behind it: `ideogram-v3-turbo`,
`ideogram-4.5-high`. A version alone is its middle tier. VERSIONS has what differs. A mask is black where the picture is
to change.

A picture that is not safe comes under 200 without a URL, and is charged: it is a refusal, after the other pictures.
URLs are good for a short time, so pictures are fetched at once, without the key.

Sources: developer.ideogram.ai, version 1's and 2's API references, November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Final

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import finals
from streamproxy.core.conversation import (
    SMALL,
    Accepted,
    Conversation,
    Job,
    JobId,
    Picture,
    body,
    decoded,
    fetch,
    first_of,
    inlined,
    mask,
    pixels,
    post_form,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.requests import Head, ImageRequest, Inline, Spooled, UpstreamRequest
from streamproxy.core.sizes import MEGAPIXEL, Grid, nearest_ratio
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, moderated, no_image, refused, said_instead

PREFIX: Final = "ideogram-"
AT_ONCE: Final = 8
UNSAFE: Final = "is_image_safe"
UNSAFE_PROMPT: Final = 422
"""The status for a prompt, or an input picture, that is not safe; other mistakes are 400."""

RATIOS: Final = (
    *("1:3", "1:2", "9:16", "10:16", "2:3", "3:4", "4:5", "1:1", "5:4", "4:3", "3:2", "16:10", "16:9", "2:1", "3:1"),
)
GRID: Final = Grid(step=32, least=256, most=5120, area=4 * MEGAPIXEL)
PRESETS: Final = (
    *((2048, 2048), (1440, 2880), (2880, 1440), (1664, 2496), (2496, 1664), (1792, 2240), (2240, 1792)),
    *((1440, 2560), (2560, 1440), (1600, 2560), (2560, 1600), (1728, 2304), (2304, 1728), (1296, 3168), (3168, 1296)),
)
"""Sizes of a 4.5 picture from words alone: the shapes that the reference lists for 2K."""


@dataclass(frozen=True, slots=True)
class Version:
    """What one version takes. `paths`: of a generation, of an edit, and of one with a mask.

    `tier`: the member that says the quality, and `middle` its value where the model's name has none; it is always said,
    for it decides the price. `capitals`: values are written in them. `inputs`: the most input pictures, all under the
    name `image`. `options`: further members under the same name.
    """

    paths: tuple[str, str, str]
    tier: str
    middle: str
    capitals: bool
    inputs: int
    image: str
    options: tuple[str, ...]


VERSIONS: Final[Mapping[str, Version]] = {
    "v3": Version(
        ("v1/ideogram-v3/generate", "v1/ideogram-v3/remix", "v1/ideogram-v3/inpaint"),
        *("rendering_speed", "default", True, 1, "image"),
        options=("seed", "negative_prompt", "magic_prompt", "style_type", "style_preset", "image_weight"),
    ),
    "4.5": Version(
        ("v2/image/generate/ideogram-4-5",) * 3,
        *("quality", "medium", False, 5, "images"),
        options=("seed", "magic_prompt", "enable_copyright_detection"),
    ),
}


class _Item(msgspec.Struct):
    url: str | None = None
    prompt: str | None = None
    is_image_safe: bool | None = None


class _Said(msgspec.Struct):
    """An answer, or a refusal."""

    data: list[_Item] | None = None
    generation_id: str | None = None
    error: str | None = None
    message: str | None = None
    reject_reason: str | None = None


class Ideogram:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return min(request.n, route.model.max_n, AT_ONCE)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        version, request = _named(job)[0], job.request
        applied = {"image", "images", *version.options}
        if request.size in (None, "auto") or _size(version, request):
            applied.add("size")
        if request.images:
            applied.add("mask")
        else:
            applied.discard("image_weight")
        if request.output_format in (None, "png"):
            applied.add("output_format")
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        head = yield from send((yield from _request(job)))
        if head.status != 200:
            raise _refusal(job, head, (yield from refusal_body()))
        raw = yield from body(SMALL)
        said = decoded(raw, _Said)
        if said.data is None:
            raise refused(job, said_instead(head), _words(said))
        if not said.data:
            raise no_image(job, "", "")
        yield Accepted()
        if said.generation_id:
            yield JobId(said.generation_id)
        yield from _delivered(job, said.data)


def _delivered(job: Job, items: list[_Item]) -> Conversation[None]:
    """The pictures that there are, then the error for those that there are not. All of them are charged."""
    pictures: list[Picture | None] = []
    for item in (yield from first_of(items, job)):
        pictures.append((yield from _shown(job, item)) if item.url and item.is_image_safe is not False else None)
    yield from finals(job, pictures)
    if None in pictures:
        raise moderated(job, "The provider's safety check has withheld the picture.", UNSAFE)
    if len(pictures) < job.n:
        raise no_image(job, f"The provider made {len(pictures)} of {job.n} pictures.", "")


def _shown(job: Job, item: _Item) -> Conversation[Picture]:
    found = yield from fetch(item.url or "")
    revised = item.prompt if item.prompt != job.request.prompt else None
    return Picture(found.base64, found.media_type, found.url, found.problem, revised or "")


def _named(job: Job) -> tuple[Version, str]:
    """The version of a model's name and its tier. Raises ProxyError(MODEL_NOT_FOUND)."""
    name, _, tier = job.route.upstream_model.removeprefix(PREFIX).partition("-")
    if name not in VERSIONS:
        names = " and ".join(PREFIX + name for name in VERSIONS)
        message = f"Ideogram's models are {names} here, with a tier behind it like {PREFIX}v3-turbo."
        raise ProxyError(Failure.MODEL_NOT_FOUND, message, param="model")
    version = VERSIONS[name]
    tier = tier or version.middle
    return version, tier.upper() if version.capitals else tier


def _request(job: Job) -> Conversation[UpstreamRequest]:
    """What Ideogram is asked. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    request = job.request
    version, tier = _named(job)
    if len(request.images) > version.inputs:
        message = f"This model takes {version.inputs} input image{'s' if version.inputs > 1 else ''}."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{version.inputs}]")
    fields = {"prompt": request.prompt, version.tier: tier, "num_images": str(job.n), **_size(version, request)}
    for name in version.options:
        option = request.option(name)
        if option is not None and (name != "image_weight" or request.images):
            fields[name] = option if isinstance(option, str) else msgspec.json.encode(option).decode()
    files: list[tuple[str, Inline | Spooled]] = []
    for index, image in enumerate(request.images):
        files.append((version.image, (yield from inlined(image, job, f"images[{index}]"))))
    path = version.paths[1 if request.images else 0]
    if request.images and (drawn := (yield from mask(job, "black"))) is not None:
        files.append(("mask", drawn))
        path = version.paths[2]
    return post_form(job, f"{job.provider.base_url}/{path}", fields, files)


def _size(version: Version, request: ImageRequest) -> dict[str, str]:
    """The nearest size or aspect ratio; an edit has its input's size, but for v3's remix, which crops it."""
    edges = pixels(request.size)
    if version.capitals:
        if edges is None or (request.images and request.mask is not None):
            return {}
        return {"aspect_ratio": nearest_ratio(RATIOS, *edges).replace(":", "x")}
    if edges is None:
        return {"size": "source" if request.images else "auto"}
    width, height = GRID.fitted(*edges) if request.images else _preset(*edges)
    return {"size": f"{width}x{height}"}


def _preset(width: int, height: int) -> tuple[int, int]:
    return min(PRESETS, key=lambda size: abs(log(size[0] * height / (size[1] * width))))


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    try:
        said = decoded(raw, _Said)
    except ProxyError:
        said = _Said()
    if head.status == UNSAFE_PROMPT:
        return moderated(job, said.error or said.message or "", str(UNSAFE_PROMPT))
    return refused(job, head, _words(said))


def _words(said: _Said) -> Refusal:
    return Refusal(said.error or said.message or "", said.reject_reason)
