"""Requests to OpenAI-compatible providers: the caller's own bytes, without members meant for this proxy."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from email.parser import BytesParser
from email.policy import HTTP

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproxy.core.catalogue import Model
from streamproxy.core.conversation import Job
from streamproxy.core.events import Operation
from streamproxy.core.requests import Part
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.openai import OpenAI
from tests.golden.shapes import PICTURE
from tests.providers.making import BOUNDARY, CATALOGUE, GPT, provider, sent, wanted

EDIT = Operation.EDIT
DATA_URL = "data:image/png;base64," + PICTURE.decode()
REMOTE = replace(GPT, remote_image_urls=True)


def body(job: Job) -> bytes:
    request = sent(job)
    parts = [part for part in request.body if isinstance(part, bytes | memoryview)]
    assert len(parts) == len(request.body)
    whole = b"".join(parts)
    assert request.content_length == len(whole)
    return whole


def refused(job: Job) -> tuple[Failure, str | None]:
    with pytest.raises(ProxyError) as caught:
        sent(job)
    return caught.value.failure, caught.value.param


# JSON


ODD = b'"z":1E2,"a":0.1000,"big":123456789012345678901234567890,"\\u0065":"\\u00e4\\/","nested" : { "x" : [ 1.0 ] }'


def test_unknown_members_keep_their_bytes() -> None:
    raw = b'{"model":"gpt-image-2","prompt":"p",' + ODD + b',"stream":true,"partial_images":2}'
    assert body(wanted(raw)) == raw


def test_only_the_members_at_stake_change() -> None:
    raw = b'{"stream":false,' + ODD + b',"model":"alias","extra_headers":{"x":"y"},"response_format":"b64_json"}'
    assert body(wanted(raw, asks=False)) == b"{" + ODD + b',"model":"gpt-image-2"}'


def test_a_model_that_is_written_otherwise_is_rewritten() -> None:
    assert body(wanted(b'{"model":"gpt\\u002dimage-2"}')) == b'{"model":"gpt-image-2"}'


@pytest.mark.parametrize("ask", [True, False])
def test_stream_members_go_only_to_models_that_stream(ask: bool) -> None:
    raw = b'{"model":"gpt-image-2","stream":true,"partial_images":3}'
    assert body(wanted(raw, asks=ask)) == (raw if ask else b'{"model":"gpt-image-2"}')
    headers = dict(sent(wanted(raw, asks=ask)).headers)
    assert ("text/event-stream" in headers["accept"]) is ask
    assert OpenAI().not_applied(wanted(raw, asks=ask)) == (() if ask else ("partial_images",))


def test_response_format_is_kept_for_models_that_know_it() -> None:
    raw = b'{"model":"gpt-image-2","response_format":"url"}'
    assert body(wanted(raw, model=Model.unknown("x"))) == raw
    assert body(wanted(raw)) == b'{"model":"gpt-image-2"}'
    assert OpenAI().not_applied(wanted(raw)) == ()  # the proxy applies it
    assert OpenAI().not_applied(wanted(raw, model=Model.unknown("x"))) == ()


def test_headers_are_ours() -> None:
    request = sent(wanted())
    assert request.method == "POST"
    assert [name for name, _ in request.headers] == [
        "content-type",
        "accept",
        "accept-encoding",
        "user-agent",
    ]
    assert dict(request.headers)["accept-encoding"] == "identity"


# Paths


@pytest.mark.parametrize(
    ("name", "operation", "path"),
    [
        ("openai", Operation.GENERATION, "/v1/images/generations"),
        ("openai", EDIT, "/v1/images/edits"),
        ("octen", EDIT, "/v1/images/generations"),
    ],
)
def test_paths(name: str, operation: Operation, path: str) -> None:
    raw = b'{"model":"gpt-image-2","images":[{"image_url":"data:,x"}]}'
    assert sent(wanted(raw, operation=operation, host=name)).url == provider(name).base_url.removesuffix("/v1") + path


@pytest.mark.parametrize("model", ["../../x", "a/b?c=d#e", "%2e%2e", "a b", "\u00e4", "...", "x\r\ny"])
def test_a_deployment_is_one_segment_of_the_path(model: str) -> None:
    url = sent(wanted(upstream_model=model, host="azure")).url
    row = provider("azure")
    path, _, query = url.removeprefix(row.base_url).partition("?")
    assert query == row.query
    before, after = path.split("/deployments/")
    segment, _, rest = after.partition("/")
    assert (before, rest) == ("/openai", "images/generations")
    assert segment.isascii()
    assert not set("/?# \r\n") & set(segment)


@pytest.mark.parametrize("model", [".", ".."])
def test_a_deployment_of_dots_is_refused(model: str) -> None:
    assert refused(wanted(upstream_model=model, host="azure")) == (Failure.MODEL_NOT_FOUND, "model")


# Edits in JSON: OpenAI's form and Octen's


def edit(members: object, *, via: bool, model: Model = GPT, host: str = "openai") -> Job:
    raw = json.dumps({"model": "gpt-image-2", **dict(members)}).encode()  # type: ignore[call-overload]
    return wanted(raw, operation=EDIT, via_generations=via, model=model, host=host)


@pytest.mark.parametrize("images", [PICTURE.decode(), [PICTURE.decode()], [DATA_URL, PICTURE.decode()]])
def test_a_generation_with_an_image_becomes_an_edit(images: object) -> None:
    said = orjson.loads(body(edit({"image": images, "mask": PICTURE.decode(), "seed": 1}, via=True)))
    count = len(images) if isinstance(images, list) else 1
    assert said == {
        "model": "gpt-image-2",
        "mask": {"image_url": DATA_URL},
        "seed": 1,
        "images": [{"image_url": DATA_URL}] * count,
    }


def test_an_edit_becomes_a_generation_with_an_image() -> None:
    images = [{"image_url": DATA_URL}, {"image_url": "data:,x"}]
    said = orjson.loads(body(edit({"images": images, "mask": {"image_url": DATA_URL}}, via=False, host="octen")))
    assert said == {"model": "gpt-image-2", "mask": DATA_URL, "image": [DATA_URL, "data:,x"]}


@pytest.mark.parametrize("mask", [{}, {"mask": None}])
def test_an_edit_in_the_providers_own_form_is_not_touched(mask: dict[str, object]) -> None:
    for members, via, name in (
        ({"image": DATA_URL, **mask}, True, "octen"),
        ({"images": [{"file_id": "f"}], **mask}, False, "openai"),
    ):
        job = edit(members, via=via, host=name)
        assert body(job) == job.request.body.raw  # type: ignore[union-attr]
    assert "mask" not in mask or b'"mask": null' in body(edit({"image": DATA_URL, **mask}, via=True))


def test_the_format_of_bare_base64_is_read_from_its_bytes() -> None:
    jpeg = "/9j/4AAQSkZJRgABAQAAAQABAAD/wAALCAABAAEBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAAP/EABQQAQAAAAAAAAAAAAAAAAAAAAD/"
    [image] = orjson.loads(body(edit({"image": jpeg}, via=True)))["images"]
    assert image == {"image_url": f"data:image/jpeg;base64,{jpeg}"}


@pytest.mark.parametrize(
    ("members", "via", "param"),
    [
        ({"images": [{"file_id": "f"}]}, False, "images[0].file_id"),
        ({"images": [{"image_url": DATA_URL}], "mask": {"file_id": "f"}}, False, "mask.file_id"),
        ({"images": [{"image_url": DATA_URL}], "image": "x"}, False, "image"),
    ],
)
def test_file_ids_for_a_host_that_takes_strings(members: object, via: bool, param: str) -> None:
    assert refused(edit(members, via=via, host="octen")) == (Failure.UNSUPPORTED_PARAMETER, param)


def test_input_images_in_both_forms_at_once_are_refused() -> None:
    job = edit({"image": DATA_URL, "images": [{"image_url": DATA_URL}]}, via=True)
    assert refused(job) == (Failure.UNSUPPORTED_PARAMETER, "images")


@pytest.mark.parametrize(
    ("members", "via", "param"),
    [
        ({"images": [{"image_url": DATA_URL}, {"image_url": "https://h/p"}]}, False, "images[1].image_url"),
        ({"images": [{"image_url": DATA_URL}], "mask": {"image_url": "HTTP://h/p"}}, False, "mask.image_url"),
        ({"image": "https://h/p"}, True, "image"),
        ({"image": [DATA_URL, "https://h/p"]}, True, "image[1]"),
        ({"image": DATA_URL, "mask": "http://h/p"}, True, "mask"),
    ],
)
@pytest.mark.parametrize("name", ["openai", "octen"])
def test_remote_images_are_refused_where_not_taken(members: object, via: bool, param: str, name: str) -> None:
    assert refused(edit(members, via=via, host=name)) == (Failure.UNSUPPORTED_PARAMETER, param)
    assert b"//h/p" in body(edit(members, via=via, model=REMOTE, host=name))


def test_a_remote_image_becomes_a_reference_as_it_is() -> None:
    said = orjson.loads(body(edit({"image": "https://h/p"}, via=True, model=REMOTE)))
    assert said["images"] == [{"image_url": "https://h/p"}]


# Multipart


@dataclass(frozen=True)
class File:
    """An upload that lies in memory."""

    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]


PARTS = (
    Part("prompt", "a \u00e4".encode()),
    Part("model", b"alias"),
    Part("stream", b"true"),
    Part("partial_images", b"2"),
    Part("image[]", File(b"one\r\n--boundary"), "a.png", "image/png"),
    Part("extra_headers", b'{"x":"y"}'),
    Part("image[]", File(b"two"), 'q"uo\r\nte\\.png', "image/png"),
    Part("mask", File(b""), "", None),
    Part("response_format", b"b64_json"),
    Part('odd"name', b"1"),
)


def wire(job: Job) -> bytes:
    request = sent(job)
    whole = b"".join(part.read(0, part.size) if isinstance(part, File) else _plain(part) for part in request.body)
    assert request.content_length == len(whole)
    assert dict(request.headers)["content-type"] == f"multipart/form-data; boundary={BOUNDARY}"
    return whole


def _plain(part: object) -> bytes:
    assert isinstance(part, bytes)
    return part


def test_parts_keep_their_order_and_files_are_not_read() -> None:
    job = wanted(PARTS, operation=EDIT)
    files = [part for part in sent(job).body if isinstance(part, File)]
    assert [file.content for file in files] == [b"one\r\n--boundary", b"two", b""]
    expected = (
        b'--BB\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na \xc3\xa4\r\n'
        b'--BB\r\nContent-Disposition: form-data; name="model"\r\n\r\ngpt-image-2\r\n'
        b'--BB\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
        b'--BB\r\nContent-Disposition: form-data; name="partial_images"\r\n\r\n2\r\n'
        b'--BB\r\nContent-Disposition: form-data; name="image[]"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\none\r\n--boundary\r\n"
        b'--BB\r\nContent-Disposition: form-data; name="image[]"; filename="q%22uo%0D%0Ate\\.png"\r\n'
        b"Content-Type: image/png\r\n\r\ntwo\r\n"
        b'--BB\r\nContent-Disposition: form-data; name="mask"; filename=""\r\n\r\n\r\n'
        b'--BB\r\nContent-Disposition: form-data; name="odd%22name"\r\n\r\n1\r\n'
        b"--BB--\r\n"
    ).replace(b"--BB", b"--" + BOUNDARY.encode())
    assert wire(job) == expected


def test_parts_that_are_not_for_the_provider_stay_here() -> None:
    smuggled = (*PARTS, Part("extra_headers", File(b"{}"), "x.json", "application/json"))
    said = wire(wanted(smuggled, operation=EDIT, asks=False))
    for name in (b"extra_headers", b"stream", b"partial_images", b"response_format"):
        assert b'name="%b"' % name not in said
    assert OpenAI().not_applied(wanted(PARTS, operation=EDIT, asks=False)) == ("partial_images",)


@given(
    name=st.text(min_size=1, max_size=12),
    filename=st.text(max_size=12),
    kind=st.sampled_from(("image/png", "image/png\nX: y", "image/png\r\nX: y", "")),
)
def test_no_name_breaks_out_of_its_header(name: str, filename: str, kind: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in name + filename):
        return
    part = Part(name, b"v", filename, kind)
    said = wire(wanted((Part("model", b"m"), part), operation=EDIT))
    head = said.split(b"--" + BOUNDARY.encode() + b"\r\n")[2].partition(b"\r\n\r\n")[0]
    lines = head.split(b"\r\n")
    assert b"\n" not in head.replace(b"\r\n", b"")
    assert len(lines) == (2 if kind == "image/png" else 1)
    assert lines[0].count(b'"') == 4
    parsed = BytesParser(policy=HTTP).parsebytes(head)
    assert set(parsed.keys()) <= {"Content-Disposition", "Content-Type"}


@pytest.mark.parametrize("name", sorted(row.name for row in CATALOGUE.providers.values() if row.adapter == "openai"))
def test_every_row_of_the_catalogue_can_be_built_for(name: str) -> None:
    edits = provider(name).quirks.edit != "none"
    for operation in Operation if edits else [Operation.GENERATION]:
        shown = b',"images":[{"image_url":"data:,x"}]' if edits else b""
        raw = b'{"model":"gpt-image-2"%b}' % shown
        request = sent(wanted(raw, operation=operation, host=name))
        assert "{" not in request.url
        assert request.url.startswith(provider(name).base_url)
