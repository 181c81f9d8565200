"""OpenAI's Responses with the image_generation tool, for hosts that show previews only there.

The request goes to a text model, the provider's `text_model`, which calls the tool. The caller's model is the tool's.
`tool_choice` forces the call. The tool makes one picture for each request, and has the members of the images API. Input
images are parts of the message, and a mask is the tool's, of OpenAI's kind. `store` is false.

The request is accepted with the first event of the call: until then the text model may refuse. The picture is in
`output_item.done`; `image_generation_call.completed` has none. A response ends as completed, incomplete or failed. The
price of a picture does not include the text model, so no cost is given.

Sources: openai-python 3.57, types/responses; OpenAI's recorded event stream of the tool, September 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlsplit

import msgspec

from streamproxy.core.catalogue import Route
from streamproxy.core.completion import ZERO_USAGE, decoded_usage, finals, preview
from streamproxy.core.conversation import (
    Accepted,
    Conversation,
    Job,
    JobId,
    Picture,
    Tolerated,
    decoded,
    inlined,
    next_event,
    post_json,
    refusal_body,
    send,
    unapplied,
)
from streamproxy.core.images import media_type, probe_base64
from streamproxy.core.rawjson import base64_text
from streamproxy.core.requests import FileId, Head, ImageRequest, Input, url_of
from streamproxy.core.sse import Event
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.openai.errors import error_of, refusal
from streamproxy.providers.refusals import failed, moderated, no_image

TOOL: Final = "image_generation"
CALL: Final = "image_generation_call"
OPTIONS: Final = (
    *("size", "quality", "background", "output_format", "output_compression", "moderation", "input_fidelity"),
    "action",
)
"""Members that the tool takes under the same name."""

NUMBERS: Final = ("output_compression",)
FAILED: Final = "failed"
INCOMPLETE: Final = "incomplete"
COMPLETED: Final = "completed"
FILTERED: Final = "content_filter"
BLOCKED: Final = frozenset({"moderation_blocked", "content_policy_violation"})
SOURCE: Final = "input_image_mask"


class _Part(msgspec.Struct):
    type: str = ""
    text: str = ""
    refusal: str = ""


class _Item(msgspec.Struct):
    type: str = ""
    status: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")
    revised_prompt: str | None = None
    content: list[_Part] | None = None


class _Spent(msgspec.Struct):
    image_gen: msgspec.Raw = msgspec.Raw()


class _Details(msgspec.Struct):
    reason: str = ""


class _Response(msgspec.Struct):
    id: str = ""
    status: str = ""
    error: dict[str, object] | None = None
    incomplete_details: _Details | None = None
    output: list[_Item] | None = None
    tool_usage: _Spent | None = None


class _Said(msgspec.Struct):
    """An event, or the response itself in a JSON answer."""

    type: str = ""
    kind: str = msgspec.field(name="object", default="")
    response: _Response | None = None
    item: _Item | None = None
    partial_image_b64: msgspec.Raw = msgspec.Raw(b"null")
    partial_image_index: int = 0
    error: dict[str, object] | str | None = None


@dataclass(slots=True)
class _Made:
    """The answer so far."""

    picture: Picture | None = None
    texts: list[str] = field(default_factory=list)
    refusal: str = ""
    usage: Mapping[str, object] = field(default_factory=lambda: ZERO_USAGE)
    id: str = ""
    accepted: bool = False
    over: bool = False


class Responses:
    """The adapter: see `core.conversation.Adapter`."""

    def at_once(self, request: ImageRequest, route: Route) -> int:
        return 1

    def not_applied(self, job: Job) -> tuple[str, ...]:
        return unapplied(job, frozenset({"image", "images", "mask", "user", *OPTIONS}))

    def converse(self, job: Job) -> Conversation[None]:
        provider = job.provider
        query = f"?{provider.query}" if provider.query else ""
        value = yield from _value(job)
        head = yield from send(post_json(job, f"{provider.base_url}{provider.responses}{query}", value))
        if head.status != 200:
            raise _refusal(job, head, (yield from refusal_body()))
        made = _Made()
        while not made.over and (event := (yield from _next(made))) is not None:
            yield from _take(job, made, event)
        if made.picture is None:
            raise _nothing(job, made)
        yield from finals(_unpriced(job), [made.picture], usage=made.usage)


def _next(made: _Made) -> Conversation[Event | None]:
    """The next event; None at the end. A failure after the picture only costs the usage."""
    try:
        return (yield from next_event())
    except ProxyError as error:
        if made.picture is None:
            raise
        yield Tolerated(error.failure.value.label)
        return None


def _unpriced(job: Job) -> Job:
    return replace(job, route=replace(job.route, model=replace(job.model, price=None)))


def _value(job: Job) -> Conversation[dict[str, object]]:
    """The request's body. Raises ProxyError(UNSUPPORTED_PARAMETER)."""
    request = job.request
    tool: dict[str, object] = {"type": TOOL, "model": job.route.upstream_model}
    for name in OPTIONS:
        option = request.option(name)
        if option is not None:
            tool[name] = int(str(option)) if name in NUMBERS and str(option).isdecimal() else option
    if _streams(job) and request.partial_images is not None:
        tool["partial_images"] = min(request.partial_images, job.model.partial_images)
    content: list[dict[str, object]] = [{"type": "input_text", "text": request.prompt}]
    for index, image in enumerate(request.images):
        content.append({"type": "input_image", **(yield from _shown(job, image, f"images[{index}]"))})
    if request.mask is not None:
        tool[SOURCE] = yield from _shown(job, request.mask, "mask")
    value: dict[str, object] = {
        "model": job.provider.text_model,
        "input": [{"role": "user", "content": content}],
        "tools": [tool],
        "tool_choice": {"type": TOOL},
        "store": False,
        "stream": _streams(job),
    }
    return value | ({"user": user} if (user := request.option("user")) is not None else {})


