"""Decodes the answers of OpenAI-compatible providers, whichever of the two forms they choose.

    events  -> frames, relayed as they are        (a caller who asked for a stream)
    events  -> one JSON answer                    (a caller who did not)
    JSON    -> one synthesized event per image    (a caller who asked for a stream)
    JSON    -> the same JSON                      (a caller who did not)

Which form it is shows in the first byte, not in the content type: services send events as application/json, and error
objects as text/event-stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from streamproxy.core.completion import ZERO_USAGE, appended, ending, full_usage
from streamproxy.core.events import ANSWER, ERROR, KINDS, Frame, Role, type_of
from streamproxy.core.outline import Outline, outline
from streamproxy.core.requests import Exchange
from streamproxy.core.sse import Cutter, Event, Piece
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.openai_errors import error_in_answer
from streamproxy.providers.openai_json import answer_frame, image_frames, read_object, whole_number

_SPACE = b"\xef\xbb\xbf \t\r\n"
_LEAD = 64 * 1024
"""White space before the first byte that says something; more is not an answer."""


class Answer:
    """Decides by the first byte which decoder reads the answer, and is that decoder from then on."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._lead = b""
        self._inner: _Events | _Json | None = None

    @property
    def done(self) -> bool:
        return self._inner is not None and self._inner.done

    @property
    def odd(self) -> bool:
        return isinstance(self._inner, _Events) and self._inner.odd

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        if self._inner is None:
            chunk = self._lead + chunk
            said = chunk.lstrip(_SPACE)
            if not said:
                self._lead = chunk[:_LEAD]
                return
            self._inner = _Json(self._exchange) if said[:1] in (b"{", b"[") else _Events(self._exchange)
        yield from self._inner.feed(chunk)

    def finish(self) -> Iterator[Frame]:
        inner = self._inner or _Events(self._exchange)
        yield from inner.finish()


class _Events:
    """An event stream: GPT image events go on as they are, everything else a provider may say is left out."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._request = exchange.request
        self._cutter = Cutter(exchange.max_event_bytes)
        self._images = 0
        self._answers: list[bytes] = []
        self._size = 0
        self._mended = False
        self.done = False

    @property
    def odd(self) -> bool:
        """Invalid UTF-8 in an event that went on, or a lone CR as a line end."""
        return self._mended or self._cutter.lone_cr

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        for event in self._cutter.feed(chunk):
            yield from self._event(event)
            del event  # the chunk's rest begins the next one
            if self.done:
                return

    def finish(self) -> Iterator[Frame]:
        last = None if self.done else self._cutter.finish()
        if last is not None and outline(last.data) is not None:
            yield from self._event(last)
        if not self.done:
            raise _no_terminal()

    def _event(self, event: Event) -> Iterator[Frame]:
        if not event.data:
            return  # SDKs read an event without data as broken JSON
        if bytes(event.data[0][:6]) == b"[DONE]":
            if not self._images:
                raise _no_terminal()
            self.done = True  # fewer images than asked for, as a JSON answer may have fewer
            if self._answers:
                yield collected(self._answers, self._exchange.now)
            return
        said = outline(event.data)
        if said is None:
            if event.name in ("", "message", ERROR) or event.name in KINDS:
                if not event.joined().strip():
                    return
                raise _not_json()
            return  # somebody's keepalive
        kind = KINDS.get(said.type) or KINDS.get(event.name)
        if said.failed or ERROR in (event.name, said.type) or (kind is not None and kind.role is Role.FAILED):
            raise error_in_answer(event.joined(), self._exchange.scrub, event.data)
        if kind is None:
            return
        right = type_of(self._request.operation, kind.role)
        self._mended = self._mended or not said.utf8
        if kind.role is Role.COMPLETED:
            if not said.has_image:
                raise ProxyError(Failure.NO_IMAGE, "The provider's completed event holds no image.")
            yield from self._completed(_mended(event.data, said, right), said)
        elif self._request.stream and said.has_image:
            image = self._index(said)
            data = _mended(event.data, said, right)
            if self._several and "image_index" not in said.has:
                data = appended(data, {"image_index": image})
            yield Frame(right, data, image=image)

    def _completed(self, data: tuple[Piece, ...], said: Outline) -> Iterator[Frame]:
        index = self._index(said)
        self._images += 1
        self.done = self._images >= self._request.n
        members = ending(
            said.usage,
            price=self._request.model.price,
            images=1,
            provider=self._exchange.provider.name,
            has=said.has,
        )
        if "usage" not in said.has:
            members["usage"] = ZERO_USAGE
        if "b64_json" not in said.has:
            members["b64_json"] = None
        if self._several and "image_index" not in said.has:
            members["image_index"] = index
        data = appended(data, members)
        if self._request.stream:
            yield Frame(type_of(self._request.operation, Role.COMPLETED), data, image=index, final=True)
            return
        self._size += sum(map(len, data))
        if self._size > self._exchange.max_answer_bytes:
            raise _too_large(self._exchange)
        self._answers.append(b"".join(data))
        if self.done:
            yield collected(self._answers, self._exchange.now)

    @property
    def _several(self) -> bool:
        return self._request.n > 1 or self._request.image_index is not None

    def _index(self, said: Outline) -> int:
        """Which image the event is about: ours where it has a request of its own, else the provider's or the next."""
        if self._request.image_index is not None:
            return self._request.image_index
        return self._images if said.image_index is None else said.image_index


