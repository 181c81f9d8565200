"""DashScope: the request to each family of models, members that are not applied, cancellation of a task."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamproxy.core.conversation import JobId, Undo
from streamproxy.core.requests import Remote
from streamproxy.errors import Failure
from streamproxy.providers import ADAPTERS
from tests.contract.peer import Exchange
from tests.contract.scenarios import PROMPT, Scenario
from tests.providers.asking import PNG, job, not_applied, paid, refused, told
from tests.providers.making import CATALOGUE

BASE = "https://dashscope-intl.aliyuncs.com/api/v1/services/aigc"
URL = Remote("https://a.test/1.png")
DATA_URL = f"data:image/png;base64,{bytes(PNG.base64).decode()}"


def asked(*images: str) -> dict[str, object]:
    content = [*({"image": image} for image in images), {"text": PROMPT}]
    return {"messages": [{"role": "user", "content": content}]}


def test_a_generation_in_one_exchange() -> None:
    request, value, _ = paid(job("dashscope", "qwen-image-2.0", n=2))
    assert request.url == f"{BASE}/multimodal-generation/generation"
    assert "x-dashscope-async" not in dict(request.headers)
    parameters = {"n": 2, "watermark": False, "size": "1024*1024"}
    assert value == {"model": "qwen-image-2.0", "input": asked(), "parameters": parameters}


def test_a_task_says_number_and_size() -> None:
    request, value, _ = paid(job("dashscope", "wan2.7-image"))
    assert (request.url, dict(request.headers)["x-dashscope-async"]) == (
        f"{BASE}/image-generation/generation",
        "enable",
    )
    assert value["parameters"] == {"n": 1, "watermark": False, "size": "1024*1024"}
    request, value, _ = paid(job("dashscope", "wan2.5-t2i-preview"))
    assert (request.url, value["input"]) == (f"{BASE}/text2image/image-synthesis", {"prompt": PROMPT})


@pytest.mark.parametrize(
    ("model", "size", "said"),
    [
        ("qwen-image-2.0-pro", "1536x1024", "1536*1024"),
        ("qwen-image-3.0", "3840x2160", "2720*1536"),
        ("qwen-image-2.0", "256x256", "512*512"),
        ("wan2.7-image", "512x512", "768*768"),
        ("wan2.7-image-pro", "3840x2160", "3840*2160"),
        ("qwen-image", "1536x1024", "1472*1104"),
        ("qwen-image-max", None, "1328*1328"),
        ("qwen-image-plus", "2048x1152", "1664*928"),
    ],
)
def test_sizes(model: str, size: str | None, said: str) -> None:
    given = job("dashscope", model, {"size": size} if size else {})
    assert told(given)["parameters"]["size"] == said  # type: ignore[index]
    assert not_applied(given) == ()


def test_an_edit() -> None:
    value = told(job("dashscope", "wan2.7-image", {"thinking_mode": True}, images=(PNG, URL)))
    assert value["input"] == asked(DATA_URL, URL.url)
    assert value["parameters"] == {"n": 1, "watermark": False, "size": "1K", "thinking_mode": True}
    assert "size" not in told(job("dashscope", "qwen-image-2.0", images=(PNG,)))["parameters"]  # type: ignore[operator]


@pytest.mark.parametrize(("model", "most"), [("qwen-image-2.0", 3), ("wan2.7-image", 9), ("qwen-image-max", 0)])
def test_more_input_images_than_it_takes(model: str, most: int) -> None:
    told(job("dashscope", model, images=(PNG,) * most))
    error = refused(job("dashscope", model, images=(PNG,) * (most + 1)))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, f"images[{most}]")


@pytest.mark.parametrize(("model", "most"), [("qwen-image-2.0", 6), ("qwen-image-max", 1), ("wan2.7-image-pro", 4)])
def test_pictures_of_one_request(model: str, most: int) -> None:
    given = job("dashscope", model, n=10)
    assert ADAPTERS["dashscope"].at_once(given.request, given.route) == most


@pytest.mark.parametrize(
    ("model", "members", "names"),
    [
        ("qwen-image-2.0", {"output_format": "webp", "quality": "high"}, ("output_format", "quality")),
        ("qwen-image-2.0", {"output_format": "jpeg", "seed": 1, "negative_prompt": "dull"}, ()),
        ("qwen-image-2.0", {"background": "transparent", "mask": "m"}, ("background", "mask")),
        ("qwen-image-2.0", {"thinking_mode": True}, ("thinking_mode",)),
        ("qwen-image-edit", {"size": "1024x1024"}, ("size",)),
    ],
)
def test_what_is_not_applied(model: str, members: dict[str, object], names: tuple[str, ...]) -> None:
    assert not_applied(job("dashscope", model, members)) == names


def test_a_watermark_is_made_where_it_is_wished_for() -> None:
    parameters = told(job("dashscope", "qwen-image-2.0", {"watermark": True}))["parameters"]
    assert parameters["watermark"] is True  # type: ignore[index]


def test_a_task_can_be_cancelled_while_it_waits() -> None:
    steps = Scenario("dashscope", "task").play().steps
    undos = [step.request and step.request.url for step in steps if isinstance(step, Undo)]
    assert undos == ["https://dash.test/api/v1/tasks/1/cancel", None]
    assert [step.id for step in steps if isinstance(step, JobId)] == ["1"]


def test_what_it_cost() -> None:
    price = CATALOGUE.models["dashscope/qwen-image-2.0"].price
    row = Scenario("dashscope", "two", n=2, model="qwen-image-2.0", about={"price": price})
    assert b'"cost":0.07,' in b"".join(row.play().frames[-1].data)
    assert b'"cost":null,"cost_unknown"' in b"".join(Scenario("dashscope", "task").play().frames[-1].data)


@pytest.mark.parametrize(
    ("code", "status", "failure"),
    [
        ("InvalidApiKey", 502, Failure.PROVIDER_AUTH),
        ("Arrearage", 402, Failure.PROVIDER_REFUSED),
        ("Throttling.AllocationQuota", 429, Failure.PROVIDER_LIMIT),
        ("DataInspectionFailed", 400, Failure.MODERATION_BLOCKED),
        ("InternalError.Timeout", 502, Failure.PROVIDER_FAILED),
        ("InvalidParameter", 422, Failure.PROVIDER_REFUSED),
    ],
)
def test_codes_under_200(code: str, status: int, failure: Failure) -> None:
    row = Scenario("dashscope", "refused-under-200")
    [exchange] = row.exchanges
    body = exchange.body.replace(b"Throttling.RateQuota", code.encode())
    error = row.play([Exchange(exchange.asked, exchange.words, exchange.head, (body,), exchange.breaks)]).error
    assert error is not None
    assert (error.failure, error.status, error.charged) == (failure, status, failure.value.charged)


def test_the_words_that_stand_instead_of_a_picture() -> None:
    row = replace(Scenario("dashscope", "text", model="qwen-image-2.0"))
    error = row.play().error
    assert error is not None
    assert error.message.startswith("I cannot draw that")
