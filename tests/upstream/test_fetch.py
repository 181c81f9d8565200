"""Fetches by URL against real servers: allowed destinations, results, and every end without an image.

Public addresses lead to the test's own server: the transport notes the address, and dials that server instead.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import anyio
import anyio.lowlevel
import httpx
import pytest
import trustme

from streamproxy.core.conversation import Picture
from streamproxy.errors import Failure, ProxyError
from streamproxy.simulator.pictures import draw, encode
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import LAST_CHUNK, Fin, Reset, Script, Send, Stall, chunk, head
from streamproxy.simulator.server import Server, serve
from streamproxy.upstream.breaker import FLOOR
from streamproxy.upstream.fetch import SLICE, Fetcher, FetchLimits, default_transport
from tests.core.test_addresses import INTERNAL, NEVER, PUBLIC, REFUSED
from tests.support.proxy import BOUND, no_leaks

pytestmark = pytest.mark.anyio

PNG: Final = encode(draw("a lighthouse at dusk", 64, 64), "png")
SECRET: Final = "X-Amz-Signature=0123456789abcdef"
NAME: Final = "image.test"
PUBLIC_ONE: Final = "93.184.215.14"
PUBLIC_TWO: Final = "2606:4700::1111"


class Names:
    """A resolver with one answer for each question, the last one for all further ones; counts the questions."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.asked: list[str] = []
        self._answers = answers

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self._answers[min(len(self.asked), len(self._answers)) - 1]


class Dialling(httpx.AsyncBaseTransport):
    """The real transport; notes each address it is given. With a port, addresses lead to that one of this machine."""

    def __init__(self, context: ssl.SSLContext, port: int | None) -> None:
        self.dialled: list[str] = []
        self._port = port
        self._real = default_transport(context)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.dialled.append(request.url.host)
        if self._port is not None:
            request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        return await self._real.handle_async_request(request)

    async def aclose(self) -> None:
        await self._real.aclose()


@dataclass(slots=True)
class Setup:
    """A server that may have the image, and what fetches from it. `url` has a listed name that is this machine's."""

    server: Server
    fetcher: Fetcher
    names: Names
    transport: Dialling
    url: str = field(init=False)

    def __post_init__(self) -> None:
        self.url = f"http://{NAME}:{self.server.port}"

    async def failure(self, url: str) -> ProxyError:
        with pytest.raises(ProxyError) as raised:
            await self.fetcher.fetch(url)
        assert SECRET not in raised.value.message
        return raised.value

    async def refused(self, url: str) -> None:
        error = await self.failure(url)
        assert (error.failure, error.status) == (Failure.DESTINATION_IP_PROHIBITED, 400)
        assert "fetch_hosts" in error.message

    async def failed(self, url: str, reason: str) -> None:
        error = await self.failure(url)
        assert error.failure is Failure.FETCH_FAILED
        assert reason in error.message, error.message


@cache
def public_trust() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@asynccontextmanager
async def fetching(
    answer: Script | Callable[[Received], Script] = (),
    *,
    names: Names | None = None,
    hosts: Iterable[str] = (NAME,),
    leads: bool = False,
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
    **limits: float,
) -> AsyncIterator[Setup]:
    """`answer` is what the server plays for each request. `leads`: every address leads to it. `tls`: its side, ours."""
    theirs, ours = tls or (None, public_trust())
    asked = names or Names(["127.0.0.1"])
    small = FetchLimits(**{"seconds": BOUND, "pause": 0.01, **limits})  # type: ignore[arg-type]
    with anyio.fail_after(BOUND):
        async with no_leaks(), serve(answer if callable(answer) else lambda _: answer, ssl=theirs) as server:
            transport = Dialling(ours, server.port if leads else None)
            fetcher = Fetcher(hosts=tuple(hosts), ssl_context=ours, limits=small, resolver=asked, transport=transport)
            try:
                yield Setup(server, fetcher, asked, transport)
            finally:
                await fetcher.aclose()


def image(data: bytes = PNG, *headers: tuple[str, str]) -> Script:
    return (Send(head(200, headers, length=len(data))), Send(data))


def bare(status: int, *headers: tuple[str, str]) -> Script:
    return (Send(head(status, headers, length=0)),)


