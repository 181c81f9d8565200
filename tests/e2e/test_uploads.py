"""Multipart edits end to end: files pass through the disk, arrive as they were sent, and leave nothing behind.

The large upload runs against the proxy in a process of its own, whose memory is what the kernel counts for it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import httpx
import pytest

from streamproxy.errors import Failure
from tests.support.caller import calling, post
from tests.support.process import caller, configuration, serving_process
from tests.support.proxy import BOUND, PROMPT, events, no_leaks, running_proxy
from tests.support.sink import ANSWER, Taken, refusal, sinking

pytestmark = pytest.mark.anyio

MIB: Final = 1024 * 1024
EDITS: Final = "/v1/images/edits"
EDGE: Final = b"edge-of-the-caller"
KIND: Final = f"multipart/form-data; boundary={EDGE.decode()}"
BLOCK: Final = hashlib.shake_256(b"block").digest(MIB)
BARE: Final = {"names": "bare"}
"""The provider is told `gpt-image`, so that the model part is rewritten."""

UNSTREAMED: Final = refusal(
    400, b'{"error":{"message":"no","type":"invalid_request_error","param":"stream","code":null}}'
)


@dataclass(frozen=True, slots=True)
class Text:
    name: str
    value: bytes

    def pieces(self) -> Iterator[bytes]:
        yield b'Content-Disposition: form-data; name="%b"\r\n\r\n' % self.name.encode()
        yield self.value


@dataclass(frozen=True, slots=True)
class File:
    """A file of `size` bytes: BLOCK over and over, each with its number in front."""

    name: str
    filename: str
    size: int
    kind: str | None = "image/png"

    def pieces(self) -> Iterator[bytes]:
        head = f'Content-Disposition: form-data; name="{self.name}"; filename="{self.filename}"'
        kind = f"\r\nContent-Type: {self.kind}" if self.kind else ""
        yield f"{head}{kind}\r\n\r\n".encode()
        for number in range(0, self.size, MIB):
            yield (number.to_bytes(8, "big") + BLOCK)[: min(MIB, self.size - number)]


Field = Text | File


def body(parts: Sequence[Field], edge: bytes = EDGE, *, closed: bool = True) -> Iterator[bytes]:
    """A multipart body, piece by piece, exactly as the proxy writes one too."""
    for part in parts:
        yield b"--" + edge + b"\r\n"
        yield from part.pieces()
        yield b"\r\n"
    if closed:
        yield b"--" + edge + b"--\r\n"


def fields(*, model: str = "sim/gpt-image", stream: str | None = None) -> list[Field]:
    given: list[Field] = [Text("model", model.encode()), Text("prompt", PROMPT.encode())]
    return given if stream is None else [*given, Text("stream", stream.encode())]


def small(*, stream: str | None = None) -> bytes:
    """An edit whose one file is on disk: it is over the 64 KiB that stay in memory."""
    return b"".join(body([*fields(stream=stream), File("image", "a.png", 300_000)]))


async def edit(
    url: str, content: bytes | AsyncIterator[bytes], headers: Mapping[str, str] | None = None
) -> httpx.Response:
    async with caller() as client:
        sent = {"content-type": KIND, **(headers or {})}
        return await client.post(url + EDITS, content=content, headers=sent)


def check(taken: Taken, expected: Sequence[Field]) -> None:
    """The provider got these parts in this order, byte for byte, in a body of the announced length."""
    kind, _, boundary = taken.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/form-data"
    assert boundary.startswith("streamproxy-")
    digest, size = hashlib.sha256(), 0
    for piece in body(expected, boundary.encode()):
        digest.update(piece)
        size += len(piece)
    assert (taken.size, taken.headers["content-length"]) == (size, str(size))
    assert taken.digest == digest.digest()


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where uploads of this process are kept while a test runs."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def open_in(directory: Path) -> list[str]:
    """What this process holds open there, deleted files included; temporary files have no name."""
    found: list[str] = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target.startswith(str(directory)):
            found.append(target)
    return found


async def gone(directory: Path) -> None:
    """Wait until no upload is kept any more."""
    with anyio.fail_after(5):
        while open_in(directory) or os.listdir(directory):  # noqa: ASYNC110  there is no event for it
            await anyio.sleep(0.005)


async def test_200_mb_pass_unchanged_in_16_mb_of_memory(tmp_path: Path) -> None:
    """Measured here: the peak of the resident memory rises by 1 MB."""
    parts: list[Field] = [
        Text("size", b"1024x1024"),
        File("image[]", "first.png", 150 * MIB + 7),
        Text("model", b"sim/gpt-image"),
        File("image[]", 'quote".png', 50 * MIB, "image/webp"),
        Text("prompt", "ein Leuchtturm 😀".encode()),
        File("mask", "", 0, None),
        Text("zebra", b"1"),
    ]
    async with sinking() as sink:
        config = configuration(sink.url) + 'names = "bare"\n'
        async with serving_process(config, environ={"TMPDIR": str(tmp_path)}) as proxy:
            assert (await edit(proxy.url, small())).status_code == 200  # what the first request costs once
            before = proxy.reset_peak()
            size = sum(map(len, body(parts)))

            async def content() -> AsyncIterator[bytes]:
                for piece in body(parts):
                    yield piece

            answer = await edit(proxy.url, content(), {"content-length": str(size)})
            assert answer.status_code == 200, answer.text
            assert proxy.peak() - before <= 16 * MIB
            await proxy.no_files(tmp_path)
        expected: list[Field] = [Text("model", b"gpt-image") if part.name == "model" else part for part in parts]
        expected[3] = File("image[]", "quote%22.png", 50 * MIB, "image/webp")
        del expected[5]  # the mask, whose file input was left alone
        check(sink.taken[-1], expected)
        assert sink.calls == 2


ORDERS: Final[dict[str, list[Field]]] = {
    "text first": [*fields(), Text("n", b"2"), File("image", "a.png", 10)],
    "files first": [File("image", "a.png", 10), *fields(), Text("n", b"2")],
    "mixed": [
        Text("model", b"sim/gpt-image"),
        File("image[]", "a", 1),
        Text("x", b""),
        File("image[]", "b", 70_000),
        Text("prompt", b"p"),
    ],
    "unknown parts of either kind": [
        *fields(),
        File("image", "a.png", 3),
        Text("svg[model]", b"m"),
        File("markup", "m.png", 5),
    ],
    "repeated unknown parts": [*fields(), File("image", "a.png", 3), Text("x", b"1"), Text("x", b"2")],
    "odd names": [*fields(), File("image", "../../etc/passwd", 3), Text("a b;c=d", b"1"), Text("é", b"\r\n--edge")],
    "a type of its own": [*fields(), File("image", "a", 3, 'image/png; x="y"')],
}


@pytest.mark.parametrize("order", ORDERS)
async def test_parts_keep_order_names_and_bytes_wherever_cut(order: str, spool: Path) -> None:
    parts = ORDERS[order]
    whole = b"".join(body(parts))
    expected: list[Field] = [Text("model", b"gpt-image") if part.name == "model" else part for part in parts]
    async with no_leaks(), sinking() as sink, running_proxy(sink.url, provider=BARE) as proxy:
        for size in (1 if len(whole) < 10_000 else 701, 1000, len(whole)):

            async def content(size: int = size) -> AsyncIterator[bytes]:
                for at in range(0, len(whole), size):
                    yield whole[at : at + size]

            answer = await edit(proxy.url, content(), {"content-length": str(len(whole))})
            assert answer.status_code == 200, answer.text
            check(sink.taken[-1], expected)
        assert sink.calls == 3
        await gone(spool)


async def test_what_is_addressed_to_the_proxy_goes_no_further(spool: Path) -> None:
    extra = Text("extra_headers", b'{"x-zebra":"v"}')
    parts = [*fields(), Text("response_format", b"url"), extra, Text("stream", b"false"), Text("partial_images", b"2")]
    file = File("image", "a.png", 100)
    async with no_leaks(), sinking() as sink, running_proxy(sink.url) as proxy:
        answer = await edit(proxy.url, b"".join(body([*parts, file])))
        assert answer.status_code == 200
        check(sink.taken[-1], [*fields(), file])
        assert sink.taken[-1].headers["x-zebra"] == "v"
        assert "response_format" not in answer.headers.get("streamproxy-not-applied", "")


# Outcomes, after each of which no file is left.

GOOD: Final = [*fields(), File("image", "a.png", 300_000)]
PART: Final = b'--edge-of-the-caller\r\nContent-Disposition: form-data; name="x"'

BROKEN: Final[dict[str, tuple[bytes, str]]] = {
    "no closing boundary": (b"".join(body(GOOD, closed=False)), KIND),
    "cut inside a file": (b"".join(body(GOOD))[:200_000], KIND),
    "cut inside the closing boundary": (b"".join(body(GOOD))[:-4], KIND),
    "cut inside a part's head": (b"".join(body(GOOD, closed=False)) + PART, KIND),
    "empty": (b"", KIND),
    "no part": (b"--edge-of-the-caller--\r\n", KIND),
    "another boundary": (b"".join(body(GOOD, b"other")), KIND),
    "no boundary": (b"".join(body(GOOD)), "multipart/form-data"),
    "an empty boundary": (b"".join(body(GOOD)), "multipart/form-data; boundary="),
    "a part without a name": (
        b"".join(body(GOOD, closed=False))
        + PART.replace(b'; name="x"', b"")
        + b"\r\n\r\n\r\n--edge-of-the-caller--\r\n",
        KIND,
    ),
    "a part without a head": (
        b"".join(body(GOOD, closed=False)) + b"--edge-of-the-caller\r\n\r\nx\r\n--edge-of-the-caller--\r\n",
        KIND,
    ),
    "text that is not UTF-8": (b"".join(body([*GOOD, Text("x", b"\xff")])), KIND),
    "a text field over 1 MiB": (b"".join(body([*GOOD, Text("x", b"x" * (MIB + 1))])), KIND),
    "101 text fields": (b"".join(body([*GOOD, *[Text("x", b"x")] * 101])), KIND),
    "101 files": (b"".join(body([*GOOD, *[File("x", "x", 0)] * 101])), KIND),
    "a head of 1 MiB": (
        b"".join(body(GOOD, closed=False)) + PART + b"x" * MIB + b"\r\n\r\n\r\n--edge-of-the-caller--\r\n",
        KIND,
    ),
    "a thousand heads": (
        b"".join(body(GOOD, closed=False)) + PART + b"\r\nX: y" * 1000 + b"\r\n\r\n\r\n--edge-of-the-caller--\r\n",
        KIND,
    ),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_body_is_refused_and_keeps_no_file(case: str, spool: Path) -> None:
    content, kind = BROKEN[case]
    async with no_leaks(), sinking() as sink, running_proxy(sink.url) as proxy:
        answer = await edit(proxy.url, content, {"content-type": kind})
        code = "invalid_request" if case == "no part" else "invalid_multipart"
        assert (answer.status_code, answer.json()["error"]["code"]) == (422 if case == "no part" else 400, code)
        assert (open_in(spool), sink.calls) == ([], 0)


@pytest.mark.parametrize("charset", ["punycode", "idna", "utf-7", "utf-16", "rot13", "hex", "undefined", "x" * 99])
async def test_a_charset_of_the_whole_form_changes_nothing(charset: str, spool: Path) -> None:
    """A form has none (RFC 7578, 5.1.2), and to decode a megabyte of punycode takes minutes."""
    parts = [*fields(), Text("x", b"+AGE- " * 50_000 + b"-"), File("image", "a.png", 3)]
    async with no_leaks(), sinking() as sink, running_proxy(sink.url) as proxy:
        with anyio.fail_after(5):
            answer = await edit(proxy.url, b"".join(body(parts)), {"content-type": f"{KIND}; charset={charset}"})
        assert answer.status_code == 200
        check(sink.taken[-1], parts)


async def test_a_refused_field_keeps_no_file(spool: Path) -> None:
    async with no_leaks(), sinking() as sink, running_proxy(sink.url) as proxy:
        answer = await edit(proxy.url, b"".join(body([*GOOD, Text("n", b"11")])))
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "n")
        answer = await edit(proxy.url, b"".join(body([*GOOD, Text("extra_headers", b'{"cookie":"v"}')])))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "credential_header")
        answer = await edit(proxy.url, b"".join(body([Text("model", b"nobody/x"), *GOOD[1:]])))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert (open_in(spool), sink.calls) == ([], 0)


@pytest.mark.parametrize("announced", [True, False], ids=["content-length", "chunked"])
async def test_an_upload_over_the_limit_is_refused_in_words(announced: bool, spool: Path) -> None:
    async with no_leaks(), sinking() as sink, running_proxy(sink.url, max_upload_bytes=2 * MIB) as proxy:
        whole = b"".join(body([*fields(), File("image", "a.png", 8 * MIB)]))

        async def content() -> AsyncIterator[bytes]:
            for at in range(0, len(whole), MIB):
                yield whole[at : at + MIB]

        answer = await edit(proxy.url, content(), {"content-length": str(len(whole))} if announced else None)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert "max_upload_bytes" in answer.json()["error"]["message"]
        assert (open_in(spool), sink.calls) == ([], 0)


async def test_a_full_disk_is_a_507_and_the_proxy_goes_on(tmp_path: Path) -> None:
    async with sinking() as sink:
        environ = {"TMPDIR": str(tmp_path)}
        async with serving_process(configuration(sink.url), environ=environ, max_file_bytes=MIB) as proxy:
            for size in (MIB + 1, 3 * MIB, MIB + 100_000):
                parts = [*fields(), File("image[]", "a.png", 500_000), File("image[]", "b.png", size)]
                answer = await edit(proxy.url, b"".join(body(parts)))
                assert (answer.status_code, answer.json()["error"]["code"]) == (507, Failure.UPLOAD_SPOOL.value.code)
                assert "TMPDIR" in answer.json()["error"]["message"]
                await proxy.no_files(tmp_path)
            assert sink.calls == 0
            parts = [*fields(), File("image", "a.png", MIB - 100)]
            assert (await edit(proxy.url, b"".join(body(parts)))).status_code == 200
            check(sink.taken[-1], parts)


@pytest.mark.parametrize("stream", [None, "true"], ids=["json", "stream"])
@pytest.mark.parametrize("status", [400, 500])
async def test_a_failure_of_the_provider_keeps_no_file(status: int, stream: str | None, spool: Path) -> None:
    error = refusal(status, b'{"error":{"message":"no","type":"t","param":null,"code":"c"}}')
    async with no_leaks(), sinking(error) as sink, running_proxy(sink.url) as proxy:
        answer = await edit(proxy.url, small(stream=stream))
        assert answer.status_code == (400 if status == 400 else 502)
        assert sink.calls == 1
        await gone(spool)


async def test_an_unreachable_provider_keeps_no_file(spool: Path) -> None:
    async with sinking() as sink:
        url = sink.url
    async with no_leaks(), running_proxy(url) as proxy:
        answer = await edit(proxy.url, small())
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "connection_refused")
        await gone(spool)


async def test_a_second_try_without_stream_sends_the_files(spool: Path) -> None:
    async with no_leaks(), sinking(UNSTREAMED, ANSWER) as sink, running_proxy(sink.url) as proxy:
        answer = await edit(proxy.url, small(stream="true"))
        assert [event.event for event in events(answer.content)] == ["image_edit.completed"]
        file = File("image", "a.png", 300_000)
        check(sink.taken[0], [*fields(stream="true"), file])
        check(sink.taken[1], [*fields(), file])
        assert sink.calls == 2
        await gone(spool)


# Callers who leave, and providers who do not wait.

LARGE: Final = 24 * MIB
"""More than kernels buffer between three processes, so that a held upload is in the middle of its file."""


def large(*, stream: str | None = None) -> bytes:
    return b"".join(body([*fields(stream=stream), File("image", "a.png", LARGE)]))


async def test_leaving_in_an_upload_keeps_no_file_and_costs_no_call(spool: Path) -> None:
    async with no_leaks(), sinking() as sink, running_proxy(sink.url) as proxy:
        async with calling(proxy.port) as left:
            whole = small()
            await left.send(post(whole, path=EDITS, kind=KIND)[:-1000])
            with anyio.fail_after(BOUND):
                while not open_in(spool):  # noqa: ASYNC110  the file is the only sign that the body is read
                    await anyio.sleep(0.005)
            left.reset()
        await gone(spool)
        assert sink.calls == 0
        assert await proxy.failures("upload_cut") == 1
        assert await proxy.failures("client_gone") == 0


@pytest.mark.parametrize("stream", [None, "true"], ids=["json", "stream"])
async def test_leaving_while_the_provider_is_sent_the_file(stream: str | None, spool: Path) -> None:
    """The upload ends with the caller, and so does its file."""
    async with no_leaks(), sinking(hold_at=MIB) as sink, running_proxy(sink.url, commit_after=0.05) as proxy:
        for _ in range(3):
            async with calling(proxy.port) as left:
                await left.send(post(large(stream=stream), path=EDITS, kind=KIND))
                with anyio.fail_after(BOUND):
                    await sink.holding.wait()
                left.reset()
            await gone(spool)
            sink.resume.set()
            with anyio.fail_after(BOUND):
                await sink.closed.wait()
            sink.holding, sink.resume, sink.closed = anyio.Event(), anyio.Event(), anyio.Event()
        assert len(sink.taken) == 3
        assert all(taken.size < LARGE for taken in sink.taken)
        assert await proxy.failures("internal") == 0


async def test_an_answer_before_the_end_of_the_upload_ends_it(spool: Path) -> None:
    """A provider that refuses a file by its beginning is heard, and the rest is not sent."""
    error = refusal(413, b'{"error":{"message":"too large","type":"t","param":null,"code":"too_large"}}')

    async with no_leaks(), sinking(error, answer_at=MIB) as sink, running_proxy(sink.url) as proxy:
        answer = await edit(proxy.url, large())
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
        with anyio.fail_after(BOUND):
            await sink.closed.wait()
        assert sink.taken[0].size < LARGE
        await gone(spool)
        assert await proxy.failures("internal") == 0
