"""Whether the caller of a request is still there.

ASGI says it by a message, which is there for one reader only: whatever waits for a caller to leave, waits here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_when_gone, receive, tasks.cancel_scope)
        try:
            await anyio.lowlevel.checkpoint()  # a caller who has left already is not worked for
            return await work()
        except Exception as error:  # to be raised as it is, not as a task group's
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    raise failure or ProxyError(Failure.CALLER_GONE, "The caller left before its answer.")


async def _cancel_when_gone(receive: Receive, waiting: anyio.CancelScope) -> None:
    await gone(receive)
    waiting.cancel()


async def unheard() -> Message:
    """A `receive` that never says anything, for an answer whose caller is watched elsewhere."""
    await anyio.sleep_forever()
    raise AssertionError
