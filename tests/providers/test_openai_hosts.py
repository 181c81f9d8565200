"""OpenAI-shaped hosts with quirks: the request to each, from JSON and from a form, and the members left out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from streamproxy.core.catalogue import Model, Quirks
from streamproxy.core.conversation import Fetch, Job, Send
from streamproxy.core.rawjson import JsonObject, parse
from streamproxy.core.requests import Decoded, Encoded, Input, Part, Remote, Segment, UpstreamRequest
from streamproxy.errors import ErrorDetails, Failure, ProxyError
from streamproxy.providers import ADAPTERS
from streamproxy.providers.openai.errors import blocked
from tests.contract.scenarios import FILES, PROMPT, Scenario
from tests.providers.asking import PNG
from tests.providers.making import CATALOGUE, provider

OPENAI = ADAPTERS["openai"]
MODEL = "some/model"
PLAIN = {"model": MODEL, "prompt": PROMPT}
ONE = {"n": 1}
DATA_URL = f"data:image/png;base64,{bytes(PNG.base64).decode()}"
HOSTS = [name for name, row in CATALOGUE.providers.items() if row.quirks != Quirks()]


def job(
    host: str,
    members: Mapping[str, object] | None = None,
    *,
    n: int = 1,
    images: tuple[Input, ...] = (),
    mask: Input | None = None,
    form: bool = False,
    stream: bool = False,
) -> Job:
    given = dict(members or {})
    row = Scenario(
        "openai", "one", n=n, images=images, mask=mask, members=given, form=form, edit=bool(images), stream=stream
    )
    found = row.job
    texts: dict[str, Any] = {name: given.get(name) for name in ("size", "output_format", "quality")}
    route = replace(found.route, provider=provider(host), model=Model.unknown(MODEL), upstream_model=MODEL)
    return replace(found, request=replace(found.request, **texts), route=route)


def sent(given: Job) -> UpstreamRequest:
    conversation = OPENAI.converse(given)
    step = next(conversation)
    conversation.close()
    assert isinstance(step, Send)
    return step.request


def told(given: Job) -> dict[str, object]:
    """The JSON that is sent."""
    raw = b"".join(bytes(piece) for piece in sent(given).body)  # type: ignore[arg-type]
    found: dict[str, object] = msgspec.json.decode(raw)
    return found


def posted(given: Job) -> bytes:
    """The form that is sent, inline images as base64 and uploads as their bytes."""
    request = sent(given)
    assert request.headers[0] == ("content-type", f"multipart/form-data; boundary=streamproxy-{given.token}")
    return b"".join(map(_flat, request.body))


def _flat(piece: Segment) -> bytes:
    match piece:
        case bytes() | memoryview():
            return bytes(piece)
        case Decoded():
            return bytes(piece.base64)
        case Encoded():
            raise AssertionError("a form has no base64")
        case upload:
            return upload.read(0, upload.size)


def refused(given: Job) -> ProxyError:
    with pytest.raises(ProxyError) as found:
        sent(given)
    return found.value


@pytest.mark.parametrize("host", HOSTS)
def test_every_host(host: str) -> None:
    row, quirks = provider(host), provider(host).quirks
    assert not row.streams
    given = job(host, {"style_of_tomorrow": 1}, n=quirks.max_n, stream=True)
    names = OPENAI.not_applied(given)
    assert "partial_images" in names
    value = told(given)
    assert ("style_of_tomorrow" in value) is ("style_of_tomorrow" not in names)
    assert not value.keys() & {"stream", "partial_images", "extra_headers"}
    assert value.get("n", 1) == quirks.max_n
    asked = replace(given.request, n=10)
    assert OPENAI.at_once(asked, given.route) == quirks.max_n
    assert sent(given).url == row.base_url + row.generations


@pytest.mark.parametrize(
    ("host", "members", "said", "names"),
    [
        (
            "together",
            {"size": "1536x1024", "steps": 4, "quality": "high"},
            {"width": 1536, "height": 1024, "steps": 4, "response_format": "base64"},
            ("quality",),
        ),
        ("together", {"response_format": "url"}, {"response_format": "url"}, ()),
        ("together", {"size": "16:9", "aspect_ratio": "16:9"}, {"aspect_ratio": "16:9"}, ("size",)),
        ("deepinfra", {"size": "1024x1024", "response_format": "url"}, {"size": "1024x1024"}, ("response_format",)),
        ("recraft", {"size": "1792x1024", "style": "any"}, {"size": "16:9", "style": "any"}, ()),
        ("recraft", {"size": "4:3", "background": "opaque"}, {"size": "4:3"}, ("background",)),
        ("recraft", {"size": "2K"}, {}, ("size",)),
        ("zai", {"quality": "high"}, {"quality": "hd", "watermark_enabled": False}, ()),
        (
            "zai",
            {"quality": "auto", "response_format": "b64_json", "watermark_enabled": True},
            {"watermark_enabled": True},
            ("quality", "response_format"),
        ),
        ("localai", {"mode": 1}, {"mode": 1, "response_format": "b64_json"}, ()),
        ("sd-cpp", {"output_format": "jpeg", "quality": "low"}, {"output_format": "jpeg"}, ("quality",)),
    ],
)
def test_members(host: str, members: dict[str, object], said: dict[str, object], names: tuple[str, ...]) -> None:
    given = job(host, members)
    adds = {"response_format": "base64"} if host == "together" else {}
    counted = {} if provider(host).quirks.max_n == 1 else ONE
    assert told(given) == {**PLAIN, **counted, **adds, **said}
    assert OPENAI.not_applied(given) == names


def test_members_that_it_takes_keep_their_bytes() -> None:
    raw = b'{"model":"some/model" , "seed":1E2,"prompt":"p","style":"\\u00e4"}\n'
    given = job("localai")
    given = replace(given, request=replace(given.request, body=parse(raw)))
    body = b"".join(bytes(piece) for piece in sent(given).body)  # type: ignore[arg-type]
    assert body == raw.rstrip()[:-1] + b',"response_format":"b64_json"}'


def test_members_for_images_are_not_sent_without_any() -> None:
    assert "image" not in told(job("together", {"image": None}))
    assert told(job("localai", {"seed": None}))["seed"] is None


def test_a_size_does_not_replace_its_edges() -> None:
    given = job("together", {"size": "1536x1024", "width": 64, "height": 32})
    assert told(given).items() >= {"width": 64, "height": 32}.items()
    assert OPENAI.not_applied(given) == ("size",)


def test_a_generation_with_an_image() -> None:
    given = job("together", {"image": bytes(PNG.base64).decode()}, images=(PNG,))
    body = given.request.body
    assert isinstance(body, JsonObject)
    request = replace(given.request, via_generations=True, body=parse(body.edited(drop=("images",))))
    value = told(replace(given, request=request))
    assert value["image_url"] == DATA_URL
    assert not value.keys() & {"image", "images"}


def test_a_form_stays_a_form() -> None:
    one = posted(job("deepinfra", {"seed": 1}, images=FILES[:1], form=True))
    assert (one.count(b'name="image"; filename="in.png"'), one.count(b"image[]"), one.count(b'"seed"')) == (1, 0, 0)
    assert posted(job("sd-cpp", images=FILES, form=True)).count(b'name="image[]"; filename="in.png"') == 2
    added = posted(job("sglang", images=FILES[:1], form=True))
    assert added.count(b'name="response_format"\r\n\r\nb64_json\r\n') == 1


def test_a_forms_numbers_are_numbers() -> None:
    members = {"seed": 7, "steps": 4, "negative_prompt": "7 cats"}
    request = sent(job("together", members, images=FILES[:1], form=True))
    text = b"".join(piece for piece in request.body if isinstance(piece, bytes))
    assert b'"seed":7' in text
    assert b'"negative_prompt":"7 cats"' in text


def test_edits_as_json() -> None:
    assert told(job("together", images=(PNG,)))["image_url"] == DATA_URL
    both = told(job("together", images=(PNG, PNG)))
    assert both["reference_images"] == [DATA_URL, DATA_URL]
    assert sent(job("together", images=(PNG,))).url == "https://api.together.ai/v1/images/generations"


def test_a_form_becomes_json() -> None:
    request = sent(job("together", images=FILES[:1], form=True))
    assert request.headers[0] == ("content-type", "application/json")


def test_json_becomes_a_form() -> None:
    text = posted(job("deepinfra", {"size": "512x512"}, images=(PNG,), mask=PNG))
    assert b'name="size"\r\n\r\n512x512\r\n' in text
    assert text.count(bytes(PNG.base64)) == 2
    assert b'name="image"; filename="image.png"\r\nContent-Type: image/png\r\n\r\n' in text
    assert b'name="mask"; filename="mask.png"' in text
    assert text.endswith(b"--streamproxy-" + b"0123456789abcdef" * 2 + b"--\r\n")
    assert b'name="strength"\r\n\r\n0.5\r\n' in posted(job("recraft", images=(PNG,)))
    assert posted(job("sd-cpp", images=(PNG, PNG))).count(b'name="image[]"') == 2


def test_a_mask_that_is_not_taken_is_named() -> None:
    given = job("recraft", images=(PNG,), mask=PNG)
    assert OPENAI.not_applied(given) == ("mask",)
    assert b'name="mask"' not in posted(given)


@pytest.mark.parametrize(
    ("host", "images", "param"),
    [
        ("zai", (PNG,), "image"),
        ("recraft", (PNG, PNG), "images[1]"),
    ],
)
def test_inputs_that_it_does_not_take(host: str, images: tuple[Input, ...], param: str) -> None:
    given = job(host)
    error = refused(replace(given, request=replace(given.request, images=images)))
    assert (error.failure, error.param) == (Failure.UNSUPPORTED_PARAMETER, param)


def test_a_form_has_what_is_at_a_url() -> None:
    given = job("deepinfra")
    conversation = OPENAI.converse(replace(given, request=replace(given.request, images=(Remote("https://a.test"),))))
    assert next(conversation) == Fetch("https://a.test")


def test_names_in_a_form_cannot_break_out() -> None:
    parts = (Part('a"\r\nb', b"1"),)
    given = job("sglang", images=(PNG,))
    given = replace(given, request=replace(given.request, body=parts))
    assert b'name="a%22%0D%0Ab"\r\n\r\n1\r\n' in posted(given)


def test_a_code_for_what_is_shown() -> None:
    given = job("zai")
    details = ErrorDetails(code="1301", status=400)
    error = blocked(given, ProxyError(Failure.PROVIDER_REFUSED, "The content is sensitive.", details=details))
    assert (error.failure, error.details.members) == (Failure.MODERATION_BLOCKED, {"provider_code": "1301"})
    other = ProxyError(Failure.PROVIDER_REFUSED, "No.", details=ErrorDetails(code="1210", status=400))
    assert blocked(given, other) is other
    assert blocked(job("together"), error) is error
