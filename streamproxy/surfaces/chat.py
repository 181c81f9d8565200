"""Chat completions, for models that answer with a picture.

    request(body, model)     a chat's body -> what is wanted
    Chat(...)                frames and answers as chat.completion and its chunks

The conversation becomes one prompt: the words of all turns in their order, each under its role where there are
several, and all pictures that were shown, as input images. A picture of the assistant's own is an input like any other,
whichever way the caller's program has kept it: as the whole content, as a part, or in `images`.

The picture is `content`, a data URL, as Eden AI writes it; where the request has `modalities`, as OpenRouter's callers
do, it is in `images`, and `content` are the words. Previews are left out: readers of chats append what they get.

Sources: Eden AI's guide to images in chats; OpenRouter's recorded answers; openai-python 3.57, types/chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import Final

import msgspec

from streamproxy.core.catalogue import Model
from streamproxy.core.events import ERROR, KINDS, Frame, Role, read_error
from streamproxy.core.rawjson import JsonObject, Pieces, elements, members, shown, text
from streamproxy.core.requests import ImageRequest
from streamproxy.core.schema import CHOICE, MAX_IMAGES, Checklist, Loc
from streamproxy.core.sse import Piece
from streamproxy.surfaces.wire import (
    Layout,
    Result,
    Spent,
    Turn,
    prompt_of,
    references,
    result_of,
    results_in,
    translated,
    unsupported,
)

RATIOS: Final = ("1:1", "16:9", "9:16", "4:3", "3:4", "21:9", "2:3", "3:2", "4:5", "5:4", "1:4", "4:1", "1:8", "8:1")
"""What `image_config.aspect_ratio` may be (Eden AI's table)."""

EDGES: Final = {"512": 512, "1K": 1024, "2K": 2048, "4K": 4096}
"""The edge of a square of each `image_config.image_size`."""

GRID: Final = 16
"""Edges are multiples of this many pixels: what GPT image models take."""

FORWARDED: Final = ("n", "stream", "user", "extra_headers", "size", "quality", "background", "moderation")
IMAGE_ONLY: Final = ("output_format", "output_compression", "thinking_level", "media_resolution", *CHOICE)
"""Members that are the images API's as well. They go on as they came."""

READ: Final = frozenset({"model", "messages", "modalities", "image_config", "stream_options", *FORWARDED, *IMAGE_ONLY})

MAX_MESSAGES: Final = 4096
"""Messages, and parts of one message. The body's own limits are reached earlier by real ones."""

DONE: Final = b"data: [DONE]\n\n"

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Image:
    """One picture: the JSON string of its URL, and where that stands."""

    span: Span
    loc: Loc


def request(body: JsonObject, model: Model) -> ImageRequest:
    """What a chat with an image model wants. Raises ProxyError with all problems, in this wire's terms."""
    checks = Checklist()
    reading = _Reader(body, checks)
    reading.messages()
    config = reading.image_config(model)
    reading.modalities()
    checks.end()
    wanted = translated(reading.members(), model.max_prompt, reading.places)
    if config:
        wanted = replace(wanted, size=wanted.size or _size(config), options={"image_config": config})
    unheard = tuple(
        shown(name, place) for place, name in enumerate(body.members, 1) if name not in READ and reading.given(name)
    )
    return replace(wanted, response_format="b64_json", unheard=unheard)


def wants_images(body: JsonObject) -> bool:
    """Whether the answer has its pictures in `images`."""
    return (body.value("modalities") or b"null") != b"null"


def _size(config: Mapping[str, str]) -> str:
    """The pixels of a ratio and a size class, for a wire that knows only pixels."""
    width, height = map(int, config.get("aspect_ratio", "1:1").split(":"))
    edge = EDGES[config.get("image_size", "1K")]
    sides = edge * sqrt(width / height), edge * sqrt(height / width)
    return "x".join(str(max(GRID, round(side / GRID) * GRID)) for side in sides)


class _Reader:
    """Reads one body. Pictures are spans of it."""

    def __init__(self, body: JsonObject, checks: Checklist) -> None:
        self._body = body
        self._checks = checks
        self._turns: list[Turn] = []
        self._images: list[_Image] = []

    def given(self, name: str) -> bool:
        """Whether a member is there, and is not null."""
        member = self._body.members.get(name)
        return member is not None and not self._body.raw.startswith(b"null", member.value)

    def messages(self) -> None:
        """Read the conversation."""
        if "messages" not in self._body.members:
            return self._checks.missing("messages")
        start = self._body.members["messages"].value
        if not self._is(start, b"["):
            return self._checks.problem(("messages",), "Input should be a valid list", "list_type")
        spans = elements(self._body, start, limit=MAX_MESSAGES + 1, where="messages")
        if self._checks.items(("messages",), len(spans), 1, MAX_MESSAGES):
            for index, (at, _) in enumerate(spans):
                self._message(("messages", index), at)
            self._checks.items(("messages",), len(self._images), 0, MAX_IMAGES)
        return None

    def _message(self, loc: Loc, start: int) -> None:
        if not self._is(start, b"{"):
            return self._checks.problem(loc, "Input should be a valid dictionary", "dict_type")
        found = members(self._body, start, where=_path(loc))
        role = found.get("role")
        if role is None or not self._is(role.value, b'"'):
            return self._checks.problem((*loc, "role"), "Input should be a valid string", "string_type")
        self._turns.append(Turn(self._text((role.value, role.end))))
        if (content := found.get("content")) is not None:
            self._content((*loc, "content"), (content.value, content.end))
        if (images := found.get("images")) is not None and self._is(images.value, b"["):
            self._parts((*loc, "images"), images.value)
        return None

    def _content(self, loc: Loc, span: Span) -> None:
        if self._is(span[0], b'"data:image/'):
            self._show(loc, span)
        elif self._is(span[0], b'"'):
            self._turns[-1].content.append(self._text(span))
        elif self._is(span[0], b"["):
            self._parts(loc, span[0])
        elif not self._is(span[0], b"null"):
            self._checks.problem(loc, "Input should be a valid string or a list", "string_type")

    def _parts(self, loc: Loc, start: int) -> None:
        spans = elements(self._body, start, limit=MAX_MESSAGES + 1, where=_path(loc))
        if self._checks.items(loc, len(spans), 0, MAX_MESSAGES):
            for index, (at, _) in enumerate(spans):
                self._part((*loc, index), at)

    def _part(self, loc: Loc, start: int) -> None:
        if not self._is(start, b"{"):
            return self._checks.problem(loc, "Input should be a valid dictionary", "dict_type")
        found = members(self._body, start, where=_path(loc))
        kind = found.get("type")
        kind_is = self._text((kind.value, kind.end)) if kind is not None and self._is(kind.value, b'"') else ""
        value = found.get("text" if kind_is == "text" else "image_url")
        if kind_is not in ("text", "image_url"):
            return self._checks.problem((*loc, "type"), "Input should be 'text' or 'image_url'", "literal_error")
        if value is None:
            return self._checks.missing(*loc, "text" if kind_is == "text" else "image_url")
        if kind_is == "text":
            if self._is(value.value, b'"'):
                return self._turns[-1].content.append(self._text((value.value, value.end)))
            return self._checks.problem((*loc, "text"), "Input should be a valid string", "string_type")
        return self._url((*loc, "image_url"), (value.value, value.end))

    def _url(self, loc: Loc, span: Span) -> None:
        """`{"url": "..."}`, or the URL alone as some programs write it."""
        if self._is(span[0], b"{"):
            url = members(self._body, span[0], where=_path(loc)).get("url")
            loc = (*loc, "url")
            if url is None:
                return self._checks.missing(*loc)
            span = (url.value, url.end)
        if not self._is(span[0], b'"'):
            return self._checks.problem(loc, "Input should be a valid string", "string_type")
        return self._show(loc, span)

    def _show(self, loc: Loc, span: Span) -> None:
        self._images.append(_Image(span, loc))
        self._turns[-1].content.append(len(self._images))

    def image_config(self, model: Model) -> dict[str, str]:
        """The aspect ratio and the size class."""
        if not self.given("image_config"):
            return {}
        given = self._body.decode("image_config")
        if not isinstance(given, dict):
            self._checks.problem(("image_config",), "Input should be a valid dictionary", "dict_type")
            return {}
        allowed = {"aspect_ratio": RATIOS, "image_size": model.image_sizes}
        for place, (name, value) in enumerate(given.items(), 1):
            if name not in allowed:
                loc = ("image_config", shown(name, place))
                self._checks.problem(loc, "Extra inputs are not permitted", "extra_forbidden")
            elif value is not None and value not in allowed[name]:
                words = " or ".join(", ".join(f"'{word}'" for word in allowed[name]).rsplit(", ", 1))
                self._checks.problem(("image_config", name), f"Input should be {words}", "literal_error")
        return {name: value for name, value in given.items() if value is not None}

    def modalities(self) -> None:
        """`modalities`, where it is there, has to hold "image"."""
        if not self.given("modalities"):
            return
        given = self._body.decode("modalities")
        if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
            self._checks.problem(("modalities",), "Input should be a valid list of strings", "list_type")
        elif "image" not in given:
            raise unsupported("This model is served for its images: modalities must hold `image`.", "modalities")

    def members(self) -> dict[str, Pieces]:
        """The members of a body of the images API."""
        raw = memoryview(self._body.raw)
        made: dict[str, Pieces] = {"prompt": (msgspec.json.encode(prompt_of(self._turns)),)}
        for name in ("model", *FORWARDED, *IMAGE_ONLY):
            if (member := self._body.members.get(name)) is not None:
                made[name] = (raw[member.value : member.end],)
        if self._images:
            made["images"] = references([(b'"image_url":', raw[slice(*image.span)]) for image in self._images])
        return made

    def places(self, loc: Loc) -> Loc:
        """Where what the images API's body has at `loc` stands in the chat."""
        if loc[:1] == ("prompt",):
            return ("messages",)
        if loc[:1] == ("images",) and len(loc) > 1 and isinstance(loc[1], int):
            return self._images[loc[1]].loc
        return ("messages",) if loc[:1] == ("images",) else loc

    def _is(self, start: int, first: bytes) -> bool:
        return self._body.raw.startswith(first, start)

    def _text(self, span: Span) -> str:
        return msgspec.json.decode(memoryview(self._body.raw)[slice(*span)], type=str)


def _path(loc: Loc) -> str:
    """A place as messages write it: `messages[0].content`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


# -------------------------------------------------------------------------------------------------------------- answers


@dataclass(frozen=True, slots=True)
class Chat:
    """The surface of one chat: `model` as the caller wrote it. `images`: pictures are in `images`, not in `content`."""

    model: str
    n: int
    images: bool

    def layout(self, stream: str, created: int) -> Layout:
        return _Layout(self, f"chatcmpl-{stream.removeprefix('str_')}", created)


class _Layout:
    """One reader's chunks."""

    def __init__(self, chat: Chat, id: str, created: int) -> None:
        self._chat = chat
        self._id = id
        self._created = created
        self._model = chat.model
        self._open = chat.n
        self._spent = Spent()

    def opening(self) -> tuple[Piece, ...]:
        return self._chunk({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def event(self, frame: Frame) -> tuple[Piece, ...]:
        """A chunk with the picture, one that ends its choice, and after the last of these the end."""
        kind = KINDS.get(frame.type)
        if frame.type == ERROR or (kind is not None and kind.role is Role.FAILED):
            return self._failure(frame)
        if kind is None or kind.role is not Role.COMPLETED:
            return ()
        result = result_of(frame)
        self._spent.add(result.members)
        self._model = text(result.members.get("model", msgspec.Raw())) or self._model
        self._open -= 1
        delta = _message(result, self._chat.images)
        choice = (*_choice(frame.image, b"delta", delta), b',"finish_reason":null}')
        shown = self._pieces("chat.completion.chunk", choice)
        ended: dict[str, object] = {"index": frame.image, "delta": {}, "finish_reason": "stop"}
        if self._open:
            return (*_event(shown), *self._chunk(ended))
        return (*_event(shown), *self._chunk(ended, _totals(self._spent)), DONE)

    def answer(self, answer: tuple[Piece, ...]) -> tuple[Piece, ...]:
        results, said = results_in(answer)
        self._spent.add(said)
        self._model = text(said.get("model", msgspec.Raw())) or self._model
        choices: list[Piece] = []
        for index, result in enumerate(results):
            message = _message(result, self._chat.images)
            choices += (b",", *_choice(index, b"message", message), b',"finish_reason":"stop"}')
        return self._pieces("chat.completion", tuple(choices[1:]), _totals(self._spent))

    def _failure(self, frame: Frame) -> tuple[Piece, ...]:
        error = read_error(frame)
        said = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
        choice = {"index": frame.image, "delta": {"content": ""}, "finish_reason": "error"}
        return (*self._chunk(choice, {"error": {**said, "status": error.status}}), DONE)

    def _chunk(self, choice: Mapping[str, object], more: Mapping[str, object] | None = None) -> tuple[Piece, ...]:
        return _event(self._pieces("chat.completion.chunk", (msgspec.json.encode(choice),), more))

    def _pieces(
        self, kind: str, choices: tuple[Piece, ...], more: Mapping[str, object] | None = None
    ) -> tuple[Piece, ...]:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        tail = b"]}" if not more else b"]," + msgspec.json.encode(more)[1:]
        return (msgspec.json.encode(head)[:-1] + b',"choices":[', *choices, tail)


def _event(data: tuple[Piece, ...]) -> tuple[Piece, ...]:
    return (b"data: ", *data, b"\n\n")


def _choice(index: int, name: bytes, message: tuple[Piece, ...]) -> tuple[Piece, ...]:
    return (b'{"index":%d,"' % index + name + b'":', *message)


def _message(result: Result, images: bool) -> tuple[Piece, ...]:
    """The assistant's message, or all of it as one delta."""
    if not images:
        return (b'{"role":"assistant","content":', *result.json, b"}")
    words = msgspec.json.encode(text(result.members.get("text", msgspec.Raw())))
    head = b'{"role":"assistant","content":' + words + b',"images":[{"type":"image_url","image_url":{"url":'
    return (head, *result.json, b'},"index":0}]}')


def _totals(spent: Spent) -> dict[str, object]:
    usage = {"prompt_tokens": spent.input, "completion_tokens": spent.output, "total_tokens": spent.total}
    return {"usage": usage, "cost": spent.cost, "provider": spent.provider}
