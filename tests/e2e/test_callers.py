"""Callers with names: what each may ask for, how much at a time and in a day, and what is said of it afterwards."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import anyio
import httpx
import orjson
import pytest
from structlog.testing import capture_logs

from streamproxy.simulator.received import Server
from streamproxy.simulator.script import Fin, Script, error_answer, event, json_answer, sse
from streamproxy.simulator.server import serve
from tests.support.faults import Held
from tests.support.provider import COMPLETED, preview
from tests.support.proxy import BOUND, PROMPT, Proxy, events, no_leaks, running_proxy, until
from tests.support.streams import held

pytestmark = pytest.mark.anyio

NOBODY: Final = "http://127.0.0.1:9"
KEYS: Final = {name: f"key-of-{name}-0123456789" for name in ("app", "other", "bare")}
GENERATIONS: Final = "/v1/images/generations"
CHAT: Final = "/v1/chat/completions"
DOLLARS: Final = 0.05
TYPICAL: Final = 0.04
"""The estimate of a model without a price."""


def hashed(name: str) -> str:
    return f"sha256:{hashlib.sha256(KEYS[name].encode()).hexdigest()}"


def completed(cost: float | None = DOLLARS) -> bytes:
    """A completed frame that says what it cost."""
    members = {"type": COMPLETED, "b64_json": "B" * 64, "created_at": 1, "cost": cost}
    return event(COMPLETED, orjson.dumps(members))


def answer(cost: float | None = DOLLARS) -> Script:
    return json_answer(200, {"created": 1, "data": [{"b64_json": "aW1hZ2U="}], "cost": cost})


@dataclass(slots=True)
class Stage:
    """A proxy with callers, before a provider that plays `script`."""

    server: Server
    proxy: Proxy
    script: Script = field(default_factory=answer)

    async def ask(self, name: str, path: str = GENERATIONS, **members: object) -> httpx.Response:
        body = {"model": "sim/gpt-image", "prompt": PROMPT, **members}
        return await self.proxy.client.post(self.proxy.url + path, json=body, headers=key(name))

    async def get(self, name: str, path: str) -> httpx.Response:
        return await self.proxy.client.get(f"{self.proxy.url}/v1/{path}", headers=key(name))

    async def usage(self, name: str, query: str = "") -> list[dict[str, Any]]:
        found = await self.get(name, f"usage?{query}")
        assert found.status_code == 200, found.text
        rows: list[dict[str, Any]] = found.json()["data"]
        return rows

    async def metric(self, name: str) -> float:
        """What the caller has spent by the metrics."""
        text = (await self.proxy.client.get(f"{self.proxy.url}/metrics", headers=key("bare"))).text
        lines = [line for line in text.splitlines() if line.startswith(f'streamproxy_cost_usd_total{{caller="{name}"')]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


def key(name: str) -> Mapping[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"} if name else {}


def refused(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


@asynccontextmanager
async def staged(
    *,
    served: tuple[str, ...] = ("*",),
    other: Mapping[str, object] | None = None,
    max_streams: int = 1000,
    **limits: object,
) -> AsyncIterator[Stage]:
    """The caller `app` with these limits, `other` with others, and one without a name."""
    callers = {"app": {"key": hashed("app"), **limits}, "other": {"key": hashed("other"), **(other or {})}}
    stages: list[Stage] = []
    with anyio.fail_after(BOUND):
        async with (
            no_leaks(),
            serve(lambda _: stages[0].script) as server,
            running_proxy(
                server.url,
                provider={"models": served},
                caller_keys=(hashed("bare"),),
                callers=callers,
                max_streams=max_streams,
            ) as proxy,
        ):
            stages.append(Stage(server, proxy))
            yield stages[0]


# What may be asked for.


@pytest.mark.parametrize(
    ("model", "allowed"),
    [
        ("sim/plain", True),
        ("openai/gpt-image-1", True),
        ("gpt-image-1", True),
        ("openai/gpt-image-2", False),
        ("sim/gpt-image", False),
        ("new/model-of-theirs", True),
        ("new/another", False),
        ("sim/new/model-of-theirs", True),
        ("zoo/lion", True),
    ],
)
async def test_models(model: str, allowed: bool) -> None:
    async with staged(models=["sim/plain", "*/gpt-image-1", "new/model-*", "sim/zoo/*"]) as stage:
        said = await stage.ask("app", model=model)
        if allowed:
            assert said.status_code == 200, said.text
        else:
            assert refused(said) == (403, "model_not_allowed", "model")
        assert stage.server.calls == allowed
        assert (await stage.ask("other", model=model)).status_code == 200
        assert (await stage.ask("bare", model=model)).status_code == 200


async def test_a_model_that_nothing_serves_is_none() -> None:
    async with no_leaks(), serve(lambda _: answer()) as server:
        callers = {"app": {"key": hashed("app"), "models": ["sim/plain"], "providers": ["sim"]}}
        async with running_proxy(server.url, callers=callers) as proxy:
            stage = Stage(server, proxy)
            assert refused(await stage.ask("app", model="nope/nope")) == (404, "model_not_found", "model")
            assert (await stage.get("app", "models/sim/plain")).status_code == 200
            assert refused(await stage.get("app", "models/sim/gpt-image"))[:2] == (403, "model_not_allowed")


async def test_providers() -> None:
    """The caller's own are asked, though another one comes before; what only another one serves is refused."""
    async with no_leaks(), serve(lambda _: answer()) as first, serve(lambda _: answer()) as second:
        providers = {
            "sim": {"base_url": f"{first.url}/v1", "credential": "none", "models": ["gpt-image-2"]},
            "openai": {"base_url": f"{second.url}/v1", "credential": "none"},
        }
        callers = {
            "app": {"key": hashed("app"), "providers": ["openai"]},
            "other": {"key": hashed("other"), "providers": ["sim"]},
        }
        async with running_proxy(first.url, providers=providers, callers=callers) as proxy:
            stage = Stage(first, proxy)
            assert (await stage.ask("app", model="gpt-image-2")).status_code == 200
            assert (first.calls, second.calls) == (0, 1)
            assert refused(await stage.ask("app", model="sim/gpt-image")) == (403, "model_not_allowed", "model")
            assert (await stage.ask("other", model="gpt-image-2")).status_code == 200
            assert (first.calls, second.calls) == (1, 1)
            listed = [model["id"] for model in (await stage.get("app", "models")).json()["data"]]
            assert listed
            assert all(id.startswith("openai/") for id in listed)