def redirect(location: str, status: int = 302) -> Script:
    return bare(status, ("Location", location))


def in_turn(*scripts: Script) -> Callable[[Received], Script]:
    """The next script for each request, the last one for all further ones."""
    left = list(scripts)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def whole(fetched: Picture) -> bytes:
    return base64.b64decode(b"".join(fetched.base64), validate=True)


# Where a fetch may go.


@pytest.mark.parametrize("scheme", ["https", "http"])
async def test_no_prohibited_address_is_dialled(scheme: str) -> None:
    async with fetching(names=Names(["127.0.0.1"]), hosts=()) as setup:
        for address in INTERNAL + NEVER:
            await setup.refused(f"{scheme}://{f'[{address}]' if ':' in address else address}/?{SECRET}")
        assert (setup.transport.dialled, setup.names.asked, setup.server.connections) == ([], [], 0)


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_one_prohibited_address_refuses_the_name(place: int) -> None:
    answers = [[PUBLIC_ONE, PUBLIC_TWO] for _ in INTERNAL + NEVER]
    for answer, address in zip(answers, INTERNAL + NEVER, strict=True):
        answer.insert(place, address)
    async with fetching(names=Names(*answers), hosts=()) as setup:
        for asked in range(1, len(answers) + 1):
            await setup.refused(f"https://cdn.example/a?{SECRET}")
            assert (setup.transport.dialled, setup.names.asked) == ([], ["cdn.example"] * asked)


async def test_no_odd_spelling_of_a_url_is_dialled_or_resolved() -> None:
    async with fetching(hosts=()) as setup:
        for url in REFUSED:
            await setup.refused(url)
        assert (setup.transport.dialled, setup.names.asked, setup.server.connections) == ([], [], 0)


async def test_a_listed_host_is_no_way_to_a_metadata_service() -> None:
    async with fetching(names=Names(*([address] for address in NEVER))) as setup:
        for asked in range(1, len(NEVER) + 1):
            await setup.refused(f"http://{NAME}/?{SECRET}")
            assert (setup.transport.dialled, len(setup.names.asked)) == ([], asked)


async def test_a_listed_host_may_be_internal() -> None:
    async with fetching(image()) as setup:
        assert whole(await setup.fetcher.fetch(f"{setup.url}/a.png")) == PNG
        assert setup.transport.dialled == ["127.0.0.1"]
    async with fetching(image(), hosts=["127.0.0.1"]) as setup:
        assert whole(await setup.fetcher.fetch(setup.server.url)) == PNG
        assert setup.names.asked == []


async def test_every_public_address_is_dialled_as_it_was_checked() -> None:
    async with fetching(image(), names=Names(*([address] for address in PUBLIC)), leads=True) as setup:
        for _ in PUBLIC:
            await setup.fetcher.fetch(f"http://{NAME}/")
        assert setup.transport.dialled == list(PUBLIC)


