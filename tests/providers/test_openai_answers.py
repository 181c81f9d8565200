"""Answers of OpenAI-compatible providers, in both forms, for callers who stream and callers who do not."""

from __future__ import annotations

import orjson
import pytest

from streamproxy.core.events import Frame, Operation
from streamproxy.errors import Failure
from tests.golden.shapes import COMPLETED, FIELDS, IMAGE, PICTURE, PREVIEW, SHAPES, USAGE, C, P, Shape, named, unnamed
from tests.providers.making import NOW, decoded, exchange, wanted
from tests.providers.making import data as joined

JSON = b'{"created":5,"data":[{' + IMAGE + b'}],"size":"1x1",' + USAGE + b"}"
ENDING = b',"cost":0.02,"provider":"openai"}'


def types(frames: list[Frame]) -> list[str]:
    return [frame.type.partition(".")[2] or frame.type for frame in frames]


def read(body: bytes, *, n: int = 1, stream: bool = True, edit: bool = False) -> list[Frame]:
    """The frames of an answer that ends well."""
    operation = Operation.EDIT if edit else Operation.GENERATION
    frames, error = decoded(exchange(wanted(n=n, stream=stream, operation=operation)), [body])
    assert error is None, error.message
    return frames


def failed(body: bytes, *, n: int = 1, stream: bool = True) -> tuple[list[str], Failure]:
    """What comes before the error, and which error."""
    frames, error = decoded(exchange(wanted(n=n, stream=stream)), [body])
    assert error is not None
    return types(frames), error.failure


GOOD = [shape for shape in SHAPES if shape.answers == 200 and not shape.cut]


@pytest.mark.parametrize("shape", GOOD, ids=lambda shape: shape.name)
@pytest.mark.parametrize("stream", [True, False])
def test_every_shape_wherever_it_is_cut(shape: Shape, stream: bool) -> None:
    previews = ["partial_image"] * shape.previews if stream else []
    expected = [*previews, *([("completed" if stream else "answer")] if shape.code is None else [])]
    for step in (len(shape.body) or 1, 1, 7, 64):
        chunks = [shape.body[at : at + step] for at in range(0, len(shape.body), step)]
        assert _outcome(shape, chunks, stream) == (expected, shape.code)
    for at in range(0, len(shape.body), 5):
        assert _outcome(shape, [shape.body[:at], shape.body[at:]], stream) == (expected, shape.code)


def _outcome(shape: Shape, chunks: list[bytes], stream: bool) -> tuple[list[str], str | None]:
    what = exchange(wanted(stream=stream), {"content-type": shape.content_type or ""})
    frames, error = decoded(what, chunks)
    for frame in frames:
        value = orjson.loads(joined(frame))
        picture = value["data"][0] if frame.type == "answer" else value
        assert picture["b64_json"] == PICTURE.decode()
    return types(frames), None if error is None else error.code


def test_events_go_on_byte_for_byte() -> None:
    odd = b'{"type":"image_generation.%b",' + IMAGE + b',"seed":1E2,"x":0.10,"big":123456789012345678901234567890}'
    preview, last = read(unnamed(odd % b"partial_image") + unnamed(odd[:-1] % b"completed" + b"," + USAGE + b"}"))
    assert joined(preview) == odd % b"partial_image"
    assert joined(last) == odd[:-1] % b"completed" + b"," + USAGE + ENDING
    assert (preview.final, last.final) == (False, True)


def test_a_providers_cost_and_name_stand() -> None:
    said = COMPLETED.replace(b"{", b'{"cost":null,"provider":"theirs",', 1)
    assert joined(read(unnamed(said))[0]) == said


@pytest.mark.parametrize("edit", [True, False])
def test_the_endpoint_decides_the_family(edit: bool) -> None:
    family, other = ("image_edit", "image_generation") if edit else ("image_generation", "image_edit")
    body = (P + C).replace(b"image_generation", other.encode())
    preview, last = read(body, edit=edit)
    assert [frame.type for frame in (preview, last)] == [f"{family}.partial_image", f"{family}.completed"]
    assert joined(preview) == PREVIEW.replace(b"image_generation", family.encode())
    assert joined(last) == COMPLETED.replace(b"image_generation", family.encode())[:-1] + ENDING


@pytest.mark.parametrize("member", [b"", b'"type":null,', b'"type":"completed",'])
def test_a_type_that_only_the_event_line_says_is_filled_in(member: bytes) -> None:
    [last] = read(named(b" {" + member + IMAGE + b"," + USAGE + b"}", b"image_generation.completed"))
    raw = joined(last)
    assert raw.count(b'"type"') == 1
    assert orjson.loads(raw)["type"] == last.type == "image_generation.completed"
    assert orjson.loads(raw)["b64_json"] == PICTURE.decode()


