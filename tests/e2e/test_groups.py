"""Providers whose pictures come one by one, over real sockets: their order in time, and the pictures of a failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from structlog.testing import capture_logs

from streamproxy.simulator.received import Received
from streamproxy.simulator.script import Script, Stall, event, sse
from tests.e2e.test_wires import KEY, MODELS, Setup, wired
from tests.support.proxy import PROMPT, events, until

pytestmark = pytest.mark.anyio

FAULTY: Final = {"ark": "ark/seedream-4-5-fault-", "minimax": "minimax/fault-"}
GROUPS: Final = pytest.mark.parametrize("wire", FAULTY)


@dataclass(frozen=True, slots=True)
class Fault:
    """What a fault is to the caller: status, code, the provider's own code, and pictures that came before it."""

    status: int
    code: str
    provider_code: str | None = None
    pictures: int = 0
    before_head: bool = False


SENSITIVE: Final = "OutputImageSensitiveContentDetected"
FAULTS: Final[Mapping[str, Fault]] = {
    "submit-429": Fault(429, "ModelAccountRpmRateLimitExceeded", before_head=True),
    "key": Fault(502, "provider_auth", before_head=True),
    "unknown": Fault(404, "InvalidEndpointOrModel.NotFound", before_head=True),
    "sensitive": Fault(400, "moderation_blocked", "InputTextSensitiveContentDetected", before_head=True),
    "one-failed": Fault(400, "moderation_blocked", SENSITIVE, 2),
    "all-failed": Fault(400, "moderation_blocked", SENSITIVE, before_head=True),
    "mid-error": Fault(502, "provider_failed", "InternalServiceError", 1),
    "cut": Fault(502, "upstream_incomplete", None, 1),
}


async def _asked(setup: Setup, model: str, **members: object) -> Any:
    body = {"model": model, "prompt": PROMPT, **members}
    return await setup.proxy.client.post(f"{setup.proxy.url}/v1/images/generations", json=body)


@GROUPS
@pytest.mark.parametrize("fault", FAULTS)
async def test_faults_of_a_stream(wire: str, fault: str, tmp_path: Path) -> None:
    expected = FAULTS[fault]
    async with wired(wire, tmp_path, stream_n=True) as setup:
        answer = await _asked(setup, FAULTY[wire] + fault, n=3, stream=True, size="1024x1024")
        told: Any
        if expected.before_head:
            assert answer.status_code == expected.status, answer.text
            told = answer.json()["error"]
        else:
            *before, last = events(answer.content)
            assert [found.json["type"] for found in before] == ["image_generation.completed"] * expected.pictures
            told = last.json["error"]
            assert told["status"] == expected.status
        assert (told["code"], told.get("provider_code")) == (expected.code, expected.provider_code)
        assert len(setup.posts) == 1
        assert PROMPT not in answer.text
        assert KEY not in answer.text


@GROUPS
async def test_every_picture_of_a_json_answer_failed(wire: str, tmp_path: Path) -> None:
    async with wired(wire, tmp_path) as setup:
        answer = await _asked(setup, FAULTY[wire] + "all-failed", n=2, size="1024x1024")
        assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
        assert answer.json()["error"]["provider_code"] == SENSITIVE
        assert len(setup.posts) == 1


@GROUPS
async def test_a_result_that_is_gone_keeps_its_url(wire: str, tmp_path: Path) -> None:
    async with wired(wire, tmp_path, stream_n=True) as setup:
        answer = await _asked(setup, FAULTY[wire] + "gone", n=2, stream=True, size="1024x1024")
        urls = [found.json["url"] for found in events(answer.content)]
        assert all("/files/missing" in str(url) for url in urls)
        assert len(urls) == 2


def _one_and_no_more(received: Received) -> Script:
    """The first picture of two, and nothing behind it."""
    url = f"http://{received.header('host')}/files/1.png"
    name = "image_generation.partial_succeeded"
    return sse([event(name, orjson.dumps({"type": name, "image_index": 0, "url": url}))], end=(Stall(),))


@GROUPS
async def test_a_picture_is_shown_when_it_is_there(wire: str, tmp_path: Path) -> None:
    async with wired(wire, tmp_path, _one_and_no_more, fetch_hosts=(), stream_n=True) as setup:
        body = {"model": MODELS[wire], "prompt": PROMPT, "n": 2, "stream": True}
        url = f"{setup.proxy.url}/v1/images/generations"
        async with setup.proxy.client.stream("POST", url, json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    assert orjson.loads(line.removeprefix("data:"))["image_index"] == 0
                    return
        raise AssertionError("no event came")


def _two_of_four(received: Received) -> Script:
    """A group of two pictures, whatever number was allowed."""
    url = f"http://{received.header('host')}/files/"
    made = [{"image_index": index, "url": f"{url}{index}.png"} for index in range(2)]
    usage = {"generated_images": 2, "output_tokens": 32448, "total_tokens": 32448}
    frames = [event(None, orjson.dumps({"type": "image_generation.partial_succeeded", **item})) for item in made]
    frames.append(event(None, orjson.dumps({"type": "image_generation.completed", "usage": usage})))
    return sse([*frames, event(None, b"[DONE]")])


async def test_a_smaller_group_says_what_it_cost(tmp_path: Path) -> None:
    async with wired("ark", tmp_path, _two_of_four, fetch_hosts=(), stream_n=True) as setup:
        with capture_logs() as logs:
            answer = await _asked(setup, MODELS["ark"], n=4, stream=True)
            await until(lambda: any(line["event"] == "generation" for line in logs))
        [line] = [line for line in logs if line["event"] == "generation"]
        assert (line["outcome"], line["images"]) == ("completed", 2)
        first, second, last = events(answer.content)
        assert first.event == second.event == "image_generation.completed"
        assert last.event == last.json["type"] == "image_generation.usage"
        usage: Any = last.json["usage"]
        assert (last.json["missing"], usage["output_tokens"]) == (2, 32448)
        assert "cost" in last.json
        place = setup.proxy.url + answer.headers["location"]
        kept = (await setup.proxy.client.get(place, headers={"accept": "application/json"})).json()
        assert (kept["status"], len(kept["data"])) == ("completed", 2)
        again = (await setup.proxy.client.get(place)).content
        assert b"event: image_generation.usage" in again
        assert len(setup.posts) == 1


async def test_an_sdk_reads_a_smaller_group(tmp_path: Path) -> None:
    async with wired("ark", tmp_path, _two_of_four, fetch_hosts=(), stream_n=True) as setup:
        stream = await setup.client.images.generate(model=MODELS["ark"], prompt=PROMPT, n=4, stream=True)
        seen = [found async for found in stream]
        assert [found.type for found in seen] == [*["image_generation.completed"] * 2, "image_generation.usage"]
