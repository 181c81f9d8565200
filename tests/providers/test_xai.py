"""xAI: the request to Grok Imagine, members that are not applied, cost."""

from __future__ import annotations

from decimal import Decimal

import pytest

from streamproxy.core.cost import Price
from streamproxy.core.requests import Remote
from streamproxy.errors import Failure
from tests.contract.peer import Exchange
from tests.contract.scenarios import PROMPT, Scenario
from tests.providers.asking import PNG, job, not_applied, paid, refused, told

FIRST, SECOND = "grok-imagine-image", "grok-imagine-image-2.0"
PLAIN = {"prompt": PROMPT, "n": 1, "response_format": "b64_json"}


def test_a_generation() -> None:
    request, value, _ = paid(job("xai", SECOND))
    assert (request.method, request.url) == ("POST", "https://api.x.ai/v1/images/generations")
    assert value == {"model": SECOND, **PLAIN, "quality": "medium"}
    assert told(job("xai", FIRST, n=3)) == {"model": FIRST, **PLAIN, "n": 3}


@pytest.mark.parametrize(
    ("model", "size", "ratio", "resolution"),
    [
        (SECOND, "1024x1024", "1:1", "1k"),
        (SECOND, "1536x1024", "3:2", "1.5k"),
        (FIRST, "1536x1024", "3:2", "1k"),
        (SECOND, "2048x1152", "16:9", "1.5k"),
        (SECOND, "1080x2340", "9:19.5", "1.5k"),
        (SECOND, "3840x2160", "16:9", "2k"),
    ],
)
def test_sizes(model: str, size: str, ratio: str, resolution: str) -> None:
    given = job("xai", model, {"size": size})
    value = told(given)
    assert (value["aspect_ratio"], value["resolution"]) == (ratio, resolution)
    assert "size" not in value
    assert not_applied(given) == ()


def test_a_callers_own_ratio_counts() -> None:
    value = told(job("xai", SECOND, {"size": "1024x1024", "aspect_ratio": "20:9", "resolution": "2k"}))
    assert (value["aspect_ratio"], value["resolution"]) == ("20:9", "2k")


def test_an_edit() -> None:
    request, value, _ = paid(job("xai", SECOND, images=(PNG,)))
    assert request.url == "https://api.x.ai/v1/images/edits"
    shown = {"url": f"data:image/png;base64,{bytes(PNG.base64).decode()}", "type": "image_url"}
    assert value["image"] == shown
    value = told(job("xai", SECOND, images=(PNG, Remote("https://a.test/1.png"))))
    assert value["images"] == [shown, {"url": "https://a.test/1.png", "type": "image_url"}]
    error = refused(job("xai", SECOND, images=(PNG,) * 4))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, "images[3]")


@pytest.mark.parametrize(
    ("model", "members", "quality", "names"),
    [
        (SECOND, {"quality": "low"}, "low", ()),
        (SECOND, {"quality": "high"}, "medium", ("quality",)),
        (FIRST, {"quality": "low"}, None, ("quality",)),
        (FIRST, {"size": "2K", "output_format": "png", "seed": 1}, None, ("output_format", "seed", "size")),
        (FIRST, {"mask": "m", "output_format": "jpeg"}, None, ("mask",)),
    ],
)
def test_members(model: str, members: dict[str, object], quality: str | None, names: tuple[str, ...]) -> None:
    given = job("xai", model, members)
    assert not_applied(given) == names
    value = told(given)
    assert value.get("quality") == quality
    assert not value.keys() & (set(names) - {"quality"})


def _last(*replaced: tuple[bytes, bytes], price: Price | None = None) -> bytes:
    """The last completed event, where parts of the recorded answer are others."""
    scenario = Scenario("xai", "two", n=2, about={"price": price})
    [exchange] = scenario.exchanges
    body = exchange.body
    for old, new in replaced:
        body = body.replace(old, new)
    run = scenario.play([Exchange(exchange.asked, exchange.words, exchange.head, (body,), exchange.breaks)])
    return b"".join(run.frames[-1].data)


def test_what_it_cost() -> None:
    silent = (b'"cost_in_usd_ticks":800000000', b"")
    assert b'"cost":0.08,' in _last()
    assert b'"cost":0.04,' in _last(silent, price=Price(per_image=Decimal("0.02")))
    assert b'"cost":null,"cost_unknown":"The catalogue has no price' in _last(silent)


def test_a_revised_prompt() -> None:
    assert b"revised_prompt" not in _last()
    assert b'"revised_prompt":"a linnet"' in _last((b'"revised_prompt":""', b'"revised_prompt":"a linnet"'))


def test_what_moderation_leaves() -> None:
    run = Scenario("xai", "some-blocked", n=2).play()
    assert run.error is None
    [frame] = run.frames
    assert b'"warning":"The provider\'s moderation blocked the request."' in b"".join(frame.data)


def test_a_picture_that_moderation_disowns_is_none() -> None:
    scenario = Scenario("xai", "blocked")
    [exchange] = scenario.exchanges
    body = exchange.body.replace(b'"url":""', b'"url":"https://files.test/0.png"')
    run = scenario.play([Exchange(exchange.asked, exchange.words, exchange.head, (body,), exchange.breaks)])
    assert run.error is not None
    assert run.error.failure is Failure.MODERATION_BLOCKED