def _no_terminal() -> ProxyError:
    return ProxyError(Failure.MISSING_TERMINAL_EVENT, "The provider's stream ended without the completed image.")


def _not_json() -> ProxyError:
    return ProxyError(Failure.BAD_JSON, "The provider sent an event whose data is not JSON.")


def _too_large(exchange: Exchange) -> ProxyError:
    return ProxyError(
        Failure.RESPONSE_BODY_SIZE,
        f"The provider's answer is over {exchange.max_answer_bytes} bytes. "
        "The setting max_response_bytes allows larger ones.",
    )


def _mended(data: tuple[Piece, ...], said: Outline, right: str) -> tuple[Piece, ...]:
    """The event's data as SDKs can read it; nearly always it is so already.

    They read `type`, not the event's name; openai-python fails on invalid UTF-8, which WHATWG reads as U+FFFD;
    openai-node takes an empty object in `error` for an error; their types have no usage without details.
    """
    usage = None if "usage" not in said.has else full_usage(said.usage)
    drop = ("error",) if said.error is not None and said.error[:1] in (b"{", b"[") else ()
    if said.type == right and said.utf8 and not drop and usage in (None, said.usage):
        return data
    raw = b"".join(data)
    body = read_object(raw if said.utf8 else raw.decode("utf-8", "replace").encode())
    replace = {} if usage is None else {"usage": usage}
    value = msgspec.json.encode(right)
    if "type" in body.members:
        return (body.edited(replace={**replace, "type": value}, drop=drop),)
    return (b'{"type":' + value + b"," + body.edited(replace=replace, drop=drop).lstrip()[1:],)


_PER_IMAGE: Final = ("b64_json", "url", "revised_prompt")
_EVENT_ONLY: Final = ("type", "created_at", "image_index", "partial_image_index", "error")


def collected(events: list[bytes], now: int) -> Frame:
    """The JSON answer that `completed` events amount to; what holds for all images is taken from the last."""
    try:
        images = [msgspec.json.decode(event, type=dict[str, msgspec.Raw]) for event in events]
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _not_json() from None
    last = images[-1]
    answer: dict[str, object] = {
        "created": whole_number(last.get("created_at", msgspec.Raw())) or now,
        "data": [{name: image[name] for name in _PER_IMAGE if name in image} for image in images],
    }
    answer |= {name: value for name, value in last.items() if name not in (*_PER_IMAGE, *_EVENT_ONLY)}
    return Frame(ANSWER, (msgspec.json.encode(answer),), final=True)


class _Json:
    """A buffered JSON answer, decoded when it is whole."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._chunks: list[bytes] = []
        self._size = 0
        self.done = False

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        self._size += len(chunk)
        if self._size > self._exchange.max_answer_bytes:
            raise _too_large(self._exchange)
        self._chunks.append(chunk)
        yield from ()

    def finish(self) -> Iterator[Frame]:
        if self.done:
            return
        raw = b"".join(self._chunks).lstrip(_SPACE)
        self._chunks.clear()
        make = image_frames if self._exchange.request.stream else answer_frame
        yield from make(raw, self._exchange)
        self.done = True
