"""MiniMax: the request to H3-Image, members that are not applied, cost."""

from __future__ import annotations

from decimal import Decimal

import pytest

from streamproxy.core.cost import Price
from streamproxy.core.requests import Remote
from streamproxy.errors import Failure
from tests.contract.peer import Exchange
from tests.contract.scenarios import PROMPT, Scenario
from tests.providers.asking import PNG, job, not_applied, paid, refused, told

H3 = "MiniMax-H3-Image"
PLAIN = {"model": H3, "prompt": PROMPT, "n": 1, "response_format": "b64_json"}


def test_a_generation() -> None:
    request, value, _ = paid(job("minimax", H3, {"size": "1536x1024"}))
    assert (request.method, request.url) == ("POST", "https://api.minimax.io/v1/images/generations")
    assert value == {**PLAIN, "size": "1536x1024"}


def test_events_have_urls() -> None:
    assert told(job("minimax", H3, n=2, stream=True)) == {**PLAIN, "n": 2, "response_format": "url", "stream": True}


def test_an_edit() -> None:
    request, value, _ = paid(job("minimax", H3, images=(PNG, Remote("https://a.test/1.png"))))
    assert request.url == "https://api.minimax.io/v1/images/edits"
    shown = f"data:image/png;base64,{bytes(PNG.base64).decode()}"
    assert value["images"] == [{"image_url": shown}, {"image_url": "https://a.test/1.png"}]
    error = refused(job("minimax", H3, images=(PNG,) * 17))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, "images[16]")


@pytest.mark.parametrize(
    ("members", "said", "names"),
    [
        ({"size": "2K"}, {"area": "2K"}, ()),
        ({"area": "4K", "aspect_ratio": "3:1"}, {"area": "4K", "aspect_ratio": "3:1"}, ()),
        ({"size": "8K"}, {}, ("size",)),
        ({"size": "auto", "output_format": "webp"}, {"output_format": "webp"}, ()),
        ({"output_format": "gif", "quality": "high", "seed": 1}, {}, ("output_format", "quality", "seed")),
        ({"mask": "m"}, {}, ("mask",)),
    ],
)
def test_members(members: dict[str, object], said: dict[str, object], names: tuple[str, ...]) -> None:
    given = job("minimax", H3, members)
    assert told(given) == {**PLAIN, **said}
    assert not_applied(given) == names


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        ('"usage":{"input_tokens":1000,"output_tokens":10000,"total_tokens":11000}', b'"cost":0.0403,'),
        ('"usage":{}', b'"cost":null,"cost_unknown":"The provider\'s answer does not say'),
        ('"usage":null', b'"cost":null,"cost_unknown":"The provider\'s answer does not say'),
    ],
)
def test_what_it_cost(usage: str, cost: bytes) -> None:
    price = Price(text_input=Decimal("2.3"), image_input=Decimal("1.5"), image_output=Decimal("3.8"))
    scenario = Scenario("minimax", "one", about={"price": price})
    [exchange, *rest] = scenario.exchanges
    said = b'"usage":{"generated_images":1,"output_tokens":16224,"total_tokens":16224}'
    body = exchange.body.replace(said, usage.encode())
    run = scenario.play([Exchange(exchange.asked, exchange.words, exchange.head, (body,), exchange.breaks), *rest])
    assert cost in b"".join(run.frames[-1].data)
