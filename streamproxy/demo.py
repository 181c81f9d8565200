"""The demo: one picture from the simulator, through a real proxy, over real HTTP, with its previews on the way.

Nothing is special about the proxy: it is what `serve` runs, with one provider, whose address is the simulator's. The
client is the standard library's, on purpose: any program could do the same.
"""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from streamproxy import simulator
from streamproxy.app import create_app
from streamproxy.errors import Failure, ProxyError
from streamproxy.server import serve
from streamproxy.server.listening import listen, url_of
from streamproxy.settings import ProviderSettings, Settings
from streamproxy.settings.values import MIB, ConfigurationError

MODEL: Final = "sim/gpt-image"
PREVIEWS: Final = 3  # the most that GPT image models make
USUAL_PORT: Final = 8080
SILENCE_SECONDS: Final = 60.0  # heartbeats come every 15 s, so this is a proxy that hangs
LINE_BYTES: Final = 64 * MIB  # one event is one line; as the setting max_event_bytes

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of the stream: `preview` counts from 0, None for the completed one; `ms` since the request."""

    preview: int | None
    data: bytes
    ms: int


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
    port, prompt = options.port, options.prompt
    async with simulator.running(pace=options.pace) as upstream:
        sim = ProviderSettings(base_url=f"{upstream.url}/v1", credential="none")
        settings = Settings(port=port or 0, providers={"sim": sim}, log_level="warning", log_format="text")
        try:
            sock = listen(settings.host, USUAL_PORT if port is None else port)
        except ConfigurationError:
            if port is not None:
                raise
            sock = listen(settings.host, 0)
            say(f"Port {USUAL_PORT} is taken by another program, so the proxy is at {url_of(sock)} instead.")
        url = url_of(sock)
        started = anyio.Event()

        async def proxy() -> None:
            await serve(create_app(settings), settings, sock, ready=lambda _: started.set())
            tasks.cancel_scope.cancel()  # a signal ended it, so the client's part ends too

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(proxy)
            await started.wait()
            say(simulator.BANNER.rstrip())
            say(f"API base URL: {url}/v1   (no key needed)\nAsking {MODEL} for: {prompt}")
            picture = await anyio.to_thread.run_sync(_follow, url, prompt, say, abandon_on_cancel=True)
            await anyio.Path(options.output).write_bytes(picture)
            say(f"The completed picture is in {options.output}")
            if options.once:
                tasks.cancel_scope.cancel()
            else:
                say(_snippets(url))


def _follow(url: str, prompt: str, say: Say) -> bytes:
    """Say each picture as it arrives; the completed one's bytes. Raises ProxyError where there is none."""
    for picture in stream(url, prompt):
        what = "completed" if picture.preview is None else f"preview {picture.preview + 1}"
        say(f"  {what:10} {len(picture.data) / 1000:8.0f} kB {picture.ms:7d} ms")
        if picture.preview is None:
            return picture.data
    raise ProxyError(Failure.MISSING_TERMINAL_EVENT, "The stream ended without a completed picture.")


def stream(url: str, prompt: str) -> Iterator[Picture]:
    """The pictures of one streamed request, as they arrive. Blocks. Raises ProxyError for any error answer."""
    began = time.monotonic()
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=SILENCE_SECONDS)
    try:
        body = {"model": MODEL, "prompt": prompt, "stream": True, "partial_images": PREVIEWS}
        connection.request("POST", "/v1/images/generations", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise _error(json.loads(response.read(MIB)))
        while line := response.readline(LINE_BYTES):
            if not line.startswith(b"data:"):  # event names repeat what is in the data, and comments are heartbeats
                continue
            data = json.loads(line[5:])
            if "error" in data:
                raise _error(data)
            if "b64_json" in data:
                ms = round((time.monotonic() - began) * 1000)
                yield Picture(data.get("partial_image_index"), base64.b64decode(data["b64_json"]), ms)
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

Serving until Ctrl-C."""