async def test_models_lists_what_may_be_asked_for() -> None:
    async with staged(models=["bytedance/*"]) as stage:
        own = [model["id"] for model in (await stage.get("app", "models")).json()["data"]]
        assert own
        assert all(id.startswith("bytedance/") for id in own)
        everything = [model["id"] for model in (await stage.get("other", "models")).json()["data"]]
        assert set(own) < set(everything)


@pytest.mark.parametrize("served", [(), ("*",)], ids=["unknown", "any"])
@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
async def test_what_is_passed_on_has_the_same_limits(path: str, served: tuple[str, ...]) -> None:
    async with staged(served=served, models=["talker-*"], streams=1) as stage:
        stage.script = json_answer(200, {"choices": []})
        assert refused(await stage.ask("app", path, model="whisperer")) == (403, "model_not_allowed", "model")
        assert stage.server.calls == 0
        for _ in range(2):
            assert (await stage.ask("app", path, model="talker-1")).status_code == 200
        await until(lambda: stage.server.calls == 2)
        [row] = await stage.usage("app")
        assert (row["requests"], row["images"], row["cost"], row["cost_unknown"]) == (2, 0, 0, 2)
        assert (row["caller"], row["model"], row["provider"]) == ("app", None, "sim")


# How many at a time.


async def test_streams() -> None:
    async with staged(streams=2) as stage:
        go = anyio.Event()
        stage.script = held((preview(0),), go, (completed(),))
        answers: list[httpx.Response] = []

        async def one() -> None:
            answers.append(await stage.ask("app", stream=True))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            tasks.start_soon(one)
            await stage.server.wait_until(lambda server: server.calls == 2, BOUND)
            said = await stage.ask("app", stream=True)
            assert refused(said) == (429, "caller_streams", "streams")
            assert said.headers["retry-after"] == "1"
            assert "x-should-retry" not in said.headers
            assert "streams" in said.json()["error"]["message"]
            tasks.start_soon(stage.ask, "other")
            await stage.server.wait_until(lambda server: server.calls == 3, BOUND)
            go.set()
        assert [response.status_code for response in answers] == [200, 200]
        assert (await stage.ask("app", stream=True)).status_code == 200
        assert stage.server.calls == 4


