"""Black Forest Labs: the request to each family of models, members that are not applied, progress, cost."""

from __future__ import annotations

from decimal import Decimal

import pytest

from streamproxy.core.conversation import Fetch, Progress, Wait
from streamproxy.core.cost import Price
from streamproxy.core.requests import Remote
from streamproxy.errors import Failure
from streamproxy.generation.driver import is_own
from streamproxy.providers import ADAPTERS
from tests.contract.peer import Exchange
from tests.contract.scenarios import PROMPT, Scenario
from tests.providers.asking import MADE, PNG, job, not_applied, paid, refused, told
from tests.providers.making import CATALOGUE

URL = Remote("https://a.test/1.png")
BARE = bytes(PNG.base64).decode()


def test_a_generation() -> None:
    request, value, _ = paid(job("bfl", "flux-2-pro"))
    assert (request.method, request.url) == ("POST", "https://api.bfl.ai/v1/flux-2-pro")
    assert value == {"prompt": PROMPT, "width": 1024, "height": 1024}


@pytest.mark.parametrize(
    ("model", "size", "said"),
    [
        ("flux-2-pro", "1536x1024", {"width": 1536, "height": 1024}),
        ("flux-2-pro", "1000x777", {"width": 992, "height": 784}),
        ("flux-2-klein-4b", "3840x2160", {"width": 2048, "height": 1152}),
        ("flux-pro-1.1", "1536x1024", {"width": 1440, "height": 960}),
        ("flux-kontext-pro", "1536x1024", {"aspect_ratio": "3:2"}),
        ("flux-kontext-pro", None, {}),
        ("flux-pro-1.1-ultra", "2048x1152", {"aspect_ratio": "16:9"}),
        ("flux-pro-1.0-fill", "1024x1024", {}),
    ],
)
def test_sizes(model: str, size: str | None, said: dict[str, object]) -> None:
    given = job("bfl", model, {"size": size})
    assert told(given) == {"prompt": PROMPT, **said}
    assert ("size" in not_applied(given)) is (size is not None and not said)


def test_an_edit_has_the_size_of_its_input() -> None:
    value = told(job("bfl", "flux-2-max", images=(PNG, URL, PNG)))
    assert value == {"prompt": PROMPT, "input_image": BARE, "input_image_2": URL.url, "input_image_3": BARE}
    assert told(job("bfl", "flux-2-max", {"size": "1024x1024"}, images=(PNG,)))["width"] == 1024
    assert told(job("bfl", "flux-pro-1.1", images=(PNG,)))["image_prompt"] == BARE


@pytest.mark.parametrize(("model", "most"), [("flux-2-pro", 8), ("flux-2-klein-9b", 4), ("flux-dev", 1), ("new", 0)])
def test_more_input_images_than_it_takes(model: str, most: int) -> None:
    told(job("bfl", model, images=(PNG,) * most))
    error = refused(job("bfl", model, images=(PNG,) * (most + 1)))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, f"images[{most}]")


def test_fill_and_expand() -> None:
    _, value, [conversion] = paid(job("bfl", "flux-pro-1.0-fill", {"guidance": 60}, images=(PNG,), mask=PNG))
    assert (conversion.image, conversion.form) == (PNG, "white mask")
    mask = bytes(MADE.base64).decode()
    assert value == {"prompt": PROMPT, "guidance": 60, "image": BARE, "mask": mask}
    sides = {"top": 64, "bottom": 0, "left": 0, "right": 128}
    assert told(job("bfl", "flux-pro-1.0-expand", sides, images=(PNG,))) == {"prompt": PROMPT, "image": BARE, **sides}
    conversation = ADAPTERS["bfl"].converse(job("bfl", "flux-pro-1.0-fill", images=(URL,)))
    assert next(conversation) == Fetch(URL.url)  # this endpoint has no member for a URL


@pytest.mark.parametrize(
    ("model", "members", "names"),
    [
        ("flux-2-pro", {"output_format": "webp"}, ("output_format",)),
        ("flux-2-pro", {"output_format": "png", "seed": 1, "safety_tolerance": 5, "prompt_upsampling": False}, ()),
        (
            "flux-2-pro",
            {"quality": "high", "background": "transparent", "steps": 9},
            ("background", "quality", "steps"),
        ),
        ("flux-2-flex", {"steps": 9, "guidance": 4.5}, ()),
        ("flux-kontext-max", {"mask": "m", "aspect_ratio": "1:1"}, ("mask",)),
        ("new", {"size": "1024x1024"}, ("size",)),
    ],
)
def test_what_is_not_applied(model: str, members: dict[str, object], names: tuple[str, ...]) -> None:
    given = job("bfl", model, members)
    assert not_applied(given) == names
    assert told(given).keys() - {"width", "height"} == {"prompt", *members.keys()} - set(names)


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("https://api.us1.bfl.ai/v1/get_result?id=1", True),
        ("https://gateway.bfl.ai/v1/get_result?id=1", True),
        ("http://api.us1.bfl.ai/v1/get_result?id=1", False),
        ("https://bfl.ai.evil.test/v1/get_result?id=1", False),
        ("https://evilbfl.ai/v1/get_result?id=1", False),
    ],
)
def test_regional_hosts_get_the_key(url: str, own: bool) -> None:
    assert is_own(CATALOGUE.providers["bfl"], url) is own


def test_how_far_it_is_and_when_to_look() -> None:
    steps = Scenario("bfl", "one").play().steps
    assert [step.fraction for step in steps if isinstance(step, Progress)] == [0.3]
    assert [step.seconds for step in steps if isinstance(step, Wait)][:2] == [0.25, 1.0]  # by its retry-after


def _cost(*replaced: tuple[bytes, bytes], price: Price | None = None) -> bytes:
    """The last members of the completed event, where parts of the recorded answers are others."""
    scenario = Scenario("bfl", "one", about={"price": price})
    exchanges = [_with(exchange, replaced) for exchange in scenario.exchanges]
    return b"".join(scenario.play(exchanges).frames[-1].data).partition(b'"usage"')[2]


def _with(exchange: Exchange, replaced: tuple[tuple[bytes, bytes], ...]) -> Exchange:
    body = exchange.body
    for old, new in replaced:
        body = body.replace(old, new)
    return Exchange(exchange.asked, exchange.words, exchange.head, (body,), exchange.breaks)


FLUX = Price(first_megapixel=Decimal("0.03"), per_megapixel=Decimal("0.015"))
SILENT = (b'"cost":3.0', b'"cost":null')


def test_what_it_cost() -> None:
    assert b'"cost":0.03,' in _cost()
    assert b'"cost":0.075,' in _cost((b'"status":"Ready"', b'"status":"Ready","cost":7.5'))
    assert b'"cost":0.03,' in _cost(SILENT, price=FLUX)
    assert b'"cost":0.06,' in _cost(SILENT, (b'"input_mp":0.0', b'"input_mp":1.1'), price=FLUX)
    assert b'"cost":null,"cost_unknown":"The catalogue has no price' in _cost(SILENT)
