"""Which pictures of a frame go into a bucket: as the provider made them, however their base64 is written."""

from __future__ import annotations

import base64
import hashlib
import os
from typing import Final

import anyio
import orjson
import pytest

from streamproxy.core.events import ANSWER, ERROR, Frame, Operation, Role, type_of
from streamproxy.generation.results import Results
from streamproxy.hub.log import Record
from streamproxy.observe import Observer
from streamproxy.upstream.bucket import Bucket
from tests.support import bucket
from tests.support.bucket import bucket_server

pytestmark = pytest.mark.anyio

COMPLETED: Final = type_of(Operation.GENERATION, Role.COMPLETED)
PREVIEW: Final = type_of(Operation.GENERATION, Role.PREVIEW)
USAGE: Final = type_of(Operation.GENERATION, Role.USAGE)
PNG: Final = b"\x89PNG\r\n\x1a\n" + os.urandom(600_001)
RECORD: Final = Record("str_1", None, 1_700_000_000, 2)
BOUND: Final = 20.0


def text(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def event(picture: bytes, *, escaped: bool = False) -> bytes:
    data = orjson.dumps({"type": COMPLETED, "b64_json": text(picture)})
    return data.replace(b"/", b"\\/") if escaped else data


def split(data: bytes, size: int) -> tuple[bytes, ...]:
    return tuple(data[at : at + size] for at in range(0, len(data), size))


async def kept(*frames: Frame, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The SHA-256 of each object in the bucket after these frames, by the end of its key."""
    bucket.credentials(monkeypatch)
    with anyio.fail_after(BOUND):
        async with bucket_server() as server, anyio.create_task_group() as tasks:
            place = Bucket(f"s3://{bucket.NAME}", endpoint=server.url, seconds=60)
            results = Results(place, tasks=tasks, observer=Observer())
            for frame in frames:
                results.keep(RECORD, frame)
            await results.settled(BOUND)
            urls = await results.urls(RECORD.id, RECORD.created)
            objects = server.objects()
            assert len(urls) == len(objects) == len(server.put)
    return {key.removeprefix("2023-11-14/str_1/"): hashlib.sha256(raw).hexdigest() for key, raw in objects.items()}


SHA: Final = hashlib.sha256(PNG).hexdigest()


@pytest.mark.parametrize("size", [1 << 30, 65_536, 60])
@pytest.mark.parametrize("escaped", [False, True])
async def test_an_events_picture(size: int, escaped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = split(event(PNG, escaped=escaped), size)
    assert await kept(Frame(COMPLETED, data, 1, final=True), monkeypatch=monkeypatch) == {"1.png": SHA}


async def test_an_answers_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"b64_json": text(PNG)}, {"url": "https://a.example/b.png"}, {"b64_json": text(b"\xff\xd8\xff" + PNG)}]
    frame = Frame(ANSWER, (orjson.dumps({"created": 1, "data": items}),), final=True)
    found = await kept(frame, monkeypatch=monkeypatch)
    assert found.keys() == {"0.png", "2.jpg"}
    assert found["0.png"] == SHA


@pytest.mark.parametrize(
    "frame",
    [
        Frame(PREVIEW, (event(PNG),), 0),
        Frame(ERROR, (b'{"error":{}}',), final=True),
        Frame(USAGE, (b'{"usage":{}}',), final=True),
        Frame(COMPLETED, (b'{"b64_json":null,"url":"https://a.example"}',), final=True),
        Frame(COMPLETED, (b'{"b64_json":""}',), final=True),
        Frame(COMPLETED, (b'{"b64_json":"A"}',), final=True),
        Frame(COMPLETED, (b"{",), final=True),
        Frame(ANSWER, (b"[]",), final=True),
    ],
    ids=["preview", "error", "usage", "a URL", "empty", "no base64", "no JSON", "no answer"],
)
async def test_frames_without_a_picture(frame: Frame, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await kept(frame, monkeypatch=monkeypatch) == {}
