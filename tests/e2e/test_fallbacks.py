"""Requests that fall over to another model: when, to which, what is sent to each, and what the caller is told."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

import anyio
import orjson
import pytest
from structlog.testing import capture_logs

from streamproxy.simulator import wires
from streamproxy.simulator.pictures import draw, encode
from streamproxy.simulator.script import Fin, Script, Wait, error_answer, sse
from tests.support.fallbacks import (
    BAD_KEY,
    BUSY,
    CUT,
    FAILED,
    LIMITED,
    ONE,
    REFUSED,
    THREE,
    TWO,
    always,
    good,
    playing,
    stage,
)
from tests.support.faults import STREAMED
from tests.support.provider import COMPLETED, PREVIEW, completed
from tests.support.proxy import BOUND, PROMPT, events, until

pytestmark = pytest.mark.anyio

STORY: Final = "streamproxy-attempts"
PNG: Final = encode(draw("a lighthouse", 64, 48), "png")
IMAGE_ONLY: Final = {"two": {"models": ["stabilityai/stable-image-core"]}}
"""The second provider's model does not edit."""

CORE: Final = "stabilityai/stable-image-core"


def types(content: bytes) -> list[str]:
    return [event.event for event in events(content)]


FALLS: Final[dict[str, tuple[Script | None, str]]] = {
    "refused": (None, "connection_refused"),
    "503": (BUSY, "provider_failed"),
    "429": (LIMITED, "rate_limit_exceeded"),
    "401": (BAD_KEY, "provider_auth"),
}


@STREAMED
@pytest.mark.parametrize("how", FALLS)
async def test_an_uncharged_failure_falls_over(how: str, stream: bool) -> None:
    script, code = FALLS[how]
    async with stage(None if script is None else always(script), good) as scene:
        with capture_logs() as logs:
            answer = await scene.ask(TWO, stream=stream)
            await until(lambda: any(line["event"] == "generation" for line in logs))
        assert answer.status_code == 200, answer.text
        story = f"{ONE};provider=one;failure={code}, {TWO};provider=two;ok"
        assert answer.headers[STORY] == story
        said = events(answer.content)[-1].json if stream else answer.json()
        assert (said["provider"], said["model"]) == ("two", TWO)
        assert scene.calls == ((1,) if script is None else (1, 1))
        body = orjson.loads(scene.servers[-1].received[0].body)
        assert body["model"] == TWO
        assert not body.keys() & {"fallbacks", "fallback_after_charge"}
        [line] = [line for line in logs if line["event"] == "generation"]
        assert (line["provider"], line["model"], line["outcome"]) == ("two", TWO, "completed")
        assert (line["attempts"], line["tried"]) == (2, story)
        assert await scene.proxy.metric("streamproxy_fallbacks_total", provider="one", outcome="taken") == 1


STAYS: Final = {"500": FAILED, "400": REFUSED, "cut": CUT, "413": error_answer(413, "Too large.")}


@pytest.mark.parametrize("how", STAYS)
async def test_any_other_failure_does_not(how: str) -> None:
    async with stage(always(STAYS[how]), good) as scene:
        answer = await scene.ask(TWO, stream=True)
        assert scene.calls == (1, 0)
        if how == "cut":
            assert types(answer.content) == [PREVIEW, "error"]
            assert answer.headers[STORY] == f"{ONE};provider=one;ok"  # it was, when the head was sent
        else:
            assert answer.status_code in (400, 413, 502)
            assert answer.headers[STORY].startswith(f"{ONE};provider=one;failure=")


async def test_the_last_failure_is_told_with_all_attempts() -> None:
    async with stage(always(LIMITED), None, always(BUSY)) as scene:
        answer = await scene.ask(TWO, THREE)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "x-should-retry" not in answer.headers
        story = [ONE, "rate_limit_exceeded"], [TWO, "connection_refused"], [THREE, "provider_failed"]
        given = [item.split(";provider=") for item in answer.headers[STORY].split(", ")]
        assert [[model, rest.split("failure=")[1]] for model, rest in given] == list(story)
        assert scene.calls == (1, 1)


STREAMING: Final = {"two": {"models": [THREE]}}
"""The second provider's model sends previews, and makes several images."""

