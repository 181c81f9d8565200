"""What every surface refuses: by its status, in the shape that its SDK reads, about the caller's own member, unpaid."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import openai
import orjson
import pytest
from openai import AsyncOpenAI

from streamproxy.core.files import file_id
from streamproxy.simulator import Server, running
from streamproxy.simulator.pictures import draw, encode
from tests.support.proxy import BOUND, PROMPT, Proxy, no_leaks, running_proxy

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning"),
]

PNG: Final = encode(draw("a lighthouse", 64, 48), "png")
URL: Final = "data:image/png;base64," + base64.b64encode(PNG).decode()
KEYS: Final = ("the-key-of-ann", "the-key-of-bob")
HASHES: Final = tuple("sha256:" + hashlib.sha256(key.encode()).hexdigest() for key in KEYS)
EXPIRED: Final = file_id(1, "0" * 32)
FOREIGN: Final = "(the other caller's)"
LIMIT: Final = 64 * 1024
GENERATIONS: Final = "/images/generations"
EDITS: Final = "/images/edits"
VARIATIONS: Final = "/images/variations"
CHAT: Final = "/chat/completions"
RESPONSES: Final = "/responses"
UPLOAD: Final = "/files"

TOOL: Final = {"type": "image_generation", "model": "sim/plain"}
ASK: Final = [{"role": "user", "content": PROMPT}]


@dataclass(frozen=True, slots=True)
class Row:
    """One request and its refusal: exception of the SDK, status, code, and the member. `files`: it is a form."""

    path: str
    body: Mapping[str, Any]
    error: type[openai.APIStatusError]
    status: int
    code: str
    param: str | None
    files: Mapping[str, bytes] = field(default_factory=dict)


def _shown(part: Mapping[str, object]) -> dict[str, object]:
    words = {"type": "input_text" if part["type"] == "input_image" else "text", "text": PROMPT}
    return {"role": "user", "content": [words, part]}


def _asked(**part: object) -> dict[str, object]:
    """A response about a picture."""
    return {"model": "gpt-5", "tools": [TOOL], "input": [_shown({"type": "input_image", **part})]}


def _file(id: str, code: str, error: type[openai.APIStatusError], status: int) -> dict[str, Row]:
    """An id of a file in every place that takes one."""
    edit = {"model": "sim/plain", "prompt": PROMPT, "images": [{"image_url": URL}, {"file_id": id}]}
    masked = {**edit, "images": [{"image_url": URL}], "mask": {"file_id": id}}
    tool = {**TOOL, "input_image_mask": {"file_id": id}}
    given = (error, status, code)
    return {
        f"edit, {code}": Row(EDITS, edit, *given, "images[1].file_id"),
        f"mask, {code}": Row(EDITS, masked, *given, "mask.file_id"),
        f"response, {code}": Row(RESPONSES, _asked(file_id=id), *given, "input[0].content[1].file_id"),
        f"response's mask, {code}": Row(
            RESPONSES, {**_asked(image_url=URL), "tools": [tool]}, *given, "tools[0].input_image_mask.file_id"
        ),
    }


def _unserved() -> dict[str, Row]:
    """A model that is not served, on every surface; that of a response is its tool's."""
    made: dict[str, Row] = {}
    for path, base in BASES.items():
        named = {"tools": [{**TOOL, "model": UNSERVED}]} if path == RESPONSES else {"model": UNSERVED}
        form = {"image": PNG} if path == VARIATIONS else {}
        made[f"{path}, model"] = Row(path, {**base, **named}, ABSENT, 404, "model_not_found", "model", form)
    return made


BASES: Final[dict[str, dict[str, Any]]] = {
    GENERATIONS: {"model": "sim/plain", "prompt": PROMPT},
    EDITS: {"model": "sim/plain", "prompt": PROMPT, "images": [{"image_url": URL}]},
    VARIATIONS: {"model": "sim/plain"},
    CHAT: {"model": "sim/plain", "messages": ASK},
    RESPONSES: {"model": "gpt-5", "input": PROMPT, "tools": [TOOL]},
}
BAD: Final = openai.BadRequestError
WRONG: Final = openai.UnprocessableEntityError
ABSENT: Final = openai.NotFoundError
NOT_BASE64: Final = "data:image/png;base64,A"
LONG: Final = "x" * (2 * LIMIT)
UNSERVED: Final = "google/gemini-3.1-flash-image"
"""A model that is known, and that no provider here serves. A chat with an unknown one is a provider's to refuse."""

