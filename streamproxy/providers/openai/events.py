"""Decodes the answers of OpenAI-compatible providers, which may be events or JSON.

    events  -> frames, relayed unchanged          (the caller asked for a stream)
    events  -> one JSON answer                    (the caller did not)
    JSON    -> one synthesized event per image    (the caller asked for a stream)
    JSON    -> the same JSON                      (the caller did not)

The first bytes decide which form it is, not the content type: services send events as application/json, error objects
as text/event-stream, and either as text/plain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final

import msgspec

from streamproxy.core.completion import ZERO_USAGE, appended, ending, full_usage, model_of
from streamproxy.core.conversation import Accepted, Inlining, Job, Picture, Said, Tolerated
from streamproxy.core.cost import amount
from streamproxy.core.eventdata import Outline, outline
from streamproxy.core.events import ERROR, KINDS, Frame, Role, type_of
from streamproxy.core.rawjson import JsonObject
from streamproxy.core.requests import Head
from streamproxy.core.sse import Cutter, Event, Piece
from streamproxy.errors import ErrorDetails, Failure, ProxyError
from streamproxy.providers.openai.answer import (
    answer_frame,
    image_frames,
    keeps_url,
    read_object,
    unwrapped,
    url_of,
    with_picture,
)
from streamproxy.providers.openai.errors import blocked, error_in_answer, error_in_words

IDLE_BYTES: Final = 1024 * 1024
"""Bytes in a row without a frame: white space before an answer, comments, events of no use. A keepalive event of 100
bytes each second makes 60 KB in ten minutes.
"""

IDLE_EVENT: Final = 16 * 1024
"""Most bytes counted for one event of no use, so that a picture in an unknown event does not end the stream."""

STEP: Final = 256
"""Events, a few milliseconds of work, after which other tasks get a turn."""

_SPACE: Final = b"\xef\xbb\xbf \t\r\n"
_ANSWERS: Final = ("text/event-stream", "application/json", "")
_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
"""The possible first bytes of an event stream."""

_NOTED: Final = 128
"""Characters of a provider's header in a log line. RFC 6838 allows 127 for each half of a media type."""

_OURS: Final = re.compile(rb"image_|error|\\")
"""Text in the data of every known `type` of event, and of every error. A backslash may hide it."""


class Answer:
    """Chooses the decoder of the answer by its first bytes, and forwards to it from then on.

    A status of 200 does not accept the request. The first event, or the JSON, that is not a refusal does.
    """

    def __init__(self, job: Job, head: Head) -> None:
        self._job = job
        self._head = head
        self._known = head.media_type in _ANSWERS
        self._lead = bytearray()
        self._inner: _Events | _Json | None = None

    @property
    def done(self) -> bool:
        return self._inner is not None and self._inner.done

    def feed(self, chunk: bytes) -> Iterator[Said | None]:
        if self._inner is None:
            self._lead += chunk
            if not chunk.lstrip(_SPACE):
                if len(self._lead) > IDLE_BYTES:
                    raise _idle()
                return
            chunk = bytes(self._lead)
            self._inner = self._decider(chunk.lstrip(_SPACE))
            if self._inner is None:
                return
            self._lead.clear()
        yield from self._inner.feed(chunk)

    @property
    def gather(self) -> Callable[[bytes], bool] | None:
        """Cutter.gather, where the answer is events."""
        return self._inner.gather if isinstance(self._inner, _Events) else None

    def finish(self) -> Iterator[Said]:
        if self._inner is None and not self._known:
            raise self._refused()
        inner = self._inner or _Events(self._job)
        yield from inner.finish()

    def _decider(self, start: bytes) -> _Events | _Json | None:
        """The decoder for an answer with this start; None where it is too short. Raises ProxyError for neither form."""
        if start[:1] in (b"{", b"["):
            return _Json(self._job)
        if not self._known and not start.startswith(_FIELDS):
            if any(field.startswith(start) for field in _FIELDS):
                return None
            raise self._refused()
        return _Events(self._job)

    def _refused(self) -> ProxyError:
        """The error for a body in neither form. Only its head may be logged."""
        head, scrub = self._head, self._job.scrub
        said = {"content_type": head.media_type, "content_length": head.headers.get("content-length", "")}
        return ProxyError(
            Failure.UNEXPECTED_CONTENT_TYPE,
            "The provider answered with neither JSON nor an event stream. Check the provider's base_url.",
            details=ErrorDetails(noted={name: scrub(text)[:_NOTED] for name, text in said.items() if text}),
        )


