"""AUTOMATIC1111: the request, members that are not applied, drafts of one's own task, and interruptions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamproxy.core.conversation import JobId, Launch, Progress, Undo
from streamproxy.core.requests import Inline, Remote
from streamproxy.errors import Failure
from streamproxy.providers import ADAPTERS
from tests.contract.scenarios import FILES, MASK, PROMPT, Scenario
from tests.providers.asking import MADE, PNG, job, not_applied, paid, refused, told
from tests.providers.making import CATALOGUE

SETTINGS = {"show_progress_every_n_steps": 5, "return_grid": False}
PLAIN: dict[str, object] = {
    "prompt": PROMPT,
    "batch_size": 1,
    "n_iter": 1,
    "send_images": True,
    "save_images": False,
    "override_settings": SETTINGS,
    "force_task_id": f"task({'0123456789abcdef' * 2})",
}
BARE = bytes(PNG.base64).decode()


def test_a_generation() -> None:
    request, value, _ = paid(job("automatic1111", "default"))
    assert (request.method, request.url) == ("POST", "/sdapi/v1/txt2img")
    assert value == {**PLAIN, "width": 1024, "height": 1024}


def test_a_checkpoint_and_options() -> None:
    options = {"seed": 7, "steps": 20, "cfg_scale": 5.5, "sampler_name": "Euler a", "negative_prompt": "dull"}
    given = job("automatic1111", "sdxl.safetensors [31e35c80fc]", {**options, "size": "1000x777"})
    value = told(given)
    settings = {**SETTINGS, "sd_model_checkpoint": "sdxl.safetensors [31e35c80fc]"}
    assert value == {**PLAIN, **options, "override_settings": settings, "width": 1000, "height": 776}
    assert not_applied(given) == ()


def test_an_edit_has_the_size_of_its_input() -> None:
    request, value, conversions = paid(job("automatic1111", "default", {"denoising_strength": 0.4}, images=(PNG,)))
    assert (request.url, conversions) == ("/sdapi/v1/img2img", [])
    edited = {"init_images": [BARE], "denoising_strength": 0.4, "width": 64, "height": 64}
    assert value == {**PLAIN, **edited}
    _, _, [measured] = paid(job("automatic1111", "default", images=FILES[:1]))
    assert (measured.image, measured.form) == (FILES[0], "png")


def test_a_mask_is_white_and_paints_over_what_was_there() -> None:
    _, value, [conversion] = paid(job("automatic1111", "default", {"size": "512x512"}, images=(PNG,), mask=MASK))
    assert conversion.form == "white mask"
    assert value["mask"] == bytes(MADE.base64).decode()
    assert (value["inpainting_fill"], value["inpaint_full_res"]) == (1, False)


@pytest.mark.parametrize(
    ("members", "images", "names"),
    [
        ({"output_format": "webp"}, (), ("output_format",)),
        ({"output_format": "jpeg", "size": "auto"}, (), ()),
        ({"size": "large", "quality": "high", "background": "transparent"}, (), ("background", "quality", "size")),
        ({"denoising_strength": 0.5, "mask": "m"}, (), ("denoising_strength", "mask")),
        ({"denoising_strength": 0.5, "mask": "m"}, (PNG,), ()),
    ],
)
def test_what_is_not_applied(members: dict[str, object], images: tuple[Inline, ...], names: tuple[str, ...]) -> None:
    assert not_applied(job("automatic1111", "default", members, images=images)) == names


def test_images_that_it_does_not_take() -> None:
    assert refused(job("automatic1111", "default", images=(PNG, PNG))).param == "images[1]"
    error = refused(job("automatic1111", "default", images=(Remote("https://a.test/1.png"),)))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, "images[0]")


@pytest.mark.parametrize(("stream", "previews", "most"), [(True, 3, 1), (True, 0, 4), (False, 3, 4)])
def test_drafts_are_of_one_picture(stream: bool, previews: int, most: int) -> None:
    given = Scenario("automatic1111", "two", n=4, stream=stream)
    request = replace(given.request, partial_images=previews)
    assert ADAPTERS["automatic1111"].at_once(request, given.route) == most


def test_it_is_interrupted_only_while_it_runs() -> None:
    steps = Scenario("automatic1111", "previews").play().steps
    undos = [step.request and step.request.url for step in steps if isinstance(step, Undo)]
    assert undos == ["http://a1111.test/sdapi/v1/interrupt", None]
    task = f"task({'0123456789abcdef' * 2})"
    assert [step.id for step in steps if isinstance(step, JobId)] == [task]
    assert [step.fraction for step in steps if isinstance(step, Progress)] == [0.1, 0.3, 0.5, 0.6]
    assert sum(isinstance(step, Launch) for step in steps) == 1
    others = Scenario("automatic1111", "others").play().steps
    assert not any(isinstance(step, Undo | Progress) for step in others)


def test_grids_and_extensions_pictures_are_left_out() -> None:
    made = Scenario("automatic1111", "two", n=2).play().frames
    whole = Scenario("automatic1111", "two", n=2).exchanges[0].body
    _, first, second = (text.strip(b'"') for text in whole[len(b'{"images":[') : whole.index(b"]")].split(b","))
    assert [any(text in b"".join(frame.data) for text in (first, second)) for frame in made] == [True, True]
    assert b'"cost":null,"cost_unknown"' in b"".join(made[-1].data)


def test_its_row() -> None:
    row = CATALOGUE.providers["automatic1111"]
    assert (row.auth_scheme, row.serves, row.base_url) == ("Basic ", ("automatic1111",), "")