def certified(*names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's certificate for these names, and trust in it."""
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert(*names).configure_cert(theirs)
    authority.configure_trust(ours)
    return theirs, ours


async def test_tls_and_host_have_the_name_and_not_the_address() -> None:
    said: list[str | None] = []
    theirs, ours = certified("cdn.example")
    theirs.sni_callback = lambda _socket, name, _context: said.append(name)
    answers = Names([PUBLIC_TWO, PUBLIC_ONE])
    async with fetching(image(), names=answers, hosts=(), leads=True, tls=(theirs, ours)) as setup:
        assert whole(await setup.fetcher.fetch(f"https://CDN.example/a.png?{SECRET}")) == PNG
        (request,) = setup.server.received
        assert (setup.transport.dialled, said, request.header("host")) == ([PUBLIC_TWO], ["cdn.example"], "cdn.example")


async def test_a_name_that_changes_its_address_is_resolved_once() -> None:
    rebinding = Names([PUBLIC_ONE], ["127.0.0.1"])
    answers = in_turn(bare(404), bare(500), image())
    async with fetching(answers, names=rebinding, hosts=(), leads=True, tls=certified("cdn.example")) as setup:
        await setup.fetcher.fetch("https://cdn.example/")
        assert (rebinding.asked, setup.transport.dialled) == (["cdn.example"], [PUBLIC_ONE] * 3)
        await setup.refused("https://cdn.example/")
        assert setup.server.calls == 3


async def test_the_next_address_is_tried_after_a_refusal() -> None:
    async with fetching(image(), names=Names(["127.0.0.2", "127.0.0.1"])) as setup:
        assert whole(await setup.fetcher.fetch(setup.url)) == PNG
        assert setup.transport.dialled == ["127.0.0.2", "127.0.0.1"]


async def test_a_name_without_addresses() -> None:
    async with fetching(names=Names([])) as setup:
        await setup.failed(f"http://{NAME}/?{SECRET}", f"{NAME} could not be fetched: its name cannot be resolved")


async def test_the_system_resolves_names() -> None:
    with anyio.fail_after(BOUND):
        async with no_leaks(), serve(lambda _: image()) as server:
            fetcher = Fetcher(hosts=("localhost",), ssl_context=public_trust())
            assert whole(await fetcher.fetch(f"http://localhost:{server.port}/")) == PNG
            await fetcher.aclose()


# Redirects.


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_three_redirects_are_followed(status: int) -> None:
    places = {
        "/0": redirect("/1", status),
        "/1": redirect("2?a", status),
        "/2?a": redirect("/3", status),
        "/3": image(),
    }
    async with fetching(lambda request: places[request.target]) as setup:
        assert whole(await setup.fetcher.fetch(f"{setup.url}/0")) == PNG
        assert setup.names.asked == [NAME] * 4


async def test_a_fourth_redirect_is_not() -> None:
    async with fetching(redirect(f"/?{SECRET}")) as setup:
        await setup.failed(setup.url, "there were over 3 redirects")
        assert setup.server.calls == 4


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "https://[::ffff:169.254.169.254]/",
        "https://127.0.0.1/",
        "http://other.test/",
        "//localhost/",
        "/\\169.254.169.254/",
        "https://user:pass@cdn.example/",
        "file:///etc/passwd",
        "data:image/png;base64,iVBORw0KGgo=",
    ],
)
async def test_a_redirect_leads_to_no_prohibited_place(location: str) -> None:
    async with fetching(redirect(location)) as setup:
        await setup.refused(f"{setup.url}/?{SECRET}")
        assert (setup.server.calls, len(setup.transport.dialled), setup.names.asked) == (1, 1, [NAME])


async def test_a_redirect_to_a_name_with_a_prohibited_address() -> None:
    async with fetching(redirect("https://cdn.example/"), names=Names(["127.0.0.1"], ["10.0.0.1"])) as setup:
        await setup.refused(setup.url)
        assert (setup.transport.dialled, setup.names.asked) == (["127.0.0.1"], [NAME, "cdn.example"])


async def test_a_redirect_that_says_not_where_to() -> None:
    async with fetching(bare(302)) as setup:
        await setup.failed(setup.url, "HTTP 302")


# What is sent.


async def test_a_request_has_no_more_than_it_needs() -> None:
    cookie = ("Set-Cookie", "session=1; Path=/")
    first = bare(302, cookie, ("Location", "/b"))
    async with fetching(in_turn(first, bare(404, cookie), image())) as setup:
        await setup.fetcher.fetch(f"{setup.url}/a?{SECRET}")
        for request in setup.server.received:
            assert {name.lower(): value for name, value in request.headers} == {
                "host": f"{NAME}:{setup.server.port}",
                "accept": "image/png, image/jpeg, image/webp, image/gif, image/avif",
                "accept-encoding": "identity",
                "connection": "close",
                "user-agent": "streamproxy",
            }
            assert (request.method, request.body) == ("GET", b"")


async def test_a_signed_url_is_sent_as_it_stands() -> None:
    target = f"/a/b%2Fc+d.png?X-Amz-Credential=A%2FB&{SECRET}&sig=a%3D%3D&x='(*)~!$,;:@"
    async with fetching(image()) as setup:
        await setup.fetcher.fetch(f"{setup.url}{target}#part")
        assert [request.target for request in setup.server.received] == [target]


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    async with fetching(image()) as setup:
        assert whole(await setup.fetcher.fetch(setup.url)) == PNG