def test_what_sdks_would_take_for_an_image_event_stays_here() -> None:
    noise = (
        named(b'{"type":"keepalive"}', b"keepalive")
        + named(b"{}", b"ping")
        + named(b"not json", b"ping")
        + unnamed(b'{"type":"response.created"}')
        + b"data\n\n"
        + b"data:\ndata:  \n\n"
        + b"id: 4\nretry: 1\n\n: c\n\n"
        + named(b"{}", b"image_generation.partial_image")
        + named(b'{"b64_json":""}', b"image_generation.partial_image")
    )
    assert types(read(noise + P + noise + C)) == ["partial_image", "completed"]


@pytest.mark.parametrize("error", [b"null", b'""', b"false", b"0", b"{}", b"[]", b"{ }"])
def test_an_error_that_says_nothing_is_none(error: bytes) -> None:
    [last] = read(unnamed(COMPLETED.replace(b"{", b'{"error":' + error + b",", 1)))
    assert not orjson.loads(joined(last)).get("error")
    assert orjson.loads(joined(last)).get("error") not in ({}, [])  # openai-node takes both for an error


@pytest.mark.parametrize(
    ("members", "usage"),
    [
        (b"", (0, 0)),
        (b',"usage":null', (0, 0)),
        (b',"usage":{"total_tokens":7}', (7, 0)),
        (b',"usage":{"total_tokens":7,"input_tokens_details":{"text_tokens":3}}', (7, 3)),
    ],
)
def test_usage_is_filled_up(members: bytes, usage: tuple[int, int]) -> None:
    [last] = read(unnamed(b'{"type":"image_generation.completed",' + IMAGE + members + b"}"))
    said = orjson.loads(joined(last))["usage"]
    assert (said["total_tokens"], said["input_tokens_details"]["text_tokens"]) == usage
    assert (said["output_tokens"], said["input_tokens_details"]["image_tokens"]) == (0, 0)


def test_a_completed_event_may_hold_a_url() -> None:
    [last] = read(unnamed(b'{"type":"image_generation.completed","url":"https://host/p",' + FIELDS + b"}"))
    said = orjson.loads(joined(last))
    assert (said["url"], said["b64_json"]) == ("https://host/p", None)
    body = unnamed(b'{"type":"image_generation.completed","url":"https://host/p"}')
    [answer] = read(body, stream=False)
    assert orjson.loads(joined(answer))["data"][0]["url"] == "https://host/p"


def test_invalid_utf8_becomes_what_browsers_read() -> None:
    odd = PREVIEW.replace(b"low", b"l\xffw")
    preview, _ = read(unnamed(odd) + C)
    assert joined(preview) == odd.replace(b"\xff", "\ufffd".encode())


def test_an_escaped_type_and_large_members_are_read() -> None:
    said = COMPLETED.replace(b"image_generation", b"image\\u005fgeneration").replace(
        b"{", b'{"revised_prompt":"' + b"p" * 200_000 + b'",', 1
    )
    [last] = read(unnamed(said))
    assert orjson.loads(joined(last))["type"] == "image_generation.completed"


def test_nothing_after_the_last_image_is_wanted() -> None:
    frames, error = decoded(exchange(wanted()), [C + unnamed(b'{"error":"late"}') + C])
    assert (types(frames), error) == (["completed"], None)


