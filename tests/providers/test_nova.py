"""Nova Canvas: the task that a request becomes, its sizes and qualities, what the filter left."""

from __future__ import annotations

import pytest

from streamproxy.errors import Failure
from streamproxy.providers import ADAPTERS
from tests.contract.scenarios import MASK, PROMPT, Scenario
from tests.providers.asking import MADE, PNG, job, not_applied, paid, refused, told
from tests.providers.making import CATALOGUE

NOVA = "amazon.nova-canvas-v1:0"
BARE = bytes(PNG.base64).decode()
PLAIN = {"numberOfImages": 1, "quality": "standard", "width": 1024, "height": 1024}


def test_a_generation() -> None:
    members = {"negative_prompt": "dull", "seed": 7, "cfg_scale": 5.5, "quality": "high", "size": "1280x720"}
    request, value, _ = paid(job("nova", NOVA, members, n=3))
    assert request.url.endswith("/model/amazon.nova-canvas-v1%3A0/invoke")
    assert value == {
        "taskType": "TEXT_IMAGE",
        "textToImageParams": {"text": PROMPT, "negativeText": "dull"},
        "imageGenerationConfig": {
            **{"numberOfImages": 3, "quality": "premium", "width": 1280, "height": 720},
            **{"seed": 7, "cfgScale": 5.5},
        },
    }


def test_what_costs_money_is_always_said() -> None:
    assert told(job("nova", NOVA))["imageGenerationConfig"] == PLAIN


@pytest.mark.parametrize(
    ("size", "edges"),
    [
        ("1000x777", (992, 784)),
        ("256x256", (320, 320)),
        ("3840x2160", (2720, 1536)),
        ("8000x100", (4096, 1024)),
        ("100x8000", (1024, 4096)),
        ("1300x10", (1296, 336)),
    ],
)
def test_sizes(size: str, edges: tuple[int, int]) -> None:
    config = told(job("nova", NOVA, {"size": size}))["imageGenerationConfig"]
    assert isinstance(config, dict)
    assert (config["width"], config["height"]) == edges
    assert max(edges) <= 4 * min(edges)
    assert edges[0] * edges[1] <= 4_194_304


def test_an_edit_varies_its_pictures() -> None:
    value = told(job("nova", NOVA, {"similarity_strength": 0.9}, images=(PNG, PNG)))
    assert (value["taskType"], value["imageVariationParams"]) == (
        "IMAGE_VARIATION",
        {"text": PROMPT, "images": [BARE, BARE], "similarityStrength": 0.9},
    )


def test_a_mask_is_black_where_it_changes() -> None:
    _, value, [conversion] = paid(job("nova", NOVA, {"size": "512x512"}, images=(PNG,), mask=MASK))
    assert conversion.form == "black mask"
    assert value == {
        "taskType": "INPAINTING",
        "inPaintingParams": {"text": PROMPT, "image": BARE, "maskImage": bytes(MADE.base64).decode()},
        "imageGenerationConfig": {"numberOfImages": 1, "quality": "standard"},
    }
    assert not_applied(job("nova", NOVA, {"size": "512x512"}, images=(PNG,), mask=MASK)) == ("size",)


def test_images_that_it_does_not_take() -> None:
    error = refused(job("nova", NOVA, images=(PNG,) * 6))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, "images[5]")
    assert refused(job("nova", NOVA, images=(PNG, PNG), mask=MASK)).param == "images[1]"


@pytest.mark.parametrize(
    ("members", "names"),
    [
        ({"output_format": "jpeg", "background": "transparent"}, ("background", "output_format")),
        ({"quality": "max", "similarity_strength": 0.5}, ("quality", "similarity_strength")),
        ({"quality": "medium", "output_format": "png", "negative_prompt": "dull"}, ()),
        ({"mask": "m"}, ("mask",)),
    ],
)
def test_what_is_not_applied(members: dict[str, object], names: tuple[str, ...]) -> None:
    assert not_applied(job("nova", NOVA, members)) == names


def test_five_at_once() -> None:
    given = job("nova", NOVA, n=10)
    assert ADAPTERS["nova"].at_once(given.request, given.route) == 5


def test_what_the_filter_left_is_delivered() -> None:
    [frame] = Scenario("nova", "some-blocked", n=2).play().frames
    assert b'"warning":"Some of the generated images have been blocked' in b"".join(frame.data)


def test_refusals_are_told_apart() -> None:
    codes = {}
    for name in ("all-blocked", "blocked", "refused"):
        error = Scenario("nova", name).play().error
        assert error is not None
        codes[name] = (error.status, error.code, error.details.members.get("provider_code"))
    assert codes == {
        "all-blocked": (400, "moderation_blocked", "content_filters"),
        "blocked": (400, "moderation_blocked", "ValidationException"),
        "refused": (400, "ValidationException", None),
    }


def test_a_price_that_is_not_one_number_is_unknown() -> None:
    assert CATALOGUE.models[f"amazon/{NOVA}"].price is None
