"""The surface round the images: routes, errors, callers' keys, pages of other origins, request ids, the log."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final

import anyio
import httpx
import orjson
import pytest
from structlog.testing import capture_logs

from streamproxy.simulator.script import Script, Stall, error_answer, event, json_answer, sse
from streamproxy.simulator.server import Received, serve
from streamproxy.web.routes import PREFIXES, ROUTES
from tests.support.caller import GENERATIONS, calling, generation
from tests.support.faults import IMAGE
from tests.support.process import caller, configuration, serving_process
from tests.support.provider import completed, preview
from tests.support.proxy import BOUND, PROMPT, Proxy, events, no_leaks, running_proxy, until

pytestmark = pytest.mark.anyio

NOBODY: Final = "http://127.0.0.1:9"
"""For what must never reach a provider: the discard port, which nothing listens on."""

KEY: Final = "caller-key-0123456789abcdef"
KEYS: Final = (f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}",)
ID: Final = re.compile(r"req_[0-9a-f]{32}")
PAGE: Final = "https://page.test"


def openai_error(answer: httpx.Response, status: int, code: str) -> str:
    """Assert the shape of an error that never reached a provider; its message."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() - {"detail"} == {"error", "request_id"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code
    assert ID.fullmatch(body["request_id"])
    assert answer.headers["x-request-id"] == body["request_id"]
    message = body["error"]["message"]
    assert isinstance(message, str)
    return message


def paths(row_path: str) -> list[str]:
    path = row_path.replace("{id:path}", "sim/gpt-image").replace("{id}", "str_0").replace("{image_index:int}", "0")
    return [prefix + path for prefix in PREFIXES]


# Routes.


async def test_every_route_is_served_under_both_prefixes() -> None:
    assert PREFIXES == ("/v1", "/v3")
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        for row in ROUTES:
            alone = row.path.replace("{page}", "streams")
            for path in paths(row.path) if row.surface else [alone]:
                answer = await proxy.client.request(row.method, proxy.url + path)
                # 415: a POST without a body. A stream or file that there never was is not the same 404 as no route.
                said = "No such stream" if "/streams/" in path else "asked for without a key"
                said = "No such file" if "/files/" in path else said
                absent = ("/streams" in path or "/files/" in path) and answer.status_code == 404
                assert answer.status_code in (200, 415) or (absent and said in answer.text), path
                bare = await proxy.client.request(row.method, proxy.url + alone)
                assert bare.status_code in ((404,) if row.surface else (200, 415)), row.path
        for prefix in PREFIXES:
            for path in ("/livez", "/readyz", "/metrics"):
                assert (await proxy.client.get(proxy.url + prefix + path)).status_code == 404


async def test_models_have_openais_shape() -> None:
    async with no_leaks(), running_proxy(NOBODY, provider={"models": ["lab/group/model-1"]}) as proxy:
        lists = [
            (await proxy.client.get(proxy.url + prefix + path)).json()
            for prefix in PREFIXES
            for path in ("/models", "/images/models")
        ]
        assert all(found == lists[0] for found in lists)
        assert lists[0].keys() == {"object", "data"}
        assert lists[0]["object"] == "list"
        ids = [model["id"] for model in lists[0]["data"]]
        assert {"lab/group/model-1", "sim/gpt-image", "sim/plain"} <= set(ids)
        assert len(ids) == len(set(ids))
        for model in lists[0]["data"]:
            assert model.keys() >= {"id", "object", "created", "owned_by"}
            assert (model["object"], type(model["created"])) == ("model", int)
            if model["id"] != "lab/group/model-1":
                assert {"streams", "edits", "masks", "formats", "n", "surfaces", "price"} <= model.keys()
            for prefix in PREFIXES:
                for id in (model["id"], model["id"].replace("/", "%2F")):
                    answer = await proxy.client.get(f"{proxy.url}{prefix}/models/{id}")
                    assert (answer.status_code, answer.json()) == (200, model)


@pytest.mark.parametrize(
    "id", ["", "x", "sim/", "sim/nope", "nobody/x", "../livez", "%2e%2e/livez", "a/b/c/d", "é", "%00"]
)
async def test_an_unknown_model_is_a_404(id: str) -> None:
    async with no_leaks(), running_proxy(NOBODY) as proxy, await anyio.connect_tcp("127.0.0.1", proxy.port) as raw:
        target = f"/v1/models/{id}".encode()  # httpx would resolve the dots
        await raw.send(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % target)
        received = b"".join([chunk async for chunk in raw])
        if id == "é":  # a target is ASCII
            assert received.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404"))
            return
        assert received.startswith(b"HTTP/1.1 404")
        body = orjson.loads(received.partition(b"\r\n\r\n")[2])
        assert body["error"]["code"] == "model_not_found"


