"""Leonardo: defaults that cost money are said, and input images are refused."""

from __future__ import annotations

import pytest

from streamproxy.core.conversation import JobId
from streamproxy.errors import Failure
from tests.contract.scenarios import PROMPT, Scenario
from tests.providers.asking import PNG, job, not_applied, paid, refused, told

MODEL = "6bef9f1b-29cb-40c7-b9df-32b51c1f67d3"
PLAIN = {"prompt": PROMPT, "modelId": MODEL, "width": 1024, "height": 1024, "num_images": 1}


def test_a_generation() -> None:
    request, value, _ = paid(job("leonardo", MODEL))
    assert (request.method, request.url) == ("POST", "https://cloud.leonardo.ai/api/rest/v1/generations")
    assert value == {**PLAIN, "alchemy": False, "public": False}


def test_members() -> None:
    value = told(job("leonardo", MODEL, {"size": "1536x1000", "alchemy": True, "seed": 7, "contrast": 3.5}, n=3))
    assert (value["width"], value["height"], value["num_images"]) == (1536, 1000, 3)
    assert (value["alchemy"], value["seed"], value["contrast"]) == (True, 7, 3.5)


def test_input_images_are_refused() -> None:
    error = refused(job("leonardo", MODEL, images=(PNG,)))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, "images[0]")


@pytest.mark.parametrize(
    ("members", "names"),
    [
        ({"size": "1024x1024", "styleUUID": "s"}, ()),
        ({"output_format": "png", "size": "2K"}, ("output_format", "size")),
    ],
)
def test_what_is_not_applied(members: dict[str, object], names: tuple[str, ...]) -> None:
    assert not_applied(job("leonardo", MODEL, members)) == names


def test_its_cost_is_not_known() -> None:
    run = Scenario("leonardo", "one").play()
    assert JobId("1") in run.steps
    assert b'"cost":null,"cost_unknown":' in b"".join(run.frames[-1].data)
