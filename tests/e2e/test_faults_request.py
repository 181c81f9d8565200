"""Requests whose bodies are cut, slow, too large or malformed. No provider is called for them."""

from __future__ import annotations

import os
import tempfile

import anyio
import orjson
import pytest
from anyio.lowlevel import checkpoint

from streamproxy.errors import Failure
from streamproxy.simulator.script import sse
from streamproxy.simulator.server import serve
from tests.support.caller import Caller, calling, post
from tests.support.provider import completed, one_failure, other_stream, provider
from tests.support.proxy import BOUND, PROMPT, Proxy, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

GOOD = sse((completed(),))
EDITS = "/v1/images/edits"
FORM = "multipart/form-data; boundary=b"
FILE = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
TEXT = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
LARGE = 300_000
"""Of a file: over what is kept in memory."""


def _fields(**values: str) -> bytes:
    return b"".join(TEXT % (name.encode(), value.encode()) for name, value in values.items())


MODEL = _fields(model="sim/gpt-image", prompt=PROMPT)


def _temporary_files() -> int:
    """Unlinked files of this process in the temporary directory."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        count += target.startswith(tempfile.gettempdir()) and target.endswith("(deleted)")
    return count


async def _spooled(count: int) -> None:
    with anyio.fail_after(BOUND):
        while _temporary_files() != count:
            await checkpoint()  # nothing else tells that the proxy has read so far


@pytest.mark.parametrize("how", ["reset", "closed", "half closed"])
async def test_a_cut_upload_leaves_no_file_and_costs_no_call(how: str) -> None:
    before = _temporary_files()
    body = MODEL + FILE + bytes(LARGE)
    async with no_leaks(), serve(provider(GOOD)) as upstream, running_proxy(upstream.url) as proxy:
        async with other_stream(proxy), one_failure(Failure.UPLOAD_CUT), calling(proxy.port) as caller:
            await caller.send(post(body, path=EDITS, kind=FORM, length=len(body) + 1000))
            await _spooled(before + 1)
            {"reset": Caller.reset, "closed": Caller.close, "half closed": Caller.half_close}[how](caller)
            await _spooled(before)
            await _counted(proxy, "upload_cut")
        assert await proxy.failures("upload_cut") == 1
        assert await proxy.failures("client_gone") == 0
        assert upstream.calls == 1  # the other stream's


async def test_a_json_body_that_is_cut_is_a_caller_who_left() -> None:
    async with no_leaks(), serve(provider(GOOD)) as upstream, running_proxy(upstream.url) as proxy:
        async with one_failure(Failure.CALLER_GONE), calling(proxy.port) as caller:
            await caller.send(post(b'{"model":', length=100))
            caller.half_close()
            await _counted(proxy, "client_gone")
        assert (upstream.calls, await proxy.failures("upload_cut")) == (0, 0)


async def _counted(proxy: Proxy, label: str) -> None:
    with anyio.fail_after(BOUND):
        while not await proxy.failures(label):  # noqa: ASYNC110
            await anyio.sleep(0.01)


@pytest.mark.parametrize("path", ["/v1/images/generations", EDITS])
async def test_a_body_that_stops_coming_is_refused(path: str) -> None:
    before = _temporary_files()
    kind, body = (FORM, MODEL + FILE + bytes(LARGE)) if path == EDITS else ("application/json", b'{"model":')
    async with (
        no_leaks(),
        serve(provider(GOOD)) as upstream,
        running_proxy(upstream.url, receive_timeout=0.3) as proxy,
    ):
        async with other_stream(proxy), calling(proxy.port) as caller:
            await caller.send(post(body, path=path, kind=kind, length=len(body) + 1))
            await _refused(caller, 408, "request_body_timeout")
        assert await proxy.failures("client_slow") == 1
        assert upstream.calls == 1
        await _spooled(before)


async def test_a_body_that_comes_slowly_but_steadily_is_taken() -> None:
    body = orjson.dumps({"model": "sim/gpt-image", "prompt": PROMPT, "stream": True})
    whole = post(body)
    async with (
        no_leaks(),
        serve(provider(GOOD)) as upstream,
        running_proxy(upstream.url, receive_timeout=0.4) as proxy,
    ):
        async with calling(proxy.port) as caller:
            for at in range(0, len(whole), len(whole) // 5):
                await caller.send(whole[at : at + len(whole) // 5])
                await anyio.sleep(0.15)
            assert await caller.head() == 200
            await caller.rest()
        assert upstream.calls == 1


async def _refused(caller: Caller, status: int, code: str) -> None:
    """The caller reads a whole refusal, and then the end of its connection."""
    assert await caller.head() == status
    assert caller.headers["connection"] == "close"
    answer = orjson.loads(await caller.rest())
    assert answer["error"]["code"] == code
    assert answer["request_id"] == caller.headers["x-request-id"]


def _chunked(body: bytes, *, path: str, kind: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: proxy.test\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = (body[at : at + 65_536] for at in range(0, len(body), 65_536))
    return head.encode() + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
@pytest.mark.parametrize("path", ["/v1/images/generations", EDITS])
@pytest.mark.parametrize("size", [400_000, 8_000_000])
async def test_a_body_over_the_limit_closes_its_connection(framing: str, path: str, size: int) -> None:
    kind, body = (FORM, MODEL + FILE + bytes(size)) if path == EDITS else ("application/json", b'{"x":"' + b"a" * size)
    before = _temporary_files()
    request = _chunked(body, path=path, kind=kind) if framing == "chunked" else post(body, path=path, kind=kind)
    async with (
        no_leaks(),
        serve(provider(GOOD)) as upstream,
        running_proxy(upstream.url, max_json_bytes=100_000, max_upload_bytes=200_000) as proxy,
    ):
        async with other_stream(proxy), one_failure(Failure.BODY_TOO_LARGE), calling(proxy.port) as caller:
            try:
                await caller.send(request)
            except ConnectionError:
                assert size > 1_000_000  # it may be told before it has sent all
            await _refused(caller, 413, "body_too_large")
        assert await proxy.failures("body_limit") == 1
        assert upstream.calls == 1
        await _spooled(before)


DEEP = b'{"model":"sim/gpt-image","prompt":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
BAD_URL = b'"data:image/png;base64,QUJD?"'


def _json_edit(url: bytes = b'"data:image/png;base64,QUJD"', more: bytes = b"") -> bytes:
    return b'{"model":"sim/gpt-image","prompt":"p","images":[{"image_url":' + url + b"}]" + more + b"}"


MALFORMED: dict[str, tuple[str, str, bytes, int, str]] = {
    "not JSON": ("generations", "application/json", b'{"model":', 400, "invalid_json"),
    "not an object": ("generations", "application/json", b"[1]", 400, "invalid_json"),
    "empty": ("generations", "application/json", b"", 400, "invalid_json"),
    "a depth bomb": ("generations", "application/json", DEEP, 400, "invalid_json"),
    "duplicate keys": (
        "generations",
        "application/json",
        b'{"model":"sim/gpt-image","prompt":"a","pr\\u006fmpt":"b"}',
        400,
        "duplicate_key",
    ),
    "bad base64": ("edits", "application/json", _json_edit(BAD_URL), 422, "invalid_request"),
    "bad base64 behind megabytes of good": (
        "edits",
        "application/json",
        _json_edit(b'"data:image/png;base64,' + b"QUJD" * (5 << 18) + b'?"'),
        422,
        "invalid_request",
    ),
    "bad base64 in a mask": (
        "edits",
        "application/json",
        _json_edit(more=b',"mask":{"image_url":' + BAD_URL + b"}"),
        422,
        "invalid_request",
    ),
    "bad base64 in a generation's image": (
        "generations",
        "application/json",
        b'{"model":"sim/gpt-image","prompt":"p","image":["QUJD",' + BAD_URL + b"]}",
        422,
        "invalid_request",
    ),
    "no closing boundary": ("edits", FORM, MODEL + FILE + bytes(LARGE) + b"\r\n", 400, "invalid_multipart"),
    "no boundary at all": ("edits", FORM, b"nothing", 400, "invalid_multipart"),
    "no boundary parameter": ("edits", "multipart/form-data", b"--b--\r\n", 400, "invalid_multipart"),
}


async def test_an_edit_with_good_base64_reaches_its_provider() -> None:
    async with no_leaks(), serve(provider(GOOD)) as upstream, running_proxy(upstream.url) as proxy:
        for body in (_json_edit(), _json_edit(b'"data:image/webp;base64,' + b"QUJD" * (5 << 18) + b'QQ"')):
            response = await proxy.client.post(
                f"{proxy.url}{EDITS}", content=body, headers={"content-type": "application/json"}
            )
            assert response.status_code == 200, response.text
        assert upstream.calls == 2


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_body_is_refused_without_a_provider(name: str) -> None:
    noun, kind, body, status, code = MALFORMED[name]
    before = _temporary_files()
    async with no_leaks(), serve(provider(GOOD)) as upstream, running_proxy(upstream.url) as proxy:
        response = await proxy.client.post(
            f"{proxy.url}/v1/images/{noun}", content=body, headers={"content-type": kind}
        )
        assert response.status_code == status
        answer = orjson.loads(response.content)
        assert answer["error"]["code"] == code
        assert answer["request_id"] == response.headers["x-request-id"]
        assert b"QUJD" not in response.content
        assert await proxy.failures("bad_request") == 1
        assert (upstream.calls, upstream.connections) == (0, 0)
        await _spooled(before)