# What comes back.

KINDS: Final = {
    "image/png": PNG,
    "image/jpeg": encode(draw("a", 32, 32), "jpeg"),
    "image/webp": encode(draw("a", 32, 32), "webp"),
    "image/gif": b"GIF89a" + bytes(20),
    "image/avif": b"\0\0\0\x1cftypavif" + bytes(20),
}


@pytest.mark.parametrize(("media_type", "data"), KINDS.items(), ids=KINDS)
@pytest.mark.parametrize("framing", ["length", "chunked", "close", "bytes"])
async def test_an_image_is_what_its_first_bytes_say(media_type: str, data: bytes, framing: str) -> None:
    label = ("Content-Type", "text/html")
    scripts: dict[str, Script] = {
        "length": image(data, label),
        "chunked": (Send(head(200, (label,), chunked=True)), Send(chunk(data)), Send(LAST_CHUNK)),
        "close": (Send(head(200, (label,))), Send(data), Fin()),
        "bytes": (
            Send(head(200, (label,), chunked=True)),
            Send(b"".join(chunk(bytes([byte])) for byte in data) + LAST_CHUNK),
        ),
    }
    async with fetching(scripts[framing]) as setup:
        fetched = await setup.fetcher.fetch(f"{setup.url}/picture.svg")
        assert (fetched.media_type, whole(fetched)) == (media_type, data)


@pytest.mark.parametrize("over", [-SLICE + 12, -1, 0, 1, 2, 3, SLICE - 1, SLICE, 3 * SLICE + 1])
async def test_base64_comes_in_pieces_of_one_size(over: int) -> None:
    data = PNG[:12] + bytes(SLICE - 12 + over)
    async with fetching(image(data)) as setup:
        fetched = await setup.fetcher.fetch(setup.url)
        assert b"".join(fetched.base64) == base64.b64encode(data)
        assert {len(piece) for piece in fetched.base64[:-1]} <= {SLICE // 3 * 4}
        assert 0 < len(fetched.base64[-1]) <= SLICE // 3 * 4


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty, or not an image"),
        (PNG[:11], "it is empty, or not an image"),
        (b"<!doctype html><html>", "it is not a PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is not a PNG"),
        (b"RIFF\0\0\0\0WAVEfmt ", "it is not a PNG"),
        (b"\0\0\0\x1cftypisom" + bytes(20), "it is not a PNG"),
        (b'{"error": "expired"}', "it is not a PNG"),
    ],
)
async def test_what_is_no_image(data: bytes, reason: str) -> None:
    async with fetching(image(data, ("Content-Type", "image/png"))) as setup:
        await setup.failed(f"{setup.url}/?{SECRET}", reason)
        assert setup.server.calls == 1


async def test_what_is_no_image_is_given_up_at_its_first_bytes() -> None:
    async with fetching((Send(head(200, length=10_000)), Send(b"<!doctype html>"), Stall())) as setup:
        await setup.failed(setup.url, "it is not a PNG")
        await setup.server.wait_closed_connections(BOUND)


@pytest.mark.parametrize("coding", ["gzip", "zstd", "br, gzip"])
async def test_a_compressed_answer_is_not_decoded(coding: str) -> None:
    async with fetching(image(PNG, ("Content-Encoding", coding))) as setup:
        await setup.failed(setup.url, "the answer is compressed")


async def test_identity_is_no_compression() -> None:
    async with fetching(image(PNG, ("Content-Encoding", "Identity"))) as setup:
        assert whole(await setup.fetcher.fetch(setup.url)) == PNG


# How much, how long, how often.


async def test_a_length_over_the_limit_is_not_read() -> None:
    async with fetching((Send(head(200, length=10_001)), Stall()), size=10_000) as setup:
        await setup.failed(setup.url, "it is over 10000 bytes")
        await setup.server.wait_closed_connections(BOUND)


async def test_an_endless_body_is_given_up_at_the_limit() -> None:
    piece = Send(chunk(PNG[:12] + bytes(50_000)))
    async with fetching((Send(head(200, chunked=True)), *[piece] * 3, Stall()), size=100_000) as setup:
        await setup.failed(setup.url, "it is over 100000 bytes")
        await setup.server.wait_closed_connections(BOUND)


