"""A proxy before several providers, each with a model of its own."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx

from streamproxy.simulator.received import Handler, Received
from streamproxy.simulator.script import Fin, Script, error_answer, json_answer, sse
from streamproxy.simulator.server import Server, serve
from tests.support.faults import IMAGE_BODY
from tests.support.provider import completed, preview
from tests.support.proxy import PROMPT, Proxy, no_leaks, running_proxy

ONE: Final = "openai/gpt-image-2"
TWO: Final = "google/gemini-3-pro-image"
THREE: Final = "openai/gpt-image-2.5-flare"
MODELS: Final = {"one": ONE, "two": TWO, "three": THREE}
"""The model of each provider."""

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


def playing(*scripts: Script | Handler) -> Handler:
    """One script for each request, the last again and again."""
    left = list(scripts)

    def handler(received: Received) -> Script:
        found = left.pop(0) if len(left) > 1 else left[0]
        made = found(received) if callable(found) else found
        assert isinstance(made, tuple)
        return made

    return handler


@dataclass(frozen=True, slots=True)
class Stage:
    """See the module's text. `servers` are those that can be reached, in order."""

    proxy: Proxy
    servers: tuple[Server, ...]

    @property
    def calls(self) -> tuple[int, ...]:
        """How often each provider has been asked."""
        return tuple(server.calls for server in self.servers)

    async def ask(self, *fallbacks: str, model: str = ONE, **members: Any) -> httpx.Response:
        """A generation with these fallbacks."""
        named = {"fallbacks": list(fallbacks)} if fallbacks else {}
        return await self.proxy.generate(**{"model": model, **named, **members})

    async def post(
        self, path: str, order: Mapping[str, object], headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Any other order."""
        return await self.proxy.client.post(f"{self.proxy.url}/v1/{path}", headers=headers or {}, json=order)

    async def edit(self, model: str, *fallbacks: str, image: bytes) -> httpx.Response:
        """An edit as a form."""
        form = {"model": model, "prompt": PROMPT, "fallbacks": list(fallbacks)}
        files = {"image": ("a.png", image, "image/png")}
        return await self.proxy.client.post(f"{self.proxy.url}/v1/images/edits", data=form, files=files)


@contextmanager
def dead() -> Iterator[str]:
    """An address that refuses connections, and that nothing else takes meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


@asynccontextmanager
async def stage(
    *handlers: Handler | None,
    rows: Mapping[str, Mapping[str, object]] | None = None,
    names: Mapping[str, str | None] = MODELS,
    **settings: Any,
) -> AsyncIterator[Stage]:
    """Providers one, two and three. None: it refuses connections. `rows` replace settings of theirs.

    `names`: other providers, with the one model that each serves; None: all that the catalogue says.
    """
    async with no_leaks(), AsyncExitStack() as stack:
        servers: list[Server] = []
        providers: dict[str, Mapping[str, object]] = {}
        for handler, (name, model) in zip(handlers, names.items(), strict=False):
            if handler is None:
                url = stack.enter_context(dead())
            else:
                servers.append(await stack.enter_async_context(serve(handler)))
                url = servers[-1].url
            models = {} if model is None else {"models": [model]}
            given = {"credential": "none", **models, **(rows or {}).get(name, {})}
            providers[name] = {**given, "base_url": f"{url}{given.get('base_url', '/v1')}"}
        proxy = await stack.enter_async_context(running_proxy("", **{"providers": providers, **settings}))
        yield Stage(proxy, tuple(servers))
