"""One picture through a real proxy in this process, over real HTTP, with its previews on the way.

    demo        the provider is the simulator, and the proxy serves on, with a page at /
    generate    the providers are the configured ones, and it ends with the picture

Nothing is special about the proxy: it is what `serve` runs. The client is the standard library's, on purpose: any
program could do the same.
"""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from socket import socket
from typing import Final

import anyio
import anyio.to_thread

from streamproxy import simulator
from streamproxy.app import create_app
from streamproxy.errors import Failure, ProxyError
from streamproxy.server import Hooks, serve
from streamproxy.server.listening import listen, url_of
from streamproxy.settings import ProviderSettings, Settings
from streamproxy.settings.values import MIB, ConfigurationError

MODEL: Final = "sim/gpt-image"
PREVIEWS: Final = 3  # the most that GPT image models make
USUAL_PORT: Final = 8080
OWN_MACHINE: Final = ("http://localhost:*", "http://127.0.0.1:*")  # where a developer's own page comes from
SILENCE_SECONDS: Final = 60.0  # heartbeats come every 5 s, so this is a proxy that hangs
LINE_BYTES: Final = 64 * MIB  # one event is one line; as the setting max_event_bytes
FORMATS: Final = {".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}  # anything else is the model's own, mostly PNG

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of the stream: `preview` counts from 0, None for the completed one; `ms` since the request.

    `cost`: USD, None where it is not known.
    """

    preview: int | None
    data: bytes
    ms: int
    cost: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is asked for. `format` "" is the model's own; `key` is the caller's, where the provider needs that."""

    prompt: str
    model: str = MODEL
    previews: int = PREVIEWS
    format: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The picture, its file, the proxy's port, the simulator's pace, and whether to end after the picture.

    `port` None takes 8080, or any free port if that is taken.
    """

    prompt: str
    output: Path
    port: int | None
    pace: float
    once: bool


async def demo(options: Options, say: Say) -> None:
    """Run simulator and proxy, write one picture to `output`, then serve until a signal; with `once`, end.

    Raises ConfigurationError, ProxyError, OSError.
    """
    async with simulator.running(pace=options.pace) as upstream:
        sim = ProviderSettings(base_url=f"{upstream.url}/v1", credential="none")
        sock, taken = _listen(options.port)
        settings = Settings(
            providers={"sim": sim},
            playground=True,
            cors_origins=OWN_MACHINE,
            fetch_hosts=(f"127.0.0.1:{upstream.port}",),  # of sim/url, which answers with a link
        )

        async def picture(url: str) -> bool:
            say(f"{url}/   <- open this: a page where a picture forms")
            if taken:
                say(f"Port {USUAL_PORT} is taken by another program, so this is {url} instead.")
            say(f"\n{simulator.BANNER.rstrip()}")
            say(f"API base URL: {url}/v1   (no key needed)\nAsking {MODEL} for: {options.prompt}")
            order = Order(prompt=options.prompt)
            await anyio.to_thread.run_sync(_follow, url, order, Plain(options.output, say), abandon_on_cancel=True)
            if not options.once:
                say(_snippets(url))
            return options.once

        await _beside(settings, sock, picture)


def _listen(port: int | None) -> tuple[socket, bool]:
    """A socket, and whether the usual port was taken. Raises ConfigurationError for a port that was asked for."""
    host = Settings().host
    try:
        return listen(host, USUAL_PORT if port is None else port), False
    except ConfigurationError:
        if port is not None:
            raise
        return listen(host, 0), True


async def generate(order: Order, settings: Settings, shown: Shown) -> None:
    """Order one picture of the providers in `settings`. Raises ConfigurationError, ProxyError, OSError.

    The proxy is this process's alone: on a free port of this machine, without callers' keys, and without a store.
    """
    alone = {"host": "127.0.0.1", "port": 0, "workers": 1, "store": "memory", "public_url": None}
    alone |= {"caller_keys": (), "callers": {}, "webhook_origins": (), "results": None}

    async def picture(url: str) -> bool:
        await anyio.to_thread.run_sync(_follow, url, order, shown, abandon_on_cancel=True)
        return True

    await _beside(replace(settings, **alone), listen("127.0.0.1", 0), picture)  # type: ignore[arg-type]


async def _beside(settings: Settings, sock: socket, client: Callable[[str], Awaitable[bool]]) -> None:
    """Serve, and run `client` with the proxy's URL. A signal ends both, and so does a client that returns True."""
    started = anyio.Event()

    async def proxy() -> None:
        await serve(create_app(settings), settings, sock, Hooks(ready=lambda _: started.set()))
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(proxy)
        await started.wait()
        if await client(url_of(sock)):
            tasks.cancel_scope.cancel()


class Plain:
    """Says each picture in a line, and writes the completed one."""

    def __init__(self, output: Path, say: Say) -> None:
        self.output = output
        self.say = say

    def show(self, picture: Picture) -> None:
        """Called with each picture as it arrives."""
        what = "completed" if picture.preview is None else f"preview {picture.preview + 1}"
        self.say(f"  {what:10} {len(picture.data) / 1000:8.0f} kB {picture.ms:7d} ms")
        if picture.preview is not None:
            self.show_preview(picture.data, picture.preview + 1)
            return
        self.output.write_bytes(picture.data)
        self.say(f"The completed picture is in {self.output}")

    def show_preview(self, data: bytes, number: int) -> None:
        """The preview itself; not shown here."""


class Shown(Plain):
    """The same, with previews in a terminal that can show them, else as files beside the output; and the cost."""

    def __init__(self, output: Path, say: Say, terminal: Callable[[bytes], str] | None) -> None:
        super().__init__(output, say)
        self._terminal = terminal

    def show(self, picture: Picture) -> None:
        super().show(picture)
        if picture.preview is None:
            if self._terminal:
                self.say(self._terminal(picture.data))
            self.say("Its cost is not known" if picture.cost is None else f"It cost ${picture.cost:.4g}")

    def show_preview(self, data: bytes, number: int) -> None:
        if self._terminal:
            self.say(self._terminal(data))
            return
        path = self.output.with_suffix(f".preview-{number}{self.output.suffix}")
        path.write_bytes(data)
        self.say(f"             {path}")


def terminal_pictures(environ: Mapping[str, str], *, tty: bool) -> Callable[[bytes], str] | None:
    """The escape sequence that shows a picture in this terminal; None where it is not known to have one."""
    if not tty:
        return None
    if "kitty" in environ.get("TERM", "") or environ.get("TERM_PROGRAM") == "ghostty":
        return _kitty
    iterm = {environ.get("TERM_PROGRAM"), environ.get("LC_TERMINAL")} & {"iTerm.app", "iTerm2", "WezTerm"}
    return _iterm if iterm else None


KITTY_CHUNK: Final = 4096  # characters, https://sw.kovidgoyal.net/kitty/graphics-protocol/#remote-client
ROWS: Final = 16


def _kitty(data: bytes) -> str:
    """Kitty's graphics protocol: transmit and display, PNG, in chunks. It takes no other format."""
    text = base64.b64encode(data).decode()
    chunks = [text[start : start + KITTY_CHUNK] for start in range(0, len(text), KITTY_CHUNK)]
    parts = [f"m={int(number < len(chunks) - 1)};{chunk}" for number, chunk in enumerate(chunks)]
    return "".join(f"\x1b_G{f'a=T,f=100,r={ROWS},' if not n else ''}{part}\x1b\\" for n, part in enumerate(parts))


def _iterm(data: bytes) -> str:
    """iTerm2's inline images: https://iterm2.com/documentation-images.html."""
    return f"\x1b]1337;File=inline=1;height={ROWS};size={len(data)}:{base64.b64encode(data).decode()}\a"


def _follow(url: str, order: Order, shown: Plain) -> None:
    """Show each picture as it arrives. Raises ProxyError where there is no completed one."""
    for picture in stream(url, order):
        shown.show(picture)
        if picture.preview is None:
            return
    raise ProxyError(Failure.MISSING_TERMINAL_EVENT, "The stream ended without a completed picture.")


def stream(url: str, order: Order) -> Iterator[Picture]:
    """The pictures of one streamed request, as they arrive. Blocks. Raises ProxyError for any error answer."""
    began = time.monotonic()
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=SILENCE_SECONDS)
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {order.key}"} if order.key else {})
    body = {"model": order.model, "prompt": order.prompt, "stream": True, "partial_images": order.previews}
    body |= {"output_format": order.format} if order.format else {}
    try:
        connection.request("POST", "/v1/images/generations", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise _error(json.loads(response.read(MIB)))
        while line := response.readline(LINE_BYTES):
            if not line.startswith(b"data:"):  # event names repeat what is in the data, and comments are heartbeats
                continue
            data = json.loads(line[5:])
            if "error" in data:
                raise _error(data)
            if data.get("b64_json"):
                ms = round((time.monotonic() - began) * 1000)
                picture = base64.b64decode(data["b64_json"])
                yield Picture(data.get("partial_image_index"), picture, ms, data.get("cost"))
    finally:
        connection.close()


def _error(body: Mapping[str, Mapping[str, str]]) -> ProxyError:
    return ProxyError(Failure.PROVIDER_FAILED, f"The proxy answered: {body['error']['message']}")


def _snippets(url: str) -> str:
    return f"""
Try it, with previews as they come:

  curl -N {url}/v1/images/generations -H 'content-type: application/json' \\
    -d '{{"model": "{MODEL}", "prompt": "a lighthouse", "stream": true, "partial_images": {PREVIEWS}}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  for event in client.images.generate(model="{MODEL}", prompt="a lighthouse", stream=True, partial_images={PREVIEWS}):
      print(event.type, len(event.b64_json))

Pages of this machine (http://localhost:*) may import {url}/client.js and call the API.

Serving until Ctrl-C."""
