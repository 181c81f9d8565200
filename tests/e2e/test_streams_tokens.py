"""Who may see a stream: who has its URL's token, or the key that asked; and where the token must not show."""

from __future__ import annotations

import hashlib
import re
import time
from typing import Final

import anyio
import pytest

from streamproxy.simulator import running
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, sse
from tests.support.process import caller, configuration, serving_process
from tests.support.provider import completed, preview
from tests.support.proxy import BOUND
from tests.support.streams import EVENTS, JSON, LATER, Stage, playing, staged

pytestmark = pytest.mark.anyio

MINE: Final = "caller-key-of-mine-0123456789"
OTHER: Final = "caller-key-of-another-0123456"
KEYS: Final = tuple("sha256:" + hashlib.sha256(key.encode()).hexdigest() for key in (MINE, OTHER))
READS: Final = (("GET", "", EVENTS), ("GET", "", JSON), ("GET", "/status", EVENTS), ("GET", "/images/0", JSON))


LOCATIONS: Final = ("location", "cancel-location")
ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def good(received: Received) -> Script:
    return sse((preview(0), completed()))


async def statuses(stage: Stage, url: str, headers: dict[str, str]) -> set[int]:
    """What reading a stream and what is below it is answered with."""
    base, mark, query = url.partition("?")
    found = set()
    for method, path, accept in READS:
        answer = await stage.proxy.client.request(method, f"{base}{path}{mark}{query}", headers={**accept, **headers})
        found.add(answer.status_code)
    return found


def flipped(token: str) -> list[str]:
    """The token with each character replaced by another of its alphabet; the last has bits that say nothing."""
    changed = []
    for at, letter in enumerate(token[:-1]):
        changed.append(token[:at] + ("B" if letter == "A" else "A") + token[at + 1 :])
    return changed


async def test_a_token_opens_its_stream_and_nothing_else_does() -> None:
    async with playing(good, caller_keys=KEYS) as stage:
        url = await stage.later(headers=bearer(MINE))
        other = await stage.later(headers=bearer(MINE))
        for each in (url, other):
            with anyio.fail_after(BOUND):
                while (await stage.state(each))["status"] != "completed":  # noqa: ASYNC110
                    await anyio.sleep(0.01)
        base, _, token = url.partition("?token=")
        assert await statuses(stage, url, {}) == {200}
        assert await statuses(stage, url, bearer("nobody's")) == {200}
        assert await statuses(stage, f"{base}?token={other.partition('=')[2]}", {}) == {401}
        for bad in (f"{token}=", f"{token}==", f"{token[:-1]}{ALPHABET[ALPHABET.index(token[-1]) ^ 1]}"):
            assert await statuses(stage, f"{base}?token={bad}", {}) == {401}, bad  # the same bytes in another spelling
        for bad in ("", "x", "%00", "%ff", "ä", ".", "..", token[:-1], token + "A", f"x{token}", token.upper()):
            assert await statuses(stage, f"{base}?token={bad}", {}) == {401}, bad
        for bad in flipped(token):
            assert (await stage.get(f"{base}?token={bad}", JSON)).status_code == 401, bad
        for cut in range(len(token)):
            assert (await stage.get(f"{base}?token={token[:cut]}", EVENTS)).status_code == 401, cut
        refused = await stage.get(f"{base}?token=x", JSON)
        assert refused.json()["error"]["code"] == "invalid_stream_token"
        assert stage.server.calls == 2


async def test_what_reads_does_not_end_and_what_ends_reads_too() -> None:
    async with staged() as stage:
        ordered = (await stage.post(headers=LATER, stream=True)).json()
        reading, ending = stage.url(ordered["stream_url"]), stage.url(ordered["cancel_url"])
        refused = await stage.proxy.client.delete(reading)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "read_only_token")
        assert (await stage.state(reading))["status"] == "in_progress"
        seen = await stage.state(ending)
        assert ending.partition("token=")[2] not in str(seen)  # what is shown further on only reads
        assert (await stage.proxy.client.delete(stage.url(str(seen["stream_url"])))).status_code == 403
        assert (await stage.proxy.client.delete(ending)).json()["cancelled"] is True
        await stage.until(reading, "cancelled")


async def test_no_page_tells_others_the_token_in_its_url() -> None:
    async with playing(good) as stage:
        posted = await stage.post(stream=True)
        url = stage.url(posted.headers["location"])
        path, _, query = url.partition("?")
        answers = [posted, await stage.proxy.client.delete(url)]
        for target in (
            url,
            f"{path}/status?{query}",
            f"{path}/images/0?{query}",
            f"{path}/images/9?{query}",
            f"{url}x",
        ):
            answers += [await stage.get(target, EVENTS), await stage.get(target, JSON)]
        answers.append(await stage.get(url, {**EVENTS, "last-event-id": "1.2"}))
        assert {answer.status_code for answer in answers} == {200, 204, 401, 403, 404}
        assert {answer.headers["referrer-policy"] for answer in answers} == {"no-referrer"}


async def test_a_stream_of_nobody_is_opened_by_its_token_only() -> None:
    async with playing(good) as stage:
        url = await stage.later()
        bare = url.partition("?")[0]
        for headers in ({}, bearer("anybody's")):
            assert await statuses(stage, bare, headers) == {404}
            assert (await stage.proxy.client.delete(bare, headers=headers)).status_code == 404
        assert (await stage.state(url))["status"] in ("in_progress", "completed")