class _Events:
    """An event stream. GPT image events are relayed, all other events are left out."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._request = job.request
        self._cutter = Cutter(job.limits.event)
        self._held = 0
        self._images = 0
        self._size = 0
        self._idle = 0
        self._mended = False
        self._noise = False
        self._accepted = False
        self.done = False

    def _faults(self) -> Iterator[Tolerated]:
        """The stream's faults: invalid UTF-8 in a relayed event, a lone CR as a line end, events that are not JSON."""
        if self._mended or self._cutter.lone_cr:
            yield Tolerated("sse_odd")
        if self._noise:
            yield Tolerated("sse_noise")

    def feed(self, chunk: bytes) -> Iterator[Said | None]:
        self._idle += self._cutter.held - self._held + len(chunk)  # what was gathered since, and this
        for number, event in enumerate(self._cutter.feed(chunk), 1):
            size = event.size
            self._idle -= size - min(size, IDLE_EVENT)
            yield from self._event(event)
            del event  # it would keep the chunk alive
            if self.done:
                yield from self._faults()
                return
            if number % STEP == 0:
                yield None
        self._held = self._cutter.held
        if self._idle - self._held > IDLE_BYTES:
            raise _idle()

    @property
    def gather(self) -> Callable[[bytes], bool]:
        return self._cutter.gather

    def finish(self) -> Iterator[Said]:
        last = None if self.done else self._cutter.finish()
        if last is not None and outline(last.data) is not None:
            yield from self._event(last)
        yield from self._faults()
        if not self.done:
            raise self._unfinished()

    def _event(self, event: Event) -> Iterator[Said]:
        if not event.data:
            return  # SDKs take an event without data for broken JSON
        if bytes(event.data[0][:6]) == b"[DONE]":
            if not self._images:
                raise self._unfinished()
            self.done = True  # perhaps with fewer images than asked for, as in a JSON answer
            return
        said = outline(event.data, event.quoted) if _may_be_ours(event) else None
        if said is None:
            self._skip(event)
            return
        kind = KINDS.get(said.type) or KINDS.get(event.name)
        if said.failed or ERROR in (event.name, said.type) or (kind is not None and kind.role is Role.FAILED):
            raise blocked(self._job, error_in_answer(event.joined(), self._job.scrub, event.data))
        if kind is None or kind.role is Role.USAGE:
            return
        right = type_of(self._request.operation, kind.role)
        self._mended = self._mended or not said.utf8
        if not self._accepted:
            self._accepted = True
            yield Accepted()
        if kind.role is Role.COMPLETED:
            if not said.has_image:
                raise ProxyError(Failure.NO_IMAGE, "The provider's completed event has no image.")
            self._idle = 0
            data, said = _unwrapped(event.data, said)
            yield from self._completed(_mended(data, said, right), said)
        elif self._request.stream and said.has_image:
            self._idle = 0
            image = self._index(said)
            data = _mended(*_unwrapped(event.data, said), right)
            if self._job.several and "image_index" not in said.has:
                data = appended(data, {"image_index": image})
            yield Frame(right, data, image=image)

    def _skip(self, event: Event) -> None:
        """Skip an unknown event. Raises ProxyError where its name is that of an error or a picture."""
        start = bytes(event.data[0][:IDLE_EVENT]).lstrip()
        if not start:
            return
        role = Role.FAILED if event.name == ERROR else KINDS[event.name].role if event.name in KINDS else None
        if role is Role.FAILED:
            raise error_in_words(event.joined(), self._job.scrub)
        if role is Role.COMPLETED:
            raise _not_json()
        if role is Role.PREVIEW or event.name in ("", "message"):
            self._noise = self._noise or start[:1] != b"{" or _may_be_ours(event)

    def _unfinished(self) -> ProxyError:
        """The error for a stream that ended too early. An unreadable event may have been the picture."""
        if not self._noise:
            return _no_terminal()
        message = "The provider's stream ended without the completed image, and had events whose data is not JSON."
        return ProxyError(Failure.BAD_JSON, message)

    def _completed(self, data: tuple[Piece, ...], said: Outline) -> Iterator[Frame | Inlining]:
        index = self._index(said)
        self._images += 1
        self.done = self._images >= self._job.n
        members = ending(
            said.usage,
            price=self._job.model.price,
            images=1,
            provider=self._job.provider.name,
            has=said.has,
        )
        if "model" not in said.has:
            members |= model_of(self._job)
        if "usage" not in said.has:
            members["usage"] = ZERO_USAGE
        if "b64_json" not in said.has:
            members["b64_json"] = None
        if self._job.several and "image_index" not in said.has:
            members["image_index"] = index
        data = appended(data, members)
        self._size += sum(map(len, data))
        if not self._request.as_events and self._size > self._job.limits.answer:
            raise _too_large(self._job)
        kind, paid = type_of(self._request.operation, Role.COMPLETED), amount(members.get("cost", said.cost))
        frame = Frame(kind, data, image=index, final=True, cost=paid)
        url = _url(_parsed(data, said)) if self._job.inlines and said.has_url and not said.has_b64 else ""
        yield Inlining((url,), partial(_fetched, frame, keeps_url(self._job))) if url else frame

    def _index(self, said: Outline) -> int:
        """The index of the event's image: the provider's, if it makes all of them, otherwise the job's next one."""
        if self._job.n < self._request.n or said.image_index is None:
            return self._job.first + self._images
        return said.image_index


