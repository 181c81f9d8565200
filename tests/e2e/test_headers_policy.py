"""The headers, credential and address of provider requests: from configuration, and of the caller's only allowed ones.

Every name of the data, evasions of them, and 100 000 generated names go over real sockets, each in its own request, to
an app with a provider that must not be called. A refusal costs the proxy about 0.5 ms, so test processes share the
generated names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, cycle, islice, product
from random import Random
from typing import Final

import anyio
import orjson
import pytest
import structlog

from streamproxy.core.headers import HeaderPolicy, canonical
from streamproxy.simulator.server import Received, Server, serve
from tests.core.test_headers_generated import EVASIONS, forbidden_names
from tests.support.caller import GENERATIONS, calling, post
from tests.support.faults import IMAGE
from tests.support.proxy import BOUND, PROMPT, Proxy, no_leaks, running_proxy

pytestmark = pytest.mark.anyio

POLICY: Final = HeaderPolicy.load()
RULES: Final = POLICY.rules
EXACT: Final = [name for names in RULES.exact.values() for name in names]
SOAKS: Final = [pytest.param(first, 25_000, marks=pytest.mark.soak) for first in range(0, 100_000, 25_000)]
TOGETHER: Final = 100
"""Requests in flight on one connection."""

EDITS: Final = "/v1/images/edits"
CODES: Final = {
    "credential_header",
    "reserved_header",
    "forbidden_header",
    "invalid_extra_headers",
    "extra_headers_too_large",
    "invalid_json",  # a lone surrogate is no text
}
CONFIGURED: Final = "sk-configured-0123456789abcdef"
BEARER: Final = {"credential": "env:SIM_KEY", "auth_header": "authorization", "auth_scheme": "Bearer "}
ENVIRON: Final = {"SIM_KEY": CONFIGURED}
OWN: Final = {"host", "content-type", "content-length", "accept", "accept-encoding", "user-agent"}
"""What each request to a provider has; the credential comes to it, and what passes of `extra_headers`."""


@contextmanager
def quiet() -> Iterator[None]:
    """Thousands of refusals would be thousands of lines."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.reset_defaults()


@dataclass(frozen=True, slots=True)
class Refused:
    status: int
    code: str
    body: dict[str, object]


def json_request(extra: dict[str, object], path: str = GENERATIONS, *, stream: bool = False) -> bytes:
    body = {"model": "sim/gpt-image", "prompt": PROMPT, "stream": stream, "extra_headers": extra}
    if path == EDITS:
        body["images"] = [{"image_url": "data:image/png;base64,AAAA"}]
    return post(written(body), path=path)


def written(value: object) -> bytes:
    """JSON, lone surrogates included: orjson refuses to write them, an attacker does not."""
    return json.dumps(value).encode()


def form_request(extra: dict[str, object], *, stream: bool = False) -> bytes:
    fields = {
        "model": b"sim/gpt-image",
        "prompt": PROMPT.encode(),
        "stream": b"true" if stream else b"false",
        "extra_headers": written(extra),
    }
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)
        for name, value in fields.items()
    ]
    file = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\nAAAA\r\n--edge--\r\n'
    return post(b"".join(parts) + file, path=EDITS, kind="multipart/form-data; boundary=edge")


def in_a_form(name: str, index: int) -> bytes:
    """A request with this one header: JSON and multipart, streamed and not, in turns."""
    extra: dict[str, object] = {name: "v"}
    match index % 6:
        case 0 | 1:
            return json_request(extra, stream=bool(index % 2))
        case 2 | 3:
            return json_request(extra, EDITS, stream=bool(index % 2))
        case _:
            return form_request(extra, stream=bool(index % 2))


