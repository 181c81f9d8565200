"""A simulator of providers: it speaks OpenAI's images wire, draws real pictures, needs no key, and fails on demand.

Other wires are below other paths: /v1beta has Gemini's and Imagen's, /v1/projects/sim the same two on Vertex AI,
/queue.fal and /fal fal's, /bfl Black Forest Labs', /replicate Replicate's, /ark Ark's, /minimax MiniMax's, /xai xAI's,
/comfy the Comfy API, /a1111 AUTOMATIC1111's, /openrouter OpenRouter's, /dashscope Alibaba's, /azure Microsoft's MAI,
/stability Stability AI's, /bedrock Stability AI's and Amazon's on Bedrock, /ideogram Ideogram's, /luma Luma's,
/responses OpenAI's Responses, /hosts/<name> OpenAI's with the differences of other hosts. /fireworks, /cloudflare,
/huggingface, /leonardo and /runware have those hosts' wires.

    async with running() as server:
        ...                          POST {server.url}/v1/images/generations   {"model": "sim/gpt-image", ...}

Server and scripts know no wire: `serve` plays the scripts of any handler. `openai.py` is the handler of OpenAI's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

from streamproxy.simulator.automatic1111 import Automatic1111
from streamproxy.simulator.bedrock import Bedrock
from streamproxy.simulator.bfl import Bfl
from streamproxy.simulator.cloudflare import Cloudflare
from streamproxy.simulator.comfyui import ComfyUI
from streamproxy.simulator.dashscope import DashScope
from streamproxy.simulator.fal import Fal
from streamproxy.simulator.fireworks import Fireworks
from streamproxy.simulator.gemini import Gemini
from streamproxy.simulator.groups import Ark, MiniMax
from streamproxy.simulator.hosts import Hosts
from streamproxy.simulator.huggingface import HuggingFace
from streamproxy.simulator.ideogram import Ideogram
from streamproxy.simulator.imagen import Imagen
from streamproxy.simulator.leonardo import Leonardo
from streamproxy.simulator.luma import Luma
from streamproxy.simulator.mai import Mai
from streamproxy.simulator.openai import MODELS, OpenAI
from streamproxy.simulator.openrouter import OpenRouter
from streamproxy.simulator.order import PREFIX
from streamproxy.simulator.received import Handler, Received
from streamproxy.simulator.replicate import Replicate
from streamproxy.simulator.responses import Responses
from streamproxy.simulator.runware import Runware
from streamproxy.simulator.script import Script
from streamproxy.simulator.server import Server, serve
from streamproxy.simulator.stability import Stability
from streamproxy.simulator.xai import XAI

__all__ = ["BANNER", "Form", "Server", "model_names", "running", "wires"]

BANNER: Final = (
    "This is a SIMULATOR. No image model is behind it and nothing is billed: pictures are drawn from the words of the "
    "prompt, token counts are invented. Models: sim/gpt-image, sim/plain, sim/plain-ignores-stream, sim/url, "
    "sim/fault-<name>; `streamproxy simulate --list` says all names."
)


def model_names() -> list[str]:
    """All names of models. Faults come last: first those before a body, then those of a stream."""
    return [PREFIX + name for name in MODELS]


class Form(Protocol):
    """The handler of a wire other than OpenAI's, for paths that begin with `prefix`, or with one of several."""

    @property
    def prefix(self) -> str | tuple[str, ...]: ...

    async def __call__(self, received: Received) -> Script: ...


def wires(pace: float) -> Handler:
    """The handler of all wires."""
    openai = OpenAI(pace)
    others: tuple[Form, ...] = (
        Imagen(pace),
        Gemini(pace),
        Fal(pace),
        Bfl(pace),
        Replicate(pace),
        Ark(pace),
        MiniMax(pace),
        XAI(pace),
        Hosts(pace),
        ComfyUI(pace),
        Automatic1111(pace),
        OpenRouter(pace),
        DashScope(pace),
        Mai(pace),
        Stability(pace),
        Bedrock(pace),
        Ideogram(pace),
        Luma(pace),
        Fireworks(pace),
        Cloudflare(pace),
        HuggingFace(pace),
        Leonardo(pace),
        Runware(pace),
        Responses(pace),
    )

    async def handler(received: Received) -> Script:
        for form in others:
            if received.target.startswith(form.prefix):
                return await form(received)
        return await openai(received)

    return handler


@asynccontextmanager
async def running(*, host: str = "127.0.0.1", port: int = 0, pace: float = 1.0) -> AsyncIterator[Server]:
    """Run the simulated providers at `server.url`, until the block ends.

    `pace` scales all times: with 1.0 they are a real model's (previews after 2.5, 4.5 and 6.5 s, the picture after
    9 s), with 0 there are no waits. Raises OSError where it cannot listen.
    """
    async with serve(wires(pace), host=host, port=port) as server:
        yield server
