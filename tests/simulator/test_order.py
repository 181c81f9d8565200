"""Requests become orders, or refusals that name the field."""

from __future__ import annotations

import base64
from typing import Final, get_args, get_type_hints

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import ImageEditParams, ImageGenerateParams

from streamproxy.errors import ProxyError
from streamproxy.simulator.order import EditFields, Fields, Order, read_order, read_variation

JSON = "application/json"
PNG = b"\x89PNG not really"
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def read(fields: object, *, edit: bool = False) -> Order:
    return read_order(orjson.dumps(fields), JSON, edit=edit)


def form(*parts: tuple[str, bytes]) -> tuple[bytes, str]:
    """A multipart body and its content type."""
    lines = [
        b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        % (name.encode(), b'; filename="a.png"' if name.startswith(("image", "mask")) else b"", data)
        for name, data in parts
    ]
    return b"".join(lines) + b"--b--\r\n", "multipart/form-data; boundary=b"


def test_defaults_are_resolved() -> None:
    order = read({"prompt": "x"})
    assert (order.width, order.height, order.quality, order.output_format, order.n) == (1024, 1024, "medium", "png", 1)
    assert (order.model, order.stream, order.partial_images, order.given) == ("gpt-image", False, 0, frozenset())


def test_null_is_the_default_and_counts_as_given() -> None:
    nulls = dict.fromkeys(("n", "size", "quality", "stream", "partial_images"))
    order = read({"prompt": "x", **nulls})
    assert order.given == {"stream", "partial_images"}
    assert (order.n, order.width, order.stream) == (1, 1024, False)


@pytest.mark.parametrize("name", ["sim/plain", "plain"])
def test_the_prefix_is_optional(name: str) -> None:
    assert read({"prompt": "x", "model": name}).model == "plain"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", 1),
        ("prompt", "x" * 32_001),
        ("n", 0),
        ("n", 11),
        ("n", "1"),
        ("n", 1.5),
        ("size", "1024X1024"),
        ("size", "0x5"),
        ("size", "3841x16"),
        ("size", "3840x2161"),
        ("quality", "best"),
        ("background", "red"),
        ("output_format", "gif"),
        ("output_compression", 101),
        ("stream", "true"),
        ("partial_images", 4),
        ("partial_images", -1),
        ("response_format", "file"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ProxyError) as caught:
        read({"prompt": "x", field: value})
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, field, "invalid_value")


@pytest.mark.parametrize("size", ["3840x2160", "2160x3840", "1x1", "1536x864"])
def test_sizes_within_the_limits_are_taken(size: str) -> None:
    order = read({"prompt": "x", "size": size})
    assert f"{order.width}x{order.height}" == size


@pytest.mark.parametrize("name", ["foo", "image", "mask", "markup", "input_fidelity"])
def test_an_unknown_parameter_is_refused_in_openais_words(name: str) -> None:
    with pytest.raises(ProxyError) as caught:
        read({"prompt": "x", name: 1})
    assert caught.value.message == f"Unknown parameter: '{name}'."
    assert (caught.value.param, caught.value.code) == (name, "unknown_parameter")


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 5000, b"\xff", b"[]", b'"x"', b"null"])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ProxyError) as caught:
        read_order(body, JSON, edit=False)
    assert caught.value.status == 400


@given(st.binary(max_size=60))
def test_no_body_breaks_the_reader(body: bytes) -> None:
    for kind in (JSON, "multipart/form-data; boundary=b", "multipart/form-data"):
        with pytest.raises(ProxyError):
            read_order(body, kind, edit=True)


def test_transparent_needs_a_format_with_alpha() -> None:
    assert read({"prompt": "x", "background": "transparent", "output_format": "webp"}).transparent
    with pytest.raises(ProxyError) as caught:
        read({"prompt": "x", "background": "transparent", "output_format": "jpeg"})
    assert caught.value.param == "background"


@pytest.mark.parametrize(
    "fields",
    [
        {"image": URL},
        {"image": [URL]},
        {"image": {"image_url": URL}},
        {"images": [{"image_url": URL}]},
    ],
)
def test_every_json_form_of_an_input_image_is_read(fields: dict[str, object]) -> None:
    order = read({"prompt": "x", "mask": {"image_url": URL}, **fields}, edit=True)
    assert (order.edit, order.images, order.mask) == (True, (PNG,), PNG)


@pytest.mark.parametrize("image", ["https://example.com/a.png", {"file_id": "file-1"}, "data:image/png;base64,%%%"])
def test_an_image_that_is_not_inline_stands_for_none(image: object) -> None:
    assert read({"prompt": "x", "image": image}, edit=True).images == (b"",)


