"""Real answers of every route are as /openapi.json describes them: status, content type, and each body and event."""

from __future__ import annotations

import base64
import re
from typing import Final

import anyio
import pytest

from streamproxy.simulator import running
from streamproxy.simulator.pictures import draw, encode
from streamproxy.web.openapi import document
from streamproxy.web.routes import ROUTES
from tests.support.openapi import DOCUMENT, INSTALLATION, Checker
from tests.support.proxy import BOUND, PROMPT, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

PNG: Final = encode(draw("input", 64, 64), "png")
DATA_URL: Final = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
ORDER: Final = {"model": "sim/gpt-image", "prompt": PROMPT, "size": "256x256"}
EDIT: Final = {**ORDER, "images": [{"image_url": DATA_URL}]}
CHAT: Final = {"model": "sim/plain", "messages": [{"role": "user", "content": PROMPT}], "size": "256x256"}
TOOL: Final = {"type": "image_generation", "model": "sim/gpt-image", "size": "256x256", "partial_images": 1}
RESPONSE: Final = {"input": PROMPT, "tools": [TOOL]}
STREAMED: Final[dict[str, object]] = {"stream": True, "partial_images": 2}
LATER: Final = {"prefer": "respond-async"}
FILE: Final = {"file": ("in.png", PNG)}
IMAGE: Final = {"image": ("in.png", PNG)}
TEXTS: Final = {"model": "sim/gpt-image", "prompt": PROMPT, "size": "256x256"}
KEY: Final = {"authorization": "Bearer a-key-of-the-caller"}
EVENTS: Final = "text/event-stream"
FAULTS: Final = {"refused-400": 400, "refused-429": 429, "fin-before-head": 502, "eof-inside-event": 200}
"""Faults of the simulator, and the statuses of their answers: the last one fails in the stream."""


async def images(checker: Checker) -> None:
    changes: list[dict[str, object]] = [{}, STREAMED, {"image": DATA_URL, **STREAMED}, {"n": 2}]
    changes += [{"response_format": "url"}, {"model": "sim/plain", "n": 2, "stream": True}]
    for more in changes:
        await checker.ask("POST", "/v1/images/generations", json={**ORDER, **more})
    for more in changes[:2]:
        await checker.ask("POST", "/v1/images/edits", json={**EDIT, **more})
    await checker.ask("POST", "/v1/images/edits", data=TEXTS, files=IMAGE)
    await checker.ask("POST", "/v1/images/variations", data={"model": "sim/plain"}, files=IMAGE)
    for path in ("/openai/deployments/sim/gpt-image", "/openai/v1"):
        await checker.ask("POST", f"{path}/images/generations", json=ORDER)
        await checker.ask("POST", f"{path}/images/edits", json=EDIT)


async def conversations(checker: Checker) -> None:
    changes: list[dict[str, object]] = [{}, {"modalities": ["image"]}, {"stream": True}, {"stream": True, "n": 2}]
    for more in changes:
        await checker.ask("POST", "/v1/chat/completions", json={**CHAT, **more})
    for stream in (False, True):
        await checker.ask("POST", "/v1/responses", json={**RESPONSE, "stream": stream})


async def failures(checker: Checker) -> None:
    for path in ("/v1/images/generations", "/v1/images/edits"):
        await checker.ask("POST", path, 422, json={"prompt": 1})
        await checker.ask("POST", path, 400, content=b"{", headers={"content-type": "application/json"})
        await checker.ask("POST", path, 415, content=b"a", headers={"content-type": "text/plain"})
        await checker.ask("POST", path, 404, json={**EDIT, "model": "none/such"})
    for fault, status in FAULTS.items():
        body = {**ORDER, **STREAMED, "model": f"sim/fault-{fault}"}
        await checker.ask("POST", "/v1/images/generations", status, json=body)
    failed = {**RESPONSE, "stream": True, "tools": [{**TOOL, "model": "sim/fault-eof-inside-event"}]}
    await checker.ask("POST", "/v1/responses", json=failed)
    await checker.ask("POST", "/v1/chat/completions", 422, json={**CHAT, "messages": []})
    await checker.ask("GET", "/v1/streams/str_none", 404)
    await checker.ask("GET", "/v1/streams/str_none?token=a", 401)
    await checker.ask("GET", "/v1/streams", 404)
    await checker.ask("GET", "/v1/streams?limit=0", 422, headers=KEY)
    await checker.ask("GET", "/v1/models/none", 404)
    await checker.ask("GET", "/v1/files/upl_none", 404)
    await checker.ask("POST", "/v1/files", 422, files=FILE)
    await checker.ask("GET", "/docs/none", 404)


