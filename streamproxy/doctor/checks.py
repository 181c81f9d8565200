"""The checks: what is asked through the edge, and how the answers are judged.

Each check returns a word for the table of results, and its findings. What concerns every exchange, like its headers, is
judged for all answers together.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import anyio

from streamproxy.doctor.caller import EDITS, MODEL, Answer, Caller, Limits
from streamproxy.doctor.cures import Fault
from streamproxy.doctor.provider import Times
from streamproxy.doctor.witness import Exchange

UPLOAD_BYTES: Final = 20 * 1024 * 1024
DISPOSITION: Final = "content-disposition: form-data"
PNG: Final = b"\x89PNG\r\n\x1a\n"
SLOW_LINE: Final = Limits(patience=90.0)
"""20 MB take so long at 1.5 Mbit/s."""

HELD_SECONDS: Final = 0.1
"""An event that takes so much longer than a short request is held: Nagle's and MSG_MORE's delays are 40 and 200 ms."""

LEAVES: Final = 1.35
AT_ONCE: Final = 0.5
NEXT: Final = 1.15
WITHIN: Final = 2.2
"""In heartbeats. A caller leaves 0.35 after a comment: the next one comes after 0.65 more, and a second after 1.65."""

TRIES: Final = 3
PASSED: Final = "passes"
COMPLETED: Final = b"event: image_generation.completed"
FRAME: Final = re.compile(rb"^event: .*?\n\n", re.MULTILINE | re.DOTALL)
ID: Final = re.compile(rb"^id: (.+)$", re.MULTILINE)

OWN: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),  # RFC 9110
        *("date", "server", "content-length"),
        "x-accel-buffering",  # nginx obeys it, and keeps it
    }
)
"""Response headers that are each server's own."""

NEGOTIATED: Final = frozenset({"accept-encoding"})
"""Request headers that an edge may take for itself: without them the proxy's answer is the same."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault, and what was seen of it."""

    fault: Fault
    detail: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """A check's word for the table, and its findings."""

    word: str
    findings: tuple[Finding, ...] = ()


Check = Callable[[Caller, Times], Awaitable[Outcome]]


async def reach(caller: Caller) -> tuple[float | None, Outcome]:
    """Ask for little, and return the least seconds of an answer; None where there is no use in asking for more."""
    answers = [await caller.ask("GET", "/v1/models", {}) for _ in range(TRIES)]
    last = answers[-1]
    if not last.exchanges:
        return None, Outcome("nothing", (Finding(Fault.UNREACHABLE, _end_of(last)),))
    if not last.whole:  # for want of the key, if that is lost
        return None, Outcome(last.word)
    return min(answer.ended - answer.began for answer in answers), Outcome(f"HTTP/{last.exchanges[-1].http_version}")


async def previews(caller: Caller, short: float) -> Outcome:
    """Previews that are made one by one have to arrive one by one. `short`: seconds that a short answer takes."""
    answer = await caller.order("previews", stream=True, encodings="gzip, br, zstd")
    sent = answer.exchanges[-1].sent if answer.exchanges else []
    if not sent or not answer.pieces or answer.pieces[-1][0] < sent[-1][0]:
        return Outcome(answer.word, (Finding(Fault.STREAM_TIMEOUT, _end_of(answer)),))
    encoded = "content-encoding" in answer.headers
    if _first_frame(answer.pieces, encoded=encoded) >= sent[-1][0]:
        return Outcome("at the end", (Finding(Fault.BUFFERED, "the first preview came with the completed image"),))
    if encoded:
        return Outcome("compressed")
    held = min(_held(sent, answer.pieces), default=0.0) - short
    if held > HELD_SECONDS:
        return Outcome("held", (Finding(Fault.DELAYED, f"each preview came {held * 1000:.0f} ms late"),))
    return Outcome("one by one")


