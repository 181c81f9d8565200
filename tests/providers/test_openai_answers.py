"""Answers of OpenAI-compatible providers, in both forms, for callers with and without `stream`."""

from __future__ import annotations

import tracemalloc

import orjson
import pytest

from streamproxy.core.conversation import Accepted, Job, Tolerated
from streamproxy.core.events import Frame, Operation
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.openai.events import IDLE_BYTES, STEP
from tests.golden.shapes import COMPLETED, FIELDS, IMAGE, PICTURE, PREVIEW, SHAPES, USAGE, C, P, Shape, named, unnamed
from tests.providers.making import NOW, answering, decoded, wanted
from tests.providers.making import data as joined

JSON = b'{"created":5,"data":[{' + IMAGE + b'}],"size":"1x1",' + USAGE + b"}"
OTHER_TYPES = ("text/plain", "application/octet-stream", "application/problem+json", "text/html", "image/png")
ENDING = b',"cost":0.02,"provider":"openai"}'


def types(frames: list[Frame]) -> list[str]:
    return [frame.type.partition(".")[2] or frame.type for frame in frames]


def read(body: bytes, *, n: int = 1, stream: bool = True, edit: bool = False) -> list[Frame]:
    """The frames of an answer that ends well."""
    operation = Operation.EDIT if edit else Operation.GENERATION
    frames, error = decoded(wanted(n=n, stream=stream, operation=operation), [body])
    assert error is None, error.message
    return frames


def failed(body: bytes, *, n: int = 1, stream: bool = True) -> tuple[list[str], Failure]:
    """What comes before the error, and which error."""
    frames, error = decoded(wanted(n=n, stream=stream), [body])
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
    head = {"content-type": shape.content_type or ""}
    frames, error = decoded(wanted(stream=stream), chunks, head)
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


def test_odd_events_that_sdks_would_misread_stay_here() -> None:
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
    frames, error = decoded(wanted(), [C + unnamed(b'{"error":"late"}') + C])
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
    _, error = decoded(wanted(), [named(sent, b"error")])
    assert error is not None
    assert b"".join(error.details.as_sent) == sent


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
def test_an_unsafe_error_event_is_written_anew(sent: bytes) -> None:
    _, error = decoded(wanted(), [named(sent, b"error")])
    assert error is not None
    assert error.details.as_sent == ()
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
        frames, error = decoded(wanted(max_event_bytes=limit), [P, body])
        assert (error is None) is whole
        assert error is None or error.failure is Failure.EVENT_TOO_LARGE
        assert len(frames) == (2 if whole else 1)
    for limit, whole in ((len(JSON), True), (len(JSON) - 1, False)):
        _, error = decoded(wanted(max_answer_bytes=limit), [JSON[:9], JSON[9:]])
        assert (error is None) is whole
        assert error is None or error.failure is Failure.RESPONSE_BODY_SIZE
    size = len(COMPLETED) + len(ENDING) - 1 + len(b',"image_index":0')
    for limit, whole in ((3 * size, True), (3 * size - 1, False)):
        _, error = decoded(wanted(n=3, stream=False, max_answer_bytes=limit), [body * 3])
        assert (error is None) is whole, "what is collected for one answer is bounded too"


@pytest.mark.parametrize("kind", ["text/event-stream; charset=utf-8", "APPLICATION/JSON", "", *OTHER_TYPES])
@pytest.mark.parametrize("step", [1, 3, 1 << 20])
def test_the_first_bytes_decide_whatever_the_content_type(kind: str, step: int) -> None:
    starts = (b"", b"\r\n ", b"\xef\xbb\xbf\n", b":\n", b": c\n\n", b"id:1\n", b"retry: 5\n\n", b"data: {}\n\n")
    bodies = (*(start + C for start in starts), unnamed(COMPLETED), b" \n" + JSON, JSON + b"\n", b"[{" + IMAGE + b"}]")
    for body in bodies:
        chunks = [body[at : at + step] for at in range(0, len(body), step)]
        frames, error = decoded(wanted(), chunks, {"content-type": kind} if kind else {})
        assert (types(frames), error) == (["completed"], None), body[:20]