@pytest.mark.parametrize("stream", [False, True])
async def test_one_after_the_other_needs_one_stream(stream: bool) -> None:
    async with staged(streams=1) as stage:
        stage.script = sse((completed(),)) if stream else answer()
        for _ in range(20):
            assert (await stage.ask("app", stream=stream)).status_code == 200
        assert stage.server.calls == 20


@pytest.mark.parametrize("end", ["refused", "broken", "cancelled", "left", "unconnected"])
async def test_a_stream_is_given_back(end: str) -> None:
    async with staged(streams=1) as stage:
        hung = held((preview(0),), anyio.Event(), (completed(),))
        stage.script = {
            "refused": error_answer(400, "No."),
            "broken": sse((preview(0),), end=(Fin(),)),
            "unconnected": (Fin(),),
        }.get(end, hung)
        if end == "cancelled":
            body = {"model": "sim/gpt-image", "prompt": PROMPT, "stream": True}
            url = stage.proxy.url + GENERATIONS
            said = await stage.proxy.client.post(url, json=body, headers={**key("app"), "prefer": "respond-async"})
            gone = await stage.proxy.client.delete(stage.proxy.url + said.headers["cancel-location"])
            assert gone.status_code < 300
        elif end == "left":
            body = {"model": "sim/gpt-image", "prompt": PROMPT, "stream": True}
            url = stage.proxy.url + GENERATIONS
            async with stage.proxy.client.stream("POST", url, json=body, headers=key("app")) as response:
                assert response.status_code == 200
        else:
            await stage.ask("app", stream=True)
        stage.script = answer()
        while (said := await stage.ask("app")).status_code == 429:  # noqa: ASYNC110  a free one is not announced
            await anyio.sleep(0.01)
        assert said.status_code == 200


async def test_a_refusal_for_another_reason_takes_nothing() -> None:
    async with staged(max_streams=1, streams=2, usd_per_day=2 * TYPICAL) as stage:
        go = anyio.Event()
        stage.script = Held((), go, answer(0.001))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stage.ask, "other")
            await stage.server.wait_until(lambda server: server.calls == 1, BOUND)
            for _ in range(5):
                assert refused(await stage.ask("app"))[:2] == (503, "overloaded")
            assert await stage.usage("app") == []
            go.set()
        assert (await stage.ask("app")).status_code == 200


async def test_a_refusal_does_not_take_the_key() -> None:
    """The same Idempotency-Key is a generation once there is room for it."""
    async with staged(streams=1) as stage:
        go = anyio.Event()
        stage.script = Held((), go, answer())
        url, body = stage.proxy.url + GENERATIONS, {"model": "sim/gpt-image", "prompt": "another"}
        headers = {**key("app"), "idempotency-key": "one"}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stage.ask, "app")
            await stage.server.wait_until(lambda server: server.calls == 1, BOUND)
            assert (await stage.proxy.client.post(url, json=body, headers=headers)).status_code == 429
            go.set()
        assert (await stage.proxy.client.post(url, json=body, headers=headers)).status_code == 200
        assert stage.server.calls == 2


