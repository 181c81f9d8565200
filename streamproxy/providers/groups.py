"""Answers that come picture by picture, from Ark and MiniMax. Their events have OpenAI's names with other meanings.

    image_generation.partial_succeeded    a FINAL picture of the group, with its `image_index`, in any order
    image_generation.partial_failed       the failure of one picture
    image_generation.completed            no picture, but the `usage` of the whole group
    error, or {"error": {...}}            the failure of the group

A JSON answer has pictures and errors as the items of `data`. The head comes with the first picture.

Each picture becomes a frame at once. Only the last expected one waits for the `usage` after it, and goes on without it
if the answer ends there. If a group is smaller than it might be, all of it has gone on when that is said, and the usage
is an event of its own. The error of a failed picture comes after all other pictures. In a JSON answer it is a warning
beside them.

Sources: BytePlus's image generation API, 8 October 2026; MiniMax's H3-Image streaming events, November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import msgspec

from streamproxy.core.completion import decoded_usage, early, finals, missing
from streamproxy.core.conversation import (
    Accepted,
    Conversation,
    Job,
    Picture,
    Tolerated,
    decoded,
    fetch,
    first_of,
    next_event,
    refusal_body,
    send,
)
from streamproxy.core.cost import Work
from streamproxy.core.images import media_type, probe_base64
from streamproxy.core.rawjson import base64_text
from streamproxy.core.requests import Head, UpstreamRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, failed, moderated, no_image, refused, said_instead

SENSITIVE: Final = "SensitiveContent"
"""A part of Ark's codes for the content of a prompt or a picture, like OutputImageSensitiveContentDetected."""

BLOCKED: Final = frozenset({"1026", "1027", "content_policy_violation", "moderation_blocked"})
"""MiniMax's codes for the same."""


class _Error(msgspec.Struct):
    code: str | int | None = None
    message: str | None = None
    param: str | None = None
    http_code: int | str | None = None


class _Item(msgspec.Struct):
    image_index: int | None = None
    b64_json: msgspec.Raw = msgspec.Raw()
    url: str | None = None
    error: _Error | None = None


class _Said(_Item):
    """An event, a JSON answer, or an error."""

    type: str = ""
    data: list[_Item] | None = None
    usage: msgspec.Raw = msgspec.Raw()


def made(job: Job, request: UpstreamRequest) -> Conversation[None]:
    """Send the request, and read its group. Raises ProxyError."""
    head = yield from send(request)
    if head.status not in (200, 201):
        raise _refusal(job, head, _error((yield from refusal_body())))
    group = _Group(job, head)
    while (said := (yield from group.next())) is not None:
        if said.data is not None:
            yield from group.whole(said.data, said.usage)
            return
        yield from group.take(said)
        del said  # it may hold a picture
        if group.over:
            break
    yield from group.finish()


