"""OpenRouter: the requests to its two endpoints, members that are not applied, cost."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from streamproxy.core.conversation import Job, JobId, NotApplied, Send, Step
from streamproxy.core.events import Frame
from streamproxy.core.requests import Remote
from streamproxy.providers import ADAPTERS
from tests.contract.scenarios import PROMPT, Scenario
from tests.providers.asking import PNG, job, not_applied, paid, told
from tests.providers.making import CATALOGUE

GPT = "openai/gpt-image-2"
URL = Remote("https://a.test/1.png")
DATA_URL = f"data:image/png;base64,{bytes(PNG.base64).decode()}"


def chat(given: Job) -> Job:
    """The same at a gateway that has chats only."""
    route = replace(given.route, provider=replace(given.provider, generations="/chat/completions"))
    return replace(given, route=route)


def test_a_generation() -> None:
    request, value, _ = paid(job("openrouter", GPT))
    assert (request.method, request.url) == ("POST", "https://openrouter.ai/api/v1/images")
    assert value == {"model": GPT, "prompt": PROMPT, "n": 1, "stream": False}


def test_what_goes_on_under_its_own_name() -> None:
    members = {"size": "1536x1024", "quality": "high", "background": "transparent", "output_format": "webp"}
    members |= {"output_compression": "80", "seed": 7, "provider": {"only": ["openai"]}}  # type: ignore[dict-item]
    given = job("openrouter", GPT, members, n=2)
    assert told(given) == {"model": GPT, "prompt": PROMPT, "n": 2, "stream": False, **members, "output_compression": 80}
    assert not_applied(given) == ()
    assert "size" not in told(job("openrouter", GPT, {"size": "auto"}))
    assert not_applied(job("openrouter", GPT, {"style": "vivid", "mask": "m"})) == ("mask", "style")


def test_only_a_model_that_streams_is_asked_to() -> None:
    assert told(job("openrouter", GPT, stream=True))["partial_images"] == 3
    given = job("openrouter", "google/gemini-3-pro-image", stream=True)
    known = replace(given, route=replace(given.route, model=CATALOGUE.models["google/gemini-3-pro-image"]))
    assert told(known) == {"model": "google/gemini-3-pro-image", "prompt": PROMPT, "n": 1, "stream": False}


@pytest.mark.parametrize(("stream", "chats", "most"), [(False, False, 4), (True, False, 1), (False, True, 1)])
def test_pictures_of_one_request(stream: bool, chats: bool, most: int) -> None:
    given = Scenario("openrouter", "two", n=4, stream=stream).job
    given = chat(given) if chats else given
    assert ADAPTERS["openrouter"].at_once(given.request, given.route) == most


def test_input_images_are_references() -> None:
    references = [{"type": "image_url", "image_url": {"url": url}} for url in (DATA_URL, URL.url)]
    assert told(job("openrouter", GPT, images=(PNG, URL)))["input_references"] == references
    messages = told(chat(job("openrouter", GPT, images=(PNG, URL))))["messages"]
    assert messages == [{"role": "user", "content": [{"type": "text", "text": PROMPT}, *references]}]


def test_a_chat() -> None:
    given = chat(job("openrouter", GPT, {"size": "1536x1024", "quality": "high", "output_format": "webp"}))
    request, value, _ = paid(given)
    assert request.url == "https://openrouter.ai/api/v1/chat/completions"
    assert value["modalities"] == ["image", "text"]
    assert value["image_config"] == {"aspect_ratio": "3:2", "image_size": "1K"}
    assert not_applied(given) == ("output_format", "quality")
    own = {"image_config": {"aspect_ratio": "21:9"}, "modalities": ["image"]}
    asked = told(chat(job("openrouter", GPT, {"size": "1536x1024", **own})))
    assert {name: asked[name] for name in own} == own


def _members(steps: list[Step]) -> dict[str, object]:
    last = [step for step in steps if isinstance(step, Frame)][-1]
    found: dict[str, object] = msgspec.json.decode(b"".join(last.data))
    return found


def test_a_chat_whose_model_the_images_endpoint_lacks() -> None:
    steps = Scenario("openrouter", "chat", members={"quality": "high"}).play().steps
    urls = [step.request.url.rpartition("v1")[2] for step in steps if isinstance(step, Send)]
    assert urls == ["/images", "/chat/completions"]
    assert NotApplied(("quality",)) in steps
    assert JobId("gen-1") in steps
    said = _members(steps)
    assert (said["text"], said["cost"]) == ("Here you go: ", 0.0387131)
    assert said["usage"] == {
        "total_tokens": 1297,
        "input_tokens": 2,
        "output_tokens": 1295,
        "input_tokens_details": {"text_tokens": 2, "image_tokens": 0},
        "output_tokens_details": {"text_tokens": 5, "image_tokens": 1290},
    }


def test_what_it_cost_is_in_the_answer() -> None:
    assert _members(Scenario("openrouter", "previews").play().steps)["cost"] == 0.0110175
    without_tokens = _members(Scenario("openrouter", "edited", stream=False).play().steps)
    assert (without_tokens["cost"], without_tokens["usage"]["total_tokens"]) == (0.04, 0)  # type: ignore[index]
