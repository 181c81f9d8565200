"""Requests that fall over to another model: when, to which, what is sent to whom, and what the caller is told."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx
import orjson
import pytest

from streamproxy.simulator.received import Handler, Received
from streamproxy.simulator.script import Fin, Script, error_answer, json_answer, sse
from streamproxy.simulator.server import Server, serve
from tests.support.faults import IMAGE_BODY, STREAMED
from tests.support.provider import PREVIEW, completed, preview
from tests.support.proxy import Proxy, events, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

MODELS: Final = ("openai/gpt-image-2", "google/gemini-3-pro-image", "openai/gpt-image-2.5-flare")
"""Of the providers one, two and three."""

ONE, TWO, THREE = MODELS
NAMES: Final = ("one", "two", "three")
BUSY: Final = error_answer(503, "Overloaded.", headers=(("retry-after", "1"),))
LIMITED: Final = error_answer(429, "Slow down.")
FAILED: Final = error_answer(500, "Oops.")
BAD_KEY: Final = error_answer(401, "Who are you?")
REFUSED: Final = error_answer(400, "No.", code="moderation_blocked")
CUT: Final = sse((preview(0),), end=(Fin(),))


def good(received: Received) -> Script:
    return sse((preview(0), completed())) if b'"stream":true' in received.body else json_answer(200, IMAGE_BODY)


def always(script: Script) -> Handler:
    return lambda _: script


@dataclass(frozen=True, slots=True)
class Stage:
    """A proxy before several providers, each with a model of its own."""

    proxy: Proxy
    servers: tuple[Server, ...]

    @property
    def calls(self) -> tuple[int, ...]:
        """What each provider has been asked."""
        return tuple(server.calls for server in self.servers)

    async def ask(self, *fallbacks: str, **members: object) -> httpx.Response:
        """A generation with these fallbacks, by the first model unless `model` says another."""
        return await self.proxy.generate(**{"model": ONE, "fallbacks": list(fallbacks), **members})


def row(url: str, model: str) -> dict[str, object]:
    return {"base_url": f"{url}/v1", "credential": "none", "models": [model]}


@asynccontextmanager
async def stage(*handlers: Handler, **settings: object) -> AsyncIterator[Stage]:
    async with no_leaks(), AsyncExitStack() as stack:
        servers = tuple([await stack.enter_async_context(serve(handler)) for handler in handlers])
        providers = {name: row(server.url, model) for name, server, model in zip(NAMES, servers, MODELS, strict=False)}
        chosen: dict[str, Any] = {"providers": providers, **settings}
        proxy = await stack.enter_async_context(running_proxy("", **chosen))
        yield Stage(proxy, servers)


@contextmanager
def dead() -> Iterator[str]:
    """An address that refuses connections, and is nobody else's meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


FALLS: Final = {
    "503": (BUSY, "provider_failed"),
    "429": (LIMITED, "rate_limit_exceeded"),
    "401": (BAD_KEY, "provider_auth"),
}


@STREAMED
@pytest.mark.parametrize("how", FALLS)
async def test_an_uncharged_failure_falls_over(how: str, stream: bool) -> None:
    script, code = FALLS[how]
    async with stage(always(script), good) as scene:
        answer = await scene.ask(TWO, stream=stream)
        assert answer.status_code == 200, answer.text
        assert answer.headers["streamproxy-attempts"] == f"{ONE};provider=one;failure={code}, {TWO};provider=two;ok"
        said = events(answer.content)[-1].json if stream else answer.json()
        assert (said["provider"], said["model"]) == ("two", TWO)
        assert scene.calls == (1, 1)
        body = orjson.loads(scene.servers[1].received[0].body)
        assert body["model"] == TWO
        assert not body.keys() & {"fallbacks", "fallback_after_charge"}


STAYS: Final = {"500": FAILED, "400": REFUSED, "cut": CUT}


@pytest.mark.parametrize("how", STAYS)
async def test_any_other_failure_does_not(how: str) -> None:
    async with stage(always(STAYS[how]), good) as scene:
        answer = await scene.ask(TWO, stream=True)
        assert scene.calls == (1, 0)
        if how == "cut":
            assert [event.event for event in events(answer.content)] == [PREVIEW, "error"]
        else:
            assert answer.status_code in (400, 502)
            assert answer.headers["streamproxy-attempts"].startswith(f"{ONE};provider=one;failure=")