ABSENT: Final = (
    "/",
    "/v1",
    "/v2/models",
    "/V1/models",
    "//v1/models",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/images/mixtures",
    "/livez/",
    "/v1/images/generations/",
)


async def test_unknown_paths_are_a_404_without_a_redirect() -> None:
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        for path in ABSENT:
            for method in ("GET", "POST", "DELETE"):
                answer = await proxy.client.request(method, proxy.url + path)
                said = openai_error(answer, 404, "not_found")
                assert "under /v1 and /v3: POST /v1/images/generations" in said
                assert "location" not in answer.headers


async def test_other_methods_are_a_405_that_says_which_are_taken() -> None:
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        for row in ROUTES:
            path = paths(row.path)[0] if row.surface else row.path
            taken = {other.method for other in ROUTES if other.path == row.path}
            taken |= {"HEAD"} if "GET" in taken else set()
            for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - taken:
                answer = await proxy.client.request(method, proxy.url + path)
                openai_error(answer, 405, "method_not_allowed")
                assert set(answer.headers["allow"].split(", ")) == taken


async def test_head_is_get_without_the_body() -> None:
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        for path in ("/v1/models", "/v1/models/sim/gpt-image", "/livez", "/readyz"):
            get, head = await proxy.client.get(proxy.url + path), await proxy.client.head(proxy.url + path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))
            assert head.headers["content-type"] == get.headers["content-type"]
        for path, status in (("/v1/models/nope", 404), ("/nope", 404), (GENERATIONS, 405)):
            head = await proxy.client.head(proxy.url + path)
            assert (head.status_code, head.content) == (status, b"")
        assert (await proxy.client.get(f"{proxy.url}/livez")).status_code == 200  # on the same connection


# Callers' keys.

WRONG: Final[dict[str, Sequence[tuple[str, str]]]] = {
    "none": [],
    "an empty one": [("authorization", "Bearer")],
    "another": [("authorization", "Bearer caller-key-other")],
    "another scheme": [("authorization", f"Basic {KEY}")],
    "no scheme": [("authorization", KEY)],
    "the hash itself": [("authorization", f"Bearer {KEYS[0]}")],
    "in the query": [("x-zebra", "v")],
    "twice": [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")],
    "a wrong one before the right one": [("authorization", "Bearer x"), ("x-api-key", KEY)],
    "in a cookie": [("cookie", f"authorization={KEY}")],
    "cut": [("x-api-key", KEY[:-1])],
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_without_a_known_key_every_route_is_the_same_401(wrong: str) -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url, caller_keys=KEYS) as proxy:
        query = f"?api_key={KEY}&key={KEY}"
        messages = set()
        for row in ROUTES:
            if not row.surface:
                continue
            for path in paths(row.path):
                answer = await proxy.client.request(row.method, proxy.url + path + query, headers=WRONG[wrong])
                messages.add(openai_error(answer, 401, "invalid_api_key"))
                assert answer.json()["error"]["type"] == "authentication_error"
                assert answer.headers["www-authenticate"] == 'Bearer realm="streamproxy"'
                assert answer.headers["cache-control"] == "no-store"
                assert KEY[:-1] not in answer.text
        assert len(messages) == 1
        assert server.calls == 0


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key", "X-API-KEY"])
async def test_a_callers_key_in_three_headers_is_not_passed_on(name: str) -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url, caller_keys=KEYS) as proxy:
        headers = {name: f"bearer {KEY}" if name == "authorization" else KEY}
        body = {"model": "sim/gpt-image", "prompt": PROMPT}
        assert (await proxy.client.post(proxy.url + GENERATIONS, json=body, headers=headers)).status_code == 200
        assert (await proxy.client.get(f"{proxy.url}/v3/models", headers=headers)).status_code == 200
        assert not any(KEY in value for _, value in server.received[-1].headers)


async def test_the_key_is_checked_before_body_and_model() -> None:
    async with no_leaks(), running_proxy(NOBODY, caller_keys=KEYS) as proxy:
        for headers in ({}, {"content-type": "application/json"}):
            answer = await proxy.client.post(proxy.url + GENERATIONS, content=b"{", headers=headers)
            openai_error(answer, 401, "invalid_api_key")
        openai_error(await proxy.client.get(f"{proxy.url}/v1/models/nope"), 401, "invalid_api_key")