async def test_a_wrong_token_is_not_made_good_by_a_key() -> None:
    async with playing(good, caller_keys=KEYS) as stage:
        url = await stage.later(headers=bearer(MINE))
        assert await statuses(stage, url.partition("?")[0] + "?token=x", bearer(MINE)) == {401}


async def test_a_token_expires() -> None:
    async with playing(good, token_seconds=1) as stage:
        url = await stage.later()
        began = time.monotonic()
        with anyio.fail_after(BOUND):
            while (answer := await stage.get(url, EVENTS)).status_code != 401:
                assert answer.status_code == 200
        assert time.monotonic() - began <= 3
        assert "token_seconds" in answer.json()["error"]["message"]


async def test_a_token_is_its_secrets() -> None:
    """Two proxies with one secret know each other's tokens, others do not; without one each has its own."""
    async with playing(good, secret="s" * 32) as stage:
        url = await stage.later()
    for secret, status in (("s" * 32, 404), ("t" * 32, 401), (None, 401)):
        async with playing(good, secret=secret) as stage:
            _, _, path = url.partition("/v1/")
            assert (await stage.get(f"{stage.proxy.url}/v1/{path}", JSON)).status_code == status


async def test_the_key_that_asked_needs_no_token() -> None:
    async with playing(good, caller_keys=KEYS) as stage:
        bare = (await stage.later(headers=bearer(MINE))).partition("?")[0]
        with anyio.fail_after(BOUND):
            while (await stage.get(bare, {**JSON, **bearer(MINE)})).json()["status"] != "completed":  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert await statuses(stage, bare, bearer(MINE)) == {200}
        assert await statuses(stage, bare, {"x-api-key": MINE}) == {200}
        assert await statuses(stage, bare, bearer(OTHER)) == {404}
        assert await statuses(stage, bare, bearer("nobody's")) == {401}
        assert await statuses(stage, bare, {}) == {401}
        assert stage.server.calls == 1


async def test_another_tenants_stream_is_as_if_it_were_not() -> None:
    async with playing(good, caller_keys=KEYS) as stage:
        bare = (await stage.later(headers=bearer(MINE))).partition("?")[0]
        never = stage.proxy.url + "/v1/streams/str_0"
        answers = [(await stage.get(url, {**JSON, **bearer(OTHER)})).json() for url in (bare, never)]
        for answer in answers:
            del answer["request_id"]
        assert answers[0] == answers[1]


async def test_a_stream_belongs_to_the_callers_own_key() -> None:
    async with playing(good, provider={"credential": "caller"}) as stage:
        bare = (await stage.later(headers=bearer("sk-mine"))).partition("?")[0]
        with anyio.fail_after(BOUND):
            while (await stage.get(bare, {**JSON, **bearer("sk-mine")})).json()["status"] != "completed":  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert await statuses(stage, bare, bearer("sk-mine")) == {200}
        assert await statuses(stage, bare, {"api-key": "sk-mine"}) == {200}
        assert await statuses(stage, bare, bearer("sk-other")) == {404}
        assert await statuses(stage, bare, {}) == {404}
        assert stage.server.received[0].header("authorization") == "Bearer sk-mine"


async def test_nobody_deletes_what_is_not_theirs() -> None:
    async with staged(caller_keys=KEYS) as stage:
        url = await stage.later(headers=bearer(MINE))
        bare = url.partition("?")[0]
        for headers, status in ((bearer(OTHER), 404), ({}, 401)):
            assert (await stage.proxy.client.delete(bare, headers=headers)).status_code == status
        assert (await stage.state(url))["status"] == "in_progress"
        stage.go.set()
        await stage.until(url, "completed")


async def test_no_token_is_logged_or_repeated() -> None:
    async with running(pace=0) as upstream, caller() as client:
        config = configuration(upstream.url, settings='log_level = "debug"')
        async with serving_process(config) as process:
            base = f"{process.url}/v1/images/generations"
            body = {"model": "sim/gpt-image", "prompt": "p", "size": "64x64"}
            answers = [await client.post(base, json=body, headers=LATER)]
            streamed = await client.post(base, json={**body, "stream": True})
            places = [answer.headers[name] for answer in (answers[0], streamed) for name in LOCATIONS]
            urls = [process.url + place for place in places]
            tokens = [url.partition("token=")[2] for url in urls]
            for url in urls:
                path = url.partition("?")[0]
                token = url.partition("token=")[2]
                answers += [
                    await client.get(url, headers=EVENTS),
                    await client.get(f"{path}?token={token}x", headers=JSON),
                    await client.get(f"{path}/images/7?token={token}", headers=JSON),
                    await client.get(f"{path}/images/0?token={token}"),
                    await client.get(f"{path}/nothing?token={token}"),
                    await client.put(url),
                    await client.get(f"{path}?from=x&token={token}", headers=EVENTS),
                    await client.delete(url),
                ]
            assert {answer.status_code for answer in answers} == {200, 202, 401, 403, 404, 405, 422}
            await process.line('"DELETE"')
        for token in tokens:
            assert re.fullmatch(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", token)
            for secret in (token, *token.split(".")):
                if len(secret) > 8:
                    assert not [line for line in process.log if secret in line]
            for answer in answers:
                if answer.status_code >= 400:
                    assert token not in answer.text
                    assert token not in str(answer.headers)