ROWS: Final[dict[str, Row]] = {
    **_unserved(),
    **_file(FOREIGN, "file_not_found", ABSENT, 404),
    **_file(EXPIRED, "file_expired", openai.APIStatusError, 410),
    # A field of a wrong type.
    "generation, type": Row(GENERATIONS, {**BASES[GENERATIONS], "n": "two"}, WRONG, 422, "invalid_request", "n"),
    "edit, type": Row(EDITS, {**BASES[EDITS], "images": URL}, WRONG, 422, "invalid_request", "images"),
    "variation, type": Row(
        VARIATIONS, {"model": "sim/plain", "n": "two"}, WRONG, 422, "invalid_request", "n", {"image": PNG}
    ),
    "chat, type": Row(CHAT, {**BASES[CHAT], "messages": 7}, WRONG, 422, "invalid_request", "messages"),
    "response, type": Row(RESPONSES, {**BASES[RESPONSES], "input": 7}, WRONG, 422, "invalid_request", "input"),
    "tool, type": Row(
        RESPONSES,
        {**BASES[RESPONSES], "tools": [{**TOOL, "quality": 7}]},
        WRONG,
        422,
        "invalid_request",
        "tools[0].quality",
    ),
    "upload, type": Row(UPLOAD, {"purpose": "batch"}, WRONG, 422, "invalid_request", "purpose", {"file": PNG}),
    # An image that is none.
    "generation, image": Row(
        GENERATIONS, {**BASES[GENERATIONS], "image": "x.png"}, WRONG, 422, "invalid_request", "image"
    ),
    "edit, image": Row(
        EDITS,
        {**BASES[EDITS], "images": [{"image_url": NOT_BASE64}]},
        WRONG,
        422,
        "invalid_request",
        "images[0].image_url",
    ),
    "chat, image": Row(
        CHAT,
        {"model": "sim/plain", "messages": [_shown({"type": "image_url", "image_url": {"url": NOT_BASE64}})]},
        WRONG,
        422,
        "invalid_request",
        "messages[0].content[1].image_url.url",
    ),
    "response, image": Row(
        RESPONSES, _asked(image_url=NOT_BASE64), WRONG, 422, "invalid_request", "input[0].content[1].image_url"
    ),
    "upload, image": Row(UPLOAD, {"purpose": "vision"}, BAD, 400, "unreadable_image", "file", {"file": b"text"}),
    # A size of the picture that there is not.
    "chat, image_config": Row(
        CHAT,
        {**BASES[CHAT], "image_config": {"aspect_ratio": "5:1"}},
        WRONG,
        422,
        "invalid_request",
        "image_config.aspect_ratio",
    ),
    # Bodies that are too large.
    **{
        f"{path}, large": Row(path, {**base, "user": LONG}, openai.APIStatusError, 413, "body_too_large", None)
        for path, base in BASES.items()
        if path != VARIATIONS
    },
    "variation, large": Row(
        VARIATIONS, {"model": "sim/plain"}, openai.APIStatusError, 413, "body_too_large", None, {"image": PNG * 200}
    ),
    "upload, large": Row(
        UPLOAD, {"purpose": "vision"}, openai.APIStatusError, 413, "body_too_large", None, {"file": PNG * 200}
    ),
}


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[Proxy, Server, AsyncOpenAI, str]]:
    """A proxy with small limits, the SDK of one caller, and the id of a file of the other one's."""
    limits: dict[str, Any] = {"max_json_bytes": LIMIT, "max_upload_bytes": LIMIT, "caller_keys": HASHES}
    async with (
        no_leaks(),
        running(pace=0) as server,
        running_proxy(server.url, **limits) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key=KEYS[0], max_retries=0) as client,
    ):
        with anyio.fail_after(2 * BOUND):
            other = client.with_options(api_key=KEYS[1])
            yield proxy, server, client, (await other.files.create(file=("in.png", PNG), purpose="vision")).id


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("stream", [False, True])
async def test_it_is_refused_unpaid(name: str, stream: bool) -> None:
    row = ROWS[name]
    async with asking() as (_, server, client, foreign):
        body = orjson.loads(orjson.dumps(row.body).replace(FOREIGN.encode(), foreign.encode()))
        if stream and row.path != UPLOAD:
            body["stream"] = True
        files = [(name, ("in.png", raw)) for name, raw in row.files.items()]
        headers = {"content-type": "multipart/form-data"} if files else {}
        with pytest.raises(openai.APIStatusError) as caught:
            await client.post(row.path, cast_to=object, body=body, files=files or None, options={"headers": headers})
        error = caught.value
        assert isinstance(error, row.error), type(error)
        assert (error.status_code, error.code, error.param) == (row.status, row.code, row.param), error.message
        assert error.type == "invalid_request_error"
        assert error.request_id
        assert error.message
        assert server.calls == 0


def test_every_surface_has_every_refusal() -> None:
    for path in BASES:
        codes = {row.code for row in ROWS.values() if row.path == path}
        assert codes >= {"model_not_found", "invalid_request", "body_too_large"}, path
