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

import msgspec
import orjson

from streamproxy.core.completion import appended, ending, full_usage
from streamproxy.core.events import ANSWER, KINDS, Frame, Role, type_of
from streamproxy.core.jsonbody import parse
from streamproxy.core.outline import Outline, outline
from streamproxy.core.requests import Exchange
from streamproxy.core.sse import Cutter, Event
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.openai_errors import error_in_answer
from streamproxy.providers.openai_json import answer_frame, image_frames

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
        self.done = False

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        for event in self._cutter.feed(chunk):
            yield from self._event(event)
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
            raise _no_terminal()
        said = outline(event.data)
        if said is None:
            if event.name in ("", "message", "error") or event.name in KINDS:
                raise _not_json()
            return  # somebody's keepalive
        kind = KINDS.get(said.type or event.name)
        failed = event.name == "error" or said.type == "error" or (kind is not None and kind.role is Role.FAILED)
        if failed or said.error not in (None, b"false", b"0", b'""', b"{}"):
            raise error_in_answer(event.joined(), self._exchange.scrub, event.data)
        if kind is None:
            return
        if kind.role is Role.COMPLETED and not said.has_image:
            raise ProxyError(Failure.NO_IMAGE, "The provider's completed event holds no image.")
        event = _labelled(event, said, type_of(self._request.operation, kind.role))
        if kind.role is Role.PREVIEW:
            if self._request.stream:
                yield Frame(type_of(self._request.operation, kind.role), event.data, image=said.image_index or 0)
            return
        yield from self._completed(event, said)

    def _completed(self, event: Event, said: Outline) -> Iterator[Frame]:
        index = self._images
        self._images += 1
        self.done = self._images >= self._request.n
        members = ending(
            said.usage,
            price=self._request.model.price,
            images=1,
            provider=self._exchange.provider.name,
            has_cost=said.has_cost,
            has_provider=said.has_provider,
        )
        data = appended(event.data, members)
        if self._request.stream:
            yield Frame(type_of(self._request.operation, Role.COMPLETED), data, image=index, final=True)
            return
        self._answers.append(b"".join(data))
        if self.done:
            yield collected(self._answers)


def _no_terminal() -> ProxyError:
    return ProxyError(Failure.MISSING_TERMINAL_EVENT, "The provider's stream ended without the completed image.")


def _not_json() -> ProxyError:
    return ProxyError(Failure.BAD_JSON, "The provider sent an event whose data is not JSON.")


def _labelled(event: Event, said: Outline, right: str) -> Event:
    """The event with `right` as its JSON `type`, which is what SDKs read; nearly always it stands there already."""
    if said.type == right:
        return event
    body = parse(event.joined())
    value = orjson.dumps(right)
    changed = body.edited(replace={"type": value}) if said.type else b'{"type":' + value + b"," + body.raw.lstrip()[1:]
    return Event(right, (changed,))


class _Collected(msgspec.Struct):
    created_at: int = 0
    b64_json: msgspec.Raw = msgspec.Raw(b"null")
    url: msgspec.Raw = msgspec.Raw()
    size: msgspec.Raw = msgspec.Raw()
    quality: msgspec.Raw = msgspec.Raw()
    background: msgspec.Raw = msgspec.Raw()
    output_format: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    cost: msgspec.Raw = msgspec.Raw(b"null")
    provider: msgspec.Raw = msgspec.Raw(b"null")


def collected(events: list[bytes]) -> Frame:
    """The JSON answer that `completed` events amount to; what holds for all images is taken from the last."""
    try:
        images = [msgspec.json.decode(event, type=_Collected) for event in events]
    except msgspec.DecodeError:
        raise _not_json() from None
    last = images[-1]
    data = [{"b64_json": i.b64_json} | ({"url": i.url} if bytes(i.url) else {}) for i in images]
    answer: dict[str, object] = {"created": last.created_at, "data": data}
    for name in ("background", "output_format", "quality", "size"):
        value: msgspec.Raw = getattr(last, name)
        if bytes(value):
            answer[name] = value
    answer["usage"] = full_usage(bytes(last.usage) or None)
    answer["cost"] = last.cost
    answer["provider"] = last.provider
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
            raise ProxyError(
                Failure.RESPONSE_BODY_SIZE,
                f"The provider's answer is over {self._exchange.max_answer_bytes} bytes. "
                "The setting max_response_bytes allows larger ones.",
            )
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
