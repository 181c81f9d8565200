"""Whether the caller of a request is still there.

ASGI says it by a message, which is there for one reader only: whatever waits for a caller to leave, waits here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio
import anyio.lowlevel
from starlette.types import Message, Receive

from streamproxy.errors import Failure, ProxyError

Result = TypeVar("Result")


async def gone(receive: Receive) -> None:
    """Return when the caller has left. What else comes of its request is discarded."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Callable[[], Awaitable[Result]]) -> Result:
    """The result of `work`, which goes on while the caller is there. Raises ProxyError(CALLER_GONE) once it is not."""
    with anyio.CancelScope() as working, watched(receive, working):
        await anyio.lowlevel.checkpoint()  # no work starts for a caller that has already disconnected
        return await work()
    raise ProxyError(Failure.CALLER_GONE, "The caller left before its answer.")


@contextmanager
def watched(receive: Receive, working: anyio.CancelScope) -> Iterator[None]:
    """Cancel the scope, which is round this block, if the caller leaves meanwhile."""
    # One task, with nothing to be awaited at its end: a task group for it costs five times as much.
    watch = asyncio.get_running_loop().create_task(_cancel_when_gone(receive, working))
    try:
        yield
    finally:
        watch.cancel()


async def _cancel_when_gone(receive: Receive, working: anyio.CancelScope) -> None:
    await gone(receive)
    working.cancel()


async def unheard() -> Message:
    """A `receive` that never says anything, for an answer whose caller is watched elsewhere."""
    await anyio.sleep_forever()
    raise AssertionError
