"""The server's side of one response, and a reader that notes its calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property

import anyio
from starlette.types import Message, Scope

from streamproxy.errors import ProxyError
from streamproxy.hub.stream import Subscriber
from streamproxy.web.responses import ABORT, Reader
from streamproxy.web.writing import Cutoff


class Sending:
    """The server's side of one answer: its messages, and a caller that takes nothing after `takes` of them."""

    def __init__(self, takes: int = 1000) -> None:
        self.sent: list[Message] = []
        self.aborted = anyio.Event()
        self._takes = takes

    async def send(self, message: Message) -> None:
        if len(self.sent) == self._takes:
            await anyio.sleep_forever()
        self.sent.append(message)

    async def receive(self) -> Message:
        if not self.aborted.is_set():  # else at once, as uvicorn
            await self.aborted.wait()
        return {"type": "http.disconnect"}

    @cached_property
    def scope(self) -> Scope:
        return {"type": "http", "method": "POST", "state": {}, "extensions": {ABORT: self.aborted.set}}

    @property
    def head(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])


@asynccontextmanager
async def cutting(grace: float) -> AsyncIterator[Cutoff]:
    """The end of event streams, as the app has it."""
    async with anyio.create_task_group() as tasks:
        yield Cutoff(tasks, grace)
        tasks.cancel_scope.cancel()


class Following(Reader):
    """A reader that notes the calls of the writer."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.told: list[ProxyError] = []
        self.sent: list[bool] = []

    @property
    def at_end(self) -> bool:
        return self.subscriber.at_end

    def left(self, error: ProxyError) -> None:
        self.told.append(error)

    def close(self, *, sent: bool) -> None:
        self.subscriber.leave()
        self.sent.append(sent)
