"""Providers that fail again and again: they are asked less, and their callers are answered at once."""

from __future__ import annotations

from collections import Counter
from typing import Final

import anyio
import pytest
from structlog.testing import capture_logs

from streamproxy.simulator.received import Handler, Received
from streamproxy.simulator.script import Script, error_answer
from streamproxy.upstream.breaker import AGAIN, FLOOR, IN_A_ROW, LEAST
from tests.support.fallbacks import FAILED, LIMITED, ONE, REFUSED, TWO, Stage, always, good, playing, stage
from tests.support.faults import STREAMED, Refusal
from tests.support.proxy import BOUND, PROMPT

pytestmark = pytest.mark.anyio

STORM: Final = 1000
AT_A_TIME: Final = 100
OPEN: Final = Refusal(503, "destination_unavailable", "breaker_open", charged=False)


async def sent(scene: Stage) -> float:
    """All requests that the proxy has sent to its providers."""
    return sum(
        [await scene.proxy.metric("streamproxy_upstream_requests_total", provider=name) for name in ("one", "two")]
    )


@STREAMED
async def test_an_open_breaker_answers_without_the_provider(stream: bool) -> None:
    async with stage(always(FAILED)) as scene:
        with capture_logs() as logs:
            for _ in range(IN_A_ROW):
                assert (await scene.ask(stream=stream)).status_code == 502
            connections = scene.servers[0].connections
            answer = await scene.ask(stream=stream)
        await OPEN.check(scene.proxy, answer)
        assert 1 <= int(answer.headers["retry-after"]) <= 5
        assert answer.headers["streamproxy-attempts"] == f"{ONE};provider=one;failure=destination_unavailable"
        assert (scene.calls, scene.servers[0].connections) == ((IN_A_ROW,), connections)
        assert await scene.proxy.metric("streamproxy_breakers_open", provider="one") == 1
        changes = [line for line in logs if line["event"] == "breaker"]
        assert [(line["provider"], line["state"]) for line in changes] == [("one", "open")]


async def test_an_open_breaker_falls_over_at_once() -> None:
    async with stage(None, good) as scene:
        for _ in range(IN_A_ROW):
            assert (await scene.ask()).status_code == 502
        answer = await scene.ask(TWO)
        story = f"{ONE};provider=one;failure=destination_unavailable, {TWO};provider=two;ok"
        assert (answer.status_code, answer.headers["streamproxy-attempts"]) == (200, story)
        assert await sent(scene) == IN_A_ROW + 1


async def test_a_breaker_may_be_switched_off() -> None:
    async with stage(always(FAILED), rows={"one": {"breaker": False}}) as scene:
        statuses = [(await scene.ask()).status_code for _ in range(2 * LEAST)]
        assert (statuses, scene.calls) == ([502] * 2 * LEAST, (2 * LEAST,))


async def test_refusals_open_no_breaker() -> None:
    async with stage(playing(*[REFUSED] * 10, *[LIMITED] * 10, good)) as scene:
        statuses = [(await scene.ask()).status_code for _ in range(21)]
        assert statuses == [400] * 10 + [429] * 10 + [200]


