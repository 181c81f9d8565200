"""Bodies read from a connection: the same result wherever they are cut, and no form from less than all of it."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Final

import anyio
import pytest
from anyio import to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from streamproxy.core.requests import Part
from streamproxy.errors import Failure, ProxyError
from streamproxy.web.body import LARGE, MAX_PARTS, Budget, Form, Intake, SpooledUpload, media_type

pytestmark = pytest.mark.anyio

KIND: Final = "multipart/form-data; boundary=edge"
FORM: Final = (
    b"\r\n"
    b'--edge\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b"--edge\r\ncontent-type: image/png\r\n"
    b'CONTENT-DISPOSITION: form-data; name="image[]"; filename="a\xc3\xa9.png"\r\n\r\n'
    b"\x00\r\n--edg\r\n-\r\n"
    b'--edge\r\nContent-Disposition: form-data; name="prompt"\r\nX-Zebra: 1\r\n\r\n\xf0\x9f\x98\x80\r\n\r\n'
    b'--edge\r\nContent-Disposition: form-data; name="mask"; filename=""\r\n\r\n\r\n'
    b"--edge--"
)
PARTS: Final = [
    ("model", b"m", None, None),
    ("image[]", b"\x00\r\n--edg\r\n-", "aé.png", "image/png"),
    ("prompt", "😀\r\n".encode(), None, None),
]


def request(chunks: Iterable[bytes], *, kind: str = KIND, length: str | None = None, gone: bool = False) -> Request:
    """A request whose body comes in these chunks; `gone`: the caller leaves instead of ending it."""
    messages: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.disconnect"} if gone else {"type": "http.request", "body": b"", "more_body": False})
    left = iter(messages)

    async def receive() -> Message:
        return next(left)

    headers = [(b"content-type", kind.encode("latin-1"))]
    if length is not None:
        headers.append((b"content-length", length.encode("latin-1")))
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


def intake(limit: int = 1 << 20, *, pause: float = 30.0, rate: float = 1.0, budget: int = 1 << 30) -> Intake:
    return Intake(json=limit, upload=limit, pause=pause, rate=rate, budget=Budget(budget))


async def read_json(request: Request, limit: int) -> bytes:
    return (await intake(limit).read_json(request)).raw


async def read_form(request: Request, limit: int = 1 << 20) -> Form:
    return await intake(limit).read_form(request)


async def failure(reading: Request, limit: int = 1 << 20) -> Failure:
    with pytest.raises(ProxyError) as caught:
        await read_form(reading, limit)
    return caught.value.failure


def shown(parts: tuple[Part, ...]) -> list[tuple[str, bytes, str | None, str | None]]:
    found = []
    for part in parts:
        value = part.value if isinstance(part.value, bytes) else part.value.read(0, part.value.size + 1)
        found.append((part.name, value, part.filename, part.content_type))
    return found


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("application/json", "application/json"),
        ("Application/JSON; charset=utf-8", "application/json"),
        (" multipart/form-data ;boundary=x", "multipart/form-data"),
        ("", ""),
        (";application/json", ""),
    ],
)
async def test_a_media_type_is_without_parameters_and_case(kind: str, expected: str) -> None:
    assert media_type(request([], kind=kind)) == expected


# JSON.


@pytest.mark.parametrize("length", [None, "10", "0", "x", "²"])
async def test_a_body_of_exactly_the_limit(length: str | None) -> None:
    assert await read_json(request([b"01234", b"", b"56789"], length=length), 10) == b"0123456789"
    with pytest.raises(ProxyError) as caught:
        await read_json(request([b"01234", b"56789x"], length=length), 10)
    assert caught.value.failure is Failure.BODY_TOO_LARGE
    assert "max_json_bytes" in caught.value.message


@pytest.mark.parametrize("announced", [None, 0, -1, 1, LARGE])
async def test_a_large_body_with_a_wrong_length(announced: int | None) -> None:
    """`announced`: so many bytes more than come."""
    body = bytes(range(256)) * 3 * (LARGE // 256)
    chunks = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
    length = None if announced is None else str(len(body) + announced)
    assert await read_json(request(chunks, length=length), 5 * LARGE) == body


async def test_one_large_body_is_handled_in_a_turn() -> None:
    loop, turn, reading = asyncio.get_running_loop(), 0, intake(4 * LARGE)
    handled: list[int] = []

    def count() -> None:
        nonlocal turn
        turn += 1
        if len(handled) < 8 and turn < 10_000:
            loop.call_soon(count)

    async def read() -> None:
        await reading.read_json(request([bytes(LARGE)] * 2, length=str(2 * LARGE)))
        handled.append(turn)

    async with anyio.create_task_group() as tasks:
        count()
        for _ in range(8):
            tasks.start_soon(read)
    assert len(set(handled)) == 8


async def test_a_body_that_is_announced_too_large_is_refused_unread() -> None:
    async def receive() -> Message:
        raise AssertionError("it was read")

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"11")]}
    with pytest.raises(ProxyError) as caught:
        await read_json(Request(scope, receive), 10)
    assert caught.value.failure is Failure.BODY_TOO_LARGE


async def test_a_caller_who_leaves_is_not_an_empty_body() -> None:
    with pytest.raises(ClientDisconnect):
        await read_json(request([b"{}"], gone=True), 10)
    with pytest.raises(ProxyError) as caught:
        await read_form(request([FORM[:200]], gone=True), 1 << 20)
    assert caught.value.failure is Failure.UPLOAD_CUT


# Forms.


async def test_where_a_form_is_cut_changes_nothing() -> None:
    for cut in range(1, len(FORM)):
        form = await read_form(request([FORM[:cut], FORM[cut:]]), len(FORM))
        assert shown(form.parts) == PARTS, cut
        form.close()


async def test_a_form_may_come_byte_by_byte_and_have_an_epilogue() -> None:
    whole = FORM + b"\r\n--edge\r\nmore"
    form = await read_form(request(whole[at : at + 1] for at in range(len(whole))), len(whole))
    assert shown(form.parts) == PARTS
    form.close()


async def test_no_beginning_of_a_form_is_a_form() -> None:
    for end in range(len(FORM)):
        assert await failure(request([FORM[:end]])) is Failure.INVALID_MULTIPART, end


async def test_a_form_over_the_limit_with_a_wrong_length() -> None:
    assert await failure(request([FORM[:100], FORM[100:]]), len(FORM) - 1) is Failure.BODY_TOO_LARGE
    assert await failure(request([FORM], length="3"), len(FORM) - 1) is Failure.BODY_TOO_LARGE


@pytest.mark.parametrize("filename", ["", '; filename="a"'], ids=["fields", "files"])
async def test_the_number_of_parts_has_a_limit(filename: str) -> None:
    part = f'--edge\r\nContent-Disposition: form-data; name="x"{filename}\r\n\r\nv\r\n'.encode()
    form = await read_form(request([part * MAX_PARTS, b"--edge--\r\n"]), 1 << 20)
    assert len(form.parts) == MAX_PARTS
    form.close()
    assert await failure(request([part * (MAX_PARTS + 1), b"--edge--\r\n"])) is Failure.INVALID_MULTIPART


@pytest.mark.parametrize("charset", ["utf-16", "punycode", "latin-1", "nonsense"])
async def test_text_is_utf_8_whatever_the_form_says(charset: str) -> None:
    form = await read_form(request([FORM], kind=f"{KIND}; charset={charset}"), 1 << 20)
    assert shown(form.parts) == PARTS
    form.close()
    bad = b'--edge\r\nContent-Disposition: form-data; name="x"\r\n\r\n\xe9\r\n--edge--\r\n'
    assert await failure(request([bad], kind=f"{KIND}; charset={charset}")) is Failure.INVALID_MULTIPART


async def test_a_directory_that_takes_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    file = b'--edge\r\nContent-Disposition: form-data; name="x"; filename="a"\r\n\r\n' + b"v" * 70_000
    with pytest.raises(ProxyError) as caught:
        await read_form(request([file, b"\r\n--edge--\r\n"]), 1 << 20)
    assert caught.value.failure is Failure.UPLOAD_SPOOL
    assert "TMPDIR" in caught.value.message
    assert str(tmp_path) not in caught.value.message


# Files.


async def test_every_window_of_a_file_is_what_was_sent() -> None:
    upload = SpooledUpload(10, BytesIO(b"0123456789"))
    for at in range(11):
        for length in range(12):
            assert upload.read(at, length) == b"0123456789"[at : at + length]
    assert "0123" not in repr(upload)


class Slow(BytesIO):
    """A file on a slow disk: a read takes until `go` is set."""

    def __init__(self) -> None:
        super().__init__(b"0123456789")
        self.reading = threading.Event()
        self.go = threading.Event()

    def read(self, size: int | None = -1) -> bytes:
        self.reading.set()
        assert self.go.wait(5)
        return super().read(size)


async def test_a_file_is_closed_behind_a_read_and_never_under_it() -> None:
    file = Slow()
    upload = SpooledUpload(10, file)
    pieces: list[bytes] = []
    closed = anyio.Event()

    async def read() -> None:
        pieces.append(await to_thread.run_sync(upload.read, 2, 3))

    async def close() -> None:
        await to_thread.run_sync(upload.close)
        closed.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            assert await to_thread.run_sync(file.reading.wait, 5)
            tasks.start_soon(close)
            with anyio.move_on_after(0.05):
                await closed.wait()
            assert not file.closed
            file.go.set()
    assert (pieces, file.closed) == ([b"234"], True)
    with pytest.raises(OSError, match="closed"):
        upload.read(0, 1)
