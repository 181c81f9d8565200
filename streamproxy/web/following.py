"""A stream as a plain EventSource follows it: layout, opening words, and what ends a half-written preview.

data: {...}                     fields in an order that WHATWG leaves free: `event` and `id` stand behind the data,
event: image_edit.completed     so a preview that is of no more use can end as an event nobody listens to, and
id: 1.17                        without moving the reader's cursor
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from typing import Final

from streamproxy.core.events import ANSWER
from streamproxy.core.sse import Piece
from streamproxy.hub.log import Entry
from streamproxy.hub.stream import Subscriber
from streamproxy.web.responses import HEARTBEAT, sliced

RETRY: Final = (1500, 4000)
"""Milliseconds until a reader reconnects, drawn anew for each: a deploy must not bring all back at once."""

RETRY_OVERLOADED: Final = (2000, 8000)
SUPERSEDED: Final = b"\nevent: superseded\n\n"

Data = Callable[[Entry], tuple[Piece, ...]]


async def followed(
    subscriber: Subscriber, data: Data, *, heartbeat: float, preempt: bool
) -> AsyncGenerator[Piece, None]:
    """The stream's bytes for one reader. `data` gives an entry's data: with the image in it, or a reference to it."""
    yield opening_words(RETRY)
    while True:
        try:
            entry = await subscriber.next(within=heartbeat)
        except TimeoutError:
            yield HEARTBEAT
            continue
        if entry is None:
            return
        if entry.frame.type == ANSWER:
            continue
        body = [b"data: ", *data(entry)]
        end = b"\nevent: " + entry.frame.type.encode() + b"\nid: " + str(entry.cursor).encode() + b"\n\n"
        if entry.critical or not preempt:
            body.append(end)
            del entry  # from here on only what has yet to be sent is held
            for piece in sliced(body):
                yield piece
            del piece
            continue
        for piece in sliced(body):
            yield piece
            if subscriber.stream.superseded(entry):
                end = SUPERSEDED
                break
        yield end
        del entry, body, piece  # while the next event gathers, this one shall not be held


def opening_words(bounds: tuple[int, int]) -> bytes:
    """When to come back after the connection ends, and bytes that make intermediaries pass the head on at once.

    No blank line: a field counts as its line ends, and openai-python and httpx-sse take a block without data for an
    event.
    """
    return b"retry: %d\n:\n" % random.randint(*bounds)


async def come_back() -> AsyncGenerator[Piece, None]:
    """For a reader that cannot be served now: EventSource gives up for good on any status but 200."""
    yield opening_words(RETRY_OVERLOADED)