@pytest.mark.parametrize("kind", OTHER_TYPES)
@pytest.mark.parametrize("step", [1, 3, 1 << 20])
@pytest.mark.parametrize("body", [b"<html>", b"\x89PNG", b"Data: x\n\n", b"dat", b"eventually", b"", b" \n", b"ok"])
def test_what_is_neither_is_refused_before_it_is_accepted(kind: str, step: int, body: bytes) -> None:
    chunks = [body[at : at + step] for at in range(0, len(body), step)]
    _, error = decoded(wanted(), chunks, {"content-type": kind})
    assert error is not None
    assert error.failure is Failure.UNEXPECTED_CONTENT_TYPE


@pytest.mark.parametrize("kind", [*OTHER_TYPES, "text/event-stream"])
def test_accepted_with_the_first_event_unless_an_error(kind: str) -> None:
    answer = answering(wanted(), {"content-type": kind})
    for chunk in (b"\n", b" dat", b"a:", b" {}\n\n", unnamed(b'{"type":"keepalive"}'), P[:-1]):
        assert [step for step in answer.feed(chunk) if step is not None] == []
    [accepted, _] = list(answer.feed(P[-1:]))
    assert accepted == Accepted()


NOISE = {
    "a comment as data": unnamed(b": keepalive"),
    "a word": unnamed(b"ping"),
    "a number": unnamed(b"1"),
    "an array": named(b"[1]", b"message"),
    "a string": unnamed(b'"image_generation.completed"'),
    "half an object": unnamed(COMPLETED[:-9]),
    "a broken preview": named(PREVIEW[:-9], b"image_generation.partial_image"),
    "a NUL in a preview": named(PREVIEW.replace(b"low", b"l\0w"), b"image_generation.partial_image"),
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", NOISE)
def test_noise_between_events_is_passed_over_and_told(name: str, stream: bool) -> None:
    answer = answering(wanted(stream=stream))
    steps = list(answer.feed(NOISE[name] + P + NOISE[name] + C))
    frames = [step for step in steps if isinstance(step, Frame)]
    assert types(frames) == (["partial_image", "completed"] if stream else ["completed"])
    assert [step for step in steps if isinstance(step, Tolerated)] == [Tolerated("sse_noise")]
    assert answer.done


@pytest.mark.parametrize("name", NOISE)
def test_noise_that_may_have_been_the_image_is_the_failure(name: str) -> None:
    assert failed(P + NOISE[name]) == (["partial_image"], Failure.BAD_JSON)
    assert failed(NOISE[name] + unnamed(b"[DONE]") + C) == ([], Failure.BAD_JSON)


def test_an_unreadable_completed_event_ends_the_stream() -> None:
    answer = answering(wanted())
    with pytest.raises(ProxyError) as caught:
        list(answer.feed(P + named(COMPLETED[:-9], b"image_generation.completed")))
    assert caught.value.failure is Failure.BAD_JSON


@pytest.mark.parametrize("name", [b"error", b"image_generation.failed"])
def test_an_error_in_plain_words_keeps_them(name: bytes) -> None:
    _, error = decoded(wanted(), [named(b"Out of credit for sk-abcdefghijklmnopqrstuvwxyz0123456789", name)])
    assert error is not None
    assert (error.failure, error.message) == (Failure.PROVIDER_STREAM_ERROR, "Out of credit for [redacted]")


FLOODS = {
    "white space": b" \n\t\r",
    "comments": b": keepalive\n",
    "comments apart": b":\n\n",
    "long comments": b":" + b"c" * 5000 + b"\r\n",
    "unknown fields": b"id: 7\nretry: 5\nx\n",
    "names": b"event: image_generation.completed\n",
    "events without data": b"event: ping\n\n",
    "empty events": b"data\n\n",
    "events of another kind": named(b'{"type":"keepalive"}', b"keepalive"),
    "large ones": unnamed(b'{"type":"response.created","x":"' + b"x" * 9000 + b'"}'),
    "noise": unnamed(b"tick"),
    "previews without a picture": unnamed(b'{"type":"image_generation.partial_image"}'),
    "empty lines of one event": b"data\n",
}


@pytest.mark.parametrize("start", [b"", pytest.param(P, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", FLOODS)
def test_what_becomes_nothing_has_a_budget(name: str, start: bytes) -> None:
    """It begins anew with every image."""
    flood, size = FLOODS[name], 8192
    room = (FLOODS[name] * (IDLE_BYTES // len(flood) + 1))[: IDLE_BYTES - 2 * size]
    rest = b"\n\n" if name != "white space" or start else b""
    chunks = [room[at : at + size] for at in range(0, len(room), size)]
    what = wanted(n=2, max_event_bytes=1 << 22)
    frames, error = decoded(what, [start, *chunks, rest + C, *chunks, rest + C])
    assert error is None, error.message
    assert types(frames) == [*(["partial_image"] if start else []), "completed", "completed"]
    before, error = decoded(what, [start, *chunks, rest + C, *chunks, *chunks])
    assert error is not None
    assert (error.failure, len(before)) == (Failure.STREAM_PROTOCOL, len(frames) - 1)
    if not start:
        assert failed_in(what, chunks * 2) is Failure.STREAM_PROTOCOL


def failed_in(what: Job, chunks: list[bytes]) -> Failure | None:
    _, error = decoded(what, chunks)
    return None if error is None else error.failure


def test_large_events_of_no_use_do_not_cost_the_image() -> None:
    """Pictures in events that are not known here, and previews for a caller who wants none."""
    unknown = unnamed(b'{"type":"image.progress","image":"' + b"A" * 500_000 + b'"}')
    assert types(read(unknown * 30 + C)) == ["completed"]
    large = PREVIEW.replace(PICTURE, b"A" * 500_000)
    assert types(read(unnamed(large) * 30 + C, stream=False)) == ["answer"]
    endless = [unnamed(PREVIEW.replace(PICTURE, b"A" * 20_000))] * 100
    assert failed_in(wanted(stream=False), endless) is Failure.STREAM_PROTOCOL


def test_others_get_a_turn_within_a_chunk_of_small_events() -> None:
    answer = answering(wanted())
    assert list(answer.feed(unnamed(b"{}") * (3 * STEP + 1))) == [None] * 3


def test_a_json_answer_byte_by_byte_costs_no_object_for_each() -> None:
    body = b'{"data":[{"b64_json":"' + b"A" * 300_000 + b'"}]}'
    answer = answering(wanted(), {})
    tracemalloc.start()
    try:
        for at in range(len(body)):
            for _ in answer.feed(body[at : at + 1]):
                pass
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * len(body)
    assert [type(step) for step in answer.finish()] == [Accepted, Frame]


WRAPPED = (b"data:image/png;base64,", b"data:image\\/png;base64,", b"data:;base64,", b"data:,")


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("step", [1, 16, 1 << 20])
def test_the_prefix_of_a_data_url_comes_off_the_base64(prefix: bytes, step: int) -> None:
    body = (P + C).replace(PICTURE, prefix + PICTURE)
    frames, error = decoded(wanted(), [body[at : at + step] for at in range(0, len(body), step)])
    assert error is None
    assert [joined(frame) for frame in frames] == [PREVIEW, COMPLETED[:-1] + ENDING]


def test_the_prefix_comes_off_a_large_picture() -> None:
    large = b"A" * 200_000
    body = unnamed(COMPLETED.replace(PICTURE, b"data:image/png;base64," + large))
    for first in (*range(60, 110), 40_000):
        frames, error = decoded(wanted(), [body[:first], body[first:]])
        assert error is None
        assert joined(frames[0]) == COMPLETED.replace(PICTURE, large)[:-1] + ENDING


@pytest.mark.parametrize("others", [b"", b'"b64_json":null,', b'"b64_json":"",'])
@pytest.mark.parametrize("stream", [True, False])
def test_a_data_url_is_base64(others: bytes, stream: bool) -> None:
    url = b"data:image/png;base64," + PICTURE
    body = unnamed(b'{"type":"image_generation.completed",' + others + b'"url":"' + url + b'",' + USAGE + b"}")
    for format in ("b64_json", "", "url"):
        given = f'{{"model":"m","prompt":"p","response_format":"{format}"}}'.encode()
        frames, error = decoded(wanted(given, stream=stream), [body])
        assert error is None
        said = orjson.loads(joined(frames[0]))
        said = said if stream else said["data"][0]
        assert (said["b64_json"], said.get("url")) == (PICTURE.decode(), None)


def test_a_url_that_is_no_base64_stays_one() -> None:
    for url in (b"data:image/svg+xml,%3Csvg/%3E", b"https://host/p"):
        [last] = read(unnamed(b'{"type":"image_generation.completed","url":"' + url + b'"}'))
        assert orjson.loads(joined(last))["url"] == url.decode()


def test_a_completed_event_of_a_million_members_is_no_answer() -> None:
    members = b",".join(b'"%d":1' % number for number in range(70_000))
    body = unnamed(COMPLETED[:-1] + b"," + members + b"}")
    assert failed(body, stream=False) == ([], Failure.BAD_JSON)
