"""Webhooks from the order to their receiver: what comes, what is refused before it is paid, and what is dialled."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import orjson
import pytest
from structlog.testing import capture_logs

from streamproxy.core.webhooks import HEADER
from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, error_answer, json_answer
from streamproxy.simulator.server import serve
from tests.golden.shapes import PICTURE
from tests.support.provider import completed, preview
from tests.support.proxy import BOUND, PROMPT, no_leaks, running_proxy
from tests.support.receiver import PATH, SECRET, Receiver, receiving
from tests.support.streams import JSON, KEY, LATER, Stage, held, playing, staged

pytestmark = pytest.mark.anyio

FILE: Final = base64.b64decode(PICTURE)
USAGE: Final = {"total_tokens": 3, "input_tokens": 1, "output_tokens": 2}


def painter(received: Received) -> Script:
    item = {"b64_json": PICTURE.decode()}
    return json_answer(200, {"created": 1, "data": [item, item], "usage": USAGE, "cost": 0.25})


@asynccontextmanager
async def told(*statuses: int, rest: tuple[bytes, ...] = (completed(),)) -> AsyncIterator[tuple[Stage, Receiver]]:
    """A provider, a proxy, and a receiver that it may tell."""
    async with receiving(*statuses) as receiver, staged(rest=rest, **receiver.settings) as stage:
        yield stage, receiver


async def test_a_completed_stream_is_told() -> None:
    async with told() as (stage, receiver):
        url = await stage.later(headers=receiver.asked)
        assert receiver.messages == []
        stage.go.set()
        said = await receiver.message()
        assert said["type"] == "image.stream.completed"
        data = said["data"]
        assert data["id"] == url.rpartition("/")[2].partition("?")[0]
        assert (data["status"], data["error"], data["cost"]) == ("completed", None, None)
        assert data["usage"]["total_tokens"] == 3
        assert (data["provider"], data["model"]) == ("sim", "sim/gpt-image")
        for name in ("stream_url", "status_url"):
            assert data[name].startswith(f"{stage.proxy.url}/v1/streams/{data['id']}")
            assert (await stage.get(data[name], JSON)).json()["status"] == "completed"
        [image] = data["images"]
        assert (await stage.get(image["url"])).status_code == 200
        assert receiver.ids == [f"msg_{data['id']}"]
        assert stage.server.calls == 1
        assert await stage.proxy.metric("streamproxy_webhooks_total", outcome="delivered") == 1


async def test_a_message_has_neither_picture_nor_prompt() -> None:
    async with told() as (stage, receiver):
        stage.go.set()
        await stage.post(stream=True, headers=receiver.asked)
        said = orjson.dumps(await receiver.message())
        assert b"b64" not in said
        assert b"BBBB" not in said
        assert PROMPT.encode() not in said


async def test_a_json_answers_pictures_are_kept() -> None:
    async with receiving() as receiver, playing(painter, **receiver.settings) as stage:
        answer = await stage.post(model="sim/plain", n=2, headers=receiver.asked)
        assert len(answer.json()["data"]) == 2
        data = (await receiver.message())["data"]
        assert (data["cost"], data["usage"]["total_tokens"]) == (0.25, 3)
        assert [(await stage.get(image["url"])).content for image in data["images"]] == [FILE, FILE]


async def test_a_caller_who_leaves_is_told_all_the_same() -> None:
    async with told() as (stage, receiver):
        body = {"model": "sim/gpt-image", "prompt": PROMPT, "stream": True}
        url = f"{stage.proxy.url}/v1/images/generations"
        async with stage.proxy.client.stream("POST", url, json=body, headers=receiver.asked) as response:
            assert response.status_code == 200
        stage.go.set()
        assert (await receiver.message())["type"] == "image.stream.completed"


async def test_a_failure_is_told_without_words() -> None:
    def refuse(received: Received) -> Script:
        return error_answer(400, f"I will not paint {PROMPT}.", code="moderation_blocked")

    async with receiving() as receiver, playing(refuse, **receiver.settings) as stage:
        answer = await stage.post(headers=receiver.asked)
        assert answer.status_code == 400
        said = await receiver.message()
        assert said["type"] == "image.stream.failed"
        error = answer.json()["error"]
        assert said["data"]["error"]["code"] == error["code"]
        assert said["data"]["images"] == []
        assert PROMPT not in repr(said)


async def test_a_cancel_is_told() -> None:
    async with told() as (stage, receiver):
        answer = await stage.post(stream=True, headers={**LATER, **receiver.asked})
        deleted = await stage.proxy.client.delete(stage.url(answer.headers["cancel-location"]))
        assert deleted.json()["cancelled"] is True
        said = await receiver.message()
        assert (said["type"], said["data"]["error"]["code"]) == ("image.stream.cancelled", "cancelled")


async def test_a_repeated_order_is_told_once() -> None:
    async with told() as (stage, receiver):
        headers = {**receiver.asked, KEY: "one", "authorization": "Bearer one caller's"}
        first, second = [await stage.later(headers=headers) for _ in range(2)]
        assert first.partition("?")[0] == second.partition("?")[0]
        other = {**headers, HEADER: receiver.origin + "/another"}
        assert (await stage.post(stream=True, headers={**LATER, **other})).status_code == 422
        stage.go.set()
        await receiver.message()
        assert stage.server.calls == 1
        assert await stage.proxy.metric("streamproxy_webhooks_total", outcome="delivered") == 1
        assert len(receiver.messages) == 1


async def test_a_failed_delivery_is_repeated() -> None:
    async with told(500) as (stage, receiver):
        stage.go.set()
        await stage.post(stream=True, headers=receiver.asked)
        await receiver.message(2)
        assert receiver.messages[0] == receiver.messages[1]
        assert len(set(receiver.ids)) == 1
        assert await stage.proxy.metric("streamproxy_webhooks_total", outcome="failed") == 1


async def test_a_redirect_is_not_followed() -> None:
    async with receiving() as other, receiving(302, headers=(("Location", other.origin + PATH),)) as receiver:
        settings: dict[str, Any] = {
            **receiver.settings,
            "webhook_origins": [f"{each.origin} internal" for each in (receiver, other)],
        }
        async with staged(**settings) as stage:
            stage.go.set()
            await stage.post(stream=True, headers=receiver.asked)
            await receiver.message()
            await counted(stage, "failed")
            assert other.server.connections == 0


async def counted(stage: Stage, outcome: str, times: int = 1) -> None:
    with anyio.fail_after(BOUND):
        while await stage.proxy.metric("streamproxy_webhooks_total", outcome=outcome) < times:  # noqa: ASYNC110
            await anyio.sleep(0.01)


# What is refused before anything is paid.


class Names:
    """A resolver with an answer for each question, the last one for all further ones."""

    def __init__(self, *answers: list[str]) -> None:
        self.asked = 0
        self._answers = answers

    async def resolve(self, host: str, port: int) -> list[str]:
        if host == "127.0.0.1":
            return [host]
        self.asked += 1
        answer = self._answers[min(self.asked, len(self._answers)) - 1]
        if not answer:
            raise OSError("no such name")
        return answer


@asynccontextmanager
async def resolved(names: Names, **settings: Any) -> AsyncIterator[Stage]:
    """As `staged`, where names have these addresses."""
    go = anyio.Event()
    with anyio.fail_after(2 * BOUND):
        async with (
            no_leaks(),
            serve(lambda _: held((preview(0),), go, (completed(),))) as server,
            running_proxy(server.url, resolver=names, **settings) as proxy,
        ):
            yield Stage(server, proxy, go)


async def refused(stage: Stage, headers: Mapping[str, str] | list[tuple[str, str]], setting: str) -> None:
    body = {"model": "sim/gpt-image", "prompt": PROMPT}
    answer = await stage.proxy.client.post(f"{stage.proxy.url}/v1/images/generations", json=body, headers=headers)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("webhook_refused", HEADER)
    assert setting in error["message"]
    assert "path-0123456789" not in answer.text
    assert stage.server.calls == 0


@pytest.mark.parametrize("origins", [[], ["https://hooks.example.com"], ["https://127.0.0.1 internal"]])
async def test_an_unlisted_origin(origins: list[str]) -> None:
    async with receiving() as receiver, staged(webhook_origins=origins, webhook_secret=SECRET) as stage:
        await refused(stage, receiver.asked, "webhook_origins")
        assert receiver.server.connections == 0


async def test_an_internal_address_not_listed_as_such() -> None:
    async with receiving() as receiver, staged(webhook_origins=[receiver.origin], webhook_secret=SECRET) as stage:
        await refused(stage, receiver.asked, "webhook_origins")
        assert receiver.server.connections == 0


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1"],
        ["127.0.0.1"],
        ["93.184.215.14", "192.168.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["169.254.169.254"],
        ["fd00:ec2::254"],
        ["64:ff9b::7f00:1"],
        [],
    ],
)
async def test_a_name_with_an_address_not_public(addresses: list[str]) -> None:
    names = Names(addresses)
    async with receiving() as receiver:
        origin = f"http://hooks.example.com:{receiver.server.port}"
        async with resolved(names, webhook_origins=[origin], webhook_secret=SECRET) as stage:
            await refused(stage, {HEADER: origin + PATH}, "webhook_origins")
            assert names.asked == 1
            assert receiver.server.connections == 0


@pytest.mark.parametrize("address", ["169.254.169.254", "0.0.0.0", "::ffff:169.254.169.254"])
async def test_an_internal_host_is_no_metadata_service(address: str) -> None:
    origin = "http://hooks.lan"
    async with resolved(Names([address]), webhook_origins=[f"{origin} internal"], webhook_secret=SECRET) as stage:
        await refused(stage, {HEADER: origin + PATH}, "webhook_origins")


async def test_a_name_that_leads_inside_after_the_order() -> None:
    names = Names(["93.184.215.14"], ["127.0.0.1"])
    async with receiving() as receiver:
        origin = f"http://hooks.example.com:{receiver.server.port}"
        async with resolved(names, webhook_origins=[origin], webhook_secret=SECRET) as stage:
            stage.go.set()
            assert (await stage.post(headers={HEADER: origin + PATH}, stream=True)).status_code == 200
            await counted(stage, "failed")
            assert names.asked == 2
            assert receiver.server.connections == 0


async def test_two_headers() -> None:
    async with told() as (stage, receiver):
        url = receiver.asked[HEADER]
        await refused(stage, [(HEADER, url), (HEADER, url)], "webhook_origins")


async def test_a_proxy_whose_name_is_not_known() -> None:
    async with told() as (stage, receiver):
        await refused(stage, {**receiver.asked, "host": "evil.test"}, "public_url")


async def test_urls_begin_with_public_url() -> None:
    known = "https://images.example.com/api"
    async with receiving() as receiver, staged(**receiver.settings, public_url=known) as stage:
        stage.go.set()
        await stage.post(stream=True, headers={**receiver.asked, "host": "any.test"})
        data: dict[str, Any] = (await receiver.message())["data"]
        for url in (data["stream_url"], data["status_url"], data["images"][0]["url"]):
            assert url.startswith(f"{known}/v1/streams/str_")


async def test_too_many_webhooks_of_one_caller() -> None:
    async with receiving() as receiver, staged(**receiver.settings, max_webhooks_per_caller=1) as stage:
        await stage.later(headers=receiver.asked)
        answer = await stage.post(stream=True, headers=receiver.asked, prompt="another")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        assert "max_webhooks" in answer.json()["error"]["message"]
        assert stage.server.calls == 1


async def test_an_unadmitted_order_leaves_no_webhook() -> None:
    async with receiving() as receiver, staged(**receiver.settings, max_streams=1, max_webhooks=1) as stage:
        url = await stage.later()
        answer = await stage.post(stream=True, headers=receiver.asked, prompt="another")
        assert (answer.status_code, "max_streams" in answer.text) == (503, True)
        stage.go.set()
        await stage.until(url, "completed")
        assert (await stage.post(stream=True, headers=receiver.asked, prompt="another")).status_code == 200
        assert (await receiver.message())["type"] == "image.stream.completed"
        assert stage.server.calls == 2


async def test_logs_have_no_url_of_a_receiver() -> None:
    with capture_logs() as logs:
        async with told(410) as (stage, receiver):
            stage.go.set()
            await stage.post(stream=True, headers=receiver.asked)
            await counted(stage, "gone")
    assert "path-0123456789" not in repr(logs)
    [line] = [line for line in logs if line["event"] == "webhook"]
    assert (line["outcome"], line["attempts"], line["reason"]) == ("gone", 1, "HTTP 410")


async def test_a_relayed_chat_does_not_apply_it() -> None:
    def chat(received: Received) -> Script:
        return json_answer(200, {"choices": []})

    async with receiving() as receiver, playing(chat, provider={"chat": "/chat"}, **receiver.settings) as stage:
        body = {"model": "some-text-model", "messages": [{"role": "user", "content": "hi"}]}
        url = f"{stage.proxy.url}/v1/chat/completions"
        answer = await stage.proxy.client.post(url, json=body, headers=receiver.asked)
        assert answer.status_code == 200, answer.text
        assert "streamproxy-webhook" in answer.headers["streamproxy-not-applied"]
