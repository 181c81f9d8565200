"""Microsoft's MAI image models on Azure: JSON for a generation, a form for an edit, one picture either way.

Models are named `mai/<deployment>`. The provider answers a request for several pictures with one, under 200 and without
a notice, so each request is for one picture. A size is width and height, each of at least 768 pixels, and at most a
megapixel in all.

Sources: learn.microsoft.com, "Deploy and use MAI image models in Microsoft Foundry", November 2026; litellm 1.110.2 and
its pull request 40074.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import finals
from streamproxy.core.conversation import (
    Accepted,
    Conversation,
    Job,
    JobId,
    Picture,
    body,
    converted,
    decoded,
    first_of,
    inlined,
    pixels,
    post_form,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.images import media_type, probe_base64
from streamproxy.core.rawjson import base64_text
from streamproxy.core.requests import Head, ImageRequest, UpstreamRequest
from streamproxy.core.sizes import MEGAPIXEL, Grid
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, moderated, no_image, refused, said_instead

GRID: Final = Grid(step=16, least=768, most=1360, area=MEGAPIXEL)
SQUARE: Final = (1024, 1024)
FORMATS: Final[Mapping[str, Literal["png", "jpeg"]]] = {"png": "png", "jpeg": "jpeg"}
BLOCKED: Final = frozenset({"contentFilter", "content_filter", "content_policy_violation"})
"""Azure's codes for refusals of its filters."""

REQUEST_ID: Final = "apim-request-id"
"""The header with which Azure's support finds a request."""


class _Error(msgspec.Struct):
    code: str | None = None
    message: str = ""


class _Item(msgspec.Struct):
    b64_json: msgspec.Raw = msgspec.Raw(b"null")


class _Usage(msgspec.Struct):
    num_input_text_tokens: int = 0
    num_input_image_tokens: int = 0
    num_output_tokens: int = 0


class _Answer(msgspec.Struct):
    data: list[_Item] | None = None
    usage: _Usage | None = None
    error: _Error | None = None


class Mai:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return 1

    def not_applied(self, job: Job) -> tuple[str, ...]:
        request = job.request
        applied = {"image", "images"}
        if request.size in (None, "auto") or (pixels(request.size) is not None and not request.images):
            applied.add("size")
        if request.output_format in (None, *FORMATS):
            applied.add("output_format")
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        head = yield from send((yield from _request(job)))
        if head.status != 200:
            raise _refusal(job, head, (yield from refusal_body()))
        raw = yield from body(job.limits.answer)
        answer = decoded(raw, _Answer)
        if answer.error is not None:
            raise _refusal(job, said_instead(head), raw)
        made = [_picture(text) for item in answer.data or () if (text := base64_text(item.b64_json))]
        if not made:
            raise no_image(job, "", "")
        yield Accepted()
        if (id := head.headers.get(REQUEST_ID)) is not None:
            yield JobId(id)
        [picture] = yield from first_of(made, job)
        if (form := FORMATS.get(job.request.output_format or "")) is not None:
            picture = yield from converted(picture, form)
        yield from finals(job, [picture], usage=_openai_usage(answer.usage))


def _request(job: Job) -> Conversation[UpstreamRequest]:
    """The request. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    request, provider = job.request, job.provider
    query = f"?{provider.query}" if provider.query else ""
    if len(request.images) > 1:
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, "This model takes one input image.", param="images[1]")
    if request.images:
        shown = yield from inlined(request.images[0], job, "images[0]")
        fields = {"model": job.route.upstream_model, "prompt": request.prompt}
        return post_form(job, f"{provider.base_url}{provider.edits}{query}", fields, {"image": shown})
    width, height = GRID.fitted(*(pixels(request.size) or SQUARE))
    value = {"model": job.route.upstream_model, "prompt": request.prompt, "width": width, "height": height}
    return post_json(job, f"{provider.base_url}{provider.generations}{query}", value)


def _picture(text: bytes) -> Picture:
    info = probe_base64(text)
    return Picture((text,), media_type(info.format) if info else "")


def _openai_usage(said: _Usage | None) -> Mapping[str, object] | None:
    if said is None or not said.num_output_tokens:
        return None
    sent = said.num_input_text_tokens + said.num_input_image_tokens
    return {
        "total_tokens": sent + said.num_output_tokens,
        "input_tokens": sent,
        "output_tokens": said.num_output_tokens,
        "input_tokens_details": {
            "text_tokens": said.num_input_text_tokens,
            "image_tokens": said.num_input_image_tokens,
        },
    }


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    try:
        said = decoded(raw, _Answer).error or _Error()
    except ProxyError:
        said = _Error()
    if said.code in BLOCKED:
        return moderated(job, said.message, said.code or "")
    return refused(job, head, Refusal(said.message, said.code))
