"""Checks of one upstream fault before our head: the caller's answer, the operator's log, the provider's calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import httpx
import pytest

from streamproxy.simulator.script import Script, Send, Step, Wait, json_answer
from streamproxy.simulator.server import Received, Server, serve
from tests.support.proxy import BOUND, Proxy, no_leaks, running_proxy

IMAGE_BODY = b'{"created":1,"data":[{"b64_json":"aW1hZ2U="}]}'
IMAGE = json_answer(200, IMAGE_BODY)
"""A good answer, as short as can be."""

IMAGE_BYTES = b"".join(step.data for step in IMAGE if isinstance(step, Send))

STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])


class Held(tuple[Step, ...]):
    """A script that stops after `first` until `released` is set, and goes on with `rest`."""

    first: Script
    released: anyio.Event
    rest: Script

    def __new__(cls, first: Script, released: anyio.Event, rest: Script) -> Held:
        held = super().__new__(cls, (*first, *rest))
        held.first, held.released, held.rest = first, released, rest
        return held

    def __iter__(self) -> Iterator[Step]:
        yield from self.first
        while not self.released.is_set():
            yield Wait(0.02)
        yield from self.rest


@dataclass(frozen=True, slots=True)
class Refusal:
    """A fault's HTTP form. `charged`: the provider may have charged. `token`: of Proxy-Status, where `code` differs."""

    status: int
    code: str
    label: str
    charged: bool = True
    token: str = ""

    async def check(self, proxy: Proxy, answer: httpx.Response, times: int = 1) -> str:
        """Assert all of it for the `times`-th such failure of this proxy; returns the message."""
        assert (answer.status_code, answer.json()["error"]["code"]) == (self.status, self.code), answer.text
        assert answer.headers["content-type"] == "application/json"
        error = answer.json()["error"]
        assert {"message", "type", "param", "code"} <= error.keys()
        assert answer.json()["request_id"] == answer.headers["x-request-id"] != ""
        expected = f"streamproxy; error={self.token or self.code}" if self.status >= 500 else None
        assert answer.headers.get("proxy-status") == expected
        assert answer.headers.get("x-should-retry") == ("false" if self.charged else None)
        assert await proxy.failures(self.label) == times
        message = error["message"]
        assert isinstance(message, str)
        return message


@asynccontextmanager
async def provider(*scripts: Script, **settings: float) -> AsyncIterator[tuple[Server, Proxy]]:
    """A proxy before a provider that plays one script per request, the last again and again; nothing may leak."""
    left = list(scripts)

    def handler(received: Received) -> Script:
        return left.pop(0) if len(left) > 1 else left[0]

    with anyio.fail_after(BOUND):
        async with (
            no_leaks(),
            serve(handler) as server,
            running_proxy(
                server.url, provider=None, environ=None, ssl_context=None, resolver=None, **settings
            ) as proxy,
        ):
            yield server, proxy