async def streams(checker: Checker) -> None:
    order = {**ORDER, **STREAMED}
    accepted = await checker.ask("POST", "/v1/images/generations", 202, json=order, headers={**LATER, **KEY})
    urls = accepted.json()
    ended = await checker.ask("GET", urls["status_url"], headers={"prefer": "wait=20"})
    assert ended.json()["status"] == "completed"
    events = await checker.ask("GET", urls["stream_url"], accept=EVENTS)
    last = re.findall(r"^id: (\S+)$", events.text, re.MULTILINE)[-1]
    await checker.ask("GET", urls["stream_url"], 204, accept=EVENTS, headers={"last-event-id": last})
    await checker.ask("GET", f"{urls['stream_url']}&payload=ref", accept=EVENTS)
    await checker.ask("GET", f"{urls['stream_url']}&payload=ref", accept="application/json")
    id, token = urls["id"], urls["stream_url"].partition("token=")[2]
    await checker.ask("GET", f"/v1/streams?stream={id}:{token}&payload=inline", accept=EVENTS)
    await checker.ask("GET", "/v1/streams", headers=KEY)
    for path in (f"/v1/streams/{id}/images/0", f"/v1/streams/{id}/images/0/preview"):
        picture = await checker.ask("GET", f"{path}?token={token}")
        assert picture.headers["content-type"] == "image/png"
        await checker.ask("GET", f"{path}?token={token}", 206, headers={"range": "bytes=0-7"})
        await checker.ask("GET", f"{path}?token={token}", 304, headers={"if-none-match": picture.headers["etag"]})
        await checker.ask("GET", f"{path}?token={token}", 416, headers={"range": "bytes=99999999-"})
    await checker.ask("DELETE", urls["stream_url"], 403)
    await checker.ask("DELETE", urls["cancel_url"])
    await checker.ask("GET", urls["status_url"], 410)


async def lists(checker: Checker) -> None:
    await checker.ask("GET", "/v1/usage")
    await checker.ask("GET", "/v1/usage?group_by=size", 422)
    await checker.ask("GET", "/v1/images/models")
    models = await checker.ask("GET", "/v1/models")
    await checker.ask("GET", f"/v1/models/{models.json()['data'][0]['id']}")
    file = await checker.ask("POST", "/v1/files", files=FILE, data={"purpose": "vision"}, headers=KEY)
    await checker.ask("POST", "/v1/upload", files=FILE)
    await checker.ask("GET", "/v1/files", headers=KEY)
    path = f"/v1/files/{file.json()['id']}"
    await checker.ask("GET", path)
    await checker.ask("GET", f"{path}/content")
    await checker.ask("DELETE", path)


async def pages(checker: Checker) -> None:
    for row in ROUTES:
        if row.method == "GET" and not row.surface and "{" not in row.path:
            await checker.ask("GET", row.path)
    await checker.ask("GET", "/docs/streams")
    await checker.ask("GET", "/docs/streams.md")


async def test_every_operation_answers_as_described() -> None:
    async with no_leaks(), running(pace=0) as sim, running_proxy(sim.url) as proxy:
        checker = Checker(proxy)
        with anyio.fail_after(4 * BOUND):
            for scene in (images, conversations, failures, streams, lists, pages):
                await scene(checker)
    operations = {
        (method.upper(), path)
        for path, item in DOCUMENT["paths"].items()
        for method in item
        if not path.startswith("/v3/")  # the same handlers
    }
    assert checker.seen == operations


def test_both_versions_are_described_alike() -> None:
    made = document(ROUTES, ("/v1", "/v3"), INSTALLATION)["paths"]
    assert isinstance(made, dict)
    for path, item in made.items():
        if path.startswith("/v1/"):
            other = made[path.replace("/v1/", "/v3/", 1)]
            for method, operation in item.items():
                assert {**operation, "operationId": ""} == {**other[method], "operationId": ""}
