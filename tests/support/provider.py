"""What a scripted provider sends: small frames with known bytes, and the data that callers must get of them."""

from __future__ import annotations

import orjson

from streamproxy.simulator.script import event
from tests.support.proxy import Sent

PREVIEW = "image_generation.partial_image"
COMPLETED = "image_generation.completed"
USAGE = {
    "total_tokens": 3,
    "input_tokens": 1,
    "output_tokens": 2,
    "input_tokens_details": {"text_tokens": 1, "image_tokens": 0},
}
ADDED = b',"cost":null,"provider":"sim"}'
"""What the proxy puts in the place of a completed event's last brace."""


def preview(number: int, *, size: int = 64) -> bytes:
    """One preview frame with `size` bytes of base64."""
    members = {"type": PREVIEW, "b64_json": "A" * size, "created_at": 1, "partial_image_index": number}
    return event(PREVIEW, orjson.dumps(members))


def completed(*, size: int = 64) -> bytes:
    """The completed frame."""
    members = {"type": COMPLETED, "b64_json": "B" * size, "created_at": 1, "usage": USAGE}
    return event(COMPLETED, orjson.dumps(members))


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