async def upload(caller: Caller, _: Times) -> Outcome:
    """An edit with a large image."""
    fields = {"model": MODEL, "prompt": "upload"}
    texts = "".join(f'--part\r\n{DISPOSITION}; name="{name}"\r\n\r\n{text}\r\n' for name, text in fields.items())
    file = f'--part\r\n{DISPOSITION}; name="image"; filename="a.png"\r\ncontent-type: image/png\r\n\r\n'
    image = (PNG, bytes(UPLOAD_BYTES - len(PNG)))
    body = b"".join((texts.encode(), file.encode(), *image, b"\r\n--part--\r\n"))
    answer = await caller.ask("POST", EDITS, {"content-type": "multipart/form-data; boundary=part"}, body, SLOW_LINE)
    if answer.whole:
        return Outcome(PASSED)
    return Outcome(answer.word, (Finding(Fault.BODY_LIMIT, _end_of(answer)),))


async def silent_stream(caller: Caller, times: Times) -> Outcome:
    """A stream that carries only comments for a long time."""
    answer = await caller.order("silent-stream", stream=True, limits=Limits(times.silence))
    if answer.whole and COMPLETED in answer.data:
        return Outcome(PASSED)
    return Outcome(answer.word, (Finding(Fault.STREAM_TIMEOUT, _end_of(answer)),))


async def silent_answer(caller: Caller, times: Times) -> Outcome:
    """An answer without stream, of which nothing comes for a long time."""
    answer = await caller.order("silent-answer", stream=False, limits=Limits(times.silence))
    if answer.whole:
        return Outcome(PASSED)
    return Outcome(answer.word, (Finding(Fault.ANSWER_TIMEOUT, _end_of(answer)),))


async def left_stream(caller: Caller, times: Times) -> Outcome:
    """A caller closes its connection after a comment: the proxy has to notice it by the next one at the latest."""
    within = WITHIN * times.heartbeat
    late = await _noticed(caller, "left-stream", times, within)
    if late is None:
        return Outcome("late", (Finding(Fault.STREAM_LEFT, f"not noticed within {within:.1f} s"),))
    if late < NEXT * times.heartbeat:
        return Outcome("at once" if late < AT_ONCE * times.heartbeat else "next comment")
    return Outcome("late", (Finding(Fault.STREAM_LEFT, f"noticed after {late:.1f} s"),))


async def left_answer(caller: Caller, times: Times) -> Outcome:
    """The same where nothing is written before the end."""
    within = AT_ONCE * times.heartbeat
    if await _noticed(caller, "left-answer", times, within) is not None:
        return Outcome("at once")
    return Outcome("not noticed", (Finding(Fault.ANSWER_LEFT, f"not noticed within {within:.1f} s"),))


async def resume(caller: Caller, _: Times) -> Outcome:
    """A stream is followed once more, and then from its second event on."""
    first = await caller.order("resume", stream=True)
    path = f"/v1/streams/{first.headers.get('stream-id', 'lost')}"
    whole = await caller.ask("GET", path, {"accept": "text/event-stream"})
    ids = ID.findall(whole.data)
    if not ids:
        return Outcome("no", () if "stream-id" not in first.headers else (_wrong(whole),))
    rest = await caller.ask("GET", path, {"accept": "text/event-stream", "last-event-id": ids[0].decode()})
    if ID.findall(rest.data) == ids[1:]:
        return Outcome("yes")
    return Outcome("no", () if rest.status == 200 else (_wrong(rest),))


async def failing_stream(caller: Caller, _: Times) -> Outcome:
    """A stream that ends with an `error` event."""
    answer = await caller.order("failing", stream=True)
    if b"event: error\n" in answer.data:
        return Outcome("arrives")
    return Outcome(answer.word, (Finding(Fault.ANSWER_BODY, f"no error event, {_end_of(answer)}"),))


async def refusals(caller: Caller, _: Times) -> Outcome:
    """Error answers before a stream: the proxy's own JSON has to arrive."""
    for prompt in ("refused", "broken"):
        answer = await caller.order(prompt, stream=True)
        exchange = answer.exchanges[-1] if answer.exchanges else None
        if exchange is None or (answer.status, answer.data) != (exchange.status, _joined(exchange.sent)):
            return Outcome("replaced", (Finding(Fault.ERROR_PAGES, _end_of(answer)),))
    return Outcome("arrive")


SLOW: Final[Mapping[str, Check]] = MappingProxyType({"silent stream": silent_stream, "silent answer": silent_answer})
"""They run beside all others."""