@pytest.mark.parametrize("fields", [{}, {"images": []}, {"images": [URL] * 17}, {"image": {"url": URL}}])
def test_an_edit_needs_one_to_sixteen_images(fields: dict[str, object]) -> None:
    with pytest.raises(ProxyError) as caught:
        read({"prompt": "x", **fields}, edit=True)
    assert (caught.value.param or "").startswith("image")


@pytest.mark.parametrize("name", ["image", "image[]", "images", "images[]"])
def test_a_form_is_read_with_its_types(name: str) -> None:
    texts = (("prompt", "füchse".encode()), ("n", b"2"), ("stream", b"true"), ("partial_images", b"3"))
    body, kind = form(*texts, (name, PNG), (name, b"\r\n--bb\r\n"), ("mask", b"m"))
    order = read_order(body, kind, edit=True)
    assert (order.prompt, order.n, order.stream, order.partial_images) == ("füchse", 2, True, 3)
    assert (order.images, order.mask) == ((PNG, b"\r\n--bb\r\n"), b"m")


@pytest.mark.parametrize(("name", "value"), [("n", b"two"), ("n", b"99"), ("stream", b"maybe"), ("svg[modl]", b"x")])
def test_a_wrong_text_in_a_form_is_refused_by_name(name: str, value: bytes) -> None:
    body, kind = form(("prompt", b"x"), (name, value), ("image", PNG))
    with pytest.raises(ProxyError) as caught:
        read_order(body, kind, edit=True)
    assert (caught.value.status, caught.value.param) == (400, name.partition("[")[0])


def parameters(*shapes: object) -> set[str]:
    return {name for shape in shapes for name in get_type_hints(shape)}


GENERATE: Final = parameters(*get_args(ImageGenerateParams))
EDIT: Final = parameters(*get_args(ImageEditParams))


def test_every_parameter_of_the_sdk_is_known() -> None:
    assert set(Fields.__struct_fields__) == GENERATE
    assert set(EditFields.__struct_fields__) - {"images", "moderation", "style"} == EDIT  # "images": JSON edits


SVG: Final = {"model": "x", "reasoning": {"effort": "none"}}


def test_an_order_has_the_given_conditional_parameters() -> None:
    order = read({"prompt": "x", "frame_count": 2, "frame_duration_ms": 20, "svg": SVG, "style": None})
    assert order.given == {"frame_count", "frame_duration_ms", "svg"}
    texts = {"prompt": b"x", "frame_count": b"16", "svg[model]": b"x", "svg[reasoning][effort]": b"none"}
    body, kind = form(*texts.items(), ("image", PNG), ("markup", PNG), ("mask", PNG))
    assert read_order(body, kind, edit=True).given == {"frame_count", "svg", "markup"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frame_count", 1),
        ("frame_count", 17),
        ("frame_duration_ms", 0),
        ("style", "loud"),
        ("svg", {"modl": "x"}),
        ("svg", {"reasoning": {"effort": "some"}}),
        ("complexity", "max"),
    ],
)
def test_a_conditional_parameter_has_its_limits(name: str, value: object) -> None:
    with pytest.raises(ProxyError) as caught:
        read({"prompt": "x", name: value})
    assert (caught.value.param or "").startswith(name)


@pytest.mark.parametrize("names", [("svg", "svg[model]"), ("svg[model]", "svg[model][x]"), ("prompt[x]", "n")])
def test_a_name_in_brackets_never_breaks_the_reader(names: tuple[str, ...]) -> None:
    body, kind = form(("prompt", b"x"), *((name, b"1") for name in names), ("image", PNG))
    with pytest.raises(ProxyError) as caught:
        read_order(body, kind, edit=True)
    assert caught.value.status == 400


def test_a_form_without_an_image_is_refused() -> None:
    body, kind = form(("prompt", b"x"), ("n", b"1"))
    with pytest.raises(ProxyError) as caught:
        read_order(body, kind, edit=True)
    assert caught.value.param == "image"


def test_an_order_keeps_prompt_and_pictures_out_of_its_repr() -> None:
    assert "private" not in repr(read({"prompt": "private", "image": URL}, edit=True))
    assert "PNG" not in repr(read({"prompt": "private", "image": URL}, edit=True))


def test_a_variation_is_a_form_without_a_prompt() -> None:
    order = read_variation(*form(("image", PNG), ("model", b"plain"), ("n", b"2")))
    assert (order.edit, order.images, order.n) == (True, (PNG,), 2)


@pytest.mark.parametrize(
    ("parts", "param"), [((("image", PNG), ("prompt", b"x")), "prompt"), ((("model", b"plain"),), "image")]
)
def test_a_variation_that_is_refused(parts: tuple[tuple[str, bytes], ...], param: str) -> None:
    with pytest.raises(ProxyError) as caught:
        read_variation(*form(*parts))
    assert (caught.value.status, caught.value.param) == (400, param)
    with pytest.raises(ProxyError, match="multipart"):
        read_variation(b"{}", JSON)