CHARGED: Final = {"500": FAILED, "cut": CUT, "no head": (Fin(),)}


@pytest.mark.parametrize("how", CHARGED)
async def test_a_caller_may_allow_it_after_a_charge(how: str) -> None:
    async with stage(always(CHARGED[how]), good, rows=STREAMING) as scene:
        answer = await scene.ask(THREE, stream=True, fallback_after_charge=True)
        assert types(answer.content) == [PREVIEW] * (1 + (how == "cut")) + [COMPLETED]
        said = events(answer.content)[-1].json
        assert said["provider"] == "two"
        attempts = said["attempts"]
        assert isinstance(attempts, list)
        assert [attempt["failure"] is None for attempt in attempts] == [False, True]
        assert scene.calls == (1, 1)


async def test_but_not_after_a_completed_image() -> None:
    cut = sse((completed(),), end=(Fin(),))
    async with stage(always(cut), good, rows={**STREAMING, "one": {"models": ["x/y"]}}, stream_n=True) as scene:
        answer = await scene.ask(THREE, model="x/y", stream=True, n=2, fallback_after_charge=True)
        assert types(answer.content) == [COMPLETED, "error"]
        assert scene.calls == (1, 0)


async def test_a_charge_is_not_forgotten() -> None:
    """The second one cannot have been charged, the first one may have been: an SDK must not repeat the request."""
    async with stage(always(FAILED), always(LIMITED)) as scene:
        answer = await scene.ask(TWO, fallback_after_charge=True)
        assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")
        assert scene.calls == (1, 1)


async def test_a_refusal_is_final_whatever_is_allowed() -> None:
    async with stage(always(REFUSED), good) as scene:
        answer = await scene.ask(TWO, fallback_after_charge=True)
        assert (answer.status_code, scene.calls) == (400, (1, 0))


async def test_each_of_several_jobs_falls_over_by_itself() -> None:
    async with stage(playing(good, LIMITED, good), good, rows=STREAMING, stream_n=True) as scene:
        answer = await scene.ask(THREE, stream=True, n=3)
        done = [event.json for event in events(answer.content) if event.event == COMPLETED]
        assert sorted(str(event["image_index"]) for event in done) == ["0", "1", "2"]
        assert sorted(str(event["provider"]) for event in done) == ["one", "one", "two"]
        assert scene.calls == (3, 1)


GEMINI: Final = {"two": {"adapter": "gemini", "base_url": "/v1beta", "names": "bare"}}


@STREAMED
async def test_another_wire_is_a_fallback_too(stream: bool) -> None:
    async with stage(always(LIMITED), wires(0), rows=GEMINI, stream_n=True) as scene:
        answer = await scene.ask(TWO, stream=stream, n=2)
        assert answer.status_code == 200, answer.text
        made = [e.json for e in events(answer.content) if e.event == COMPLETED] if stream else answer.json()["data"]
        assert len(made) == 2
        said = made[-1] if stream else answer.json()
        assert (said["provider"], said["model"]) == ("two", TWO)
        assert "streamproxy-not-applied" not in answer.headers  # fallbacks are no member that a provider misses
        assert scene.calls == ((2, 2) if stream else (1, 2))


async def test_several_images_need_a_model_that_makes_them() -> None:
    async with stage(always(LIMITED), wires(0), rows=GEMINI) as scene:
        answer = await scene.ask(TWO, n=2)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "fallbacks[0]")
        assert scene.calls == (0, 0)


async def test_a_form_falls_over() -> None:
    async with stage(always(BUSY), good) as scene:
        answer = await scene.edit(ONE, TWO, image=PNG)
        assert answer.status_code == 200, answer.text
        assert scene.calls == (1, 1)
        sent = scene.servers[1].received[0].body
        assert PNG in sent
        assert b"fallbacks" not in sent


async def test_an_uploaded_file_goes_where_the_request_goes() -> None:
    async with stage(always(BUSY), good) as scene:
        files = {"file": ("a.png", PNG, "image/png")}
        url = f"{scene.proxy.url}/v1/files"
        file = (await scene.proxy.client.post(url, data={"purpose": "vision"}, files=files)).json()["id"]
        order = {"model": ONE, "prompt": PROMPT, "images": [{"file_id": file}], "fallbacks": [TWO]}
        answer = await scene.post("images/edits", order)
        assert answer.status_code == 200, answer.text
        assert scene.calls == (1, 1)
        assert b"data:image/png;base64," in scene.servers[1].received[0].body