async def test_a_provider_that_fails_half_of_the_time() -> None:
    """The failures may have been charged, so they are told; from the tenth on the fallback does it."""
    half: list[Script | Handler] = [good, FAILED]
    async with stage(playing(*half * 50), good) as scene:
        statuses = [(await scene.ask(TWO)).status_code for _ in range(30)]
        assert statuses == [200, 502] * (LEAST // 2) + [200] * (30 - LEAST)
        assert scene.calls == (LEAST, 30 - LEAST)


async def test_what_is_passed_on_stops_as_well() -> None:
    async with stage(always(FAILED), rows={"one": {"models": ["*"], "chat": "/chat/completions"}}) as scene:
        chat = {"model": "a-text-model", "messages": [{"role": "user", "content": PROMPT}]}
        statuses = [(await scene.post("chat/completions", chat)).status_code for _ in range(IN_A_ROW + 1)]
        assert statuses == [502] * IN_A_ROW + [503]
        assert scene.calls == (IN_A_ROW,)
        assert (await scene.ask(model="an-image-model")).json()["error"]["code"] == "destination_unavailable"


async def test_a_provider_that_said_not_now_is_asked_last() -> None:
    async with stage(always(error_answer(429, "Slow down.", headers=(("retry-after", "60"),))), good) as scene:
        statuses = [(await scene.ask(TWO)).status_code for _ in range(2 * FLOOR)]
        assert statuses == [200] * 2 * FLOOR
        assert scene.calls == (1, 2 * FLOOR)
        assert (await scene.ask()).status_code == 429  # who has no other model still gets its answer
        assert scene.calls == (2, 2 * FLOOR)


async def test_a_limit_of_one_callers_key_is_no_other_callers() -> None:
    rows = {"one": {"credential": "caller", "auth_header": "authorization", "auth_scheme": "Bearer "}}
    async with stage(always(LIMITED), good, rows=rows) as scene:
        order = {"model": ONE, "prompt": PROMPT, "fallbacks": [TWO]}
        for caller in range(FLOOR):
            headers = {"authorization": f"Bearer key-of-caller-{caller}-0123456789"}
            assert (await scene.post("images/generations", order, headers)).status_code == 200
        assert scene.calls == (FLOOR, FLOOR)


async def test_fallbacks_have_a_budget() -> None:
    """Each of these callers has a key that the first provider limits, so the first one is asked each time."""
    rows = {"one": {"credential": "caller", "auth_header": "authorization", "auth_scheme": "Bearer "}}
    async with stage(always(LIMITED), good, rows=rows) as scene:
        headers = {"authorization": "Bearer key-of-a-caller-0123456789"}
        order = {"model": ONE, "prompt": PROMPT, "fallbacks": [TWO]}
        answers = [await scene.post("images/generations", order, headers) for _ in range(2 * FLOOR)]
        assert [answer.status_code for answer in answers] == [200] * FLOOR + [429] * FLOOR
        assert scene.calls == (2 * FLOOR, FLOOR)
        assert await scene.proxy.metric("streamproxy_fallbacks_total", provider="one", outcome="over_budget") == FLOOR


async def storm(scene: Stage) -> Counter[int]:
    """Many requests, some of them at a time; how often each status was the answer."""
    statuses: Counter[int] = Counter()
    limiter = anyio.CapacityLimiter(AT_A_TIME)

    async def ask(number: int) -> None:
        async with limiter:
            statuses[(await scene.ask(TWO, prompt=f"{PROMPT} {number}")).status_code] += 1

    with anyio.fail_after(2 * BOUND):
        async with anyio.create_task_group() as tasks:
            for number in range(STORM):
                tasks.start_soon(ask, number)
    return statuses


async def test_a_storm_on_a_dead_provider_is_not_doubled() -> None:
    async with stage(None, good) as scene:
        statuses = await storm(scene)
        assert await sent(scene) <= (1 + AGAIN) * STORM
        assert statuses[200] >= STORM - AT_A_TIME  # those that were under way when the breaker opened
        assert scene.calls[0] == statuses[200]
        assert statuses.total() == STORM


async def test_a_storm_on_two_dead_providers_is_not_doubled() -> None:
    async with stage(None, None) as scene:
        statuses = await storm(scene)
        assert await sent(scene) <= (1 + AGAIN) * STORM
        assert set(statuses) <= {502, 503}


async def test_a_storm_of_limits_is_not_doubled() -> None:
    asked: list[Received] = []

    def limited(received: Received) -> Script:
        asked.append(received)
        return LIMITED

    async with stage(limited, good) as scene:
        statuses = await storm(scene)
        assert await sent(scene) <= (1 + AGAIN) * STORM
        assert statuses[200] + statuses[429] == STORM
        assert scene.calls[1] == statuses[200] >= FLOOR
