"""Frames of a scripted provider with known bytes, the data that callers must get of them, and a second stream that must
not be affected by the first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import httpx
import orjson
from structlog.testing import capture_logs

from streamproxy.errors import Failure
from streamproxy.simulator.received import Handler, Received
from streamproxy.simulator.script import Script, event, sse
from tests.support.caller import calling, generation
from tests.support.proxy import BOUND, Proxy, Sent, events, until

PREVIEW: Final = "image_generation.partial_image"
COMPLETED: Final = "image_generation.completed"
USAGE: Final = {
    "total_tokens": 3,
    "input_tokens": 1,
    "output_tokens": 2,
    "input_tokens_details": {"text_tokens": 1, "image_tokens": 0},
}
ADDED: Final = b',"cost":null,"provider":"sim"}'
"""The proxy's bytes in place of a completed event's last brace."""

OTHER: Final = "the other stream"
OTHER_SECONDS: Final = 0.1


def preview(number: int, *, size: int = 64) -> bytes:
    """One preview frame with `size` bytes of base64."""
    members = {"type": PREVIEW, "b64_json": "A" * size, "created_at": 1, "partial_image_index": number}
    return event(PREVIEW, orjson.dumps(members))


def completed(*, size: int = 64) -> bytes:
    """The completed frame."""
    members = {"type": COMPLETED, "b64_json": "B" * size, "created_at": 1, "usage": USAGE}
    return event(COMPLETED, orjson.dumps(members))


def answered_item(base64: str) -> dict[str, object]:
    """The image with this base64 as a JSON answer has it, where the provider says nothing else of it."""
    return {"b64_json": base64, "url": None, "revised_prompt": None}


def data_of(frame: bytes) -> bytes:
    """The data of a frame as the provider sent it."""
    return frame.partition(b"data: ")[2].removesuffix(b"\n\n")


def passed_on(*frames: bytes) -> list[Sent]:
    """What a caller gets of these frames, in order."""
    sent: list[Sent] = []
    for frame in frames:
        name = frame.partition(b"\n")[0].removeprefix(b"event: ").decode()
        data = data_of(frame)
        sent.append(Sent(name, data[:-1] + ADDED if name == COMPLETED else data))
    return sent


_OTHERS: Final = (preview(0), completed())


def provider(script: Script) -> Handler:
    """A provider that plays `script`, and a slow, correct one for the other stream."""

    def handle(received: Received) -> Script:
        return sse(_OTHERS, waits=(0, OTHER_SECONDS)) if OTHER.encode() in received.body else script

    return handle


@asynccontextmanager
async def other_stream(proxy: Proxy) -> AsyncIterator[None]:
    """A stream through the same proxy that has its first frame before the block, and is whole after it."""
    async with calling(proxy.port) as caller:
        await caller.send(generation(prompt=OTHER, stream=True))
        assert await caller.head() == 200
        body = b""
        while not body.endswith(b"\n\n"):
            body += await caller.chunk()
        yield
        assert events(body + await caller.rest()) == passed_on(*_OTHERS)


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed request, as an HTTP status or as a final `error` event."""

    frames: list[Sent]
    status: object
    code: object
    message: object
    as_event: bool


def failed(response: httpx.Response) -> Failed:
    """Read a failed answer; both forms name the request by the id in its head."""
    if response.headers["content-type"].startswith("text/event-stream"):
        assert response.status_code == 200
        *frames, last = events(response.content)
        assert last.event == "error"
        assert last.json["type"] == "error"
        body, error = last.json, last.json["error"]
        assert isinstance(error, dict)
        status, as_event = error["status"], True
    else:
        frames, as_event, status = [], False, response.status_code
        body = orjson.loads(response.content)
        error = body["error"]
        assert isinstance(error, dict)
    assert {"message", "type", "param", "code"} <= error.keys()
    assert body["request_id"] == response.headers["x-request-id"]
    return Failed(frames, status, error["code"], error["message"], as_event)


@asynccontextmanager
async def one_failure(failure: Failure) -> AsyncIterator[None]:
    """Assert that the block logs exactly this failure, in the line of its request or of its stream."""
    with capture_logs() as logs:
        yield
        await until(lambda: any("failure" in line for line in logs))  # it is written when the answer has been sent
    assert [line["failure"] for line in logs if "failure" in line] == [failure.name.lower()]


async def idle(proxy: Proxy) -> None:
    """Wait until no generation runs, so that its connection is either closed or free again."""
    with anyio.fail_after(BOUND):
        while await proxy.metric("streamproxy_streams"):  # noqa: ASYNC110  there is no event for it
            await anyio.sleep(0.01)