async def test_operators_routes_tell_no_secret() -> None:
    """Metrics are open as the probes are: names and counts. Who must not read them is kept away by the edge."""
    provider = {"credential": "env:SIM_KEY", "auth_header": "authorization", "auth_scheme": "Bearer "}
    secret = "sk-sim-0123456789abcdef"
    async with no_leaks(), serve(lambda _: IMAGE) as server:
        kept = {"provider": provider, "environ": {"SIM_KEY": secret}, "caller_keys": KEYS}
        async with running_proxy(server.url, **kept) as proxy:  # type: ignore[arg-type]
            body = {"model": "sim/gpt-image", "prompt": PROMPT}
            headers = {"x-api-key": KEY}
            assert (await proxy.client.post(proxy.url + GENERATIONS, json=body, headers=headers)).status_code == 200
            assert (await proxy.client.get(f"{proxy.url}/v1/models/{PROMPT}", headers=headers)).status_code == 404
            assert (await proxy.client.get(f"{proxy.url}/{PROMPT}")).status_code == 404
            live = await proxy.client.get(f"{proxy.url}/livez")
            assert (live.status_code, live.json()) == (200, {"status": "ok"})
            ready = await proxy.client.get(f"{proxy.url}/readyz")
            assert (ready.status_code, ready.json()) == (200, {"status": "ok", "store": "ok"})
            assert (await proxy.client.get(f"{proxy.url}/metrics")).status_code == 401
            metrics = await proxy.client.get(f"{proxy.url}/metrics", headers=headers)
            assert metrics.headers["content-type"].startswith("text/plain; version=")
            routes = set(re.findall(r'streamproxy_requests_total\{route="([^"]*)"', metrics.text))
            assert routes == {GENERATIONS, "/v1/models/{id:path}", "none", "/livez", "/readyz", "/metrics"}
            for word in (KEY, secret, KEYS[0][7:], PROMPT, PROMPT.split()[1], server.url):
                assert word not in metrics.text + ready.text


# Pages of other origins.


def preflight(proxy: Proxy, origin: str, *, method: str = "POST", path: str = GENERATIONS) -> httpx.Request:
    headers = {"origin": origin, "access-control-request-method": method}
    asked = {"access-control-request-headers": "authorization,content-type,x-stainless-lang"}
    return proxy.client.build_request("OPTIONS", proxy.url + path, headers={**headers, **asked})


async def test_an_allowed_page_may_ask_and_read() -> None:
    async with (
        no_leaks(),
        serve(lambda _: IMAGE) as server,
        running_proxy(server.url, cors_origins=(PAGE,), caller_keys=KEYS) as proxy,
    ):
        for row in ROUTES:
            for path in paths(row.path) if row.surface else []:
                answer = await proxy.client.send(preflight(proxy, PAGE, method=row.method, path=path))
                assert answer.status_code == 200
                assert answer.headers["access-control-allow-origin"] == PAGE
                assert row.method in answer.headers["access-control-allow-methods"]
                allowed = answer.headers["access-control-allow-headers"].replace(" ", "").split(",")
                assert {"authorization", "content-type", "x-stainless-lang"} <= set(allowed)
                assert "origin" in answer.headers["vary"].lower()
                assert "access-control-allow-credentials" not in answer.headers
        headers = {"origin": PAGE, "authorization": f"Bearer {KEY}"}
        for stream in (False, True):
            body = {"model": "sim/gpt-image", "prompt": PROMPT, "stream": stream}
            answer = await proxy.client.post(proxy.url + GENERATIONS, json=body, headers=headers)
            readable(answer, 200)
        readable(await proxy.client.get(f"{proxy.url}/v1/models", headers=headers), 200)
        readable(await proxy.client.get(f"{proxy.url}/v1/models/nope", headers=headers), 404)
        readable(await proxy.client.get(f"{proxy.url}/nope", headers=headers), 404)
        readable(await proxy.client.get(f"{proxy.url}/v1/models", headers={"origin": PAGE}), 401)


def readable(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "origin" in answer.headers["vary"].lower()
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "retry-after", "x-should-retry", "proxy-status", "streamproxy-not-applied"} <= set(exposed)


