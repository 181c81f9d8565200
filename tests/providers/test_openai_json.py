"""JSON answers as frames: the provider's own bytes for one caller, synthesized events for the other."""

from __future__ import annotations

import base64
import io
import json
import tracemalloc

import orjson
import pytest
from PIL import Image

from streamproxy.core.completion import ZERO_USAGE
from streamproxy.core.events import Operation
from streamproxy.core.requests import Part
from streamproxy.errors import Failure
from tests.golden.shapes import PICTURE
from tests.providers.making import NOW, data, decoded, wanted

JSON = {"content-type": "application/json"}
P = PICTURE.decode()
BIG = b"123456789012345678901234567890"


def read(body: bytes, *, stream: bool, n: int = 1, edit: bool = False) -> list[dict[str, object]]:
    operation = Operation.EDIT if edit else Operation.GENERATION
    frames, error = decoded(wanted(stream=stream, n=n, operation=operation), [body], JSON)
    assert error is None, error.message
    return [orjson.loads(data(frame).replace(BIG, b"1")) for frame in frames]


def failed(body: bytes, *, stream: bool) -> Failure:
    frames, error = decoded(wanted(stream=stream), [body], JSON)
    assert frames == []
    assert error is not None
    return error.failure


def picture(format: str) -> str:
    made = io.BytesIO()
    Image.new("RGB", (32, 16)).save(made, format)
    return base64.b64encode(made.getvalue()).decode()


def test_the_answer_stays_byte_for_byte() -> None:
    body = b' {"created":1E2,"data":[{"b64_json":"%b","x":0.10}] ,"seed":%b,"text":"\\u00e4"}\n' % (PICTURE, BIG)
    frames, error = decoded(wanted(stream=False), [body], JSON)
    assert error is None
    [frame] = frames
    assert data(frame) == (
        b'{"created":1E2,"data":[{"b64_json":"%b","x":0.10}],"seed":%b,"text":"\\u00e4"' % (PICTURE, BIG)
        + b',"cost":0.02,"provider":"openai"}'
    )
    assert frame.final


def test_a_providers_cost_and_name_stand() -> None:
    body = b'{"data":[{"url":"u"}],"cost":null,"provider":"theirs"}'
    assert read(body, stream=False) == [orjson.loads(body)]
    [event] = read(body, stream=True)
    assert (event["cost"], event["provider"]) == (None, "theirs")


def test_usage_is_filled_up() -> None:
    [answer] = read(b'{"data":[{"b64_json":"%b"}],"usage":{"total_tokens":4}}' % PICTURE, stream=False)
    assert answer["usage"] == {**ZERO_USAGE, "total_tokens": 4}


@pytest.mark.parametrize("usage", [b"", b',"usage":null'])
def test_an_answer_need_not_have_usage_and_an_event_must(usage: bytes) -> None:
    body = b'{"data":[{"b64_json":"%b"}]%b}' % (PICTURE, usage)
    assert read(body, stream=False)[0].get("usage") is None
    assert read(body, stream=True)[0]["usage"] == ZERO_USAGE


@pytest.mark.parametrize("edit", [True, False])
def test_every_image_is_an_event_the_last_with_the_rest(edit: bool) -> None:
    images = [picture("PNG"), picture("JPEG"), picture("WEBP")]
    answer = {
        "id": "img-1",
        "created": 5,
        "data": [{"b64_json": image, "revised_prompt": f"r{at}", "url": None} for at, image in enumerate(images)],
        "size": "1024x1024",
        "quality": "medium",
        "usage": {"total_tokens": 4, "output_tokens_details": {"image_tokens": 4}},
        "text": "summary",
        "parts": [{"type": "image", "index": 0}],
    }
    got = read(json.dumps(answer).encode(), stream=True, n=3, edit=edit)
    family = "image_edit" if edit else "image_generation"
    for at, (event, name) in enumerate(zip(got, ("png", "jpeg", "webp"), strict=True)):
        assert event["type"] == f"{family}.completed"
        assert (event["b64_json"], event["image_index"], event["revised_prompt"]) == (images[at], at, f"r{at}")
        assert (event["size"], event["output_format"], event["quality"]) == ("32x16", name, "medium")
        assert (event["created_at"], event["provider"]) == (5, "openai")
        assert "url" not in event
    for event in got[:-1]:
        assert (event["usage"], event["cost"]) == (ZERO_USAGE, None)
        assert not {"id", "text", "parts"} & event.keys()
    assert got[-1]["usage"] == {**ZERO_USAGE, **orjson.loads(json.dumps(answer["usage"]))}
    assert got[-1]["cost"] == 0.06
    assert (got[-1]["id"], got[-1]["text"], got[-1]["parts"]) == ("img-1", "summary", answer["parts"])


