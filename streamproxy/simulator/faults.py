"""FAULTS: every upstream fault that can be rehearsed, by name.

The rows here break a stream after its head. Faults before the first byte of a body are in `refusals.py`. The model
`sim/fault-<name>` rehearses one. Each complete frame before the fault is correct and must arrive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from streamproxy.simulator.refusals import CLOSE, PAUSE_SECONDS, REFUSALS, TOO_LARGE_BYTES, Fault
from streamproxy.simulator.script import (
    EVENT_STREAM,
    Fin,
    Reset,
    Sample,
    Script,
    Send,
    Stall,
    Wait,
    chunk,
    event,
    head,
    sse,
)

# More than all socket buffers between provider and caller (Linux: 4 MB to send, 6 MB to receive, twice).
FIREHOSE_BYTES: Final = 64 * 1024 * 1024
# Bytes missing from a body that is cut short.
SHORT_BYTES: Final = 1000
DONE: Final = b"data: [DONE]\n\n"


def _cut(sample: Sample, end: Script) -> Script:
    """A whole preview, half of the next one, then `end`."""
    return sse((sample.previews[0], sample.previews[1][: len(sample.previews[1]) // 2]), end=end)


def _short_content_length(sample: Sample) -> Script:
    body = b"".join(sample.previews)
    return (Send(head(200, (EVENT_STREAM,), length=len(body) + SHORT_BYTES)), Send(body), Fin())


def _bytewise(data: bytes) -> Iterator[Send]:
    for at in range(len(data)):
        yield Send(data[at : at + 1])


def _wire(steps: Iterable[object]) -> bytes:
    return b"".join(step.data for step in steps if isinstance(step, Send))


def _trickle(sample: Sample) -> Script:
    """One byte every PAUSE_SECONDS: never silent for long, and never complete."""
    whole = _wire(sse(sample.frames))
    start = whole.index(b"\r\n\r\n") + 4
    return (Send(whole[:start]), *(step for sent in _bytewise(whole[start:]) for step in (sent, Wait(PAUSE_SECONDS))))


def _event_too_large(sample: Sample) -> Script:
    """A preview with endless base64: the same bytes object again and again, so it is large on the wire only."""
    start, filler = b'event: x\ndata: {"b64_json":"', chunk(b"A" * 65_536)
    return (*sse((sample.previews[0], start), end=()), *(Send(filler),) * (TOO_LARGE_BYTES // 65_536), Fin())


def _firehose(sample: Sample) -> Script:
    """Thousands of previews, numbered by `partial_image_index`, as fast as the peer reads; then `completed`.

    All share the bytes of one picture.
    """
    key = b'"partial_image_index":'
    start, end = sample.previews[0].split(key)
    shared = Send(chunk(start + key))
    numbered = (Send(chunk(b"%d%b" % (number, end[1:]))) for number in range(FIREHOSE_BYTES // len(sample.previews[0])))
    return (*sse((), end=()), *(step for tail in numbered for step in (shared, tail)), *_rest(sample.completed))


def _rest(*frames: bytes) -> Script:
    return tuple(sse(frames)[1:])


def _odd_bytes(sample: Sample) -> Script:
    """Invalid UTF-8, a NUL and a lone CR, each in the data of an event of an unknown type, between good frames."""
    odd = (event("x_odd", b'{"type":"x_odd","note":"' + byte + b'"}') for byte in (b"\xff\xfe", b"\0", b"a\rb"))
    return sse((sample.previews[0], *odd, *sample.frames[1:]))


def _keepalives(sample: Sample) -> Script:
    """Everything that a parser must skip: comments, ids, retry, unknown types in CRLF, empty events, [DONE]."""
    noise = (
        b": keepalive\n\n",
        b":\n",
        b'event: keepalive\r\ndata: {"type":"keepalive"}\r\n\r\n',
        b"id: 7\nretry: 10\n\n",
        b"event: image_generation.generating\n\n",
        b"unknown: field\n\n",
    )
    frames = list(sample.frames)
    mixed = [part for frame in frames for part in (*noise, b"id: x\n" + frame)]
    return sse((b"\xef\xbb\xbf", *mixed, DONE))


def _error_event(sample: Sample, name: str | None, data: bytes) -> Script:
    return sse((sample.previews[0], event(name, data)))


ERROR: Final = (
    b'{"type":"error","error":{"message":"The server had an error while processing your request.",'
    b'"type":"server_error","param":null,"code":"server_error"}}'
)
MODERATION: Final = (
    b'{"error":{"code":"moderation_blocked","message":"Your request was rejected by the safety system. If you believe '
    b'this is an error, include the request ID req_simulated.","type":"image_generation_user_error"}}'
)


STREAM_FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(
    {
        # The connection ends, or goes wrong, under the stream.
        "eof-at-boundary": lambda sample: sse(sample.previews, end=(Fin(),)),
        "eof-inside-event": lambda sample: _cut(sample, (Fin(),)),
        "eof-after-head": lambda sample: sse((), end=(Fin(),)),
        "reset-mid-body": lambda sample: _cut(sample, (Reset(),)),
        "reset-at-boundary": lambda sample: sse(sample.previews[:1], end=(Reset(),)),
        "short-content-length": _short_content_length,
        "close-delimited": lambda sample: (
            Send(head(200, (EVENT_STREAM, CLOSE))),
            *map(Send, sample.frames),
            Fin(),
        ),
        "close-delimited-cut": lambda sample: (
            Send(head(200, (EVENT_STREAM, CLOSE))),
            *map(Send, sample.previews),
            Fin(),
        ),
        "bad-chunk-header": lambda sample: sse(sample.previews[:1], end=(Send(b"zz\r\nnot a chunk\r\n"), Fin())),
        # Too slow, too much.
        "stall-after-head": lambda sample: sse((), end=(Stall(),)),
        "stall-mid-stream": lambda sample: sse(sample.previews[:1], end=(Stall(),)),
        "stall-inside-event": lambda sample: _cut(sample, (Stall(),)),
        "stall-after-completed": lambda sample: sse(sample.frames, end=(Stall(),)),
        "trickle": _trickle,
        "event-too-large": _event_too_large,
        "firehose": _firehose,
        "byte-by-byte": lambda sample: tuple(_bytewise(_wire(sse(sample.frames)))),
        # Bytes that a parser must accept.
        "odd-bytes": _odd_bytes,
        "keepalive-events": _keepalives,
        "crlf": lambda sample: sse(frame.replace(b"\n", b"\r\n") for frame in sample.frames),
        "cr-only": lambda sample: sse(frame.replace(b"\n", b"\r") for frame in sample.frames),
        "data-only": lambda sample: sse((*(b"data:" + frame.partition(b"data:")[2] for frame in sample.frames), DONE)),
        "missing-last-blank-line": lambda sample: sse((*sample.previews, sample.completed[:-1])),
        # The wrong events.
        "error-event": lambda sample: _error_event(sample, "error", ERROR),
        "error-event-first": lambda _: sse((event("error", ERROR),)),
        "moderation-in-sse": lambda sample: _error_event(sample, None, MODERATION),
        "bare-json-in-stream": lambda _: sse((MODERATION,)),
        "good-json-in-stream": lambda sample: sse((sample.json,)),
        "duplicate-terminal": lambda sample: sse((*sample.frames, sample.completed)),
        "data-after-terminal": lambda sample: sse(
            (*sample.frames, sample.previews[0], event(None, b'{"type":"late"}'))
        ),
        "error-after-terminal": lambda sample: sse((*sample.frames, event("error", ERROR))),
        "partial-only-eof": lambda sample: sse(sample.previews),
        "done-only": lambda _: sse((DONE,)),
        "no-events": lambda _: sse(()),
    }
)

FAULTS: Final[Mapping[str, Fault]] = MappingProxyType({**REFUSALS, **STREAM_FAULTS})
