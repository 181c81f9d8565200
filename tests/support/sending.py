"""The server's side of one answer, for those who test what is sent to it."""

from __future__ import annotations

import anyio
from starlette.types import Message, Scope

from streamproxy.web.responses import ABORT


class Sending:
    """The server's side of one answer: what was sent, and a caller who takes nothing after `takes` messages."""

    def __init__(self, takes: int = 1000) -> None:
        self.sent: list[Message] = []
        self.aborted = anyio.Event()
        self._takes = takes

    async def send(self, message: Message) -> None:
        if len(self.sent) == self._takes:
            await anyio.sleep_forever()
        self.sent.append(message)

    async def receive(self) -> Message:
        await self.aborted.wait()
        return {"type": "http.disconnect"}

    @property
    def scope(self) -> Scope:
        return {"type": "http", "method": "POST", "extensions": {ABORT: self.aborted.set}}

    @property
    def head(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])