async def test_an_image_of_just_the_limit_is_read() -> None:
    async with fetching(image(), size=len(PNG)) as setup:
        assert whole(await setup.fetcher.fetch(setup.url)) == PNG


STILL: Final[dict[str, Script]] = {
    "head": (Stall(),),
    "half a head": (Send(b"HTTP/1.1 200 OK\r\nContent-"), Stall()),
    "interim": (Send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100), Stall()),
    "body": (Send(head(200, length=len(PNG))), Send(PNG[:-1]), Stall()),
}


@pytest.mark.parametrize("script", STILL.values(), ids=STILL)
async def test_an_image_that_takes_too_long(script: Script) -> None:
    async with fetching(script, seconds=0.3) as setup:
        await setup.failed(f"{setup.url}/?{SECRET}", "it took over 0.3 s")
        assert setup.server.calls == 1
        await setup.server.wait_closed_connections(BOUND)


async def test_a_name_that_takes_too_long() -> None:
    class Slow(Names):
        async def __call__(self, host: str, port: int) -> Sequence[str]:
            await anyio.sleep_forever()
            raise AssertionError

    async with fetching(names=Slow(), seconds=0.1) as setup:
        await setup.failed(setup.url, "it took over 0.1 s")


@pytest.mark.parametrize("passing", [bare(404), bare(500), bare(503), (Reset(),), (Send(PNG), Fin())])
async def test_what_may_pass_is_asked_again(passing: Script) -> None:
    async with fetching(in_turn(passing, passing, image())) as setup:
        assert whole(await setup.fetcher.fetch(setup.url)) == PNG
        assert setup.server.calls == 3