@pytest.mark.parametrize(
    ("body", "before", "failure"),
    [
        (P + unnamed(b"[DONE]") + C, ["partial_image"], Failure.MISSING_TERMINAL_EVENT),
        (P + C[:90], ["partial_image"], Failure.MISSING_TERMINAL_EVENT),
        (P, ["partial_image"], Failure.MISSING_TERMINAL_EVENT),
        (b"", [], Failure.MISSING_TERMINAL_EVENT),
        (b" \r\n", [], Failure.MISSING_TERMINAL_EVENT),
        (unnamed(b'{"type":"image_generation.completed"}'), [], Failure.NO_IMAGE),
        (unnamed(b'{"type":"image_generation.completed","b64_json":null}'), [], Failure.NO_IMAGE),
        (unnamed(b'{"type":"image_generation.completed","nested":{"b64_json":"AAAA"}}'), [], Failure.NO_IMAGE),
        (unnamed(b'{"type":"image_generation.failed","error":{}}'), [], Failure.PROVIDER_STREAM_ERROR),
        (named(b"boom", b"error"), [], Failure.PROVIDER_STREAM_ERROR),
        (unnamed(b"boom"), [], Failure.BAD_JSON),
        (unnamed(b"[1]"), [], Failure.BAD_JSON),
        (b'{"error":{"message":"m"}}', [], Failure.PROVIDER_STREAM_ERROR),
        (b'\xef\xbb\xbf\n{"type":"error","message":"m"}', [], Failure.PROVIDER_STREAM_ERROR),
        (b'{"created":1,"data":[]}', [], Failure.NO_IMAGE),
        (b'{"created":1', [], Failure.BAD_JSON),
        (b"[]", [], Failure.BAD_JSON),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_ends_badly(body: bytes, before: list[str], failure: Failure, stream: bool) -> None:
    assert failed(body, stream=stream) == (before if stream else [], failure)


def test_an_error_event_goes_on_as_it_was_sent() -> None:
    sent = b'{"type":"error","error":{"message":"m \xc3\xa4","type":"t","param":null,"code":"c"},"more":[1E2]}'
    _, error = decoded(exchange(wanted()), [named(sent, b"error")])
    assert error is not None
    assert b"".join(error.as_sent) == sent


@pytest.mark.parametrize(
    "sent",
    [
        b'{"type":"error","error":{"message":"m","type":"t","param":null}}',
        b'{"error":{"message":"m","type":"t","param":null,"code":"c"}}',
        b'{"type":"error","error":{"message":"sk-abcdefghijklmnopqrstuvwxyz0123456789","type":"t","param":null,"code":"c"}}',
        b'{"type":"error","error":{"message":"m","type":"t","param":null,"code":"c"},'
        b'"request":{"key":"sk-abcdefghijklmnopqrstuvwxyz0123456789"}}',
    ],
    ids=["incomplete", "without a type", "a key in its text", "a key beside it"],
)
def test_an_error_event_that_is_not_whole_or_holds_a_key_is_written_anew(sent: bytes) -> None:
    _, error = decoded(exchange(wanted()), [named(sent, b"error")])
    assert error is not None
    assert error.as_sent == ()
    assert "sk-abc" not in error.message


def test_several_images_in_events() -> None:
    body = P + C + unnamed(COMPLETED.replace(b"{", b'{"image_index":2,', 1)) + C
    preview, *last = read(body, n=3)
    assert preview.image == 0
    assert [frame.image for frame in last] == [0, 2, 2]
    assert [orjson.loads(joined(frame))["image_index"] for frame in last] == [0, 2, 2]
    [answer] = read(body, n=3, stream=False)
    assert len(orjson.loads(joined(answer))["data"]) == 3


@pytest.mark.parametrize("stream", [True, False])
def test_fewer_images_than_asked_for(stream: bool) -> None:
    """A provider that says it is done may have made fewer; one that just ends may have been cut."""
    assert len(read(C + unnamed(b"[DONE]"), n=3, stream=stream)) == 1
    assert failed(C, n=3, stream=stream) == (["completed"] if stream else [], Failure.MISSING_TERMINAL_EVENT)


def test_events_as_one_json_answer() -> None:
    more = b'{"id":"img-1","revised_prompt":"r","seed":1E2,'
    [answer] = read(P + unnamed(COMPLETED.replace(b"{", more, 1)), stream=False)
    raw = joined(answer)
    assert b'"seed":1E2' in raw
    assert orjson.loads(raw) == {
        "created": 1795248000,
        "data": [{"b64_json": PICTURE.decode(), "revised_prompt": "r"}],
        "id": "img-1",
        "seed": 100.0,
        "size": "1x1",
        "quality": "low",
        "background": "opaque",
        "output_format": "png",
        "usage": orjson.loads(b"{" + USAGE + b"}")["usage"],
        "cost": 0.02,
        "provider": "openai",
    }


@pytest.mark.parametrize("created", [b"", b',"created_at":null', b',"created_at":"soon"', b',"created_at":1.5'])
def test_an_answer_without_a_time_is_from_now(created: bytes) -> None:
    [answer] = read(unnamed(b'{"type":"image_generation.completed",' + IMAGE + created + b"}"), stream=False)
    assert orjson.loads(joined(answer))["created"] == NOW


def test_caps() -> None:
    body = unnamed(COMPLETED)
    for limit, whole in ((len(COMPLETED), True), (len(COMPLETED) - 1, False)):
        frames, error = decoded(exchange(wanted(), max_event_bytes=limit), [P, body])
        assert (error is None) is whole
        assert error is None or error.failure is Failure.EVENT_TOO_LARGE
        assert len(frames) == (2 if whole else 1)
    for limit, whole in ((len(JSON), True), (len(JSON) - 1, False)):
        _, error = decoded(exchange(wanted(), max_answer_bytes=limit), [JSON[:9], JSON[9:]])
        assert (error is None) is whole
        assert error is None or error.failure is Failure.RESPONSE_BODY_SIZE
    size = len(COMPLETED) + len(ENDING) - 1 + len(b',"image_index":0')
    for limit, whole in ((3 * size, True), (3 * size - 1, False)):
        _, error = decoded(exchange(wanted(n=3, stream=False), max_answer_bytes=limit), [body * 3])
        assert (error is None) is whole, "what is collected for one answer is bounded too"


@pytest.mark.parametrize("kind", ["text/event-stream; charset=utf-8", "APPLICATION/JSON", ""])
def test_content_types_that_may_hold_an_answer(kind: str) -> None:
    for body in (C, JSON):
        frames, error = decoded(exchange(wanted(), {"content-type": kind} if kind else {}), [body])
        assert (types(frames), error) == (["completed"], None)


@pytest.mark.parametrize("kind", ["text/html", "image/png"])
def test_content_types_that_cannot(kind: str) -> None:
    _, error = decoded(exchange(wanted(), {"content-type": kind}), [C])
    assert error is not None
    assert error.failure is Failure.UNEXPECTED_CONTENT_TYPE
