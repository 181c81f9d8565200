"""Ideogram: the form of each version, its tiers, what is withheld, what it cost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from streamproxy.core.conversation import Convert, Job, JobId, Picture, Send
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers import ADAPTERS
from tests.contract.peer import sent
from tests.contract.scenarios import MASK, PROMPT, Scenario
from tests.providers.asking import MADE, PNG, job, not_applied
from tests.providers.making import CATALOGUE

V3, V4 = "ideogram-v3", "ideogram-4.5"
BARE = bytes(PNG.base64).decode()
FIELD = re.compile(r'name="([a-z_]+)"[^\r]*\r\n(?:Content-Type: [^\r]*\r\n)?\r\n(.*?)\r\n--', re.DOTALL)


def asked(given: Job) -> tuple[str, list[tuple[str, str]], list[str]]:
    """The path of the request that costs money, the fields of its form with files as base64, and the masks' forms."""
    conversation = ADAPTERS["ideogram"].converse(given)
    forms: list[str] = []
    step: Any = next(conversation)
    while isinstance(step, Convert):
        forms.append(step.form)
        step = conversation.send(Picture((bytes(MADE.base64),), MADE.media_type))
    conversation.close()
    assert isinstance(step, Send)
    found = FIELD.findall(sent(step.request).decode("latin-1"))
    return step.request.url.removeprefix("https://api.ideogram.ai/"), found, forms


def told(given: Job) -> Mapping[str, str]:
    return dict(asked(given)[1])


def test_a_generation() -> None:
    path, fields, _ = asked(job("ideogram", V3, {"size": "1536x1024", "seed": 7, "style_type": "DESIGN"}, n=2))
    assert path == "v1/ideogram-v3/generate"
    assert dict(fields) == {
        **{"prompt": PROMPT, "rendering_speed": "DEFAULT", "num_images": "2", "aspect_ratio": "3x2"},
        **{"seed": "7", "style_type": "DESIGN"},
    }


@pytest.mark.parametrize(
    ("model", "member", "tier"),
    [
        (V3, "rendering_speed", "DEFAULT"),
        ("ideogram-v3-turbo", "rendering_speed", "TURBO"),
        ("ideogram-v3-quality", "rendering_speed", "QUALITY"),
        (V4, "quality", "medium"),
        ("ideogram-4.5-low", "quality", "low"),
    ],
)
def test_the_tier_is_always_said(model: str, member: str, tier: str) -> None:
    given = job("ideogram", model, {"quality": "high"})
    assert told(given)[member] == tier
    assert not_applied(given) == ("quality",)


def test_a_model_of_another_name() -> None:
    with pytest.raises(ProxyError) as refused:
        asked(job("ideogram", "ideogram-9"))
    assert (refused.value.failure, refused.value.param) == (Failure.MODEL_NOT_FOUND, "model")


def test_an_edit_is_a_remix() -> None:
    path, fields, _ = asked(job("ideogram", V3, {"image_weight": 70, "size": "1024x1024"}, images=(PNG,)))
    assert path == "v1/ideogram-v3/remix"
    found = dict(fields)
    assert (found["image"], found["image_weight"], found["aspect_ratio"]) == (BARE, "70", "1x1")


def test_a_mask_is_black_where_it_changes() -> None:
    path, fields, forms = asked(job("ideogram", V3, {"size": "1024x1024"}, images=(PNG,), mask=MASK))
    assert (path, forms) == ("v1/ideogram-v3/inpaint", ["black mask"])
    found = dict(fields)
    assert (found["image"], found["mask"]) == (BARE, bytes(MADE.base64).decode())
    assert "aspect_ratio" not in found


def test_several_pictures_of_the_later_version() -> None:
    path, fields, _ = asked(job("ideogram", V4, images=(PNG, PNG), mask=MASK))
    assert path == "v2/image/generate/ideogram-4-5"
    assert [name for name, _ in fields] == ["prompt", "quality", "num_images", "size", "images", "images", "mask"]
    assert dict(fields)["size"] == "source"


@pytest.mark.parametrize(
    ("size", "edit", "said"),
    [
        (None, False, "auto"),
        ("1024x1024", False, "2048x2048"),
        ("1920x1080", False, "2560x1440"),
        ("1000x700", True, "992x704"),
        ("4096x4096", True, "2048x2048"),
    ],
)
def test_sizes_of_the_later_version(size: str | None, edit: bool, said: str) -> None:
    assert told(job("ideogram", V4, {"size": size}, images=(PNG,) if edit else ()))["size"] == said


@pytest.mark.parametrize(("model", "most"), [(V3, 1), (V4, 5)])
def test_more_input_images_than_it_takes(model: str, most: int) -> None:
    with pytest.raises(ProxyError) as refused:
        asked(job("ideogram", model, images=(PNG,) * (most + 1)))
    assert (refused.value.failure, refused.value.param) == (Failure.UNSUPPORTED_PARAMETER, f"images[{most}]")


@pytest.mark.parametrize(
    ("model", "members", "edit", "names"),
    [
        (V3, {"output_format": "webp", "image_weight": 5}, False, ("image_weight", "output_format")),
        (V3, {"mask": "m", "background": "transparent"}, False, ("background", "mask")),
        (V3, {"negative_prompt": "dull", "magic_prompt": "OFF", "size": "auto"}, False, ()),
        (V4, {"negative_prompt": "dull", "size": "1024x1024"}, True, ("negative_prompt",)),
        (V3, {"mask": "m", "image_weight": 5}, True, ()),
    ],
)
def test_what_is_not_applied(model: str, members: dict[str, object], edit: bool, names: tuple[str, ...]) -> None:
    assert not_applied(job("ideogram", model, members, images=(PNG,) if edit else ())) == names


def test_eight_at_once() -> None:
    given = job("ideogram", V3, n=10)
    assert ADAPTERS["ideogram"].at_once(given.request, given.route) == 8


def test_another_wording_is_told() -> None:
    first, second = Scenario("ideogram", "two", n=2).play().frames
    assert b"revised_prompt" not in b"".join(first.data)
    assert b'"revised_prompt":"another wording"' in b"".join(second.data)


def test_what_is_withheld_is_a_charged_refusal() -> None:
    run = Scenario("ideogram", "unsafe").play()
    assert run.error is not None
    assert run.accepted_at is not None
    assert run.error.details.members == {"provider_code": "is_image_safe"}


def test_refusals_before_anything_is_made() -> None:
    blocked, poor = (Scenario("ideogram", name).play().error for name in ("blocked", "no-credits"))
    assert blocked is not None
    assert poor is not None
    assert (blocked.code, blocked.details.members) == ("moderation_blocked", {"provider_code": "422"})
    assert (poor.status, poor.code) == (402, "insufficient_funds")


def test_what_it_cost_and_its_name() -> None:
    price = CATALOGUE.models["ideogram/ideogram-v3-turbo"].price
    [*_, last] = Scenario("ideogram", "two", n=2, about={"price": price}).play().frames
    assert b'"cost":0.06,' in b"".join(last.data)
    steps = Scenario("ideogram", "later-version", model=V4).play().steps
    assert [step.id for step in steps if isinstance(step, JobId)] == ["xtd1"]