def test_one_image_has_no_index() -> None:
    [event] = read(b'{"data":[{"b64_json":"%b"}]}' % PICTURE, stream=True, n=3)
    assert "image_index" not in event


def test_items_without_an_image_are_no_events() -> None:
    body = b'{"data":[{"b64_json":""},{"b64_json":"%b"},{"b64_json":null,"url":""},{"b64_json":{}}]}' % PICTURE
    [event] = read(body, stream=True)
    assert event["cost"] == 0.02
    assert "image_index" not in event


def test_an_image_at_a_url() -> None:
    [event] = read(b'{"data":[{"url":"https:\\/\\/host\\/p"}]}', stream=True)
    assert (event["url"], event["b64_json"], event["size"]) == ("https://host/p", None, "1024x1024")
    assert event["created_at"] == NOW
    assert event["quality"] == "high"


@pytest.mark.parametrize(
    "written", [P.replace("/", "\\/"), P.replace("+", "\\u002b"), f"data:image/png;base64,{P}", f"data:,{P}"]
)
def test_base64_in_other_clothes(written: str) -> None:
    [event] = read(b'{"data":[{"b64_json":"%b"}]}' % written.encode(), stream=True)
    assert (event["b64_json"], event["size"]) == (P, "1x1")


def test_a_quote_in_base64_does_not_break_out() -> None:
    [event] = read(b'{"data":[{"b64_json":"AA\\",\\"type\\":\\"x"}]}', stream=True)
    assert event["b64_json"] == 'AA","type":"x'
    assert event["type"] == "image_generation.completed"


def test_an_answers_members_do_not_replace_an_events_own() -> None:
    """An answer may say `type`, too; it would be read instead of the event's."""
    own = '"type":"image","created_at":1,"url":"u","image_index":7,"partial_image_index":7,"b64_json":"x","error":null'
    body = f'{{{own},"object":"list","data":[{{{own},"b64_json":"{P}","seed":1}}]}}'.replace('"url":"u",', "", 2)
    frames, error = decoded(wanted(), [body.encode()], JSON)
    assert error is None
    raw = data(frames[0])
    said = json.loads(raw, object_pairs_hook=lambda pairs: pairs)
    assert len({name for name, _ in said}) == len(said), "no member twice"
    event = orjson.loads(raw)
    assert (event["type"], event["b64_json"], event["created_at"]) == ("image_generation.completed", P, NOW)
    assert (event["object"], event["seed"]) == ("list", 1)
    assert not {"image_index", "partial_image_index", "error"} & event.keys()


@pytest.mark.parametrize(
    "odd",
    [
        b'"created":"soon"',
        b'"created":1.5',
        b'"created":99999999999999999999',
        b'"size":{"width":1}',
        b'"quality":3',
        b'"usage":"none"',
        b'"usage":{"total_tokens":"x"}',
        b'"seed":' + BIG,
        b'"seed":1e999',
        b'"deep":' + b"[" * 60 + b"]" * 60,
        b'"error":{}',
        b'"error":false',
        b'"background":null',
        b'"x":"' + b"y" * 200_000 + b'"',
    ],
    ids=lambda odd: odd[:24].decode(),
)
@pytest.mark.parametrize("stream", [True, False])
def test_no_odd_member_costs_the_image(odd: bytes, stream: bool) -> None:
    frames, error = decoded(wanted(stream=stream), [b'{%b,"data":[{"b64_json":"%b"}]}' % (odd, PICTURE)], JSON)
    assert error is None, error.message
    assert PICTURE in data(frames[0])


