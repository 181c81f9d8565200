"""Responses as a provider: what the text model is asked, and what its answer says of the picture."""

from __future__ import annotations

from typing import Any

import pytest

from streamproxy.core.requests import FileId, Remote
from tests.contract.scenarios import MASK, PROMPT, Scenario
from tests.providers.asking import PNG, job, not_applied, paid, told

MODEL = "gpt-image-2"
DATA_URL = f"data:image/png;base64,{bytes(PNG.base64).decode()}"


def test_a_generation() -> None:
    given = job("responses", MODEL, {"size": "1536x1024", "quality": "low", "user": "u", "output_compression": 80})
    _, value, _ = paid(given)
    tool = {"type": "image_generation", "model": MODEL, "size": "1536x1024", "quality": "low", "output_compression": 80}
    assert value == {
        "model": "gpt-5",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": PROMPT}]}],
        "tools": [tool],
        "tool_choice": {"type": "image_generation"},
        "store": False,
        "stream": False,
        "user": "u",
    }
    assert not_applied(given) == ()


@pytest.mark.parametrize(("stream", "previews"), [(True, 3), (False, None)])
def test_previews_are_asked_for_with_a_stream(stream: bool, previews: int | None) -> None:
    value = told(job("responses", MODEL, stream=stream))
    assert (value["stream"], value["tools"][0].get("partial_images")) == (stream, previews)  # type: ignore[index]


def test_an_edit() -> None:
    url, file = "https://a.test/1.png", FileId("file-1")
    value: Any = told(job("responses", MODEL, images=(PNG, Remote(url), file), mask=MASK))
    [message] = value["input"]
    [_, *shown] = message["content"]
    assert shown == [
        {"type": "input_image", "image_url": DATA_URL},
        {"type": "input_image", "image_url": url},
        {"type": "input_image", "file_id": "file-1"},
    ]
    [tool] = value["tools"]
    assert tool["input_image_mask"] == {"image_url": f"data:image/png;base64,{bytes(MASK.base64).decode()}"}


def test_what_the_picture_says() -> None:
    data = b"".join(Scenario("responses", "previews").play().frames[-1].data)
    assert b'"revised_prompt":"A canary."' in data
    assert b'"output_tokens":272' in data  # not the 1249 of the text model
    assert b'"cost":null,"cost_unknown":' in data
    lost = b"".join(Scenario("responses", "late-cut").play().frames[-1].data)
    assert b'"total_tokens":0' in lost


def test_a_refusal_in_openais_terms() -> None:
    error = Scenario("responses", "refused").play().error
    assert error is not None
    assert (error.status, error.code, error.param) == (400, "invalid_value", "tools[0].size")
