"""Conditional and partial answers."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.types import Message

from streamproxy.web.streams import partial_response

pytestmark = pytest.mark.anyio

BODY = bytes(range(100))
ETAG = '"one"'


async def answered(**headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, head and body of the answer to a GET with these headers."""
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "headers": raw}
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    await partial_response(Request(scope), BODY, "image/png", {"etag": ETAG, "cache-control": "x"})(
        scope, receive, send
    )
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    assert head["etag"] == ETAG
    assert head["cache-control"] == "x"
    return sent[0]["status"], head, b"".join(message["body"] for message in sent[1:])


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-9", 0, 10),
        ("bytes=90-", 90, 100),
        ("bytes=90-99", 90, 100),
        ("bytes=90-100", 90, 100),
        ("bytes=0-999999999999999999", 0, 100),
        ("bytes=-1", 99, 100),
        ("bytes=-100", 0, 100),
        ("bytes=-101", 0, 100),
        ("Bytes=5-6", 5, 7),
    ],
)
async def test_one_range_is_206(asked: str, start: int, end: int) -> None:
    status, head, body = await answered(range=asked)
    assert (status, body) == (206, BODY[start:end])
    assert head["content-range"] == f"bytes {start}-{end - 1}/100"
    assert head["content-length"] == str(end - start)
    assert head["content-type"] == "image/png"
    assert head["accept-ranges"] == "bytes"


@pytest.mark.parametrize("asked", ["bytes=100-", "bytes=100-100", "bytes=999-", "bytes=-0"])
async def test_a_range_beyond_the_end_is_416(asked: str) -> None:
    status, head, body = await answered(range=asked)
    assert (status, body) == (416, b"")
    assert head["content-range"] == "bytes */100"


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=9-5",
        "bytes=a-b",
        "bytes=0-1,3-4",
        "items=0-1",
        "bytes=0-1 ",
        "bytes=--1",
        "bytes=0-" + "9" * 5000,
        "bytes=" + "9" * 5000 + "-",
        "bytes=²-",
    ],
)
async def test_what_is_no_single_range_gets_everything(asked: str) -> None:
    status, head, body = await answered(range=asked)
    assert (status, body) == (200, BODY)
    assert head["accept-ranges"] == "bytes"
    assert "content-range" not in head


@pytest.mark.parametrize(("condition", "status"), [(ETAG, 206), ('"two"', 200), ('W/"one"', 200), ("Sat", 200)])
async def test_a_range_holds_for_the_same_bytes_only(condition: str, status: int) -> None:
    assert (await answered(range="bytes=0-0", if_range=condition))[0] == status


@pytest.mark.parametrize("has", [ETAG, f'"two", {ETAG}', "*", 'W/"one"', f'"two",{ETAG},"three"'])
async def test_who_has_it_gets_304_without_a_length(has: str) -> None:
    status, head, body = await answered(if_none_match=has, range="bytes=0-0")
    assert (status, body) == (304, b"")
    assert "content-length" not in head


@pytest.mark.parametrize("has", ['"two"', "one", '"one', ""])
async def test_who_has_another_gets_it(has: str) -> None:
    assert (await answered(if_none_match=has))[0] == 200