async def answers(proxy: Proxy, requests: Sequence[bytes]) -> list[Refused]:
    """The answers to these requests, sent ahead on one connection."""
    found: list[Refused] = []
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as connection:
        for start in range(0, len(requests), TOGETHER):
            some = requests[start : start + TOGETHER]
            with anyio.fail_after(BOUND):
                await connection.send(b"".join(some))
                buffer = b""
                for _ in some:
                    while (end := buffer.find(b"\r\n\r\n")) < 0:
                        buffer += await connection.receive()
                    head = buffer[:end].decode("latin-1").lower()
                    size = int(head.partition("content-length: ")[2].partition("\r\n")[0])
                    while len(buffer) < end + 4 + size:
                        buffer += await connection.receive()
                    body = orjson.loads(buffer[end + 4 : end + 4 + size])
                    found.append(Refused(int(head[9:12]), body["error"]["code"], body))
                    buffer = buffer[end + 4 + size :]
    return found


def refuse_calls(received: Received) -> tuple[()]:
    raise AssertionError("the provider was called")


# Names.


def spelt(name: str) -> list[str]:
    return [name, name.upper(), name.title(), name.replace("-", "--", 1)]


def every_name() -> list[str]:
    """Each name of the data in its spellings, and each of its prefixes, segments and texts in a made-up name."""
    exact = [word for name in EXACT for word in spelt(name)]
    prefixes = [f"{prefix}zebra" for prefixes in RULES.prefix.values() for prefix in prefixes]
    segments = [f"x-zebra-{word}" for words in RULES.segment.values() for word in words]
    suffixes = [f"x-zebra{word}" for words in RULES.glued.values() for word in words]
    joined = [f"x-{word[:3]}-{word[3:]}-zebra" for words in RULES.joined_substring.values() for word in words]
    names = [*exact, *prefixes, *segments, *suffixes, *joined]
    return [name for name in dict.fromkeys(names) if len(name) <= RULES.max_name_bytes]


def evaded() -> list[str]:
    """Each evasion of a few names, and of every name a few evasions."""
    few = ["authorization", "x-api-key", "cookie", "host", "x-forwarded-for", "openai-organization"]
    turns = zip(EXACT, cycle(EVASIONS), strict=False)
    return [*(evade(name) for evade, name in product(EVASIONS, few)), *(evade(name) for name, evade in turns)]


async def test_every_refused_name_over_http_costs_no_call() -> None:
    names = [*every_name(), *evaded()]
    requests = [in_a_form(name, index) for index, name in enumerate(names)]
    with quiet():
        async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
            assert passed(names, await answers(proxy, requests)) == []
            assert server.connections == 0
            assert len(names) > 1_500
            allowed = await proxy.generate(extra_headers={"x-zebra": "v"})
            assert (allowed.status_code, server.calls) == (200, 1)


