"""A provider of recorded answers, and a driver without an event loop.

A golden file has one provider's exchanges in order. Each begins with the request and flags of it: `paid`, it costs
money; `over`, nothing can be cancelled after it. Then come status, media type, headers and flags of the answer: `cut`,
it breaks off at its end; `failed`, it never comes; `base64`, the body is binary. A WebSocket message is an exchange
too, and so is a JOIN without an answer.

    >>> POST /v1/images/generations paid
    <<< 200 text/event-stream cut
    data: ...
    ---

`Peer` performs the steps as `generation/driver.py` does, and checks the rules of conversations at each step.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

import streamproxy.core.conversation as steps
from streamproxy.core.conversation import Events, Limits, Picture, Step
from streamproxy.core.events import Frame
from streamproxy.core.requests import (
    Decoded,
    Encoded,
    Head,
    Inline,
    Input,
    Segment,
    Spooled,
    UpstreamRequest,
    as_base64,
)
from streamproxy.core.sse import Event
from streamproxy.errors import Failure, ProxyError
from streamproxy.upstream import Decoder

T = TypeVar("T")

GOLDEN: Final = Path(__file__).parent.parent / "golden"
LIMITS: Final = Limits(event=1 << 20, answer=1 << 20, inline_urls="always")
INSTANT: Final = (steps.Accepted, steps.NotApplied, steps.Undo, steps.JobId, steps.Progress, steps.Tolerated, Frame)
"""Steps that take no time, so that no driver fails or is cancelled at them."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One recorded exchange. `chunks`: its answer as it arrives. `breaks`: the connection is lost after them."""

    asked: str
    words: frozenset[str]
    head: Head
    chunks: tuple[bytes, ...]
    breaks: bool

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)


Answers = Sequence[Exchange]


@cache
def recorded(adapter: str, name: str) -> tuple[Exchange, ...]:
    """The exchanges of a golden file."""
    parts = (GOLDEN / adapter / f"{name}.txt").read_text().split("\n---\n")
    return tuple(_exchange(*part.split("\n", 2)) for part in parts[:-1])


def _exchange(asked: str, answered: str, text: str) -> Exchange:
    mark, *asking = asked.split()
    sign, status, kind, *said = answered.split()
    assert (mark, sign) == (">>>", "<<<"), (asked, answered)
    marks = {"paid", "over"}.intersection(asking)
    headers = tuple((name, value) for name, _, value in (word.partition("=") for word in said) if value)
    body = base64.b64decode(text) if "base64" in said else text.encode()
    what = " ".join(word for word in asking if word not in marks)
    head = Head(int(status), (("content-type", kind), *headers))
    return Exchange(what, frozenset({*marks, *said}), head, (body,), "cut" in said)


@dataclass(slots=True)
class Run:
    """The frames and notes of a conversation in order, those of its decoders included, and its error."""

    steps: list[Step] = field(default_factory=list)
    waits: list[Step] = field(default_factory=list)
    """The conversation's own steps, at which an error can be thrown in, or the conversation closed."""
    error: ProxyError | None = None
    accepted_at: int | None = None
    """Bytes of the paid answer that had arrived when it was accepted."""
    undo: UpstreamRequest | None = None
    paid: int = 0
    """How often the request that costs money was sent and not refused."""
    decoded: list[Exchange] = field(default_factory=list)
    """Answers that were read as they came, and not whole."""

    @property
    def frames(self) -> list[Frame]:
        return [step for step in self.steps if isinstance(step, Frame)]

    @property
    def finals(self) -> int:
        return sum(frame.final for frame in self.frames)