class _Group:
    """A job's pictures so far. `known`: indices of those that are made or failed; `held`: the newest picture."""

    def __init__(self, job: Job, head: Head) -> None:
        self._job = job
        self._head = head
        self._known: set[int] = set()
        self._made = 0
        self._held: tuple[int, Picture] | None = None
        self._failure: ProxyError | None = None
        self._usage = msgspec.Raw()
        self.over = False

    def next(self) -> Conversation[_Said | None]:
        """The next event; None at the end. A failure after the last picture only costs the usage."""
        try:
            event = yield from next_event()
            if event is None or (event.data and bytes(event.data[0][:6]) == b"[DONE]"):
                return None
            return decoded(event.joined(), _Said)
        except ProxyError as error:
            if len(self._known) < self._job.n:
                raise
            yield Tolerated(error.failure.value.label)
            return None

    def take(self, said: _Said) -> Conversation[None]:
        """Take an event. Raises ProxyError for the failure of the group."""
        kind = said.type.rpartition(".")[2]
        if said.error is not None and kind != "partial_failed":
            raise self._ended(said.error)
        if kind not in ("partial_succeeded", "partial_failed", "completed"):
            return
        if not self._known:
            yield Accepted()
        if kind == "completed":
            self._usage, self.over = said.usage, True
            return
        index = len(self._known) if said.image_index is None else said.image_index
        if index in self._known or not 0 <= index < self._job.n:
            yield Tolerated("more_images")
            return
        self._known.add(index)
        if said.error is not None or kind == "partial_failed":
            self._fail(said.error or _Error())
            return
        yield from self._picture(index, said)

    def _picture(self, index: int, said: _Item) -> Conversation[None]:
        picture = yield from _shown(said)
        self._made += 1
        if len(self._known) < self._job.n:
            yield early(self._job, picture, index)
        else:
            self._held = index, picture

    def whole(self, items: list[_Item], usage: msgspec.Raw) -> Conversation[None]:
        """Take a JSON answer. Raises ProxyError for the failure of the group."""
        if not items:
            raise no_image(self._job, "", "")
        yield Accepted()
        pictures: list[Picture | None] = []
        for item in (yield from first_of(items, self._job)):
            pictures.append(None if item.error is not None else (yield from _shown(item)))
            if item.error is not None:
                self._fail(item.error)
        if self._failure is not None and not any(pictures):
            raise self._failure
        told = None if self._failure is None else {"warning": self._failure.message}
        yield from finals(self._job, pictures, usage=_openai_usage(usage), said=told)

    def finish(self) -> Conversation[None]:
        """Take the end of the events: yield the held picture, then raise ProxyError for a failed one."""
        if self._held is not None:
            index, picture = self._held
            before: list[Picture | None] = [None] * index
            usage = _openai_usage(self._usage)
            yield from finals(self._job, [*before, picture], usage=usage, work=Work(images=self._made))
        elif self.over and self._made and self._failure is None:
            absent = sorted(set(range(self._job.n)) - self._known)
            work = Work(images=self._made, inputs=0)
            yield missing(self._job, absent[0], len(absent), _openai_usage(self._usage), work)
        if self._failure is not None:
            raise self._failure
        if not self._made or (not self.over and len(self._known) < self._job.n):
            message = "The provider's stream ended before its pictures were complete."
            raise ProxyError(Failure.MISSING_TERMINAL_EVENT, message)

    def _fail(self, said: _Error) -> None:
        self._failure = self._failure or _failure(self._job, said)

    def _ended(self, said: _Error) -> ProxyError:
        if self._known:
            return _failure(self._job, said)
        code = str(said.http_code)
        status = int(code) if code.isdecimal() else 0
        return _refusal(self._job, replace(self._head, status=status or said_instead(self._head).status), said)


def _shown(item: _Item) -> Conversation[Picture]:
    text = base64_text(item.b64_json)
    if text:
        info = probe_base64(text)
        return Picture((text,), media_type(info.format) if info else "")
    if not item.url:
        return Picture((), problem="The provider's answer holds no picture here.")
    return (yield from fetch(item.url))


def _error(raw: bytes) -> _Error:
    try:
        return decoded(raw, _Said).error or _Error()
    except ProxyError:
        return _Error()


def _refusal(job: Job, head: Head, said: _Error) -> ProxyError:
    code = "" if said.code is None else str(said.code)
    if _is_blocked(code):
        return moderated(job, said.message or "", code)
    return refused(job, head, Refusal(said.message or "", code or None, said.param or None))


def _failure(job: Job, said: _Error) -> ProxyError:
    """The error for a picture, or a group, that failed after its acceptance."""
    code = "" if said.code is None else str(said.code)
    return moderated(job, said.message or "", code) if _is_blocked(code) else failed(job, said.message or "", code)


def _is_blocked(code: str) -> bool:
    return SENSITIVE in code or code in BLOCKED


def _openai_usage(raw: msgspec.Raw) -> Mapping[str, object] | None:
    """The usage in OpenAI's form. Input is the total less the output."""
    said = decoded_usage(bytes(raw))
    if not said:
        return None
    made, total = _count(said.get("output_tokens")), _count(said.get("total_tokens"))
    sent = _count(said.get("input_tokens")) or max(0, total - made)
    details = said.get("input_tokens_details")
    zeros = {"text_tokens": 0, "image_tokens": 0}
    return {
        "total_tokens": total or sent + made,
        "input_tokens": sent,
        "output_tokens": made,
        "input_tokens_details": {**zeros, **details} if isinstance(details, dict) else zeros,
    }


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