@pytest.mark.parametrize(("first", "size"), [(0, 2_000), *SOAKS])
async def test_every_generated_name_is_refused_over_http(first: int, size: int) -> None:
    until = first + size
    generated = dict.fromkeys(islice(forbidden_names(Random(20261121)), until + until // 20))  # some come twice
    names = [*generated][first:until]
    assert len(names) == size
    with quiet():
        async with no_leaks(), serve(refuse_calls) as server, running_proxy(server.url) as proxy:
            found = await answers(proxy, [mostly_as_json(name, index) for index, name in enumerate(names)])
            assert passed(names, found) == []
            assert (len(found), server.connections) == (size, 0)
            assert await proxy.failures("header_policy") + await proxy.failures("bad_request") == size
            assert await proxy.metric("streamproxy_upstream_requests_total") == 0


def passed(names: Sequence[str], found: Sequence[Refused]) -> list[tuple[str, Refused]]:
    """Those that were not refused as a name is."""
    pairs = zip(names, found, strict=True)
    return [(name, it) for name, it in pairs if it.status != 400 or it.code not in CODES]


def mostly_as_json(name: str, index: int) -> bytes:
    """A request with this one header, one in twenty as multipart: that takes the proxy twice the time."""
    if index % 20 == 0:
        return form_request({name: "v"}, stream=index % 40 == 0)
    return json_request({name: "v"}, EDITS if index % 20 == 1 else GENERATIONS, stream=index % 3 == 0)


SHAPES: Final[dict[str, tuple[object, str]]] = {
    "a list": ([], "invalid_extra_headers"),
    "a string": ("authorization: v", "invalid_extra_headers"),
    "a number": (1, "invalid_extra_headers"),
    "a value that is no string": ({"x-zebra": 1}, "invalid_extra_headers"),
    "a null value": ({"x-zebra": None}, "invalid_extra_headers"),
    "a line break in a value": ({"x-zebra": "a\r\nauthorization: b"}, "invalid_extra_headers"),
    "a value to be trimmed": ({"x-zebra": " v"}, "invalid_extra_headers"),
    "a value beyond ASCII": ({"x-zebra": "é"}, "invalid_extra_headers"),
    "an empty name": ({"": "v"}, "invalid_extra_headers"),
    "two spellings": ({"x-zebra": "a", "X--Zebra": "b"}, "duplicate_header"),
    "a credential as value": ({"x-zebra": "Bearer sk-0123456789abcdef0123"}, "credential_value"),
    "33 entries": ({f"x-zebra-{index}": "v" for index in range(33)}, "extra_headers_too_large"),
    "a long value": ({"x-zebra": "v" * 4097}, "extra_headers_too_large"),
    "many bytes": ({f"x-zebra-{index}": "v" * 4000 for index in range(5)}, "extra_headers_too_large"),
    "an object of 200 KB": ({"x-zebra": "v" * 200_000}, "extra_headers_too_large"),
    "one bad entry of 32": ({**{f"x-zebra-{i}": "v" for i in range(31)}, "X-Api-Key": "v"}, "credential_header"),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_only_a_small_object_of_plain_headers_passes(shape: str) -> None:
    extra, code = SHAPES[shape]
    async with no_leaks(), serve(refuse_calls) as server, running_proxy(server.url) as proxy:
        members: dict[str, object] = {"model": "sim/gpt-image", "prompt": PROMPT, "extra_headers": extra}
        requests = [post(written({**members, "stream": stream})) for stream in (False, True)]
        if isinstance(extra, dict):
            requests.append(form_request(extra))
        for answer in await answers(proxy, requests):
            assert (answer.status, answer.code) == (400, code)
            detail = answer.body["detail"]
            assert isinstance(detail, list)
            assert [*detail[0]["loc"][:2]] == ["body", "extra_headers"]
            assert detail[0].keys() == {"loc", "msg", "type"}
            error = answer.body["error"]
            assert isinstance(error, dict)
            assert error["param"].startswith("extra_headers")
        assert server.connections == 0


RAW: Final = {
    "a name twice": (b'{"x-zebra":"a","x-zebra":"b"}', "duplicate_key", "extra_headers.x-zebra"),
    "a name twice, once escaped": (b'{"x-zebra":"a","x\\u002dzebra":"b"}', "duplicate_key", "extra_headers.x-zebra"),
    "a good name, then a bad one escaped": (b'{"x-zebra":"a","\\u0061uthorization":"b"}', "credential_header", None),
}


@pytest.mark.parametrize("case", RAW)
async def test_names_are_compared_as_json_means_them(case: str) -> None:
    extra, code, param = RAW[case]
    async with no_leaks(), serve(refuse_calls) as server, running_proxy(server.url) as proxy:
        body = b'{"model":"sim/gpt-image","prompt":"p","extra_headers":%b}' % extra
        (answer,) = await answers(proxy, [post(body)])
        error = answer.body["error"]
        assert isinstance(error, dict)
        assert (answer.status, answer.code) == (400, code)
        assert error["param"] == (param or "extra_headers.authorization")
        assert "detail" in answer.body
        assert server.connections == 0


async def test_null_and_an_empty_object_are_nothing() -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        nothing: tuple[dict[str, str] | None, ...] = (None, {})
        for extra in nothing:
            assert (await proxy.generate(extra_headers=extra)).status_code == 200
        assert [names(received) for received in server.received] == [OWN, OWN]
        assert all(b"extra_headers" not in received.body for received in server.received)


# What the provider sees.


def names(received: Received) -> set[str]:
    """The names of a request's headers; none may be there twice."""
    found = [name.lower() for name, _ in received.headers]
    assert len(found) == len(set(found)), sorted(found)
    return set(found)


def last(server: Server) -> Received:
    return server.received[-1]


@pytest.mark.parametrize("stream", [False, True])
async def test_allowed_headers_go_out_beside_one_credential(stream: bool) -> None:
    listed = [*RULES.allow, "helicone-property-zebra", "x-stainless-zebra", "x-zebra", "cache-control"]
    async with (
        no_leaks(),
        serve(lambda _: IMAGE) as server,
        running_proxy(server.url, provider=BEARER, environ=ENVIRON) as proxy,
    ):
        for start in range(0, len(listed), RULES.max_headers):
            some = listed[start : start + RULES.max_headers]
            answer = await proxy.generate(stream=stream, extra_headers={name.title(): f"v {name}" for name in some})
            assert answer.status_code == 200
            received = last(server)
            assert names(received) == OWN | {"authorization"} | set(some)
            assert received.header("authorization") == f"Bearer {CONFIGURED}"
            assert all(received.header(name) == f"v {name}" for name in some)
        assert server.calls == 2


async def test_strict_providers_take_listed_headers_only() -> None:
    provider = {**BEARER, "strict_headers": True, "allow_headers": ("openai-organization",)}
    async with (
        no_leaks(),
        serve(lambda _: IMAGE) as server,
        running_proxy(server.url, provider=provider, environ=ENVIRON) as proxy,
    ):
        refused = await proxy.generate(extra_headers={"x-zebra": "v"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "forbidden_header")
        refused = await proxy.generate(extra_headers={"openai-project": "v"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "forbidden_header")
        assert server.calls == 0
        passed = await proxy.generate(extra_headers={"OpenAI-Organization": "org", "anthropic-beta": "b"})
        assert passed.status_code == 200
        assert names(last(server)) == OWN | {"authorization", "openai-organization", "anthropic-beta"}


CANARY: Final = "canary-7f3a"
CALLERS: Final = {
    "authorization": f"Bearer {CANARY}",
    "x-api-key": CANARY,
    "api-key": CANARY,
    "x-goog-api-key": CANARY,
    "proxy-authorization": f"Basic {CANARY}",
    "cookie": f"session={CANARY}",
    "x-forwarded-for": CANARY,
    "x-forwarded-host": CANARY,
    "forwarded": f"for={CANARY}",
    "via": f"1.1 {CANARY}",
    "x-real-ip": CANARY,
    "user-agent": CANARY,
    "referer": f"http://{CANARY}.test/",
    "origin": f"http://{CANARY}.test",
    "x-request-id": f"({CANARY})",
    "traceparent": CANARY,
    "idempotency-key": CANARY,
    "openai-organization": CANARY,
    "accept-language": CANARY,
    "accept": f"text/{CANARY}",
    "x-http-method-override": "DELETE",
    "x-original-url": f"/{CANARY}",
    "x-rewrite-url": f"/{CANARY}",
    "x-zebra": CANARY,
    "range": "bytes=0-1",
    "host": f"{CANARY}.test",
}


def shows(received: Received, text: str) -> bool:
    return text in received.target or any(text in name or text in value for name, value in received.headers)


@pytest.mark.parametrize("path", [GENERATIONS, "/v3/images/generations", EDITS])
async def test_no_header_or_query_of_the_caller_reaches_a_provider(path: str) -> None:
    async with (
        no_leaks(),
        serve(lambda _: IMAGE) as server,
        running_proxy(server.url, provider=BEARER, environ=ENVIRON, allowed_hosts=CALLERS["host"]) as proxy,
    ):
        body: dict[str, object] = {"model": "sim/gpt-image", "prompt": PROMPT}
        if path == EDITS:
            body["images"] = [{"image_url": "data:image/png;base64,AAAA"}]
        url = f"{proxy.url}{path}?key={CANARY}&api-version={CANARY}"
        answer = await proxy.client.post(url, json=body, headers=CALLERS)
        assert answer.status_code == 200
        received = last(server)
        assert (received.method, received.target) == ("POST", path.replace("/v3", "/v1"))
        assert names(received) == OWN | {"authorization"}
        assert received.header("authorization") == f"Bearer {CONFIGURED}"
        assert received.header("host") == server.url.removeprefix("http://")
        assert not shows(received, CANARY)
        assert CANARY not in answer.text


async def test_a_provider_without_credential_gets_none() -> None:
    async with (
        no_leaks(),
        serve(lambda _: IMAGE) as server,
        running_proxy(server.url, allowed_hosts=CALLERS["host"]) as proxy,
    ):
        body = {"model": "sim/gpt-image", "prompt": PROMPT}
        answer = await proxy.client.post(proxy.url + GENERATIONS, json=body, headers=CALLERS)
        assert answer.status_code == 200
        assert names(last(server)) == OWN
        assert not shows(last(server), CANARY)


CALLERS_KEY: Final[dict[str, tuple[dict[str, str], dict[str, str]]]] = {
    "bearer": ({"authorization": "Bearer abc"}, {"authorization": "Bearer abc"}),
    "x-api-key, moved": ({"x-api-key": "abc"}, {"authorization": "Bearer abc"}),
    "api-key, moved": ({"api-key": "abc"}, {"authorization": "Bearer abc"}),
    "the first of several": ({"authorization": "Bearer abc", "x-api-key": "other"}, {"authorization": "Bearer abc"}),
    "another scheme, as it came": ({"authorization": "Basic abc"}, {"authorization": "Basic abc"}),
    "none": ({"cookie": "session=abc"}, {}),
}


@pytest.mark.parametrize("case", CALLERS_KEY)
async def test_only_the_callers_credential_goes_out(case: str) -> None:
    sent, expected = CALLERS_KEY[case]
    provider = {**BEARER, "credential": "caller"}
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url, provider=provider) as proxy:
        body = {"model": "sim/gpt-image", "prompt": PROMPT}
        answer = await proxy.client.post(proxy.url + GENERATIONS, json=body, headers=sent)
        assert answer.status_code == 200
        assert names(last(server)) == OWN | expected.keys()
        assert all(last(server).header(name) == value for name, value in expected.items())


async def test_a_repeated_or_unreadable_key_is_refused() -> None:
    provider = {**BEARER, "credential": "caller"}
    async with no_leaks(), serve(refuse_calls) as server, running_proxy(server.url, provider=provider) as proxy:
        body = orjson.dumps({"model": "sim/gpt-image", "prompt": PROMPT})
        for headers in (b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n", b"X-Api-Key: \xe9\r\n"):
            request = post(body).replace(b"Content-Type", headers + b"Content-Type", 1)
            (answer,) = await answers(proxy, [request])
            assert (answer.status, answer.code) == (401, "invalid_api_key")
        assert server.connections == 0


# Nothing else in a body decides where a request goes, or with what.

DECISIVE: Final[dict[str, object]] = {
    "api_base": "http://evil.test/v1",
    "base_url": "http://evil.test/v1",
    "api_key": "sk-of-the-caller",
    "api_type": "azure",
    "api_version": "9",
    "custom_llm_provider": "evil",
    "provider": {"base_url": "http://evil.test"},
    "organization": "org-evil",
    "project": "evil",
    "headers": {"authorization": "Bearer evil"},
    "default_headers": {"authorization": "Bearer evil"},
    "extra_body": {"model": "evil"},
    "extra_query": {"api-version": "evil"},
    "timeout": 0,
    "host": "evil.test",
    "url": "http://evil.test",
    "path": "/admin",
    "method": "DELETE",
    "__proto__": {"base_url": "http://evil.test"},
}


@pytest.mark.parametrize("stream", [False, True])
async def test_no_other_member_decides_destination_or_credential(stream: bool) -> None:
    async with (
        no_leaks(),
        serve(lambda _: IMAGE) as server,
        running_proxy(server.url, provider=BEARER, environ=ENVIRON) as proxy,
    ):
        members = {"model": "sim/gpt-image", "prompt": PROMPT, "stream": stream, **DECISIVE}
        assert (await proxy.client.post(proxy.url + GENERATIONS, json=members)).status_code == 200
        received = last(server)
        assert (received.method, received.target) == ("POST", GENERATIONS)
        assert names(received) == OWN | {"authorization"}
        assert received.header("authorization") == f"Bearer {CONFIGURED}"
        assert received.header("host") == server.url.removeprefix("http://")
        assert not shows(received, "evil")
        forwarded = orjson.loads(received.body)
        assert {name: forwarded[name] for name in DECISIVE} == DECISIVE  # as data, to a provider that may read them


MODELS: Final = (
    "../../x",
    "sim/../../admin",
    "sim/../admin",
    "sim//evil.test/x",
    "http://evil/x",
    "//evil/x",
    "sim/x?key=v",
    "sim/x#y",
    "sim/x\r\nHost: evil",
    "sim/%2e%2e%2fadmin",
    "sim/x\\..\\y",
    "sim/é 😀",
    "sim/{model}",
    "sim/@evil:80/",
)


@pytest.mark.parametrize("model", MODELS)
async def test_no_model_name_leaves_its_place_in_the_path(model: str) -> None:
    """Twice: where the name is a member only, and where configuration makes it a segment of the path."""
    deployment = {
        **BEARER,
        "auth_header": "api-key",
        "auth_scheme": "",
        "generations": "/openai/deployments/{model}/images/generations",
        "query": "api-version=preview",
        "names": "written",
    }
    async with no_leaks(), serve(lambda _: IMAGE) as server:
        async with running_proxy(server.url, provider={**BEARER, "models": ["*"]}, environ=ENVIRON) as proxy:
            assert (await proxy.generate(model=model)).status_code == 200
            assert last(server).target == GENERATIONS
            assert names(last(server)) == OWN | {"authorization"}
        async with running_proxy(server.url, provider={**deployment, "models": ["*"]}, environ=ENVIRON) as proxy:
            assert (await proxy.generate(model=model)).status_code == 200
            received = last(server)
            path, _, query = received.target.partition("?")
            segments = path.split("/")
            assert segments[:4] == ["", "v1", "openai", "deployments"]
            assert segments[5:] == ["images", "generations"]
            assert segments[4].strip(".") != ""
            assert query == "api-version=preview"
            assert "#" not in received.target
            assert received.target.isascii()
            assert names(received) == OWN | {"api-key"}
            assert received.header("api-key") == CONFIGURED
            assert received.header("host") == server.url.removeprefix("http://")


@pytest.mark.parametrize("model", [".", "..", "sim/.", "sim/.."])
async def test_a_model_that_would_be_a_dot_segment_is_refused(model: str) -> None:
    provider = {"generations": "/{model}/images", "names": "written", "models": ["*"]}
    async with no_leaks(), serve(refuse_calls) as server, running_proxy(server.url, provider=provider) as proxy:
        answer = await proxy.generate(model=model)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert server.connections == 0


ABSOLUTE: Final = (b"http://evil.test/v1/images/generations", b"http://evil.test:1/v1/images/generations?x=1")


@pytest.mark.parametrize("target", ABSOLUTE)
async def test_the_host_of_an_absolute_target_changes_nothing(target: bytes) -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        request = post(orjson.dumps({"model": "sim/gpt-image", "prompt": PROMPT}))
        async with calling(proxy.port) as caller:
            await caller.send(request.replace(GENERATIONS.encode(), target, 1))
            assert await caller.head() == 200
        received = last(server)
        assert (received.target, server.calls) == (GENERATIONS, 1)
        assert received.header("host") == server.url.removeprefix("http://")
        assert not shows(received, "evil")


def test_the_generated_names_are_what_they_are_said_to_be() -> None:
    """Spread over all classes: each class of the policy is met by some name that goes over HTTP."""
    met = {kind for name in every_name() for kind in POLICY._classes(canonical(name))}  # noqa: SLF001 - the class itself
    assert met == {*chain(RULES.exact, RULES.prefix, RULES.segment, RULES.joined_substring)}