UNREADABLE = {
    "another name": b'{"created":5,"images":["%b"]}' % PICTURE,
    "a name of its own": b'{"image":"%b","seed":1E2}' % PICTURE,
    "an object": b'{"data":{"b64_json":"%b"}}' % PICTURE,
    "strings": b'{"data":["https://host/p"]}',
    "nothing where it should be": b'{"data":[],"output":{"deep":[{"link":"https://host/p"}]},"usage":{"total_tokens":1}}',
    "words beside it": b'{"code":0,"message":"success","output":"https://host/p"}',
    "a large one": b'{"message":"done","artifact":"%b"}' % (b"A" * 300_000),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_answer_is_passed_on(name: str) -> None:
    body = UNREADABLE[name]
    frames, error = decoded(wanted(stream=False), [body], JSON)
    assert error is None, error.message
    [frame] = frames
    start = body[:-1] if b"usage" not in body else body[: body.index(b',"usage"')]
    assert data(frame).startswith(start)
    assert data(frame).endswith(b',"cost":null,"provider":"openai","streamproxy_unread":true}')
    assert frame.final


def test_an_array_becomes_the_data_of_an_object() -> None:
    [answer] = read(b'["https://host/p"]', stream=False)
    assert (answer["data"], answer["streamproxy_unread"]) == (["https://host/p"], True)


def test_a_readable_answer_is_not_marked_unread() -> None:
    [answer] = read(b'{"data":[{"url":"u"}],"streamproxy_unread":true}', stream=False)
    assert "streamproxy_unread" not in answer


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_stream_of_it_says_what_there_was_instead(name: str) -> None:
    frames, error = decoded(wanted(), [UNREADABLE[name]], JSON)
    assert frames == []
    assert error is not None
    assert error.failure is Failure.NO_IMAGE
    assert "Its members: " in error.message
    assert P not in error.message
    assert ("It says: " in error.message) is (b"message" in UNREADABLE[name])


def test_what_there_was_instead_is_scrubbed() -> None:
    key = "sk-abcdefghijklmnopqrstuvwxyz0123456789"
    body = json.dumps({"images": ["x"], key: "x", "message": f"m {key}"}).encode()
    _, error = decoded(wanted(), [body], JSON)
    assert error is not None
    assert error.message.endswith("Its members: images, #2, message. It says: m [redacted]")


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"code":1026,"msg":"input new_sensitive"}', "input new_sensitive", "1026"),
        (b'{"success":false,"message":"m","images":["x"]}', "m", "provider_stream_error"),
        (b'{"base_resp":{"status_code":1026,"status_msg":"m"},"data":null}', "m", "1026"),
        (b'{"created":1,"data":[],"message":"filtered"}', "filtered", "provider_stream_error"),
        (b'{"data":[],"errors":[{"message":"a"}]}', "a", "provider_stream_error"),
        (b'{"status":"failed","detail":"d","seed":1e999}', "d", "failed"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_refusal_under_200_has_the_providers_words(body: bytes, message: str, code: str, stream: bool) -> None:
    frames, error = decoded(wanted(stream=stream), [body], JSON)
    assert frames == []
    assert error is not None
    assert (error.failure, error.message, error.code) == (Failure.PROVIDER_STREAM_ERROR, message, code)


def test_one_odd_item_does_not_cost_the_others() -> None:
    body = b'{"data":[null,"x",{"b64_json":"%b"}]}' % PICTURE
    assert [event["b64_json"] for event in read(body, stream=True)] == [P]
    assert len(read(body, stream=False)) == 1


def test_millions_of_items_are_refused_before_they_are_made() -> None:
    body = b'{"data":[' + b"{}," * 2_000_000 + b"{}]}"
    tracemalloc.start()
    try:
        _, error = decoded(wanted(max_answer_bytes=1 << 24), [body], JSON)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error is not None
    assert error.failure is Failure.BAD_JSON
    assert peak < 6 * len(body)


@pytest.mark.parametrize("written", [f"data:image/png;base64,{P}", f"data:image\\/png;base64,{P}", f"data:,{P}"])
def test_a_data_urls_prefix_is_removed_in_answers(written: str) -> None:
    body = b'{"x":1E2,"data":[{"a":1, "b64_json": "%b"},{"b64_json":"%b","b":[2]}]}' % (written.encode(), PICTURE)
    frames, error = decoded(wanted(stream=False, n=2), [body], JSON)
    assert error is None
    plain = b'{"x":1E2,"data":[{"a":1,"b64_json": "%b"},{"b64_json":"%b","b":[2]}],' % (PICTURE, PICTURE)
    assert data(frames[0]).startswith(plain)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("others", ["", '"b64_json":null,', '"b64_json":"",'])
def test_a_data_url_is_base64(others: str, stream: bool) -> None:
    url = f"data:image/png;base64,{P}"
    body = f'{{"data":[{{{others}"url":"{url}"}}]}}'.encode()
    for format in (b"b64_json", b"", b"url"):
        forms = (Part("prompt", b"p"), Part("response_format", format))
        for given in (b'{"model":"m","response_format":"%b"}' % format, forms):
            frames, error = decoded(wanted(given, stream=stream), [body], JSON)
            assert error is None
            said = orjson.loads(data(frames[0]))
            item = said if stream else said["data"][0]
            assert (item["b64_json"], item.get("url")) == (P, None)


@pytest.mark.parametrize("url", ["data:image/svg+xml,%3Csvg/%3E", "https://host/p"])
def test_a_url_that_is_no_base64_stays_one(url: str) -> None:
    body = f'{{"data":[{{"url":"{url}"}}]}}'.encode()
    [answer] = read(body, stream=False)
    assert answer["data"] == [{"url": url}]
    [event] = read(body, stream=True)
    assert (event["b64_json"], event["url"]) == (None, url)


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (b'{"data":[]}', Failure.NO_IMAGE),
        (b'{"data":[],"id":"img-1","object":"list","status":"completed","usage":{"tier":"x"}}', Failure.NO_IMAGE),
        (b'{"data":[{"revised_prompt":"r"}]}', Failure.NO_IMAGE),
        (b'{"code":0,"message":"success","data":[]}', Failure.NO_IMAGE),
        (b"[]", Failure.BAD_JSON),
        (b'{"data":null}', Failure.NO_IMAGE),
        (b"{}", Failure.NO_IMAGE),
        (b'{"data":[{}]}', Failure.NO_IMAGE),
        (b'{"data":[{"b64_json":5}]}', Failure.NO_IMAGE),
        (b'{"data":{}}', Failure.BAD_JSON),
        (b'{"data":[5]}', Failure.BAD_JSON),
        (b'{"data":[{"b64_json":"AAAA"}]', Failure.BAD_JSON),
        (b'{"data":[{"b64_json":"AAAA"}],"text":"\xff"}', Failure.BAD_JSON),
        (b'{"data":[{"b64_json":"AAAA"}]}{}', Failure.BAD_JSON),
        (b'{"error":{"message":"m"},"data":[{"b64_json":"AAAA"}]}', Failure.PROVIDER_STREAM_ERROR),
        (b'{"error":"boom"}', Failure.PROVIDER_STREAM_ERROR),
        (b'{"type":"error","message":"m"}', Failure.PROVIDER_STREAM_ERROR),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_is_no_image(body: bytes, failure: Failure, stream: bool) -> None:
    assert failed(body, stream=stream) is failure
