"""Frames as chats and responses have them: where an event's data is cut changes nothing, and nothing is copied."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproxy.core.eventdata import taken_apart
from streamproxy.core.events import ERROR, Frame, Operation
from streamproxy.core.sse import Piece
from streamproxy.surfaces.chat import Chat
from streamproxy.surfaces.images import Images
from streamproxy.surfaces.responses import Response
from streamproxy.surfaces.wire import Surface

B64: Final = "iVBORw0KGgo" * 9
USAGE: Final = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
COMPLETED: Final = orjson.dumps(
    {
        "type": "image_generation.completed",
        "b64_json": B64,
        "created_at": 1,
        "output_format": "png",
        "text": 'say "hi"',
        "usage": USAGE,
        "cost": 0.25,
        "provider": "sim",
    }
)
PREVIEW: Final = orjson.dumps(
    {"type": "image_generation.partial_image", "b64_json": B64, "partial_image_index": 1, "size": "8x8"}
)
SURFACES: Final[dict[str, Surface]] = {
    "images": Images(),
    "chat": Chat("a/model", 1, images=False),
    "openrouter": Chat("a/model", 1, images=True),
    "responses": Response("gpt-5", Operation.GENERATION, {"type": "image_generation"}),
}


def cut(data: bytes, *places: int) -> tuple[Piece, ...]:
    bounds = sorted({0, len(data), *places})
    return tuple(data[start:end] for start, end in pairwise(bounds))


def completed(*places: int) -> Frame:
    return Frame("image_generation.completed", cut(COMPLETED, *places), final=True)


def written(surface: Surface, *frames: Frame) -> bytes:
    layout = surface.layout("str_1", 5)
    pieces = [*layout.opening()]
    for frame in frames:
        pieces += layout.event(frame)
    return b"".join(pieces)


@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)
def test_where_data_is_cut_changes_nothing(surface: Surface) -> None:
    whole = written(surface, completed())
    assert all(written(surface, completed(place)) == whole for place in range(1, len(COMPLETED)))


@given(st.lists(st.integers(1, len(COMPLETED) - 1)))
def test_any_cuts_give_members_and_image(places: list[int]) -> None:
    members, image = taken_apart(cut(COMPLETED, *places))
    assert b"".join(image) == B64.encode()
    expected = orjson.loads(COMPLETED)
    del expected["b64_json"]
    assert {name: orjson.loads(bytes(raw)) for name, raw in members.items()} == expected


def test_the_image_is_not_copied() -> None:
    data = cut(COMPLETED, 80, 90)
    _, image = taken_apart(data)
    assert all(isinstance(piece, memoryview) and piece.obj in data for piece in image)


@pytest.mark.parametrize(
    ("data", "image"),
    [
        (b'{"b64_json":null,"url":"u"}', b""),
        (b'{"b64_json":""}', b""),
        (b'{"a":{"b64_json":"AAAA"},"b64_json":"BBBB"}', b"BBBB"),
        (b'{"a":{"b64_json":"AAAA"}}', b""),
        (b'{"b64_json":"A\\/A="}', b"A\\/A="),
        (b'{"b64_json":7}', b""),
        (b"[]", b""),
        (b"{", b""),
        (b"", b""),
    ],
)
def test_odd_events(data: bytes, image: bytes) -> None:
    assert b"".join(taken_apart((data,))[1]) == image


def test_words_of_the_model_are_content_beside_images() -> None:
    body = written(SURFACES["openrouter"], completed())
    shown = orjson.loads(body.split(b"\n\n")[1].removeprefix(b"data: "))
    assert shown["choices"][0]["delta"]["content"] == 'say "hi"'
    assert b"say" not in written(SURFACES["chat"], completed())


def test_what_was_spent_is_said_once() -> None:
    frames = [Frame(completed().type, completed().data, image=index, final=True) for index in range(2)]
    body = written(Chat("a/model", 2, images=False), *frames)
    said = [orjson.loads(line[6:]) for line in body.split(b"\n\n") if line.startswith(b"data: {")]
    assert [chunk["usage"]["total_tokens"] for chunk in said if "usage" in chunk] == [14]
    assert [chunk["cost"] for chunk in said if "cost" in chunk] == [0.5]


def test_a_preview_keeps_its_number() -> None:
    body = written(SURFACES["responses"], Frame("image_generation.partial_image", (PREVIEW,)))
    last = orjson.loads(body.rstrip().rpartition(b"data: ")[2])
    assert (last["partial_image_index"], last["partial_image_b64"], last["size"]) == (1, B64, "8x8")
    for name in ("chat", "openrouter"):
        assert written(SURFACES[name], Frame("image_generation.partial_image", (PREVIEW,))) == written(SURFACES[name])


@pytest.mark.parametrize("name", ["chat", "responses"])
@pytest.mark.parametrize("kind", [ERROR, "image_generation.failed"])
def test_a_failure_is_final(name: str, kind: str) -> None:
    data = orjson.dumps({"type": kind, "error": {"message": "No.", "code": "moderation_blocked", "status": 400}})
    body = written(SURFACES[name], Frame(kind, (data,), final=True))
    assert b'"moderation_blocked"' in body
    assert body.endswith(b"data: [DONE]\n\n" if name == "chat" else b"}\n\n")


def test_a_url_stands_where_there_is_no_image() -> None:
    data = b'{"type":"image_generation.completed","b64_json":null,"url":"https://host/a.png","usage":null}'
    frame = Frame("image_generation.completed", (data,), final=True)
    assert b'"content":"https://host/a.png"' in written(SURFACES["chat"], frame)
    assert b'"result":null,"url":"https://host/a.png"' in written(SURFACES["responses"], frame)
