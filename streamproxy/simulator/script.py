"""Scripts: an upstream's behaviour on one connection as data, with timed bytes and several ends.

A script is a tuple of steps, played in order on the connection. The bytes of a response are in the script and do not
come from an HTTP library, so every malformed answer can be rehearsed. The builders below make the well-formed parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, TypeAlias

import orjson


@dataclass(frozen=True, slots=True)
class Send:
    """Write `data`, and wait until the kernel has taken all of it. So a peer that does not read stops the script."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for `seconds`. When the peer leaves, the script ends at once."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Fin:
    """End our direction, wait a moment for the peer to end its own, close."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Close with SO_LINGER 0: the peer gets an RST."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Hold the connection open without a byte until the peer leaves."""


Step: TypeAlias = Send | Wait | Fin | Reset | Stall
Script: TypeAlias = tuple[Step, ...]
Headers: TypeAlias = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Sample:
    """A correct answer for a fault to break: its frames in order, and the same answer as JSON."""

    previews: tuple[bytes, ...] = field(repr=False)
    completed: bytes = field(repr=False)
    json: bytes = field(repr=False)

    @property
    def frames(self) -> tuple[bytes, ...]:
        return (*self.previews, self.completed)


# The size of the pieces in which real providers send large events: a few TLS records, far below a 2 MB frame.
CHUNK_BYTES: Final = 64 * 1024
LAST_CHUNK: Final = b"0\r\n\r\n"
EVENT_STREAM: Final = ("Content-Type", "text/event-stream; charset=utf-8")
JSON: Final = ("Content-Type", "application/json")
# In every answer, so that a simulated picture cannot be mistaken for a provider's.
SERVER: Final = ("Server", "streamproxy-simulator")


def head(status: int, headers: Headers = (), *, chunked: bool = False, length: int | None = None) -> bytes:
    """Status line and headers, blank line included (RFC 9112). Without framing the body ends with the connection."""
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = ""
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in (SERVER, *headers))]
    if chunked:
        lines.append("Transfer-Encoding: chunked")
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunk(data: bytes) -> bytes:
    """One chunk of chunked coding. `data` must not be empty: an empty chunk ends the body (RFC 9112, 7.1)."""
    if not data:
        raise ValueError("an empty chunk would end the body")
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunks(data: bytes) -> Iterator[Send]:
    """`data` as steps, in chunks of at most CHUNK_BYTES."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield Send(chunk(data[start : start + CHUNK_BYTES]))


def json_answer(status: int, body: object, headers: Headers = ()) -> Script:
    """A whole JSON answer with Content-Length. A body of bytes is sent as it is, any other is encoded."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return (Send(head(status, (JSON, *headers), length=len(data))), Send(data))


def error_answer(
    status: int,
    message: str,
    *,
    type: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: Headers = (),
) -> Script:
    """A refusal in OpenAI's shape. It has `type`, `message`, `param` and `code`; the last two may be null."""
    error = {"message": message, "type": type, "param": param, "code": code}
    return json_answer(status, {"error": error}, headers)


def event(name: str | None, data: bytes) -> bytes:
    """One frame: LF only, one `data:` line, a blank line at the end. Without a name it is a data-only frame."""
    return b"data: %b\n\n" % data if name is None else b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def sse(
    frames: Iterable[bytes],
    *,
    waits: Iterable[float] = (),
    headers: Headers = (),
    end: Script = (Send(LAST_CHUNK),),
) -> Script:
    """A 200 event stream in chunked coding. Frame *i* comes `waits[i]` seconds after the one before; by default 0.

    `end`: the steps after the last frame. By default the body ends correctly and the connection stays open.
    """
    steps: list[Step] = [Send(head(200, (EVENT_STREAM, *headers), chunked=True))]
    pauses = iter(waits)
    for frame in frames:
        if (pause := next(pauses, 0.0)) > 0:
            steps.append(Wait(pause))
        steps.extend(chunks(frame))
    return (*steps, *end)