async def test_a_providers_own_file_goes_nowhere_else() -> None:
    async with stage(always(BUSY), good) as scene:
        order = {"model": ONE, "prompt": PROMPT, "images": [{"file_id": "file-abc"}], "fallbacks": [TWO]}
        answer = await scene.post("images/edits", order)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "fallbacks[0]")
        assert scene.calls == (0, 0)


async def test_a_chat_falls_over() -> None:
    rows = {"one": {"models": [TWO]}, "two": {"models": [ONE]}}
    async with stage(always(BUSY), good, rows=rows) as scene:
        chat = {"model": TWO, "messages": [{"role": "user", "content": PROMPT}], "fallbacks": [ONE]}
        answer = await scene.post("chat/completions", chat)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["model"], answer.json()["provider"]) == (ONE, "two")
        assert scene.calls == (1, 1)
        streamed = await scene.post("chat/completions", {**chat, "stream": True})
        last = orjson.loads(streamed.text.split("data: ")[-2])
        assert (last["model"], last["provider"]) == (ONE, "two")


@STREAMED
async def test_a_response_falls_over(stream: bool) -> None:
    async with stage(always(BUSY), good) as scene:
        tool = {"type": "image_generation", "model": ONE}
        order = {"input": PROMPT, "tools": [tool], "fallbacks": [TWO], "stream": stream}
        answer = await scene.post("responses", order)
        assert answer.status_code == 200, answer.text
        assert '"provider":"two"' in answer.text
        assert scene.calls == (1, 1)


BAD: Final[dict[str, tuple[object, int, str]]] = {
    "itself": ([ONE], 422, "fallbacks[0]"),
    "itself by another name": (["gpt-image-2"], 422, "fallbacks[0]"),
    "twice": ([TWO, TWO], 422, "fallbacks[1]"),
    "unknown": ([TWO, "nobody/nothing"], 422, "fallbacks[1]"),
    "auto": (["auto"], 400, "fallbacks[0]"),
    "six": ([TWO] * 6, 422, "fallbacks"),
    "a text": (TWO, 422, "fallbacks"),
    "a number": ([TWO, 1], 422, "fallbacks[1]"),
}


@pytest.mark.parametrize("mistake", BAD)
async def test_a_fallback_that_is_none_is_refused(mistake: str) -> None:
    given, status, param = BAD[mistake]
    async with stage(good, good, names={"openai": None, "gemini": None}) as scene:
        answer = await scene.ask(fallbacks=given)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
        assert scene.calls == (0, 0)


async def test_a_named_fallback_must_be_able_to_edit() -> None:
    async with stage(good, good, rows=IMAGE_ONLY) as scene:
        answer = await scene.edit(ONE, CORE, image=PNG)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, "fallbacks[0]", "unsupported_parameter")
        assert CORE in error["message"]
        assert scene.calls == (0, 0)
        assert (await scene.ask(CORE)).status_code == 200


LACKING: Final[dict[str, dict[str, Any]]] = {
    "transparent background": {"background": "transparent"},
    "format": {"output_format": "svg"},
    "size": {"size": "huge"},
}


@pytest.mark.parametrize("what", LACKING)
async def test_a_fallback_has_what_the_request_needs(what: str) -> None:
    bfl = {"two": {"adapter": "bfl", "base_url": "/bfl/v1", "models": ["bfl/flux-2-pro"]}}
    async with stage(good, wires(0), rows=bfl) as scene:
        answer = await scene.ask("bfl/flux-2-pro", **LACKING[what])
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "fallbacks[0]"), answer.text
        assert next(iter(LACKING[what])) in answer.json()["error"]["message"]
        assert scene.calls == (0, 0)


async def test_a_fallback_makes_as_many_as_one_job_is_for() -> None:
    async with stage(good, good, stream_n=True) as scene:
        answer = await scene.ask(TWO, n=2)  # this host makes as many at once as it is asked for, Gemini's models one
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "fallbacks[0]")
        assert scene.calls == (0, 0)