@pytest.mark.parametrize(
    "origin", ["https://evil.test", "null", f"{PAGE}.evil.test", "http://page.test", f"{PAGE}:8443"]
)
async def test_a_refused_page_is_told_the_setting(origin: str) -> None:
    async with no_leaks(), running_proxy(NOBODY, cors_origins=(PAGE,)) as proxy:
        answer = await proxy.client.send(preflight(proxy, origin))
        assert "cors_origins" in openai_error(answer, 403, "origin_not_allowed")
        assert f'"{origin}' not in answer.text
        assert not [name for name in answer.headers if name.startswith("access-control-allow")]
        simple = await proxy.client.get(f"{proxy.url}/v1/models", headers={"origin": origin})
        assert simple.status_code == 200
        assert "access-control-allow-origin" not in simple.headers


async def test_cors_origins_unset_and_with_a_star() -> None:
    async with no_leaks(), running_proxy(NOBODY) as closed, running_proxy(NOBODY, cors_origins=("*",)) as open:
        answer = await closed.client.send(preflight(closed, PAGE))
        assert "cors_origins" in openai_error(answer, 403, "origin_not_allowed")
        assert "access-control-allow-origin" not in answer.headers
        answer = await open.client.send(preflight(open, "https://any.test"))
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
        answer = await open.client.get(f"{open.url}/v1/models", headers={"origin": "https://any.test", "cookie": "a=b"})
        assert answer.headers["access-control-allow-origin"] == "*"  # also with a cookie: it is nothing to us


# Request ids.


async def test_every_answer_has_an_id() -> None:
    refusal = error_answer(400, "no", headers=(("x-request-id", "provider-1"),))
    answers: list[Script] = [IMAGE, IMAGE, refusal, sse([event("error", b'{"error":{"message":"no"}}')])]

    def provider(received: Received) -> Script:
        return answers.pop(0)

    async with no_leaks(), serve(provider) as server, running_proxy(server.url, cors_origins=(PAGE,)) as proxy:
        given = {"origin": PAGE}
        body = {"model": "sim/gpt-image", "prompt": PROMPT}
        found = [
            await proxy.client.post(proxy.url + GENERATIONS, json={**body, "stream": stream}, headers=given)
            for stream in (False, True, False, True)
        ]
        assert [answer.status_code for answer in found][:3] == [200, 200, 400]
        for path in ("/v1/models", "/livez", "/metrics", "/nope", "/v1/models/nope", GENERATIONS):
            found.append(await proxy.client.get(proxy.url + path, headers=given))
        found.append(await proxy.client.post(proxy.url + GENERATIONS, headers=given))
        found.append(await proxy.client.send(preflight(proxy, PAGE)))
        found.append(await proxy.client.send(preflight(proxy, "https://evil.test")))
        ids = [answer.headers["x-request-id"] for answer in found]
        assert all(ID.fullmatch(id) for id in ids)
        assert len(set(ids)) == len(ids)
        for answer in found:
            assert answer.headers.get_list("x-request-id") == [answer.headers["x-request-id"]]
            if answer.status_code >= 400 and answer.content:
                assert answer.json()["request_id"] == answer.headers["x-request-id"]


TRACE: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_a_callers_ids_are_taken_logged_and_passed_on() -> None:
    given = {"x-request-id": "edge-7.1:a/b", "traceparent": TRACE}
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        body = {"model": "sim/gpt-image", "prompt": PROMPT}
        with capture_logs() as logs:
            answer = await proxy.client.post(proxy.url + GENERATIONS, json=body, headers=given)
            await until(lambda: any(line["event"] == "generation" for line in logs))
        assert answer.headers["x-request-id"] == "edge-7.1:a/b"
        [line] = [line for line in logs if line["event"] in ("request", "generation")]
        assert (line["request_id"], line["traceparent"]) == ("edge-7.1:a/b", TRACE)
        assert server.received[0].header("x-request-id") == "edge-7.1:a/b"
        assert server.received[0].header("traceparent") == TRACE


@pytest.mark.parametrize("value", ["", "a b", "x" * 129, "\u00e9", "-a", "sk-proj-0123456789abcdefghijklmnop"])
async def test_an_id_of_another_form_is_not_taken(value: str) -> None:
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url) as proxy:
        headers = [(b"x-request-id", value.encode("latin-1")), (b"traceparent", b"00-0-0-01")]
        body = {"model": "sim/gpt-image", "prompt": PROMPT}
        answer = await proxy.client.post(proxy.url + GENERATIONS, json=body, headers=headers)
        assert ID.fullmatch(answer.headers["x-request-id"])
        assert server.received[0].header("x-request-id") is None
        assert server.received[0].header("traceparent") is None