class Peer:
    """Gives the recorded answers. The last answer to a request is repeated."""

    def __init__(self, exchanges: Answers, n: int) -> None:
        self._left: dict[str, list[Exchange]] = {}
        for exchange in exchanges:
            self._left.setdefault(exchange.asked, []).append(exchange)
        self._n = n
        self._open: Exchange | None = None
        self._launched: Exchange | None = None
        self._events: Iterator[Event] | None = None
        self._given = 0
        self._lost = False
        self.run = Run()

    def perform(self, step: Step) -> object:
        """The reply to a step. Raises ProxyError where the provider, or the connection, fails."""
        self._say(step)
        match step:
            case steps.Send(request):
                return self._send(request)
            case steps.Launch(request):
                self._launched = self._found(request)
            case steps.Join():
                return self._join()
            case steps.Body():
                raw = b"".join(self._chunks())
                if self._lost:
                    raise broken()
                return raw
            case steps.NextEvent():
                self._events = self._events or self._through(Events(LIMITS))
                return next(self._events, None)
            case steps.Pour(decoder):
                for said in self._through(decoder):
                    if isinstance(said, steps.Inlining):
                        said = said.frame(tuple(map(self._kept, said.urls)))
                    self._say(said)
            case steps.Fetch(url):
                return self._fetched(url)
            case steps.Convert(image):
                return image if isinstance(image, Picture) else Picture((bytes(as_text(image)),), "image/png")
            case steps.Connect(url):
                self._answer(f"CONNECT /{url.split('/', 3)[3]}")
            case steps.Hear():
                left = self._left.get("HEAR")
                if not left or left[0].breaks:
                    raise broken()
                heard = left.pop(0)
                return heard.body if "base64" in heard.words else heard.body.decode()
        return None

    def lose(self, step: Step) -> None:
        """Note a failed step: a request that costs money may have arrived all the same."""
        if isinstance(step, steps.Send | steps.Launch):
            left = self._left.get(_asked(step.request))
            if left and "paid" in left[0].words:
                assert not self.run.paid, "paid twice"
                self.run.paid += 1

    def _say(self, step: Step) -> None:
        run = self.run
        run.steps.append(step)
        match step:
            case steps.Accepted():
                assert run.accepted_at is None, "accepted twice"
                run.accepted_at = self._given
            case Frame():
                assert run.accepted_at is not None, "a frame before it is accepted"
                assert run.finals <= self._n, "more images than the job is for"
                assert run.finals < self._n or step.final, "a preview after the last image"
            case steps.Undo(request):
                assert run.accepted_at is not None, "there is nothing to undo yet"
                run.undo = request
            case steps.Send() | steps.Launch() | steps.Fetch() | steps.Connect():
                assert run.finals < self._n, "sent after the last image"

    def _fetched(self, url: str) -> Picture:
        found = self._answer(f"FETCH {url}")
        if "failed" in found.words:
            raise ProxyError(Failure.FETCH_FAILED, "files.test: the status is 404.")
        return Picture((base64.b64encode(found.body),), found.head.media_type)

    def _kept(self, url: str) -> Picture:
        """The same; a picture that cannot be fetched keeps its URL."""
        try:
            return self._fetched(url)
        except ProxyError as error:
            return Picture((), url=url, problem=error.message)

    def _send(self, request: UpstreamRequest) -> Head:
        self._open = found = self._found(request)
        self._events = None
        return found.head

    def _join(self) -> Head | None:
        """The launched request's answer, once all requests beside it have theirs."""
        assert self._launched is not None, "nothing is launched"
        if left := self._left.get("JOIN"):
            left.pop(0)
            return None
        self._open, self._launched, self._events = self._launched, None, None
        return self._open.head

    def _found(self, request: UpstreamRequest) -> Exchange:
        found = self._answer(_asked(request))
        if "paid" in found.words:
            self._given = 0
            assert not self.run.paid, "paid twice"
            self.run.paid += found.head.status < 400
        elif "over" in found.words:
            assert self.run.undo is None, "a result is read while the work can still be cancelled"
        return found

    def _answer(self, what: str) -> Exchange:
        left = self._left.get(what)
        assert left, f"nothing is recorded for {what}"
        return left.pop(0) if len(left) > 1 else left[0]

    def _chunks(self) -> Iterator[bytes]:
        assert self._open is not None, "an answer is read before anything is sent"
        for chunk in self._open.chunks:
            self._given += len(chunk) if "paid" in self._open.words else 0
            yield chunk
        self._lost = self._open.breaks

    def _through(self, decoder: Decoder[T]) -> Iterator[T]:
        """Run a decoder as `Answer.frames` does: whole frames come before the failure."""
        if self._open is not None:
            self.run.decoded.append(self._open)
        for chunk in self._chunks():
            yield from filter(None, decoder.feed(chunk))
            if decoder.done:
                return
        try:
            yield from decoder.finish()
        except ProxyError as error:
            raise broken() if self._lost else error from None
        if self._lost:
            raise broken()


def _asked(request: UpstreamRequest) -> str:
    return f"{request.method} /{request.url.split('/', 3)[3]}"


def broken() -> ProxyError:
    """The error of a lost connection."""
    return ProxyError(Failure.UPSTREAM_INCOMPLETE, "The provider closed the connection in the middle of its answer.")


def byte_by_byte(exchanges: Answers) -> tuple[Exchange, ...]:
    """The same answers, each byte a chunk."""
    return tuple(replace(one, chunks=tuple(one.body[at : at + 1] for at in range(len(one.body)))) for one in exchanges)


def cuts(exchanges: Answers, decoded: Answers) -> Iterator[tuple[Exchange, ...]]:
    """Every way to cut one of the `decoded` answers in two. The driver joins the chunks of all others."""
    for number, one in enumerate(exchanges):
        for at in range(1, len(one.body) if one in decoded else 0):
            yield _instead(exchanges, number, replace(one, chunks=(one.body[:at], one.body[at:])))


def early_ends(exchanges: Answers, decoded: Answers) -> Iterator[tuple[Exchange, ...]]:
    """Every early end of one of the answers, cleanly or by a lost connection."""
    for number, one in enumerate(exchanges):
        whole = one.asked.startswith(("HEAR", "FETCH", "CONNECT", "JOIN"))  # these do not arrive in pieces
        for at in range(0 if whole else len(one.body)):
            if one.body[at - 1 : at + 1].isalnum():
                continue  # inside a word, or base64
            start = replace(one, chunks=(one.body[:at],))
            yield _instead(exchanges, number, replace(start, breaks=False))
            if at == 0 or one in decoded:  # where it is read whole, nothing is seen of one that breaks off
                yield _instead(exchanges, number, replace(start, breaks=True))


def _instead(exchanges: Answers, number: int, other: Exchange) -> tuple[Exchange, ...]:
    return (*exchanges[:number], other, *exchanges[number + 1 :])


def sent(request: UpstreamRequest) -> bytes:
    """A request as it is sent, without the driver's headers, and with uploads as base64."""
    return repr((request.method, request.url, request.headers)).encode() + b"".join(map(_text, request.body))


def as_text(image: Input) -> bytes | memoryview:
    """An input image's base64."""
    assert isinstance(image, Inline | Spooled)
    return _text(as_base64(image))


def _text(segment: Segment) -> bytes | memoryview:
    match segment:
        case bytes() | memoryview():
            return segment
        case Decoded(text):
            return text
        case Encoded(upload):
            return base64.b64encode(upload.read(0, upload.size))
    return base64.b64encode(segment.read(0, segment.size))