async def test_what_its_adapter_refuses_is_refused_at_once() -> None:
    rows = {"one": {"models": ["x/y"]}, **STREAMING}
    async with stage(always(BUSY), good, rows=rows) as scene:
        images = [{"image_url": "https://images.example/a.png"}]
        order = {"model": "x/y", "prompt": PROMPT, "images": images, "fallbacks": [THREE]}
        answer = await scene.post("images/edits", order)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], "remote" in error["message"]) == (400, "fallbacks[0]", True)
        assert scene.calls == (0, 0)


async def test_what_the_fallback_does_not_get_is_told() -> None:
    async with stage(always(BUSY), wires(0), rows=GEMINI) as scene:
        answer = await scene.ask(TWO, moderation="low")
        assert answer.status_code == 200, answer.text
        assert answer.headers["streamproxy-not-applied"] == "moderation"
        assert (await scene.ask(moderation="low")).headers.get("streamproxy-not-applied") is None


async def test_headers_must_suit_each_provider() -> None:
    async with stage(good, good, rows={"two": {"strict_headers": True}}) as scene:
        answer = await scene.ask(TWO, extra_headers={"x-tier": "gold"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "fallbacks[0]")
        assert scene.calls == (0, 0)


async def test_fallbacks_of_the_settings() -> None:
    async with stage(always(BUSY), always(LIMITED), good, fallbacks={"gpt-image-2": [TWO, THREE]}) as scene:
        answer = await scene.ask()
        assert (answer.status_code, answer.json()["provider"]) == (200, "three")
        assert scene.calls == (1, 1, 1)
        answer = await scene.ask(fallbacks=[])
        assert (answer.status_code, scene.calls) == (503, (2, 1, 1))


async def test_a_fallback_of_the_settings_is_passed_over() -> None:
    async with stage(always(BUSY), good, good, rows=IMAGE_ONLY, fallbacks={ONE: [CORE, THREE]}) as scene:
        answer = await scene.edit(ONE, image=PNG)
        assert (answer.status_code, scene.calls) == (200, (1, 0, 1))


AUTOS: Final[dict[str, tuple[dict[str, Any], dict[str, Any], str]]] = {
    "the first": ({"auto": [TWO, ONE]}, {}, "two"),
    "the first that can": ({"auto": [CORE, THREE]}, {"image": "data:image/png;base64,iVBORw0KGgo="}, "three"),
    "the cheapest": ({}, {}, "two"),
    "the cheapest that can": ({}, {"image": "data:image/png;base64,iVBORw0KGgo="}, "one"),
}
"""Core's picture costs 0.03, those of both GPT image models 0.03168."""


@pytest.mark.parametrize("how", AUTOS)
async def test_auto_is(how: str) -> None:
    chosen, members, provider = AUTOS[how]
    rows = {"two": {"models": [CORE, TWO]}}
    async with stage(good, good, good, rows=rows, **chosen) as scene:
        answer = await scene.ask(model="auto", **members)
        assert answer.status_code == 200, answer.text
        assert answer.json()["provider"] == provider
        assert sum(scene.calls) == 1


async def test_auto_falls_over_to_the_next() -> None:
    async with stage(always(BUSY), good, auto=[ONE, TWO]) as scene:
        answer = await scene.ask(model="auto")
        assert (answer.json()["model"], scene.calls) == (TWO, (1, 1))
        answer = await scene.ask(model="auto", fallbacks=[])
        assert (answer.status_code, scene.calls) == (503, (2, 1))


async def test_auto_chooses_for_chats_and_responses() -> None:
    async with stage(good, good, auto=[ONE]) as scene:
        chat = await scene.post(
            "chat/completions", {"model": "auto", "messages": [{"role": "user", "content": PROMPT}]}
        )
        assert (chat.json()["model"], scene.calls) == (ONE, (1, 0)), chat.text
        order = {"model": "auto", "input": PROMPT, "tools": [{"type": "image_generation"}]}
        response = await scene.post("responses", order)
        assert (response.status_code, scene.calls) == (200, (2, 0)), response.text


async def test_auto_without_any_model_that_can() -> None:
    async with stage(good, rows={"one": {"models": [CORE]}}) as scene:
        answer = await scene.ask(model="auto", image="data:image/png;base64,iVBORw0KGgo=")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
        assert scene.calls == (0,)


async def test_auto_is_no_model_of_variations() -> None:
    async with stage(good) as scene:
        url = f"{scene.proxy.url}/v1/images/variations"
        files = {"image": ("a.png", PNG, "image/png")}
        answer = await scene.proxy.client.post(url, data={"model": "auto"}, files=files)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


async def test_the_status_tells_what_the_head_could_not() -> None:
    async with stage(always((Wait(0.3), *BUSY)), good, commit_after=0.01) as scene:
        answer = await scene.ask(TWO, stream=True)
        assert STORY not in answer.headers
        assert types(answer.content) == [COMPLETED]
        url = f"{scene.proxy.url}{answer.headers['location']}"
        status = await scene.proxy.client.get(url, headers={"accept": "application/json"})
        assert status.json()["data"][0]["attempts"] == [
            {"provider": "one", "model": ONE, "failure": "provider_failed"},
            {"provider": "two", "model": TWO, "failure": None},
        ]


async def test_the_final_event_tells_all_attempts() -> None:
    async with stage(always((Wait(0.3), *BUSY)), always(LIMITED), commit_after=0.01) as scene:
        answer = await scene.ask(TWO, stream=True)
        [event] = events(answer.content)
        error = event.json["error"]
        assert isinstance(error, dict)
        assert [attempt["failure"] for attempt in error["attempts"]] == ["provider_failed", "rate_limit_exceeded"]


async def test_pages_may_read_the_story() -> None:
    async with stage(good, cors_origins=["https://app.example"]) as scene:
        headers = {"origin": "https://app.example"}
        answer = await scene.post("images/generations", {"model": ONE, "prompt": PROMPT}, headers)
        assert STORY in answer.headers["access-control-expose-headers"]
        assert answer.headers[STORY] == f"{ONE};provider=one;ok"
        assert "model" not in answer.json()  # there was no choice


async def test_an_unknown_models_name_is_not_told() -> None:
    async with stage(good, rows={"one": {"models": ["*"]}}) as scene:
        answer = await scene.ask(model="my own words")
        assert answer.headers[STORY] == "one;ok"


async def test_equal_requests_are_one_generation() -> None:
    async with stage(always(BUSY), good) as scene:
        order = {"model": ONE, "prompt": PROMPT, "stream": True, "fallbacks": [TWO]}
        answers = []

        async def ask() -> None:
            answers.append(await scene.post("images/generations", order, {"idempotency-key": "one"}))

        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(ask)
        assert {answer.headers["stream-id"] for answer in answers} == {answers[0].headers["stream-id"]}
        assert [types(answer.content)[-1] for answer in answers] == [COMPLETED] * 5
        assert scene.calls == (1, 1)


async def test_a_key_may_be_tried_again_if_no_attempt_was_charged() -> None:
    async with stage(playing(BUSY, good), always(LIMITED)) as scene:
        order = {"model": ONE, "prompt": PROMPT, "fallbacks": [TWO]}
        keyed = {"idempotency-key": "one"}
        assert (await scene.post("images/generations", order, keyed)).status_code == 429
        assert (await scene.post("images/generations", order, keyed)).status_code == 200
        assert scene.calls == (2, 1)


async def test_a_fallback_is_a_model_that_its_caller_may_use() -> None:
    key = "key-of-a-caller-0123456789"
    callers = {"team": {"key": f"sha256:{sha256(key.encode()).hexdigest()}", "models": [ONE]}}
    headers = {"authorization": f"Bearer {key}"}
    async with stage(always(BUSY), good, callers=callers, fallbacks={ONE: [TWO]}) as scene:
        order = {"model": ONE, "prompt": PROMPT}
        named = await scene.post("images/generations", {**order, "fallbacks": [TWO]}, headers)
        assert (named.status_code, named.json()["error"]["param"], scene.calls) == (403, "fallbacks[0]", (0, 0))
        assert (await scene.post("images/generations", order, headers)).status_code == 503
        assert scene.calls == (1, 0)