async def test_an_image_that_breaks_off_is_begun_anew() -> None:
    cut = (Send(head(200, length=len(PNG))), Send(PNG[: len(PNG) // 2]), Fin())
    async with fetching(in_turn(cut, image())) as setup:
        assert whole(await setup.fetcher.fetch(setup.url)) == PNG
        assert setup.server.calls == 2


@pytest.mark.parametrize(("status", "calls"), [(404, 3), (502, 3), (403, 1), (410, 1), (204, 1), (206, 1), (429, 1)])
async def test_an_answer_that_is_no_image_ends_in_its_status(status: int, calls: int) -> None:
    async with fetching(bare(status)) as setup:
        await setup.failed(f"{setup.url}/?{SECRET}", f"{NAME} could not be fetched: the answer is HTTP {status}")
        assert setup.server.calls == calls


async def test_a_refused_connection() -> None:
    async with fetching(names=Names(["127.0.0.2"])) as setup:
        await setup.failed(f"{setup.url}/?{SECRET}", "it refused the connection")
        assert setup.transport.dialled == ["127.0.0.2"] * 3


async def test_a_cancelled_fetch_leaves_nothing_open() -> None:
    async with fetching(STILL["body"]) as setup:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(setup.fetcher.fetch, setup.url)
            await setup.server.wait_until(lambda server: server.calls, BOUND)
            tasks.cancel_scope.cancel()
        await setup.server.wait_closed_connections(BOUND)


# TLS.


@pytest.mark.parametrize("wrong", ["authority", "host"])
async def test_a_certificate_that_is_not_trusted(wrong: str) -> None:
    theirs, ours = certified("other.example" if wrong == "host" else NAME)
    if wrong == "authority":
        ours = certified(NAME)[1]
    async with fetching(image(), tls=(theirs, ours)) as setup:
        await setup.failed(f"https://{NAME}:{setup.server.port}/?{SECRET}", "its TLS certificate is not trusted")
        assert (setup.server.calls, len(setup.transport.dialled)) == (0, 1)


async def test_a_certificate_counts_for_its_own_name_only() -> None:
    """Two names have one address, and the connection of the first is not given to the second."""
    async with fetching(image(), hosts=(), leads=True, names=Names([PUBLIC_ONE]), tls=certified("a.example")) as setup:
        await setup.fetcher.fetch("https://a.example/")
        await setup.failed("https://b.example/", "its TLS certificate is not trusted")
        assert setup.server.calls == 1


async def test_tls_towards_a_plain_text_port() -> None:
    async with fetching(image()) as setup:
        await setup.failed(f"https://{NAME}:{setup.server.port}/", "it does not speak TLS")


# `data:` URLs.

ENCODED: Final = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{ENCODED}",
        f"DATA:text/html; charset=utf-8 ;BASE64,{ENCODED}",
        f"data:;base64,{ENCODED.rstrip('=')}",
        "data:image/png;base64," + "\r\n".join(ENCODED[at : at + 76] for at in range(0, len(ENCODED), 76)) + "\n",
    ],
)
async def test_a_data_url_is_decoded_without_any_network(url: str) -> None:
    async with fetching(hosts=()) as setup:
        fetched = await setup.fetcher.fetch(url)
        assert (fetched.media_type, whole(fetched)) == ("image/png", PNG)
        assert (setup.transport.dialled, setup.names.asked) == ([], [])


@pytest.mark.parametrize("size", [12, 13, 14, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE + 2, 1_000_000])
async def test_a_data_url_of_any_size(size: int) -> None:
    data = PNG[:12] + bytes(range(256)) * (size // 256 + 1)
    text = base64.b64encode(data[:size]).decode()
    async with fetching() as setup:
        for shown in (text, text.rstrip("="), " \n".join(text[at : at + 1001] for at in range(0, len(text), 1001))):
            fetched = await setup.fetcher.fetch(f"data:image/png;base64,{shown}")
            assert b"".join(fetched.base64) == text.encode()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:", "not marked as base64"),
        ("data:image/png;base64", "it is empty"),
        ("data:image/svg+xml,<svg/>", "not marked as base64"),
        ("data:image/xbase64,AAAA", "not marked as base64"),
        (f"data:{'a' * 2000};base64,{ENCODED}", "not marked as base64"),
        ("data:image/png;base64,", "it is empty"),
        ("data:image/png;base64,====", "it is empty"),
        (f"data:image/png;base64,{ENCODED[:40]}=={ENCODED}", "it is not base64"),
        (f"data:image/png;base64,{ENCODED[:16]}{'A' * (SLICE // 3 * 4 - 18)}==AAAA", "it is not base64"),
        (f"data:image/png;base64,{ENCODED[:41]}", "it is not base64"),
        (f"data:image/png;base64,{ENCODED[:40]}%2B{ENCODED}", "it is not base64"),
        (f"data:image/png;base64,{ENCODED[:40]}-_", "it is not base64"),
        (f"data:image/png;base64,{ENCODED[:40]}é", "it is not base64"),
        (f"data:image/png;base64,{'A' * 100}", "it is not a PNG"),
        (f"data:image/png;base64,{ENCODED[:16]}{'A' * 200_000}", "it is over 100000 bytes"),
    ],
)
async def test_a_data_url_without_an_image(url: str, reason: str) -> None:
    async with fetching(size=100_000) as setup:
        await setup.failed(url, reason)
        assert ENCODED[:16] not in (await setup.failure(url)).message


async def test_the_loop_turns_between_slices() -> None:
    """A large picture, by network or as `data:`, and one in thousands of tiny chunks, do not block other tasks."""
    data = PNG + bytes(40 * SLICE)
    tiny = (Send(head(200, chunked=True)), Send(b"".join(chunk(bytes([byte])) for byte in PNG[:4000]) + LAST_CHUNK))
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with fetching(in_turn(image(data), tiny)) as setup, anyio.create_task_group() as tasks:
        tasks.start_soon(turn)
        for url, least in (
            (f"data:image/png;base64,{base64.b64encode(data).decode()}", 40),
            (setup.url, 40),
            (setup.url, 4000),
        ):
            before = turns
            await setup.fetcher.fetch(url)
            assert turns - before >= least
        tasks.cancel_scope.cancel()


async def test_tries_have_a_budget() -> None:
    """Images that are all missing are not asked for three times each."""
    async with fetching(bare(404)) as setup:
        for _ in range(FLOOR):
            await setup.failed(setup.url, "the answer is HTTP 404")
        assert setup.server.calls == 2 * FLOOR
