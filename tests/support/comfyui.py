"""A simulated ComfyUI server, with the routes that one prompt needs."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from streamproxy.server.listening import listen
from streamproxy.simulator.pictures import draw, encode
from tests.support.proxy import BOUND

PREVIEWS = 4


@dataclass(slots=True)
class Comfy:
    """The server's requests (`asked`), and cancellations (`told`).

    `breaks`: its WebSocket closes after two previews. `fails`: the job fails. `holds`: the job ends late.
    """

    breaks: bool = False
    fails: bool = False
    holds: bool = False
    url: str = ""
    prompts: list[dict[str, Any]] = field(default_factory=list)
    uploads: list[bytes] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    asked: anyio.Event = field(default_factory=anyio.Event)
    told: anyio.Event = field(default_factory=anyio.Event)

    async def prompt(self, request: Request) -> Response:
        self.keys.append(request.headers.get("x-api-key"))
        given = await request.json()
        self.prompts.append(given)
        self.asked.set()
        return JSONResponse({"prompt_id": given["prompt_id"], "number": 1, "node_errors": {}})

    async def events(self, socket: WebSocket) -> None:
        self.keys.append(socket.headers.get("x-api-key"))
        await socket.accept()
        try:
            assert json.loads(await socket.receive_text())["type"] == "feature_flags"
            await socket.send_json({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}}})
            await self.asked.wait()
            await self._play(socket, self.prompts[-1]["prompt_id"])
            await socket.receive()
        except WebSocketDisconnect:
            pass

    async def _play(self, socket: WebSocket, id: str) -> None:
        file = encode(draw("a draft", 32, 32), "jpeg")
        await socket.send_json({"type": "execution_start", "data": {"prompt_id": id}})
        for step in range(PREVIEWS):
            await socket.send_json({"type": "progress", "data": {"value": step, "max": PREVIEWS, "prompt_id": id}})
            about = json.dumps({"prompt_id": id, "image_type": "image/jpeg"}).encode()
            await socket.send_bytes(struct.pack(">II", 4, len(about)) + about + file)
            if self.breaks and step == 1:
                await socket.close(1011)
                return
        if self.holds:
            await anyio.sleep(BOUND)
        if self.fails:
            problem = {"prompt_id": id, "exception_message": "Out of memory", "exception_type": "OutOfMemoryError"}
            await socket.send_json({"type": "execution_error", "data": problem})
        await socket.send_json({"type": "execution_success", "data": {"prompt_id": id}})

    async def history(self, request: Request) -> Response:
        image = {"filename": "made.png", "subfolder": "", "type": "output"}
        temporary = {"filename": "draft.png", "subfolder": "", "type": "temp"}
        outputs = {"9": {"images": [temporary, image]}}
        return JSONResponse({request.path_params["id"]: {"outputs": outputs, "status": {"completed": True}}})

    async def view(self, request: Request) -> Response:
        assert request.query_params["filename"] == "made.png"
        return Response(encode(draw("made", 64, 48), "png"), media_type="image/png")

    async def upload(self, request: Request) -> Response:
        async with request.form() as form:
            file = form["image"]
            assert not isinstance(file, str)
            self.uploads.append(await file.read())
        return JSONResponse({"name": "given.png", "subfolder": "", "type": "input"})

    async def cancel(self, request: Request) -> Response:
        self.cancelled.append(request.path_params["id"])
        self.told.set()
        return JSONResponse({})


@asynccontextmanager
async def comfyui(server: Comfy) -> AsyncIterator[None]:
    """Serve it until the block ends; `server.url` says where."""
    routes = [
        Route("/prompt", server.prompt, methods=["POST"]),
        WebSocketRoute("/ws", server.events),
        Route("/history/{id}", server.history),
        Route("/view", server.view),
        Route("/upload/image", server.upload, methods=["POST"]),
        Route("/api/jobs/{id}/cancel", server.cancel, methods=["POST"]),
    ]
    sock = listen("127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    config = uvicorn.Config(Starlette(routes=routes), ws="websockets-sansio", log_level="error", lifespan="off")
    running = uvicorn.Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: running._serve([sock]))  # noqa: SLF001 - `serve` takes the process's signals
        with anyio.fail_after(BOUND):
            while not running.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await anyio.sleep(0.01)
        try:
            yield
        finally:
            running.should_exit = running.force_exit = True
