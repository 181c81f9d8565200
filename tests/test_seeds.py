"""What the documents that this proxy began with promise a caller, and the test that holds each promise."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent

PROMISES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "generations": (
        (
            "a prompt becomes images at images/generations",
            "e2e/test_surface.py::test_every_route_is_served_under_both_prefixes",
        ),
        (
            "model and prompt are required; a prompt has 1 to 32000 characters, n is 1 to 10",
            "core/test_schema.py::test_each_rule_at_both_sides_of_its_bounds",
        ),
        ("OpenAI's SDK works with another base_url alone", "e2e/test_sdk_python.py::test_not_streamed"),
        (
            "every parameter of the SDK is taken",
            "e2e/test_sdk_parameters.py::test_all_parameters_at_once_bring_a_picture",
        ),
        (
            "a wrong body is a 422 with FastAPI's detail",
            "e2e/test_bodies.py::test_a_422_names_every_broken_rule_in_two_forms",
        ),
        ("which size is right is the provider's to say", "e2e/test_wires.py::test_a_generation"),
    ),
    "answers": (
        (
            "each image has b64_json, url and revised_prompt",
            "e2e/test_guides.py::test_an_answer_is_read_by_its_members",
        ),
        ("an image at a URL is read the same way", "e2e/test_guides.py::test_a_url_is_read_the_same_way"),
        ("several images may differ in that", "e2e/test_guides.py::test_two_pictures_by_url_and_by_base64"),
        ("cost in USD and provider are in every answer", "e2e/test_guides.py::test_the_guides_bill"),
        ("the price list explains the bill", "core/test_catalogue.py::test_the_price_list_explains_a_bill"),
        (
            "unknown members of an answer reach the caller",
            "e2e/test_response_format.py::test_everything_else_of_the_answer_stays_as_it_is",
        ),
        ("usage has what SDKs' types need", "providers/test_openai_json.py::test_usage_is_filled_up"),
        ("every request has an id", "e2e/test_surface.py::test_every_answer_has_an_id"),
        (
            "format, size, quality and background are those that were applied",
            "core/test_completion.py::test_a_synthesized_event_is_labelled_by_its_own_bytes",
        ),
    ),
    "edits as JSON": (
        (
            "images is an array of one to sixteen references",
            "core/test_schema.py::test_an_edit_has_one_to_sixteen_images",
        ),
        (
            "a reference has exactly one of file_id and image_url, and nothing else",
            "core/test_schema.py::test_an_image_reference_has_exactly_one_source",
        ),
        ("a mask has the same shape", "e2e/test_files.py::test_references_of_all_kinds_keep_their_order"),
        (
            "image_url is an https URL for models that take one",
            "e2e/test_guard.py::test_a_model_that_takes_urls_needs_no_setting",
        ),
        ("GPT image models take no URLs", "e2e/test_guard.py::test_without_the_setting_nothing_is_fetched"),
    ),
    "edits as a form": (
        (
            "image[] and mask are files beside text fields",
            "e2e/test_uploads.py::test_parts_keep_order_names_and_bytes_wherever_cut",
        ),
        ("OpenAI's SDK sends them", "e2e/test_sdk_python.py::test_a_streamed_edit_of_files"),
    ),
    "dispatch": (
        ("Content-Type tells JSON from a form", "e2e/test_bodies.py::test_edits_are_told_apart_by_content_type"),
        ("any other is refused", "e2e/test_bodies.py::test_a_415_names_the_accepted_content_types"),
    ),
    "models": (
        (
            "images/models lists the image models, and so does models",
            "e2e/test_surface.py::test_models_have_openais_shape",
        ),
        ("the SDK lists them", "e2e/test_sdk_python.py::test_models"),
        ("a model is written provider/model", "core/test_catalogue.py::test_resolve"),
        ("nano-banana-pro and nano-banana-2 are aliases", "core/test_catalogue.py::test_other_names"),
    ),
    "uploads": (
        ("an upload has an id that an edit names", "e2e/test_files.py::test_edens_upload"),
        ("every provider gets its bytes", "e2e/test_files.py::test_every_wire_takes_a_file"),
    ),
    "chats": (
        ("the picture is a data URL in the message's content", "e2e/test_guides.py::test_a_picture_in_a_chat_is_saved"),
        ("image_config has aspect_ratio and image_size", "e2e/test_chat.py::test_image_config_as_gemini_takes_it"),
        (
            "other values are refused, 512 is for some models",
            "e2e/test_chat.py::test_a_wrong_size_names_the_right_ones",
        ),
        ("a photo is edited as a part, data URL", "e2e/test_chat.py::test_pictures_and_turns"),
        ("or as a remote URL", "e2e/test_chat.py::test_a_remote_picture_is_fetched_under_the_guard"),
        ("a model of images alone is a 400 that says so", "e2e/test_chat.py::test_a_model_of_images_alone"),
        ("usage and cost are those of a chat", "e2e/test_chat.py::test_the_picture_is_the_content"),
    ),
    "unknown fields": (
        (
            "they reach the provider unchanged",
            "e2e/test_bodies.py::test_unknown_members_are_forwarded_byte_for_byte",
        ),
        ("what a provider does not get is named", "providers/test_gemini.py::test_what_is_not_applied_is_named"),
    ),
    "extra_headers": (
        (
            "they go to the provider",
            "e2e/test_headers_policy.py::test_allowed_headers_go_out_beside_one_credential",
        ),
        (
            "headers of credentials are refused",
            "e2e/test_headers_policy.py::test_every_refused_name_over_http_costs_no_call",
        ),
    ),
    "keys": (
        ("a Bearer key is asked for", "e2e/test_surface.py::test_without_a_known_key_every_route_is_the_same_401"),
    ),
    "streams": (
        (
            "previews and then the completed image, image_generation.*",
            "e2e/test_sdk_python.py::test_a_streamed_generation",
        ),
        ("edits have events of their own name", "core/test_completion.py::test_edits_have_their_own_type"),
        ("partial_images is 0 to 3", "e2e/test_sdk_python.py::test_a_streamed_generation"),
        (
            "a model without events has one completed event",
            "e2e/test_sdk_python.py::test_a_model_that_cannot_stream_streams",
        ),
    ),
    "an image makes an edit": (
        ("an image in a generation makes it an edit", "core/test_schema.py::test_an_image_makes_a_generation_an_edit"),
        (
            "a data URL or bare base64, one or several",
            "providers/test_openai.py::test_a_generation_with_an_image_becomes_an_edit",
        ),
        ("a mask without an image means nothing", "core/test_schema.py::test_a_generation_without_an_image_is_none"),
    ),
    "response_format": (
        ("url and b64_json are honoured", "e2e/test_response_format.py::test_base64_that_is_asked_for_comes_alone"),
        ("GPT image models are never sent it", "core/test_catalogue.py::test_gpt_image_models_get_no_response_format"),
        ("an image is always to be had as base64", "e2e/test_response_format.py::test_base64_is_added_beside_the_url"),
    ),
    "GPT's own fields": (
        (
            "a value that a model has not is its refusal",
            "e2e/test_guides.py::test_a_setting_that_a_model_has_not_is_its_refusal",
        ),
        (
            "n with stream is one image unless allowed",
            "e2e/test_streams_n.py::test_a_model_that_streams_one_image_is_asked_for_one",
        ),
        (
            "quality, background, compression and moderation go on as they are",
            "e2e/test_sdk_parameters.py::test_all_parameters_at_once_bring_a_stream",
        ),
    ),
    "Gemini's own fields": (
        ("a size becomes the nearest aspect ratio", "providers/test_gemini.py::test_sizes"),
        ("webp falls back to png", "e2e/test_wires.py::test_a_picture_has_the_format_that_is_asked_for"),
        (
            "thinking_level, response_modalities and media_resolution",
            "providers/test_gemini.py::test_options_as_a_form_writes_them",
        ),
        (
            "text is the words beside the picture, parts have their order",
            "providers/test_gemini.py::test_words_stand_beside_the_picture_and_in_order",
        ),
        ("the format is that of the file", "providers/test_gemini.py::test_the_size_and_format_are_those_of_the_file"),
    ),
    "providers": (
        ("Google's wire, and Vertex AI's", "e2e/test_wires.py::test_a_streamed_generation"),
        ("Stability's forms", "providers/test_stability.py::test_routes"),
        ("the fields of an unknown provider's model go on", "e2e/test_hosts.py::test_a_generation"),
    ),
    "variations": (
        ("by the provider's route", "e2e/test_variations.py::test_openai_python_by_the_route"),
        ("or a refusal with its reason", "e2e/test_variations.py::test_a_model_that_makes_none_is_refused"),
    ),
}
"""By subject: what is promised, in our words, and a test below this folder."""

ROWS: Final = [(subject, promise, held) for subject, rows in PROMISES.items() for promise, held in rows]


@cache
def names_in(module: str) -> frozenset[str]:
    tree = ast.parse((TESTS / module).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize(("subject", "promise", "held"), ROWS, ids=lambda text: str(text)[:40])
def test_the_test_of_a_promise_exists(subject: str, promise: str, held: str) -> None:
    module, _, name = held.partition("::")
    assert (TESTS / module).is_file(), module
    assert name in names_in(module), f"{subject}: {promise}"


def test_each_promise_is_said_once() -> None:
    said = [(subject, promise) for subject, promise, _ in ROWS]
    assert len(set(said)) == len(said)
