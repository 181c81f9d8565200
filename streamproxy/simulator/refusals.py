"""Upstream faults before the first byte of a body: refusals, broken heads, connections that end too early.

One row of REFUSALS per fault. The model `sim/fault-<name>` rehearses one. Every row makes a script from a correct
answer, which most rows do not use.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from streamproxy.simulator.script import (
    EVENT_STREAM,
    JSON,
    LAST_CHUNK,
    Fin,
    Headers,
    Reset,
    Sample,
    Script,
    Send,
    Stall,
    Wait,
    chunk,
    error_answer,
    head,
    json_answer,
)

Fault: TypeAlias = Callable[[Sample], Script]

SERVER_ERROR: Final = "server_error"
# Far above all limits of heads (aiohttp 8 KiB a line, h11 100 KiB, the proxy 200 headers).
MANY_HEADERS: Final = 10_000
HUGE_HEAD_BYTES: Final = 256 * 1024
MANY_INTERIM: Final = 1000
BOMB_BYTES: Final = 64 * 1024 * 1024
# Five times the JSON of a 4K picture.
TOO_LARGE_BYTES: Final = 80 * 1024 * 1024
# Seconds between the pieces of a slow head: short enough for a test, long enough for separate reads.
PAUSE_SECONDS: Final = 0.05
CLOSE: Final = ("Connection", "close")


def _text(status: int, type: str, body: bytes, headers: Headers = ()) -> Script:
    return (Send(head(status, (("Content-Type", type), *headers), length=len(body))), Send(body))


def _raw(data: bytes) -> Script:
    return (Send(data), Fin())


def _huge_json() -> Script:
    start, filler, end = b'{"created":0,"data":[{"b64_json":"', b"A" * 65_536, b'"}]}'
    count = TOO_LARGE_BYTES // len(filler)
    length = len(start) + count * len(filler) + len(end)
    # The same bytes object again and again, so it is large on the wire only.
    return (Send(head(200, (JSON,), length=length)), Send(start), *(Send(filler),) * count, Send(end))


def _bomb() -> Script:
    body = gzip.compress(bytes(BOMB_BYTES), 9)
    return (Send(head(200, (JSON, ("Content-Encoding", "gzip")), length=len(body))), Send(body))


def _slow_head(sample: Sample) -> Script:
    start = head(200, (JSON,), length=len(sample.json))
    pieces = [start[at : at + 40] for at in range(0, len(start), 40)]
    return (*(step for piece in pieces for step in (Send(piece), Wait(PAUSE_SECONDS))), Send(sample.json))


def _two_framings(sample: Sample) -> Script:
    framing = (EVENT_STREAM, ("Transfer-Encoding", "chunked"))
    frames = b"".join(map(chunk, sample.frames)) + LAST_CHUNK
    return (Send(head(200, framing, length=len(frames))), Send(frames))


def _moderation_blocked() -> Script:
    message = "Your request was rejected by the safety system."
    return error_answer(400, message, type="image_generation_user_error", code="moderation_blocked")


def _unknown_stream() -> Script:
    return error_answer(400, "Unknown parameter: 'stream'.", param="stream", code="unknown_parameter")


def _rate_limited() -> Script:
    message = "Rate limit reached for images per minute."
    headers = (("Retry-After", "7"), ("x-ratelimit-remaining-requests", "0"))
    return error_answer(429, message, type="requests", code="rate_limit_exceeded", headers=headers)


def _forbidden() -> Script:
    message = "Your organization must be verified to use this model."
    return error_answer(403, message, code="organization_not_verified")


def _wrong_key() -> Script:
    # Like the provider's own text, it repeats a part of a key, which must not reach a caller.
    message = "Incorrect API key provided: sk-simu************7890."
    return error_answer(401, message, code="invalid_api_key")


REFUSALS: Final[Mapping[str, Fault]] = MappingProxyType(
    {
        # An answer with a status of its own.
        "refused-400": lambda _: _moderation_blocked(),
        "not-streaming-400": lambda _: _unknown_stream(),
        "refused-401": lambda _: _wrong_key(),
        "refused-403": lambda _: _forbidden(),
        "refused-429": lambda _: _rate_limited(),
        "refused-500": lambda _: error_answer(500, "The server had an error.", type=SERVER_ERROR),
        "refused-503": lambda _: error_answer(503, "Overloaded.", type=SERVER_ERROR, headers=(("Retry-After", "1"),)),
        "html-502": lambda _: _text(502, "text/html", b"<html><h1>502 Bad Gateway</h1></html>"),
        # A 200, or a similar answer, without a picture.
        "html-200": lambda _: _text(200, "text/html; charset=utf-8", b"<html><h1>Sign in</h1></html>"),
        "redirect": lambda _: _text(302, "text/plain", b"moved", (("Location", "http://127.0.0.1:9/elsewhere"),)),
        "no-content": lambda _: (Send(head(204)),),
        "empty-200": lambda _: (Send(head(200, (JSON,), length=0)),),
        "invalid-json": lambda _: _text(200, "application/json", b'{"created":1,"data":[{"b64_json":"iVBORw0'),
        "no-image": lambda _: json_answer(200, {"created": 1, "data": []}),
        "json-too-large": lambda _: _huge_json(),
        # Content codings that were not asked for.
        "gzip": lambda sample: _text(
            200, "application/json", gzip.compress(sample.json, 1), (("Content-Encoding", "gzip"),)
        ),
        "gzip-corrupt": lambda sample: _text(200, "application/json", sample.json, (("Content-Encoding", "gzip"),)),
        "gzip-bomb": lambda _: _bomb(),
        # Silence and early ends.
        "no-bytes": lambda _: (Stall(),),
        "half-head-stall": lambda _: (Send(b"HTTP/1.1 200 OK\r\nContent-Ty"), Stall()),
        "slow-head": _slow_head,
        "reset-before-head": lambda _: (Reset(),),
        "fin-before-head": lambda _: (Fin(),),
        "fin-inside-head": lambda _: _raw(b"HTTP/1.1 200 OK\r\nContent-Ty"),
        "closed-while-idle": lambda sample: (*json_answer(200, sample.json), Fin()),
        # Heads that break HTTP.
        "bad-status-line": lambda _: _raw(b"HTTP/1.1 OK\r\n\r\n"),
        "not-http": lambda _: _raw(b"\x16\x03\x01\x02\x00\x01\x00 this is not HTTP\r\n\r\n"),
        "status-1000": lambda _: _raw(b"HTTP/1.1 1000 Much\r\nContent-Length: 0\r\n\r\n"),
        "switching-101": lambda _: _raw(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
        ),
        "cr-in-header": lambda _: _raw(b"HTTP/1.1 200 OK\r\nX-One: a\rX-Two: b\r\nContent-Length: 2\r\n\r\n{}"),
        "conflicting-content-length": lambda sample: (
            Send(head(200, (JSON, ("Content-Length", "5")), length=len(sample.json))),
            Send(sample.json),
            Fin(),
        ),
        "content-length-and-chunked": _two_framings,
        "many-headers": lambda sample: json_answer(
            200, sample.json, tuple((f"X-{i}", "1") for i in range(MANY_HEADERS))
        ),
        "huge-head": lambda sample: json_answer(200, sample.json, (("X-Huge", "h" * HUGE_HEAD_BYTES),)),
        "many-100-continue": lambda sample: (
            Send(b"HTTP/1.1 100 Continue\r\n\r\n" * MANY_INTERIM),
            *json_answer(200, sample.json),
        ),
        # A second answer after the first, which must not become the next request's.
        "extra-bytes": lambda sample: (*json_answer(200, sample.json), *json_answer(200, {"created": 0, "data": []})),
    }
)
