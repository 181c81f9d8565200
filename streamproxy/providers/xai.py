"""xAI's Grok Imagine: OpenAI's paths, with an aspect ratio and a resolution instead of `size`, and edits in JSON.

A picture that moderation has removed comes under 200, without its bytes. If all are removed, `data` is empty. So an
empty answer is a refusal, and the remaining pictures have a warning. The answer has the cost of the request. There is
no mask, no seed and no stream.

Sources: xai-sdk 1.21; answers measured by third parties, 21 September 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import decoded_usage, finals
from streamproxy.core.conversation import (
    Accepted,
    Conversation,
    Job,
    Picture,
    body,
    decoded,
    fetch,
    first_of,
    pixels,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.cost import Work
from streamproxy.core.images import media_type, probe_base64
from streamproxy.core.rawjson import base64_text
from streamproxy.core.requests import Head, ImageRequest, url_of
from streamproxy.core.sizes import nearest_ratio, tier
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, moderated, no_image, refused, said_instead

WIDE: Final = ("1:1", "4:3", "3:2", "16:9", "2:1", "19.5:9", "20:9")
HIGH: Final = ("3:4", "2:3", "9:16", "1:2", "9:19.5", "9:20")
RATIOS: Final = WIDE + HIGH
FIRST: Final[Mapping[str, float]] = {"1k": 1.0, "2k": 4.0}
SECOND: Final[Mapping[str, float]] = {"1k": 1.0, "1.5k": 2.25, "2k": 4.0}
"""Resolutions of the first generation and of the second, in megapixels."""

QUALITIES: Final = ("low", "medium", "auto")
"""`high` would be a 400. The first generation ignores the member."""

OPTIONS: Final = ("aspect_ratio", "resolution", "user")
INPUTS: Final = 3
"""Most input images, as documented. The provider takes five, and charges for them."""

TICKS: Final = 10_000_000_000
"""Ticks in one US dollar."""

MODERATION: Final = "content moderation"
"""A part of the text of a refusal by moderation, which has no code."""


class _Item(msgspec.Struct):
    b64_json: msgspec.Raw = msgspec.Raw()
    url: str | None = None
    revised_prompt: str | None = None
    respect_moderation: bool | None = None


class _Answer(msgspec.Struct):
    """An answer, or an error, whose `error` is a string."""

    data: list[_Item] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: str | dict[str, object] | None = None
    code: str | int | None = None


class XAI:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return min(request.n, route.model.max_n)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        request = job.request
        applied = {"image", "images", *OPTIONS}
        if request.size in (None, "auto") or pixels(request.size):
            applied.add("size")
        if _is_second(job) and request.option("quality") in (None, *QUALITIES):
            applied.add("quality")
        if request.output_format in (None, "jpeg"):
            applied.add("output_format")
        return unapplied(job, frozenset(applied))

    def converse(self, job: Job) -> Conversation[None]:
        provider, edits = job.provider, bool(job.request.images)
        url = provider.base_url + (provider.edits if edits else provider.generations)
        head = yield from send(post_json(job, url, _value(job)))
        if head.status not in (200, 201):
            raise _refusal(job, head, (yield from refusal_body()))
        raw = yield from body(job.limits.answer)
        answer = decoded(raw, _Answer)
        if answer.error:
            raise _refusal(job, said_instead(head), raw)
        if answer.data is None:
            raise no_image(job, "", "")
        if not answer.data:
            raise moderated(job, "", "respect_moderation")
        yield Accepted()
        del raw
        pictures: list[Picture | None] = []
        for item in (yield from first_of(answer.data, job)):
            pictures.append((yield from _shown(item)))
        blocked = moderated(job, "", "respect_moderation")
        if not any(pictures):
            raise blocked
        told = {"warning": blocked.message} if None in pictures else None
        yield from finals(job, pictures, work=Work(paid=_paid(answer.usage)), said=told)


def _shown(item: _Item) -> Conversation[Picture | None]:
    """An item's picture; None where moderation has removed it."""
    text = base64_text(item.b64_json)
    if item.respect_moderation is False or not (text or item.url):
        return None
    prompt = item.revised_prompt or ""
    if text:
        info = probe_base64(text)
        return Picture((text,), media_type(info.format) if info else "", revised_prompt=prompt)
    return replace((yield from fetch(item.url or "")), revised_prompt=prompt)


def _value(job: Job) -> dict[str, object]:
    request = job.request
    value: dict[str, object] = {
        "model": job.route.upstream_model,
        "prompt": request.prompt,
        "n": job.n,
        "response_format": "b64_json",
        **_size(job),
    }
    if _is_second(job):
        quality = request.option("quality")
        value["quality"] = quality if quality in QUALITIES else "medium"  # always sent: the price depends on it
    given = ((name, request.option(name)) for name in OPTIONS)
    value |= {name: option for name, option in given if option is not None}
    if len(request.images) > INPUTS:
        message = f"This model takes {INPUTS} input images."
        raise ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=f"images[{INPUTS}]")
    shown = [{"url": url_of(image), "type": "image_url"} for image in request.images]
    if shown:
        value |= {"images": shown} if len(shown) > 1 else {"image": shown[0]}
    return value


def _size(job: Job) -> dict[str, object]:
    edges = pixels(job.request.size)
    if edges is None:
        return {}
    tiers = SECOND if _is_second(job) else FIRST
    return {"aspect_ratio": nearest_ratio(RATIOS, *edges), "resolution": tier(tiers, *edges)}


def _is_second(job: Job) -> bool:
    return "2.0" in job.route.upstream_model


def _paid(usage: msgspec.Raw) -> float | None:
    ticks = decoded_usage(bytes(usage)).get("cost_in_usd_ticks")
    return round(ticks / TICKS, 6) if isinstance(ticks, int | float) and ticks >= 0 else None


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    """Read a refusal: `{"code": "400", "error": "Argument not supported: size"}`, or OpenAI's object in `error`."""
    try:
        said = decoded(raw, _Answer)
    except ProxyError:
        said = _Answer()
    nested = said.error if isinstance(said.error, dict) else {}
    message = said.error if isinstance(said.error, str) else str(nested.get("message") or "")
    code = str(nested.get("code") or said.code or "")
    if MODERATION in message.lower():
        return moderated(job, message, code or "content_moderation")
    return refused(job, head, Refusal(message, None if code == str(head.status) else code or None))
