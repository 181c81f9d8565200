"""Comfy API v2, simulated. Base URL: {server}/comfy; any key, or none, is accepted.

A workflow is any graph; its prompt is the longest string in it, its size the first `width` and `height`. A job sends
five previews, then the picture. The terminal status comes before the last output, as from the self-hosted proxy. The
prompt `fault-<name>` plays a row of FAULTS.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Final
from uuid import uuid4

import anyio
import msgspec
from anyio.to_thread import run_sync

from streamproxy.simulator import pictures
from streamproxy.simulator.multipart import parts
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Send, Stall, event, head, json_answer, sse

PREFIX: Final = "/comfy/"
JOBS: Final = "api/v2/jobs"
ASSETS: Final = "api/v2/assets"
PREVIEWS: Final = 5
STEP_SECONDS: Final = 1.5  # between previews, times `pace`
MAX_KEPT: Final = 100
FAULT: Final = "fault-"
SQUARE: Final = (512, 512)


class _Submission(msgspec.Struct, forbid_unknown_fields=True):
    workflow: dict[str, object]
    extra_data: dict[str, object] | None = None


@dataclass(slots=True)
class _Job:
    id: str
    base: str
    workflow: dict[str, object] = field(repr=False)
    fault: str
    status: str = "queued"

    @property
    def state(self) -> dict[str, object]:
        """The Job object, with outputs once it has succeeded."""
        url = f"{self.base}{JOBS}/{self.id}"
        output = {
            "node_id": "9",
            "name": "sim_00001_.png",
            "type": "image",
            "content_type": "image/png",
            "id": self.id,
            "url": f"{self.base}{ASSETS}/{self.id}/content",
        }
        failed = {"code": "node_execution_error", "message": "Allocation on device failed."}
        return {
            "id": self.id,
            "status": self.status,
            "outputs": [output] if self.status == "succeeded" and self.fault != "no-output" else [],
            "error": failed if self.status == "failed" else None,
            "urls": {"self": url, "events": f"{url}/events", "cancel": f"{url}/cancel"},
        }


class ComfyUI:
    """The handler: see `simulator.Form`."""

    prefix = PREFIX

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._assets: OrderedDict[str, bytes] = OrderedDict()
        self._drawing = anyio.CapacityLimiter(4)

    async def __call__(self, received: Received) -> Script:
        base = f"http://{received.header('host')}{PREFIX}"
        path = received.target.removeprefix(PREFIX).partition("?")[0]
        match received.method, path.split("/")[2:]:
            case "POST", ["jobs"]:
                return self._submit(received, base)
            case "GET", ["jobs", id] if id in self._jobs:
                return json_answer(200, self._jobs[id].state)
            case "GET", ["jobs", id, "events"] if id in self._jobs:
                return await self._events(self._jobs[id])
            case "POST", ["jobs", id, "cancel"] if id in self._jobs:
                self._jobs[id].status = "canceled"
                return json_answer(200, self._jobs[id].state)
            case "POST", ["assets"]:
                return self._upload(received)
            case "GET", ["assets", id, "content"] if id in self._assets:
                file = self._assets[id]
                return (Send(head(200, (("Content-Type", "image/png"),), length=len(file))), Send(file))
        return _error(404, "not_found", "Not found.")

    def _submit(self, received: Received, base: str) -> Script:
        try:
            workflow = msgspec.json.decode(received.body, type=_Submission).workflow
        except msgspec.DecodeError as error:
            return _error(422, "invalid_workflow", str(error))
        prompt = max(_strings(workflow), key=len, default="")
        job = _Job(uuid4().hex, base, workflow, prompt.removeprefix(FAULT) if prompt.startswith(FAULT) else "")
        if job.fault == "queue-full":
            return _error(429, "queue_full", "The queue is full.")
        self._jobs[job.id] = job
        if len(self._jobs) > MAX_KEPT:
            self._jobs.popitem(last=False)
        return json_answer(201, job.state)

    def _upload(self, received: Received) -> Script:
        [file] = [part for part in parts(received.body, received.header("content-type") or "") if part.name == "file"]
        id = f"asset_{uuid4().hex}"
        self._assets[id] = file.data
        if len(self._assets) > MAX_KEPT:
            self._assets.popitem(last=False)
        return json_answer(201, {"id": id, "size_bytes": len(file.data)})

    async def _events(self, job: _Job) -> Script:
        if job.fault == "streams":
            job.status = "succeeded"
            self._assets[job.id] = (await self._made(job))[-1]
            return _error(429, "too_many_streams", "Too many event streams.")
        if job.fault == "failed":
            job.status = "failed"
            return sse([_event("status", {"status": "running"}), _event("status", {"status": "failed"})])
        made = await self._made(job)
        frames = [_event("status", {"status": "queued", "queue_position": 1}), _event("status", {"status": "running"})]
        for step, file in enumerate(made[:-1]):
            frames.append(_event("progress", {"value": (step + 1) / PREVIEWS, "step": step + 1, "steps": PREVIEWS}))
            text = base64.b64encode(file).decode()
            frames.append(_event("preview", {"node_id": "3", "content_type": "image/jpeg", "data_base64": text}))
        if job.fault == "stall":
            return sse(frames[:6], end=(Stall(),))
        self._assets[job.id] = made[-1]
        job.status = "succeeded"
        if job.fault == "cut":
            return sse(frames[:6], end=())
        end = [_event("status", {"status": "succeeded"}), _event("output", {"type": "image", "name": "sim.png"})]
        pauses = [STEP_SECONDS * self._pace if b"event: preview" in frame else 0.0 for frame in frames]
        return sse([*frames, b": keepalive\n\n", *end], waits=pauses)

    async def _made(self, job: _Job) -> list[bytes]:
        return await run_sync(partial(_drawn, job.workflow, self._assets), limiter=self._drawing)


def _drawn(workflow: dict[str, object], assets: Mapping[str, bytes]) -> list[bytes]:
    """The previews, as JPEG files, and the picture."""
    prompt = max(_strings(workflow), key=len, default="")
    numbers = dict(_numbers(workflow))
    size = numbers.get("width", SQUARE[0]), numbers.get("height", SQUARE[1])
    inputs = [assets[id] for id in _asset_ids(workflow) if id in assets]
    picture = pictures.edit(prompt, *size, inputs[0]) if inputs else pictures.draw(prompt, *size)
    sketches = [pictures.encode(pictures.preview(picture, step, PREVIEWS), "jpeg", 80) for step in range(PREVIEWS)]
    return [*sketches, pictures.encode(picture, "png")]


def _strings(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _strings(value)


def _numbers(node: object) -> Iterator[tuple[str, int]]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name in ("width", "height") and isinstance(value, int):
                yield name, value
            yield from _numbers(value)


def _asset_ids(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        info = node.get("info")
        if node.get("__type") == "core/ASSET" and isinstance(info, dict):
            yield str(info.get("id"))
        for value in node.values():
            yield from _asset_ids(value)


def _event(name: str, value: object) -> bytes:
    return event(name, msgspec.json.encode(value))


def _error(status: int, code: str, message: str) -> Script:
    return json_answer(status, {"error": {"code": code, "message": message, "details": {}}})


FAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "queue-full": "the submission is refused for now",
        "streams": "the job's events are refused: there are no previews",
        "failed": "the job fails",
        "stall": "events stop after two previews",
        "cut": "events break off after two previews, and the job succeeds",
        "no-output": "the job succeeds without a picture",
    }
)