def _shown(job: Job, image: Input, param: str) -> Conversation[dict[str, object]]:
    """An input image for the host: its URL, its bytes, or the id of a file at the host."""
    if isinstance(image, FileId) and image.id.startswith(job.provider.file_ids):
        return {"file_id": image.id}
    if isinstance(image, FileId):
        yield from inlined(image, job, param)  # refuses it
    return {"image_url": url_of(image)}


def _streams(job: Job) -> bool:
    return job.request.stream and job.model.streams and job.provider.streams


def _take(job: Job, made: _Made, event: Event) -> Conversation[None]:
    """Take an event, or the whole answer. Raises ProxyError where it is a failure."""
    try:
        said = decoded(event.joined(), _Said)
        response = decoded(event.joined(), _Response) if said.kind == "response" else said.response
    except ProxyError:
        if event.name == "" and not made.accepted:
            raise
        yield Tolerated("sse_noise")
        return
    if said.type == "error" or (said.error and response is None):
        _fail(made, _failure(job, msgspec.json.decode(event.joined(), type=dict[str, object])))
    if said.item is not None:
        _keep(made, said.item, done=said.type == "response.output_item.done")
    if response is not None:
        _end(job, made, response)
    if not made.accepted and (made.picture is not None or said.type.startswith(f"response.{CALL}.")):
        made.accepted = True
        yield Accepted()
        if made.id:
            yield JobId(made.id)
    text = base64_text(said.partial_image_b64) if job.request.partial_images else b""
    if text and made.picture is None:
        yield preview(job, _picture(text), said.partial_image_index)


def _keep(made: _Made, item: _Item, *, done: bool) -> None:
    """Take an item's picture, or its text instead."""
    if item.type == CALL and done and made.picture is None and (text := base64_text(item.result)):
        made.picture = replace(_picture(text), revised_prompt=item.revised_prompt or "")
    for part in (item.content or ()) if done else ():
        made.refusal = part.refusal or made.refusal
        made.texts.append(part.text)


def _end(job: Job, made: _Made, response: _Response) -> None:
    """Take a response's state, and at its end items without events. Raises ProxyError where it has failed."""
    made.id = made.id or response.id
    for item in response.output or () if made.picture is None else ():
        _keep(made, item, done=True)
    if response.error:
        _fail(made, _failure(job, {"error": response.error}))
    elif response.status == FAILED:
        _fail(made, failed(job, "", response.status))
    elif response.status == INCOMPLETE:
        reason = response.incomplete_details.reason if response.incomplete_details is not None else ""
        _fail(made, (moderated if reason == FILTERED else failed)(job, "", reason or INCOMPLETE))
    made.over = made.over or response.status == COMPLETED
    if response.tool_usage is not None:
        made.usage = {**ZERO_USAGE, **decoded_usage(bytes(response.tool_usage.image_gen))}  # not the text model's


def _fail(made: _Made, error: ProxyError) -> None:
    """Raise the error, unless the picture, which is paid for, is there."""
    if made.picture is None:
        raise error
    made.over = True


def _picture(text: bytes) -> Picture:
    info = probe_base64(text)
    return Picture((text,), media_type(info.format) if info else "")


def _nothing(job: Job, made: _Made) -> ProxyError:
    if made.refusal:
        return moderated(job, made.refusal, "refusal")
    if not made.over:
        message = "The provider's stream ended before its picture was complete."
        return ProxyError(Failure.MISSING_TERMINAL_EVENT, message)
    return no_image(job, " ".join(filter(None, made.texts)), "")


def _refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    path = urlsplit(job.provider.base_url + job.provider.responses).path
    return _marked(job, refusal(head, raw, path=path, callers_credential=job.callers_key, scrub=job.scrub))


def _failure(job: Job, value: Mapping[str, object]) -> ProxyError:
    return _marked(job, error_of(value, job.scrub))


def _marked(job: Job, error: ProxyError) -> ProxyError:
    """The error as MODERATION_BLOCKED, if it is a refusal by moderation."""
    return moderated(job, error.message, error.code or "") if error.code in BLOCKED else error
