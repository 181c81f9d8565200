"""Ark: the request to each version of Seedream, members that are not applied, the cost of a group."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from streamproxy.core.conversation import Tolerated
from streamproxy.core.cost import Price
from streamproxy.core.requests import Inline, Input, Remote
from streamproxy.errors import Failure
from streamproxy.providers import ADAPTERS
from tests.contract.peer import Exchange
from tests.contract.scenarios import PROMPT, Scenario
from tests.providers.asking import PNG, job, not_applied, paid, refused, told

PRO, LITE, OLD = "dola-seedream-5-0-pro-260628", "seedream-5-0-260128", "seedream-4-0-250828"
LATEST = "seedream-4-5-251128"
DATA_URL = f"data:image/png;base64,{bytes(PNG.base64).decode()}"
PLAIN = {"prompt": PROMPT, "watermark": False, "response_format": "b64_json"}
ALONE = {"sequential_image_generation": "disabled"}


def test_a_generation() -> None:
    request, value, _ = paid(job("ark", LATEST))
    assert (request.method, request.url) == (
        "POST",
        "https://ark.ap-southeast.bytepluses.com/api/v3/images/generations",
    )
    assert value == {"model": LATEST, **PLAIN, **ALONE}
    assert told(job("ark", PRO)) == {"model": PRO, **PLAIN}  # it has no groups to switch off


def test_a_group() -> None:
    group = {"sequential_image_generation": "auto", "sequential_image_generation_options": {"max_images": 3}}
    assert told(job("ark", LATEST, n=3)) == {"model": LATEST, **PLAIN, **group, "response_format": "url"}
    assert told(job("ark", LATEST, n=3, stream=True))["stream"] is True
    assert "stream" not in told(job("ark", PRO, stream=True))


@pytest.mark.parametrize(
    ("model", "members", "images", "n"),
    [
        (LATEST, {}, (), 10),
        (LATEST, {}, (PNG,) * 14, 1),
        (LATEST, {}, (PNG,) * 8, 7),
        (LATEST, {"sequential_image_generation": "disabled"}, (), 1),
        (PRO, {}, (), 1),
        ("ep-20260101-abc", {}, (), 1),
    ],
)
def test_how_many_at_once(model: str, members: dict[str, object], images: tuple[Input, ...], n: int) -> None:
    given = job("ark", model, members, n=10, images=images)
    assert ADAPTERS["ark"].at_once(given.request, given.route) == n


@pytest.mark.parametrize(
    ("model", "size", "said"),
    [
        (LATEST, "1024x1024", "1920x1920"),
        (LATEST, "1536x1024", "2352x1568"),
        (LATEST, "2048x2048", "2048x2048"),
        (LATEST, "2k", "2K"),
        (LATEST, "1K", None),
        (OLD, "1024x1024", "1024x1024"),
        (OLD, "512x512", "960x960"),
        (PRO, "3840x2160", "2864x1600"),
        (LITE, "3K", "3K"),
        ("ep-20260101-abc", "1024x1024", "1024x1024"),
    ],
)
def test_sizes(model: str, size: str, said: str | None) -> None:
    given = job("ark", model, {"size": size})
    assert told(given).get("size") == said
    assert ("size" in not_applied(given)) is (said is None)


def test_an_edit() -> None:
    url = Remote("https://a.test/1.png")
    assert told(job("ark", LATEST, images=(PNG,)))["image"] == DATA_URL
    assert told(job("ark", LATEST, images=(url, PNG)))["image"] == [url.url, DATA_URL]
    error = refused(job("ark", PRO, images=(PNG,) * 11))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, "images[10]")


@pytest.mark.parametrize(
    ("model", "members", "names"),
    [
        (LATEST, {"seed": 1, "quality": "high", "style": "vivid"}, ("quality", "seed", "style")),
        (LATEST, {"output_format": "png"}, ("output_format",)),
        (LATEST, {"watermark": True, "optimize_prompt_options": {"mode": "fast"}}, ()),
        (LITE, {"output_format": "png", "tools": [{"type": "web_search"}]}, ()),
        (LITE, {"output_format": "webp", "background": "transparent"}, ("background", "output_format")),
        (PRO, {"output_format": "png", "background": "transparent"}, ()),
        ("ep-20260101-abc", {"seed": 1}, ()),
    ],
)
def test_what_is_not_applied(model: str, members: dict[str, object], names: tuple[str, ...]) -> None:
    given = job("ark", model, members)
    assert not_applied(given) == names
    value = told(given)
    assert {name: value[name] for name in members.keys() - set(names)} == {
        name: said for name, said in members.items() if name not in names
    }
    assert not value.keys() & set(names)


def test_a_mask_is_named() -> None:
    mask = Inline(PNG.base64, "image/png")
    assert not_applied(job("ark", LATEST, {"mask": "m"}, images=(PNG,), mask=mask)) == ("mask",)


def _ends(scenario: Scenario, *replaced: tuple[bytes, bytes]) -> list[bytes]:
    """The last members of each completed event, where parts of the recorded answer are others."""
    exchanges = [_with(exchange, replaced) for exchange in scenario.exchanges]
    frames = scenario.play(exchanges).frames
    return [b'"usage"' + b"".join(frame.data).partition(b'"usage"')[2] for frame in frames]


def _with(exchange: Exchange, replaced: tuple[tuple[bytes, bytes], ...]) -> Exchange:
    body = exchange.body
    for old, new in replaced:
        body = body.replace(old, new)
    return Exchange(exchange.asked, exchange.words, exchange.head, (body,), exchange.breaks)


CENTS = {"price": Price(per_image=Decimal("0.04"))}


def test_the_last_picture_has_usage_and_cost() -> None:
    first, last = _ends(Scenario("ark", "two", n=2, about=CENTS))
    assert b'"total_tokens":0' in first
    assert b'"cost":null,"provider":"ark"' in first
    assert b'"total_tokens":32448,"input_tokens":0,"output_tokens":32448' in last
    assert b'"cost":0.08,"provider":"ark"' in last


def test_only_pictures_are_charged() -> None:
    [last] = _ends(Scenario("ark", "first-failed", n=2, about=CENTS))
    assert b'"cost":0.04,' in last


def test_a_cut_behind_the_last_picture() -> None:
    scenario = Scenario("ark", "no-completed")
    run = scenario.play()
    assert run.error is None
    assert [step.label for step in run.steps if isinstance(step, Tolerated)] == [
        Failure.UPSTREAM_INCOMPLETE.value.label
    ]


def test_fewer_pictures_than_asked_for() -> None:
    run = Scenario("ark", "two", n=4).play()
    assert run.error is None
    assert [frame.image for frame in run.frames if not frame.sums] == [0, 1]


def test_a_smaller_group_says_what_it_cost() -> None:
    """Every picture has gone on when the provider says that there will be no more."""
    first, second, last = Scenario("ark", "two", n=4, about=CENTS).play().frames
    assert (first.type, second.type, last.type) == (*["image_generation.completed"] * 2, "image_generation.usage")
    assert (last.image, last.final, last.cost) == (2, True, 0.08)
    said = json.loads(b"".join(last.data))
    assert (said["missing"], said["image_index"], said["cost"], said["provider"]) == (2, 2, 0.08, "ark")
    assert said["usage"]["total_tokens"] == 32448
    assert "b64_json" not in said
    [*_, unpriced] = Scenario("minimax", "two", n=3, first=3, of=6).play().frames
    told = json.loads(b"".join(unpriced.data))
    assert (told["image_index"], told["cost"], "no price" in told["cost_unknown"]) == (5, None, True)


def test_an_event_of_another_kind() -> None:
    scenario = Scenario("ark", "one")
    [exchange, fetch] = scenario.exchanges
    more = b'data: {"type":"image_generation.thinking"}\n\n' + exchange.body
    run = scenario.play([Exchange(exchange.asked, exchange.words, exchange.head, (more,), exchange.breaks), fetch])
    assert [frame.image for frame in run.frames] == [0]


def test_what_is_left_of_a_json_answer() -> None:
    run = Scenario("ark", "json-one-failed", n=2, stream=False, about=CENTS).play()
    assert run.error is None
    [frame] = run.frames
    assert frame.image == 1
    assert b'"cost":0.04,"warning":"It may be sensitive."' in b"".join(frame.data)


@pytest.mark.parametrize(
    "usage", [b'"usage":[1]', b'"usage":"none"', b'"usage":{"output_tokens":"many"}', b'"usage":7']
)
@pytest.mark.parametrize(("name", "stream"), [("one", True), ("json", False)])
def test_a_usage_of_another_kind_costs_no_picture(name: str, stream: bool, usage: bytes) -> None:
    said = b'"usage":{"generated_images":1,"output_tokens":16224,"total_tokens":16224}'
    [last] = _ends(Scenario("ark", name, stream=stream, about=CENTS), (said, usage))
    assert b'"total_tokens":0,' in last
    assert b'"cost":0.04,' in last


def test_an_end_that_is_not_json_costs_no_picture() -> None:
    scenario = Scenario("ark", "one")
    [last] = _ends(scenario, (b'"type":"image_generation.completed",', b'"type":"image_generation.completed"'))
    assert b'"total_tokens":0,' in last