async def test_a_repeated_request_takes_no_stream() -> None:
    async with staged(streams=1) as stage:
        go = anyio.Event()
        stage.script = Held((), go, answer())
        url, body = stage.proxy.url + GENERATIONS, {"model": "sim/gpt-image", "prompt": PROMPT}
        headers = {**key("app"), "idempotency-key": "one"}
        answers: list[int] = []

        async def one() -> None:
            answers.append((await stage.proxy.client.post(url, json=body, headers=headers)).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(one)
            await stage.server.wait_until(lambda server: server.calls == 1, BOUND)
            go.set()
        assert (answers, stage.server.calls) == ([200, 200, 200], 1)


# How much in a day.


async def test_many_at_once_stay_in_the_budget() -> None:
    """Ten estimates fit, so ten are paid; they cost more than was estimated, and that is all that is over."""
    async with staged(usd_per_day=10 * TYPICAL) as stage:
        go = anyio.Event()
        stage.script = Held((), go, answer(DOLLARS))
        said: Counter[int] = Counter()

        async def one() -> None:
            response = await stage.ask("app")
            said[response.status_code] += 1
            if response.status_code == 429:
                assert refused(response) == (429, "budget_exhausted", "usd_per_day")
                assert 0 < int(response.headers["retry-after"]) <= 86_400
                assert response.json()["error"]["type"] == "insufficient_quota"

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(one)
            await until(lambda: said[429] == 40)
            go.set()
        assert (said, stage.server.calls) == ({200: 10, 429: 40}, 10)
        assert refused(await stage.ask("app"))[1] == "budget_exhausted"
        [row] = await stage.usage("app")
        assert (row["requests"], row["images"], row["cost"]) == (10, 10, 10 * DOLLARS)
        assert (await stage.ask("other")).status_code == 200


async def test_the_cost_takes_the_estimates_place() -> None:
    """What costs little leaves room for more than the estimates had."""
    async with staged(usd_per_day=TYPICAL + 0.005) as stage:
        stage.script = answer(0.001)
        for _ in range(20):
            assert (await stage.ask("app")).status_code == 200
        [row] = await stage.usage("app")
        assert (row["cost"], row["cost_unknown"], row["estimated"]) == (0.02, 0, 0)


async def test_pictures_are_estimated_each() -> None:
    async with staged(usd_per_day=3.5 * TYPICAL, other={"usd_per_day": 0.11}) as stage:
        stage.script = answer(None)
        assert refused(await stage.ask("app", n=4))[1] == "budget_exhausted"
        assert (await stage.ask("app", n=3)).status_code == 200
        ultra = "google/imagen-4.0-ultra-generate-001"  # 0.06 by its row
        assert refused(await stage.ask("other", model=ultra, n=2))[1] == "budget_exhausted"
        assert (await stage.ask("other", model=ultra)).status_code == 200
        assert stage.server.calls == 2


@pytest.mark.parametrize(
    ("script", "stands"),
    [
        (answer(None), True),
        (sse((preview(0),), end=(Fin(),)), True),
        (error_answer(500, "Broken."), True),
        (error_answer(400, "No."), False),
        (error_answer(429, "Slowly."), False),
    ],
    ids=["unknown", "broken", "5xx", "4xx", "429"],
)
async def test_an_estimate_stands_where_it_may_be_charged(script: Script, stands: bool) -> None:
    async with staged(usd_per_day=1.5 * TYPICAL) as stage:
        stage.script = script
        await stage.ask("app", stream=script[0] == sse(())[0])
        await until_settled(stage)
        [row] = await stage.usage("app")
        assert (row["requests"], row["cost_unknown"], row["estimated"]) == (1, int(stands), TYPICAL if stands else 0)
        stage.script = answer(0)
        assert (await stage.ask("app")).status_code == (429 if stands else 200)


async def until_settled(stage: Stage) -> None:
    while not await stage.usage("app"):  # noqa: ASYNC110  it is counted when the answer has been sent
        await anyio.sleep(0.01)


async def test_no_budget_at_all() -> None:
    async with staged(usd_per_day=0) as stage:
        assert refused(await stage.ask("app"))[1] == "budget_exhausted"
        assert stage.server.calls == 0


# What is said afterwards.


async def test_events_log_metrics_and_usage_agree() -> None:
    costs = [0.010001, 0.2, 1.234567]
    async with staged(usd_per_day=100) as stage:
        told = []
        with capture_logs() as logs:
            for cost in costs:
                stage.script = sse((preview(0), completed(cost)))
                told.append(events((await stage.ask("app", stream=True)).content)[-1].json["cost"])
            stage.script = answer(0.5)
            told.append((await stage.ask("other")).json()["cost"])
            await until(lambda: len(lines(logs)) == 4)
        assert told == [*costs, 0.5]
        assert [line["cost"] for line in lines(logs)] == told
        assert [line["caller"] for line in lines(logs)] == ["app", "app", "app", "other"]
        assert await stage.metric("app") == pytest.approx(sum(costs), abs=1e-9)
        [row] = await stage.usage("app")
        today = datetime.now(UTC).date().isoformat()
        assert row == {
            **{"date": today, "caller": "app", "model": "sim/gpt-image", "provider": "sim", "requests": 3},
            **{"images": 3, "cost": round(sum(costs), 6), "cost_unknown": 0, "estimated": 0},
        }
        for word in (*KEYS.values(), *map(hashed, KEYS), PROMPT):
            assert word not in str(logs)
            assert word.removeprefix("sha256:") not in str(logs)


def lines(logs: list[Any]) -> list[Any]:
    return [line for line in logs if line["event"] == "generation"]


async def test_the_line_of_a_request_names_its_caller() -> None:
    async with staged() as stage:
        with capture_logs() as logs:
            for name in ("app", "bare"):
                assert (await stage.get(name, "models")).status_code == 200
            await until(lambda: len(logs) == 2)
        assert [line["caller"] for line in logs] == ["app", hashed("bare")[7:19]]


async def test_usage_of_a_caller_is_its_own() -> None:
    async with staged() as stage:
        for name in ("app", "other", "bare"):
            assert (await stage.ask(name)).status_code == 200
        for name, label in (("app", "app"), ("other", "other"), ("bare", hashed("bare")[7:19])):
            assert [row["caller"] for row in await stage.usage(name)] == [label]
            assert [row["caller"] for row in await stage.usage(name, f"caller={label}")] == [label]
        assert refused(await stage.get("app", "usage?caller=other")) == (422, "invalid_request", "caller")
        assert (await stage.get("", "usage")).status_code == 401
        assert (await stage.proxy.client.get(f"{stage.proxy.url}/v3/usage", headers=key("app"))).status_code == 200


async def test_usage_is_chosen_and_summed() -> None:
    async with no_leaks(), serve(lambda _: answer()) as server, running_proxy(server.url) as proxy:
        stage = Stage(server, proxy)
        for model in ("sim/gpt-image", "sim/gpt-image", "sim/plain"):
            assert (await stage.ask("", model=model)).status_code == 200
        today = datetime.now(UTC).date().isoformat()
        rows = await stage.usage("")
        assert [(row["model"], row["requests"], row["caller"]) for row in rows] == [
            ("sim/gpt-image", 2, None),
            ("sim/plain", 1, None),
        ]
        assert [row["requests"] for row in await stage.usage("", "model=sim/plain")] == [1]
        figures = {"requests": 3, "images": 3, "cost": 0.15, "cost_unknown": 0, "estimated": 0}
        assert await stage.usage("", "group_by=caller") == [{"caller": None, **figures}]
        assert await stage.usage("", f"group_by=date,provider&from={today}&to={today}") == [
            {"date": today, "provider": "sim", **figures}
        ]
        assert await stage.usage("", "to=2020-01-01&from=2019-01-01") == []


@pytest.mark.parametrize("query", ["from=1", "to=20261127", "from=2026-02-02&to=2026-02-01", "group_by=a", "when=1"])
async def test_usage_that_is_asked_for_wrongly(query: str) -> None:
    async with no_leaks(), running_proxy(NOBODY) as proxy:
        said = await proxy.client.get(f"{proxy.url}/v1/usage?{query}")
        assert refused(said) == (422, "invalid_request", query.partition("=")[0])


async def test_a_stream_is_its_callers_key() -> None:
    """Names change nothing about whose a stream is."""
    async with staged() as stage:
        assert (await stage.ask("app", stream=True)).status_code == 200
        assert [len((await stage.get(name, "streams")).json()["data"]) for name in ("app", "other")] == [1, 0]