QUICK: Final[Mapping[str, Check]] = MappingProxyType(
    {
        "20 MB upload": upload,
        "resume": resume,
        "error event": failing_stream,
        "error answers": refusals,
    }
)
"""They run one after another."""

LEAVING: Final[Mapping[str, Check]] = MappingProxyType({"left stream": left_stream, "left answer": left_answer})
"""They run together, and last: they measure times."""

NAMES: Final = ("reached by", "previews", *SLOW, *QUICK, *LEAVING)


def common(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Findings that can come of any exchange."""
    for answer in answers:
        if len(answer.exchanges) > 1:
            yield Finding(Fault.REPEATED, f"{len(answer.exchanges)} requests came of one")
        for exchange in answer.exchanges:
            if exchange.http_version == "1.0":
                yield Finding(Fault.OLD_HTTP, "HTTP/1.0")
            yield from _changed_request(answer, exchange)
            replaced = exchange.status >= 400 and answer.data != _joined(exchange.sent)  # a fault of its own
            if answer.status == exchange.status and not replaced:
                yield from _changed_answer(answer, exchange)


def _changed_request(answer: Answer, exchange: Exchange) -> Iterator[Finding]:
    came = dict(exchange.headers)
    for name, value in answer.asked.items():
        if name not in NEGOTIATED and came.get(name) != value:
            yield Finding(Fault.REQUEST_HEADERS, f"{name} is {'changed' if name in came else 'lost'}")
    if exchange.body not in ("", answer.body) and not answer.cut:
        yield Finding(Fault.REQUEST_BODY, "the body has another hash")


def _changed_answer(answer: Answer, exchange: Exchange) -> Iterator[Finding]:
    for name, value in exchange.answered:
        if name not in OWN and answer.headers.get(name) != value:
            yield Finding(Fault.ANSWER_HEADERS, f"{name} is {'changed' if name in answer.headers else 'lost'}")
    if encoding := answer.headers.get("content-encoding"):
        yield Finding(Fault.COMPRESSED, encoding)
    elif not answer.cut and answer.data != _joined(exchange.sent):
        yield Finding(Fault.ANSWER_BODY, f"{len(answer.data)} bytes came of {len(_joined(exchange.sent))}")


async def _noticed(caller: Caller, prompt: str, times: Times, within: float) -> float | None:
    """Seconds from a caller's leaving, a moment after a comment, until the proxy knows it; None after `within`."""
    leaving = Limits(leave_after=LEAVES * times.heartbeat)
    answer = await caller.order(prompt, stream=prompt == "left-stream", limits=leaving)
    if not answer.exchanges:
        return None
    with anyio.move_on_after(within):
        return await caller.witness.ended(answer.exchanges[-1]) - answer.ended
    return None


def _held(sent: Sequence[tuple[float, bytes]], came: Sequence[tuple[float, bytes]]) -> list[float]:
    """Seconds from each preview's sending to its arrival. The completed image is left out: it is large."""
    data = _joined(sent)
    ends = [found.end() for found in FRAME.finditer(data)][:-1]
    return [_reached(came, end) - _reached(sent, end) for end in ends]


def _reached(pieces: Sequence[tuple[float, bytes]], size: int) -> float:
    """The time at which so many bytes were there."""
    for moment, data in pieces:
        size -= len(data)
        if size <= 0:
            return moment
    return time.monotonic()


def _first_frame(pieces: Sequence[tuple[float, bytes]], *, encoded: bool) -> float:
    """The time of the first event. A compressed one cannot be told from its head, which is 10 bytes of gzip."""
    found = None if encoded else FRAME.search(_joined(pieces))
    return _reached(pieces, found.end() if found else 11)


def _joined(pieces: Sequence[tuple[float, bytes]]) -> bytes:
    return b"".join(data for _, data in pieces)


def _end_of(answer: Answer) -> str:
    what = f"status {answer.status}" if answer.status else "no answer"
    cut = f", {answer.cut}" if answer.cut else ""
    return f"{what}{cut} after {answer.ended - answer.began:.1f} s"


def _wrong(answer: Answer) -> Finding:
    return Finding(Fault.UNREACHABLE, f"a stream cannot be followed: {_end_of(answer)}")
