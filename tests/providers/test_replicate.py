"""Replicate: path and input for each family of models, its outputs, and members that are not applied."""

from __future__ import annotations

import base64
from decimal import Decimal

import pytest

from streamproxy.core.conversation import Send, Undo, Wait
from streamproxy.core.cost import Price
from streamproxy.core.requests import Inline, Remote
from streamproxy.errors import Failure
from streamproxy.generation.driver import is_own
from streamproxy.providers import ADAPTERS
from streamproxy.providers.replicate import LARGE
from tests.contract.scenarios import FAST, PROMPT, Scenario
from tests.providers.asking import MADE, PNG, job, not_applied, paid, refused, told
from tests.providers.making import CATALOGUE

DEV = "black-forest-labs/flux-dev"
FLUX_2 = "black-forest-labs/flux-2-pro"
DATA = "data:image/png;base64," + bytes(PNG.base64).decode()
URL = Remote("https://a.test/1.png")


def asked(model: str, members: dict[str, object] | None = None, **given: object) -> dict[str, object]:
    """The input of the prediction."""
    found = told(job("replicate", model, members or {}, **given))["input"]  # type: ignore[arg-type]
    assert isinstance(found, dict)
    return found


def test_an_official_model_and_a_version() -> None:
    request, value, _ = paid(job("replicate", DEV))
    assert request.url == f"https://api.replicate.com/v1/models/{DEV}/predictions"
    assert value == {"input": {"prompt": PROMPT, "num_outputs": 1}}
    assert "prefer" not in dict(request.headers)
    request, value, _ = paid(job("replicate", "acme/painter:0123abcd"))
    assert request.url == "https://api.replicate.com/v1/predictions"
    assert value == {"version": "0123abcd", "input": {"prompt": PROMPT}}


@pytest.mark.parametrize("model", ["painter", "a/b/c", "a/", "/b"])
def test_a_name_that_is_no_models(model: str) -> None:
    error = refused(job("replicate", model))
    assert (error.failure, error.param, error.charged) == (Failure.MODEL_NOT_FOUND, "model", False)


def test_a_fast_model_is_asked_to_answer_at_once() -> None:
    request, _, _ = paid(job("replicate", "black-forest-labs/flux-schnell"))
    assert dict(request.headers)["prefer"] == "wait=30"
    assert dict(request.headers)["cancel-after"] == "60s"


@pytest.mark.parametrize(
    ("model", "size", "said"),
    [
        (DEV, "1536x1024", {"num_outputs": 1, "aspect_ratio": "3:2"}),
        (DEV, "auto", {"num_outputs": 1}),
        (FLUX_2, "1536x1024", {"aspect_ratio": "custom", "width": 1536, "height": 1024}),
        ("google/nano-banana-pro", "2048x2048", {"aspect_ratio": "1:1", "resolution": "2K"}),
        ("google/nano-banana-pro", None, {"resolution": "1K"}),
        ("google/nano-banana", "1024x1536", {"aspect_ratio": "2:3"}),
        ("stability-ai/sdxl", "1000x1000", {"num_outputs": 1, "width": 1000, "height": 1000}),
        ("acme/painter", "1024x1024", {}),
    ],
)
def test_sizes(model: str, size: str | None, said: dict[str, object]) -> None:
    assert asked(model, {"size": size}) == {"prompt": PROMPT, **said}
    assert ("size" in not_applied(job("replicate", model, {"size": size}))) is (model == "acme/painter")


def test_what_costs_more_by_default_is_said() -> None:
    value = asked("bytedance/seedream-4", {"size": "2048x2048"})
    assert value.items() >= {"size": "custom", "max_images": 1, "sequential_image_generation": "disabled"}.items()


def test_several_images_where_it_takes_a_number() -> None:
    for model, at_once in ((DEV, 3), (FLUX_2, 1), ("acme/painter", 1)):
        given = job("replicate", model, n=3)
        assert ADAPTERS["replicate"].at_once(given.request, given.route) == at_once
    assert asked(DEV, n=3)["num_outputs"] == 3
    assert asked("openai/gpt-image-1.5", n=2)["number_of_images"] == 2


