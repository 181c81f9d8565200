"""Luma's Photon models: submit, look until the work is done, fetch its one picture.

Models are named `luma/<name>`, like `luma/photon-1`. Input pictures go there as URLs only, and there are no masks. One
picture is edited; several, up to four, are what the new one is made after. A job is deleted if the caller is gone.

Sources: lumaai 1.21; docs.lumalabs.ai, November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import finals
from streamproxy.core.conversation import (
    COMMON,
    SMALL,
    Accepted,
    Conversation,
    Job,
    JobId,
    Undo,
    Wait,
    asked_pause,
    body,
    decoded,
    fetch,
    get,
    look,
    pauses,
    pixels,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.requests import Head, ImageRequest, Remote, UpstreamRequest
from streamproxy.core.sizes import nearest_ratio
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import detailed, failed, lost, moderated, no_image, refused, said_instead

RATIOS: Final = ("21:9", "16:9", "4:3", "1:1", "3:4", "9:16", "9:21")
FORMATS: Final[Mapping[str, str]] = {"png": "png", "jpeg": "jpg"}
INPUTS: Final = 4
OPTIONS: Final = ("style_ref", "character_ref")
"""Members that it has under the very same name."""

MODERATION: Final = "moderation"
"""In the words of a refusal for what a prompt shows, like "advanced moderation failed": it has no code."""


class _Assets(msgspec.Struct):
    image: str | None = None


class _Generation(msgspec.Struct):
    """A job as it was submitted, or as a look finds it."""

    id: str = ""
    state: str = ""
    failure_reason: str | None = None
    assets: _Assets | None = None


class Luma:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return 1

    def not_applied(self, job: Job) -> tuple[str, ...]:
        request = job.request
        applied = {"image", "images", *OPTIONS}
        if request.size in (None, "auto") or pixels(request.size) is not None:
            applied.add("size")
        if request.output_format in (None, *FORMATS):
            applied.add("output_format")
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        head = yield from send(post_json(job, f"{job.provider.base_url}/generations/image", _input(job)))
        if head.status not in (200, 201, 202):
            raise _refusal(job, head, (yield from refusal_body()))
        raw = yield from body(SMALL)
        submitted = decoded(raw, _Generation)
        if not submitted.id:
            raise _refusal(job, said_instead(head), raw)
        place = f"{job.provider.base_url}/generations/{quote(submitted.id, safe='')}"
        yield Accepted()
        yield JobId(submitted.id)
        yield Undo(UpstreamRequest("DELETE", place, COMMON))
        url = yield from _finished(job, place)
        yield Undo(None)  # there is nothing left to cancel
        yield from finals(job, [(yield from fetch(url))])


def _finished(job: Job, place: str) -> Conversation[str]:
    """Look until the work is over. Returns the picture's URL."""
    asked = 0.0
    for pause in pauses():
        yield Wait(max(pause, asked))
        head, raw = yield from look(get(place))
        if head.status == 404:
            raise lost(job, head)
        if head.status != 200:
            raise _refusal(job, head, raw)
        asked = asked_pause(head)
        found = decoded(raw, _Generation)
        if found.state == "failed":
            raise _failure(job, found.failure_reason or "")
        if found.state == "completed":
            if found.assets is None or not found.assets.image:
                raise no_image(job, "", found.state)
            return found.assets.image
    raise AssertionError("the pauses have no end")


def _input(job: Job) -> dict[str, object]:
    """What the model is asked. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    request = job.request
    value: dict[str, object] = {"model": job.route.upstream_model, "prompt": request.prompt, **_ratio(request)}
    if (form := FORMATS.get(request.output_format or "")) is not None:
        value["format"] = form
    value |= {name: option for name in OPTIONS if (option := request.option(name)) is not None}
    if len(request.images) > INPUTS:
        message = f"This model takes {INPUTS} input images."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{INPUTS}]")
    shown: list[dict[str, object]] = []
    for index, image in enumerate(request.images):
        if not isinstance(image, Remote):
            message = "This model takes input images only by URL, so that Luma can fetch them: send https URLs."
            raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{index}]")
        shown.append({"url": image.url})
    if len(shown) == 1:
        value["modify_image_ref"] = shown[0]
    elif shown:
        value["image_ref"] = shown
    return value


def _ratio(request: ImageRequest) -> dict[str, object]:
    """The nearest aspect ratio. Luma's own default is 16:9; an edit without a size is its affair."""
    edges = pixels(request.size)
    if edges is not None:
        return {"aspect_ratio": nearest_ratio(RATIOS, *edges)}
    return {} if request.images else {"aspect_ratio": "1:1"}


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    said = detailed(raw)
    if head.status in (400, 422) and MODERATION in said.message.lower():
        return moderated(job, said.message, MODERATION)
    return refused(job, head, said)


def _failure(job: Job, reason: str) -> ProxyError:
    return moderated(job, reason, MODERATION) if MODERATION in reason.lower() else failed(job, reason, "failed")