async def test_what_no_handler_sees_is_counted_and_logged_once() -> None:
    """A refused preflight, an unknown path and a wrong method: one line each, with what was wrong."""
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        with capture_logs() as logs:
            await proxy.client.send(preflight(proxy, "https://evil.test"))
            await proxy.client.get(f"{proxy.url}/nope")
            await proxy.client.get(proxy.url + GENERATIONS)
            await until(lambda: len([line for line in logs if line["event"] == "request"]) == 3)
        assert [line["failure"] for line in logs if "failure" in line] == [
            "origin_not_allowed",
            "not_found",
            "method_not_allowed",
        ]
        assert await proxy.failures("origin") == 1
        assert await proxy.failures("not_found") == 1


async def test_a_caller_who_leaves_is_one_line_with_one_outcome() -> None:
    stalled = (*sse([preview(0)], end=()), Stall())
    async with no_leaks(), serve(lambda _: stalled) as server, running_proxy(server.url) as proxy:
        with capture_logs() as logs:
            async with calling(proxy.port) as caller:
                await caller.send(generation(stream=True))
                assert await caller.head() == 200
            await until(lambda: any(line["event"] == "request" for line in logs))
            await server.wait_closed_connections(BOUND)
            await until(lambda: any(line["event"] == "generation" for line in logs))
        told = {line["event"]: (line.get("status"), line.get("failure"), line.get("outcome")) for line in logs}
        assert told == {"request": (499, "caller_gone", None), "generation": (499, None, "abandoned")}


async def test_a_line_says_which_provider_and_which_model_it_was() -> None:
    """The model by its name in the catalogue; a name that is not there is the caller's own words."""
    gateway = {"models": ["*"], "names": "written"}
    async with no_leaks(), serve(lambda _: IMAGE) as server, running_proxy(server.url, provider=gateway) as proxy:
        with capture_logs() as logs:
            for model in ("openai/gpt-image-2", "gpt-image-2", "a lighthouse"):
                assert (await proxy.generate(model=model)).status_code == 200
            await until(lambda: len([line for line in logs if line["event"] == "generation"]) == 3)
        told = [(line["provider"], line.get("model")) for line in logs if line["event"] != "tolerated"]
        assert told == [("sim", "openai/gpt-image-2"), ("sim", "openai/gpt-image-2"), ("sim", None)]


async def test_a_failed_stream_names_the_id_of_its_head() -> None:
    broken = sse([preview(0), event("error", b'{"type":"error","error":{"message":"no"}}')])
    async with no_leaks(), serve(lambda _: broken) as server, running_proxy(server.url) as proxy:
        answer = await proxy.generate(stream=True)
        assert answer.status_code == 200
        assert events(answer.content)[-1].json["request_id"] == answer.headers["x-request-id"]


# The log.

SECRET: Final = "planted-5c09d2"
WORDS: Final = f"a {SECRET} lighthouse"


def talkative(received: Received) -> Script:
    """A provider that repeats what it was told in every place where it can."""
    body = received.body
    error = {"message": f"You said {WORDS}", "type": WORDS, "param": WORDS, "code": WORDS}
    if b"refuse" in body:
        return json_answer(400, {"error": error, "detail": [{"loc": ["body", WORDS], "msg": WORDS, "type": WORDS}]})
    if b"fail" in body:
        return json_answer(500, {"error": error})
    if b"break" in body:
        return sse([preview(0), event("error", orjson.dumps({"type": "error", "error": error}))])
    if b"garbage" in body:
        return json_answer(200, f'{{"data":[{{"{SECRET}'.encode())
    headers = (("x-request-id", WORDS), ("openai-version", SECRET))
    return (
        sse([preview(0), completed()], headers=headers)
        if b'"stream":true' in body
        else json_answer(200, b'{"created":1,"data":[{"b64_json":"aW1hZ2U="}]}', headers)
    )


async def test_a_log_of_json_has_no_other_lines() -> None:
    """From the first word to the last, a warning at the start and a caller's broken request included."""
    config = configuration(NOBODY, settings='log_level = "debug"') + 'base_url = "https://api.openai.com"\n'
    async with serving_process(config.replace(f'base_url = "{NOBODY}/v1"\n', "")) as process, caller() as client:
        assert (await client.get(f"{process.url}/nope")).status_code == 404
        async with await anyio.connect_tcp("127.0.0.1", process.port) as raw:
            await raw.send(b"nonsense\r\n\r\n")
            await raw.receive()
        await process.line("not_found")
    lines = [orjson.loads(line) for line in process.log]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    assert any("sim" in line["event"] and line["level"] == "warning" for line in lines)


