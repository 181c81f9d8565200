"""Fills a stream with a generation's frames, from its start to its end.

The producer runs in the app's task group. If the caller disconnects, the stream's policy decides whether it goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup

from streamproxy.core.conversation import Progress
from streamproxy.core.events import Frame
from streamproxy.core.requests import ImageRequest
from streamproxy.errors import Failure, ProxyError
from streamproxy.generation.attempts import Attempts
from streamproxy.generation.router import Plan
from streamproxy.hub.hub import Hub
from streamproxy.hub.stream import Stream
from streamproxy.observe import Observer

FAIL_SECONDS: Final = 2.0
"""What telling a stream's end may take while the app is being stopped."""


class Producer:
    """Starts generations. `tasks` is the app's task group: it outlives every request."""

    def __init__(self, *, attempts: Attempts, hub: Hub, observer: Observer, tasks: TaskGroup) -> None:
        self._attempts = attempts
        self._hub = hub
        self._observer = observer
        self._tasks = tasks

    def start(self, request: ImageRequest, plan: Plan, stream: Stream, release: Callable[[], None]) -> None:
        """Begin the generation; its frames appear in `stream`. `release` frees the request's files."""
        stream.not_applied = self._attempts.not_applied(request, plan)
        self._tasks.start_soon(self._produce, stream, request, plan, release)

    async def _produce(self, stream: Stream, request: ImageRequest, plan: Plan, release: Callable[[], None]) -> None:
        self._observer.streams(1)
        sink = _StreamSink(stream, plan, self._hub, self._observer, request.unheard)
        try:
            with stream.scope:
                await self._attempts.run(request, plan, sink)
            if stream.scope.cancelled_caught:
                await self._fail(stream, _ended(stream))
        except ProxyError as error:
            await self._fail(stream, error)
        except Exception as error:
            await self._fail(stream, self._observer.unexpected(error, stream.request_id))
        except BaseException:  # the app ends without having drained
            stream.shutdown = True
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + FAIL_SECONDS):
                await self._fail(stream, _ended(stream))
            raise
        finally:
            release()
            await self._hub.conclude(stream)
            self._observer.streams(-1)

    async def _fail(self, stream: Stream, error: ProxyError) -> None:
        if stream.finished or stream.complete:
            return  # nothing may follow the last image
        unfollowed = error.failure is Failure.CANCELLED and not stream.asked_to_end  # counted when the reader left
        if stream.committed and not stream.asked and not unfollowed:  # otherwise its caller's request tells
            self._observer.failure(error, stream.request_id)
        if error.retryable and not stream.accepted:
            await self._hub.refused(stream)
        await stream.fail(error)


class _StreamSink:
    """One generation's stream as its drivers see it."""

    def __init__(self, stream: Stream, plan: Plan, hub: Hub, observer: Observer, unheard: tuple[str, ...]) -> None:
        self._stream = stream
        self._provider = plan.route.provider.name
        self._scrub = plan.scrub
        self._hub = hub
        self._observer = observer
        self._policy = plan.policy
        self._unheard = unheard

    def sent(self) -> None:
        self._observer.upstream(self._provider)

    def answered(self, headers: tuple[tuple[str, str], ...]) -> None:
        passed = self._policy.relayable(headers)
        self._stream.headers = tuple((name, value) for name, value in passed if self._scrub(value) == value)

    def accepted(self) -> None:
        self._stream.accept()

    def not_applied(self, names: tuple[str, ...]) -> None:
        self._stream.not_applied = (*self._unheard, *names)

    async def frame(self, frame: Frame) -> None:
        self._observer.frame(frame.type)
        await self._stream.append(frame)

    async def complete(self) -> None:
        await self._hub.conclude(self._stream)

    def progress(self, step: Progress) -> None:
        self._stream.progress = step

    def tolerated(self, label: str) -> None:
        self._observer.tolerated(self._provider, label)


def _ended(stream: Stream) -> ProxyError:
    """Why a generation was cancelled: the process stops, it was asked for, or no reader is left."""
    if stream.shutdown:
        return ProxyError(Failure.SERVER_SHUTDOWN, "The proxy stopped before the generation had ended.")
    return ProxyError(Failure.CANCELLED, "The generation was cancelled.")