def _may_be_ours(event: Event) -> bool:
    """Whether an event must be parsed. Most events of other types are small and numerous."""
    if event.name in KINDS or event.name == ERROR or event.size > IDLE_EVENT:
        return True
    return any(_OURS.search(piece) for piece in event.data)


def _idle() -> ProxyError:
    return ProxyError(Failure.STREAM_PROTOCOL, f"The provider sent over {IDLE_BYTES} bytes in a row without an image.")


def _no_terminal() -> ProxyError:
    return ProxyError(Failure.MISSING_TERMINAL_EVENT, "The provider's stream ended without the completed image.")


def _not_json() -> ProxyError:
    return ProxyError(Failure.BAD_JSON, "The provider sent an event whose data is not JSON.")


def _too_large(job: Job) -> ProxyError:
    return ProxyError(
        Failure.RESPONSE_BODY_SIZE,
        f"The provider's answer is over {job.limits.answer} bytes. The setting max_response_bytes allows larger ones.",
    )


def _unwrapped(data: tuple[Piece, ...], said: Outline) -> tuple[tuple[Piece, ...], Outline]:
    """An event's data with its picture as bare base64, and the new outline."""
    if not said.wrapped or (plain := unwrapped(_parsed(data, said))) is None:
        return data, said
    return (plain,), outline((plain,)) or said


def _url(event: JsonObject) -> str:
    return url_of({name: msgspec.Raw(event.value(name) or b"") for name in ("b64_json", "url")})


def _fetched(frame: Frame, keep_url: bool, pictures: tuple[Picture, ...]) -> Frame:
    """A completed event whose picture was at a URL, and is here now, or could not be had."""
    event = read_object(b"".join(frame.data))
    return replace(frame, data=with_picture(event, pictures[0], keep_url=keep_url))


def _mended(data: tuple[Piece, ...], said: Outline, right: str) -> tuple[Piece, ...]:
    """The event's data in a form that SDKs can read, which it nearly always has already.

    SDKs read `type`, not the event's name. openai-python fails on invalid UTF-8, which WHATWG decodes to U+FFFD.
    openai-node takes an empty object in `error` for an error. Their types require the details of `usage`.
    """
    usage = None if "usage" not in said.has else full_usage(said.usage)
    drop = ("error",) if said.error is not None and said.error[:1] in (b"{", b"[") else ()
    if said.type == right and said.utf8 and not drop and usage in (None, said.usage):
        return data
    body = _parsed(data, said)
    changed = {} if usage is None else {"usage": usage}
    value = msgspec.json.encode(right)
    if "type" in body.members:
        return (body.edited(replace={**changed, "type": value}, drop=drop),)
    return (b'{"type":' + value + b"," + body.edited(replace=changed, drop=drop).lstrip()[1:],)


def _parsed(data: tuple[Piece, ...], said: Outline) -> JsonObject:
    raw = b"".join(data)
    return read_object(raw if said.utf8 else raw.decode("utf-8", "replace").encode())


class _Json:
    """A JSON answer, decoded when it is whole. One buffer, because it may come byte by byte."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._body = bytearray()
        self.done = False

    def feed(self, chunk: bytes) -> Iterator[Said | None]:
        if len(self._body) + len(chunk) > self._job.limits.answer:
            raise _too_large(self._job)
        self._body += chunk
        yield from ()

    def finish(self) -> Iterator[Said]:
        if self.done:
            return
        raw = bytes(self._body).lstrip(_SPACE)
        self._body.clear()
        as_events = self._job.request.as_events or self._job.n < self._job.request.n  # jobs' answers are put together
        frames = image_frames(raw, self._job) if as_events else answer_frame(raw, self._job)
        for number, frame in enumerate(frames):
            if not number:
                yield Accepted()
            yield frame
        self.done = True