@pytest.mark.parametrize(
    ("model", "members", "names"),
    [
        (DEV, {"output_format": "jpeg", "seed": 1, "guidance": 3}, ()),
        ("black-forest-labs/flux-kontext-pro", {"output_format": "webp"}, ("output_format",)),
        (DEV, {"quality": "high", "background": "transparent", "mask": "m"}, ("background", "mask", "quality")),
        ("openai/gpt-image-1.5", {"quality": "high", "background": "transparent"}, ()),
        ("acme/painter", {"seed": 1, "output_format": "png"}, ("output_format", "seed")),
        ("acme/painter", {"input": {"seed": 1}}, ()),
    ],
)
def test_what_is_not_applied(model: str, members: dict[str, object], names: tuple[str, ...]) -> None:
    assert not_applied(job("replicate", model, members)) == names
    assert not set(names) & asked(model, members).keys()


def test_formats_by_their_names() -> None:
    assert asked(DEV, {"output_format": "jpeg"})["output_format"] == "jpg"
    assert asked("openai/gpt-image-1.5", {"output_format": "jpeg"})["output_format"] == "jpeg"


def test_the_callers_own_input_goes_in_as_it_is() -> None:
    own = {"steps": 9, "loras": [{"scale": 0.5}], "prompt": "another"}
    assert asked("acme/painter", {"input": own}) == own
    assert asked(DEV, {"input": "text"}) == {"prompt": PROMPT, "num_outputs": 1}


def test_input_images() -> None:
    assert asked(DEV, images=(PNG,))["image"] == DATA
    assert asked(FLUX_2, images=(PNG, URL))["input_images"] == [DATA, URL.url]
    for model, most in ((DEV, 1), ("acme/painter", 0), (FLUX_2, 14)):
        error = refused(job("replicate", model, images=(PNG,) * (most + 1)))
        assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, f"images[{most}]")


@pytest.mark.parametrize(("size", "uploaded"), [(LARGE - 3, False), (LARGE, True)])
def test_a_large_image_is_uploaded_first(size: int, uploaded: bool) -> None:
    image = Inline(memoryview(base64.b64encode(b"\x00" * size)), "image/png")
    conversation = ADAPTERS["replicate"].converse(job("replicate", DEV, images=(image,)))
    step = next(conversation)
    conversation.close()
    assert isinstance(step, Send)
    assert step.request.url.endswith("/v1/files" if uploaded else "/predictions")
    if uploaded:
        assert b'name="content"' in bytes(step.request.body[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "marks"), [("stability-ai/sdxl", "white"), ("ideogram-ai/ideogram-v3-turbo", "black")]
)
def test_masks(model: str, marks: str) -> None:
    _, value, [conversion] = paid(job("replicate", model, images=(PNG,), mask=PNG))
    assert conversion.form == f"{marks} mask"
    assert value["input"]["mask"] == "data:image/png;base64," + bytes(MADE.base64).decode()  # type: ignore[index]


def test_an_answer_in_one_exchange_is_not_looked_at() -> None:
    run = Scenario("replicate", "waited", about=FAST).play()
    assert [step for step in run.steps if isinstance(step, Wait)] == []
    assert len([step for step in run.steps if isinstance(step, Send)]) == 1
    assert Undo(None) not in run.steps


def test_hosts() -> None:
    provider = CATALOGUE.providers["replicate"]
    assert is_own(provider, "https://stream.replicate.com/v1/files/x")
    assert is_own(provider, "https://api.replicate.com/v1/predictions/1")
    assert not is_own(provider, "https://replicate.delivery/x/out-0.png")


@pytest.mark.parametrize(
    ("price", "cost"),
    [
        (Price(per_image=Decimal("0.025")), b'"cost":0.025'),
        (Price(per_second=Decimal("0.001")), b'"cost":0.0025'),
        (None, b'"cost":null,"cost_unknown":"The catalogue has no price'),
        (Price(per_megapixel=Decimal("0.1")), b'"cost":null,"cost_unknown":"The provider\'s answer does not say'),
    ],
)
def test_what_it_cost(price: Price | None, cost: bytes) -> None:
    run = Scenario("replicate", "one", about={"price": price}, stream=False, images=(PNG,)).play()
    assert cost in b"".join(run.frames[-1].data)


def test_a_model_that_only_a_version_names_is_said_how() -> None:
    scenario = Scenario("replicate", "refused")
    [exchange] = scenario.exchanges
    run = scenario.play([type(exchange)(exchange.asked, exchange.words, type(exchange.head)(404, ()), (b"",), False)])
    assert run.error is not None
    assert (run.error.status, run.error.code) == (404, "model_not_found")
    assert "replicate/<owner>/<name>:<version>" in run.error.message