@pytest.mark.parametrize("form", ["json", "text"])
async def test_the_log_holds_neither_queries_nor_prompts_nor_keys(form: str) -> None:
    secrets = {
        "SIM_KEY": f"sk-{SECRET}",
        "STREAMPROXY_CALLER_KEYS": f"sha256:{hashlib.sha256(SECRET.encode()).hexdigest()}",
    }
    settings = f'log_level = "debug"\nlog_format = "{form}"'
    async with serve(talkative) as server:
        config = configuration(server.url, credential="env:SIM_KEY", settings=settings)
        config += 'auth_header = "authorization"\nauth_scheme = "Bearer "\n'
        async with serving_process(config, environ=secrets) as process, caller() as client:
            headers = {
                "authorization": f"Bearer {SECRET}",
                "cookie": f"session={SECRET}",
                "user-agent": SECRET,
                "referer": f"https://{SECRET}.test/",
                "x-request-id": f"sk-proj-{SECRET}-0123456789abcdef",
                "x-forwarded-for": SECRET,
                "host": f"{SECRET}.test",
            }
            url = f"{process.url}{GENERATIONS}?key={SECRET}&prompt={SECRET}"
            body: dict[str, object] = {"model": "sim/gpt-image", "prompt": WORDS, "user": SECRET, SECRET: SECRET}
            variants: list[dict[str, object]] = [
                {},
                {"stream": True},
                {"do": "refuse"},
                {"do": "refuse", "stream": True},
                {"do": "fail"},
                {"do": "break", "stream": True},
                {"do": "garbage"},
                {"extra_headers": {"x-zebra": SECRET}},
                {"extra_headers": {"cookie": SECRET}},
                {"extra_headers": {"x-zebra": f"Bearer sk-{SECRET}"}},
                {"model": f"nobody/{SECRET}"},
                {"size": [SECRET], "n": SECRET},
            ]
            statuses = []
            for number, members in enumerate(variants):
                keyed = {**headers, "idempotency-key": f"{SECRET}-{number}"}
                answer = await client.post(url, json={**body, **members}, headers=keyed)
                statuses.append(answer.status_code)
            assert statuses == [200, 200, 400, 400, 502, 200, 502, 200, 400, 400, 404, 422]
            file = ("image", (f"{SECRET}.png", SECRET.encode(), "image/png"))
            texts = {"model": "sim/gpt-image", "prompt": WORDS, SECRET: SECRET}
            edits = url.replace("generations", "edits")
            assert (await client.post(edits, data=texts, files=[file], headers=headers)).status_code == 200
            broken = {**headers, "content-type": "multipart/form-data; boundary=x"}
            for content in (SECRET.encode(), b"--x\r\n" + SECRET.encode() + b"\r\n\r\n"):
                assert (await client.post(edits, content=content, headers=broken)).status_code == 400
            content = f'{{"{SECRET}":1,"{SECRET}":{SECRET}}}'.encode()
            kind = {**headers, "content-type": "application/json"}
            assert (await client.post(url, content=content, headers=kind)).status_code == 400
            assert (await client.get(f"{process.url}/v1/models/{SECRET}", headers=headers)).status_code == 404
            assert (await client.get(f"{process.url}/{SECRET}?{SECRET}", headers=headers)).status_code == 404
            assert (
                await client.get(f"{process.url}/v1/models", headers={"x-api-key": f"{SECRET}-"})
            ).status_code == 401
            async with calling(process.port) as left:
                await left.send(generation(prompt=WORDS)[:-5])
                left.reset()
            async with await anyio.connect_tcp("127.0.0.1", process.port) as raw:
                await raw.send(f"GET /{SECRET} {SECRET}\r\n\r\n".encode())
                await raw.receive()
            last = await client.get(f"{process.url}/v3/images/models?{SECRET}", headers=headers)
            assert last.status_code == 200
            await process.line(last.headers["x-request-id"])
            log = "\n".join(process.log)
    assert SECRET not in log
    assert "lighthouse" not in log
    for route in (GENERATIONS, "/v1/images/edits", "/v1/models/{id:path}", "/v3/images/models"):
        assert route in log
    assert "?" not in log
