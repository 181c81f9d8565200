"""OpenRouter: its images endpoint, and pictures from chat completions with `modalities`.

    POST /images               one answer, or events with OpenAI's names for models that stream
    POST /chat/completions     models that make pictures in chats only: for those, the images endpoint answers 404, and
                               has processed nothing. If the row's `generations` is this path, it is always used, as
                               for LiteLLM and Vercel's gateway.

Models have their own names, like `google/gemini-3-pro-image`. A model that does not stream is not asked to, since it
answers with JSON in any case. The cost of a request is in its `usage`.

Sources: @openrouter/sdk 1.3.19; openrouter.ai/docs, November 2026; recorded chats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import finals, preview
from streamproxy.core.conversation import (
    Accepted,
    Conversation,
    Job,
    JobId,
    NotApplied,
    Picture,
    Tolerated,
    converted,
    decoded,
    fetch,
    first_of,
    next_event,
    pixels,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.cost import Work
from streamproxy.core.images import media_type, probe_base64
from streamproxy.core.rawjson import base64_text
from streamproxy.core.requests import Embedded, Head, ImageRequest, Input, Remote
from streamproxy.core.sizes import nearest_ratio, tier
from streamproxy.core.sse import Event
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import MESSAGE_LIMIT, Refusal, moderated, no_image, refused, said_instead

IMAGES: Final = "/images"
CHAT: Final = "/chat/completions"

OPTIONS: Final = (
    *("size", "quality", "background", "output_format", "output_compression", "seed", "aspect_ratio", "resolution"),
    *("provider", "moderation"),
)
"""Members that the images endpoint takes under the same name."""

CHAT_OPTIONS: Final = ("modalities", "image_config", "seed", "provider")
FORMATS: Final[Mapping[str, Literal["png", "jpeg"]]] = {"png": "png", "jpeg": "jpeg"}
NUMBERS: Final = ("output_compression", "seed")

RATIOS: Final = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
TIERS: Final = {"1K": 1.0, "2K": 4.0, "4K": 16.0}

PARTIAL: Final = "image_generation.partial_image"
COMPLETED: Final = "image_generation.completed"
DONE: Final = b"[DONE]"
BLOCKED: Final = frozenset(
    {"content_filter", "SAFETY", "IMAGE_SAFETY", "PROHIBITED_CONTENT", "IMAGE_PROHIBITED_CONTENT", "RECITATION"}
)
"""Finish reasons of OpenAI and Google for what the prompt or the picture shows."""


class _Metadata(msgspec.Struct):
    reasons: list[str] | None = None


class _Error(msgspec.Struct):
    code: int | str | None = None
    message: str = ""
    param: str | None = None
    metadata: _Metadata | None = None


class _TokenDetails(msgspec.Struct):
    image_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cost: float | None = None
    prompt_tokens_details: _TokenDetails | None = None
    completion_tokens_details: _TokenDetails | None = None


class _Url(msgspec.Struct):
    url: msgspec.Raw = msgspec.Raw()


class _Item(msgspec.Struct):
    """A picture of the images endpoint, or one of a chat."""

    b64_json: msgspec.Raw = msgspec.Raw()
    url: str | None = None
    image_url: _Url | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    images: list[_Item] | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    native_finish_reason: str | None = None
    error: _Error | None = None


class _Said(_Item):
    """An event or a JSON answer of either endpoint."""

    type: str = ""
    id: str | None = None
    partial_image_index: int | None = None
    data: list[_Item] | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: _Error | str | None = None


@dataclass(slots=True)
class _Made:
    """The answer so far."""

    items: list[_Item] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    usage: _Usage | None = None
    reason: str = ""
    refusal: str = ""
    accepted: bool = False


class OpenRouter:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        """One: events have no index of their picture, and a chat makes one picture."""
        if _is_chat(route) or _streams(request, route):
            return 1
        return min(request.n, route.model.max_n)

    def not_applied(self, job: Job) -> tuple[str, ...]:
        return _chat_unapplied(job) if _is_chat(job.route) else unapplied(job, frozenset({"image", "images", *OPTIONS}))

    def converse(self, job: Job) -> Conversation[None]:
        if not _is_chat(job.route):
            value = {**_images_input(job), "stream": _streams(job.request, job.route)}
            head = yield from send(post_json(job, f"{job.provider.base_url}{IMAGES}", value))
            if head.status in (200, 201):
                return (yield from _read(job, head))
            raw = yield from refusal_body()
            if head.status != 404 or job.n > 1:
                raise _refusal(job, head, raw)
            yield NotApplied(_chat_unapplied(job))
        head = yield from send(post_json(job, f"{job.provider.base_url}{CHAT}", _chat_input(job)))
        if head.status != 200:
            raise _refusal(job, head, (yield from refusal_body()))
        yield from _read(job, head)


def _is_chat(route: Route) -> bool:
    return route.provider.generations == CHAT


def _streams(request: ImageRequest, route: Route) -> bool:
    return request.stream and route.model.streams and route.provider.streams


def _read(job: Job, head: Head) -> Conversation[None]:
    """Read events, or one JSON answer; the first bytes tell which. Raises ProxyError."""
    made = _Made()
    while (event := (yield from next_event())) is not None:
        if event.joined().strip() == DONE:
            break
        yield from _take(job, head, made, event)
    if not made.items:
        raise _nothing(job, made)
    pictures: list[Picture | None] = []
    for item in (yield from first_of(made.items, job)):
        shown = yield from _shown(item)
        form = FORMATS.get(job.request.output_format or "")
        pictures.append(shown if form is None else (yield from converted(shown, form)))
    text = job.scrub("".join(made.texts))[:MESSAGE_LIMIT]
    paid = None if made.usage is None else made.usage.cost
    yield from finals(
        job, pictures, usage=_openai_usage(made.usage), work=Work(paid=paid), said={"text": text} if text else None
    )
    if len(pictures) < job.n:
        raise no_image(job, f"The provider made {len(pictures)} of {job.n} pictures.", "")


def _take(job: Job, head: Head, made: _Made, event: Event) -> Conversation[None]:
    """Take an event. Raises ProxyError where it is an error."""
    try:
        said = decoded(event.joined(), _Said)
    except ProxyError:
        if event.name == "" and not made.accepted:
            raise
        yield Tolerated("sse_noise")
        return
    choices = said.choices or []
    error = said.error or next((choice.error for choice in choices if choice.error is not None), None)
    if error is not None:
        raise _failure(job, head, error if isinstance(error, _Error) else _Error(message=error))
    if not (said.type or choices or said.data):
        raise no_image(job, "", "")
    found = [*(said.data or []), *([said] if said.type == COMPLETED else []), *_of_chat(made, choices)]
    if not made.accepted and (found or said.type == PARTIAL or (choices and choices[0].delta is not None)):
        made.accepted = True
        yield Accepted()
        if said.id is not None:
            yield JobId(said.id)
    made.items += found
    made.usage = said.usage or made.usage
    if said.type == PARTIAL and job.request.partial_images and not made.items and (text := base64_text(said.b64_json)):
        yield preview(job, _picture(text), said.partial_image_index or 0)


def _of_chat(made: _Made, choices: list[_Choice]) -> Iterator[_Item]:
    for choice in choices:
        message = choice.message or choice.delta or _Message()
        made.reason = choice.native_finish_reason or choice.finish_reason or made.reason
        if choice.finish_reason in BLOCKED:
            made.reason = choice.finish_reason or ""
        made.refusal = message.refusal or made.refusal
        if message.content and not message.content.startswith("data:image/"):
            made.texts.append(message.content)
        elif message.content:  # as from Eden AI and others
            yield _Item(image_url=_Url(msgspec.Raw(msgspec.json.encode(message.content))))
        yield from message.images or ()


def _shown(item: _Item) -> Conversation[Picture]:
    raw = item.image_url.url if item.image_url is not None else item.b64_json
    text = base64_text(raw) if memoryview(raw) else b""
    if text.startswith(b"http"):
        return (yield from fetch(text.decode()))
    if not text and item.url:
        return (yield from fetch(item.url))
    return _picture(text.rpartition(b",")[2])


def _picture(text: bytes) -> Picture:
    info = probe_base64(text)
    return Picture((text,), media_type(info.format) if info else "")


def _nothing(job: Job, made: _Made) -> ProxyError:
    text = "".join(made.texts)
    if made.refusal or made.reason in BLOCKED:
        return moderated(job, made.refusal or text, made.reason or "refusal")
    if made.accepted and not made.reason:
        message = "The provider's stream ended before its picture was complete."
        return ProxyError(Failure.MISSING_TERMINAL_EVENT, message)
    return no_image(job, text, made.reason)


def _images_input(job: Job) -> dict[str, object]:
    request = job.request
    value: dict[str, object] = {"model": job.route.upstream_model, "prompt": request.prompt, "n": job.n}
    for name in OPTIONS:
        option = request.option(name)
        if option is not None and (name, option) != ("size", "auto"):
            value[name] = int(str(option)) if name in NUMBERS and str(option).isdecimal() else option
    if request.images:
        value["input_references"] = [_reference(image) for image in request.images]
    if _streams(request, job.route) and request.partial_images is not None:
        value["partial_images"] = min(request.partial_images, job.model.partial_images)
    return value


def _chat_input(job: Job) -> dict[str, object]:
    request = job.request
    content = [{"type": "text", "text": request.prompt}, *(_reference(image) for image in request.images)]
    value: dict[str, object] = {
        "model": job.route.upstream_model,
        "messages": [{"role": "user", "content": content}],
        "modalities": ["image", "text"],
        "stream": request.stream,
    }
    if request.stream:
        value["stream_options"] = {"include_usage": True}
    if (edges := pixels(request.size)) is not None:
        value["image_config"] = {"aspect_ratio": nearest_ratio(RATIOS, *edges), "image_size": tier(TIERS, *edges)}
    return value | {name: option for name in CHAT_OPTIONS if (option := request.option(name)) is not None}


def _chat_unapplied(job: Job) -> tuple[str, ...]:
    request = job.request
    applied = {"image", "images", *CHAT_OPTIONS}
    if request.size in (None, "auto") or pixels(request.size) is not None:
        applied.add("size")
    if request.output_format in (None, *FORMATS):
        applied.add("output_format")
    return unapplied(job, frozenset(applied))


def _reference(image: Input) -> dict[str, object]:
    url = image.url if isinstance(image, Remote) else Embedded(image, data_url=True)
    return {"type": "image_url", "image_url": {"url": url}}


def _openai_usage(said: _Usage | None) -> Mapping[str, object] | None:
    """The usage in OpenAI's form; None where there are no tokens."""
    if said is None or not (said.prompt_tokens or said.completion_tokens):
        return None
    sent, made = said.prompt_tokens or 0, said.completion_tokens or 0
    shown = (said.prompt_tokens_details or _TokenDetails()).image_tokens or 0
    drawn = (said.completion_tokens_details or _TokenDetails()).image_tokens
    usage: dict[str, object] = {
        "total_tokens": said.total_tokens or sent + made,
        "input_tokens": sent,
        "output_tokens": made,
        "input_tokens_details": {"text_tokens": max(0, sent - shown), "image_tokens": shown},
    }
    if drawn is not None:
        usage["output_tokens_details"] = {"text_tokens": max(0, made - drawn), "image_tokens": drawn}
    return usage


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    try:
        said = decoded(raw, _Said).error or _Error()
    except ProxyError:
        said = _Error()
    return _refused(job, head, said if isinstance(said, _Error) else _Error(message=said))


def _failure(job: Job, head: Head, said: _Error) -> ProxyError:
    """Read an error under 200. Its code is an HTTP status."""
    status = int(str(said.code)) if str(said.code).isdecimal() else 0
    as_if = Head(status, head.items) if 400 <= status < 600 else said_instead(head)
    return _refused(job, as_if, said)


def _refused(job: Job, head: Head, said: _Error) -> ProxyError:
    """Read a refusal. A 403 with reasons is a flagged prompt; any other 403 is about the key."""
    reasons = (said.metadata or _Metadata()).reasons
    named = said.code if isinstance(said.code, str) and not said.code.isdecimal() else None
    if reasons or named in ("moderation_blocked", "content_policy_violation"):
        return moderated(job, said.message, named or ", ".join(reasons or ()))
    return refused(job, head, Refusal(said.message, named, said.param))
