"""What a surface is to the web layer, and what surfaces of other wires than the images API's make theirs from.

    Surface, Layout         how one request's outcome is written in its caller's wire
    Result, Spent           a finished image, and what several of them have cost together
    Turn, prompt_of         a conversation as one prompt
    translated(...)         a body of the images API, made from another wire's, and checked as one

So whatever a request came as, it is one images request behind its surface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import msgspec

from streamproxy.core.eventdata import taken_apart
from streamproxy.core.events import Frame
from streamproxy.core.images import probe_base64
from streamproxy.core.rawjson import JsonObject, Pieces, parse, present, text
from streamproxy.core.requests import ImageRequest
from streamproxy.core.schema import invalid
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, Problem, ProxyError
from streamproxy.surfaces import images

PROBED: Final = 64 * 1024
"""Characters of base64 that are gathered to see what kind of image it is."""

Loc = tuple[str | int, ...]
Places = Callable[[Loc], Loc]
"""Where a member of the images API's body stood in the body that it was made from."""


class Layout(Protocol):
    """How one generation is written for one reader. It may count what it has written."""

    def opening(self) -> tuple[Piece, ...]:
        """What the stream begins with, before there is any event."""
        ...

    def event(self, frame: Frame) -> tuple[Piece, ...]:
        """An event in this wire; nothing where this wire has no such event."""
        ...

    def answer(self, answer: tuple[Piece, ...]) -> tuple[Piece, ...]:
        """The JSON answer, made from the images API's."""
        ...


class Surface(Protocol):
    """How one request's outcome is written."""

    def layout(self, stream: str, created: int) -> Layout:
        """For one reader of the stream of this id, which began at `created`, in Unix seconds."""
        ...


# -------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True, slots=True)
class Result:
    """One image: base64 as it stands in JSON, in pieces, or a URL, and what else is said of it, as raw JSON."""

    base64: tuple[Piece, ...]
    members: Mapping[str, msgspec.Raw]

    @property
    def url(self) -> str:
        """Where the image is, if it is not here."""
        return text(self.members.get("url", msgspec.Raw()))

    @property
    def format(self) -> str:
        """What kind of image it is: what its bytes say, else what is said of it."""
        info = probe_base64(_start(self.base64))
        return info.format if info else text(self.members.get("output_format", msgspec.Raw())) or "png"

    @property
    def json(self) -> tuple[Piece, ...]:
        """A JSON string: the image as a data URL, or its URL."""
        if not self.base64:
            return (msgspec.json.encode(self.url),)
        kind = {"svg": "svg+xml", "jpg": "jpeg"}.get(self.format, self.format)
        return (b'"data:image/' + msgspec.json.encode(kind)[1:-1] + b";base64,", *self.base64, b'"')


def _start(base64: Iterable[Piece]) -> bytes:
    gathered = bytearray()
    for piece in base64:
        gathered += piece[: PROBED - len(gathered)]
        if len(gathered) >= PROBED:
            break
    return bytes(gathered)


def result_of(frame: Frame) -> Result:
    """The image of a preview or of a `completed` event."""
    members, base64 = taken_apart(frame.data)
    return Result(base64, members)


class _Answer(msgspec.Struct):
    data: list[dict[str, msgspec.Raw]]


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def results_in(answer: tuple[Piece, ...]) -> tuple[list[Result], Mapping[str, msgspec.Raw]]:
    """The images of the images API's JSON answer, and what it says of them all. Raises ProxyError(BAD_JSON)."""
    raw = b"".join(answer)
    try:
        said = _OBJECT.decode(raw)
        items = _ANSWER.decode(raw).data
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ProxyError(Failure.BAD_JSON, "The provider's answer is not the JSON of the images API.") from None
    del said["data"]
    return [_result(said, item) for item in items], said


def _result(said: Mapping[str, msgspec.Raw], item: Mapping[str, msgspec.Raw]) -> Result:
    image = present(item.get("b64_json", msgspec.Raw()))
    base64 = (memoryview(image)[1:-1],) if image is not None and image[:1] == b'"' and len(image) > 2 else ()
    return Result(base64, {**said, **{name: value for name, value in item.items() if name != "b64_json"}})


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0


class _Cost(msgspec.Struct):
    usage: _Usage | None = None
    cost: float | None = None
    provider: str | None = None


class Spent:
    """What the images of one request have cost so far: tokens, and USD where anything says so."""

    def __init__(self) -> None:
        self.input = 0
        self.output = 0
        self.total = 0
        self.cost: float | None = None
        self.provider: str | None = None

    def add(self, members: Mapping[str, msgspec.Raw]) -> None:
        """Add what one event, or one answer, says."""
        try:
            said = msgspec.convert({name: _value(members, name) for name in _Cost.__struct_fields__}, _Cost)
        except msgspec.ValidationError:
            return
        usage = said.usage or _Usage()
        self.input += usage.input_tokens
        self.output += usage.output_tokens
        self.total += usage.total_tokens
        if said.cost is not None:
            self.cost = round((self.cost or 0.0) + said.cost, 6)
        self.provider = said.provider or self.provider


def _value(members: Mapping[str, msgspec.Raw], name: str) -> object:
    raw = members.get(name)
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


# ---------------------------------------------------------------------------------------------------------- translation


@dataclass(slots=True)
class Turn:
    """One message of a conversation: its words and, as numbers among all input images, the pictures in it."""

    role: str
    content: list[str | int] = field(default_factory=list)

    @property
    def leads(self) -> bool:
        """Whether it says how to answer, and is no part of the conversation."""
        return self.role in ("system", "developer")

    def said(self, *, among: bool) -> str:
        """Its text; `among` other turns it is said whose, and which pictures it shows."""
        words = [part if isinstance(part, str) else f"[image {part}]" for part in self.content]
        text = "\n".join(words if among else [part for part in self.content if isinstance(part, str)])
        return f"{self.role.capitalize()}: {text}" if among and not self.leads else text


def prompt_of(turns: Sequence[Turn]) -> str:
    """The words of all turns; whose they are, and where pictures stand, is said where there are several turns."""
    filled = [turn for turn in turns if turn.content]
    several = sum(not turn.leads for turn in filled) > 1
    lines = [turn.said(among=several) for turn in filled]
    return "\n\n".join(line for line in lines if line)


def translated(members: Mapping[str, Pieces], max_prompt: int, places: Places) -> ImageRequest:
    """An images request from these members of its body. Raises ProxyError, about the body that they were made from."""
    pieces: list[Piece] = []
    for name, value in members.items():
        pieces += (b",", msgspec.json.encode(name), b":", *value)
    body: JsonObject = parse(b"".join((b"{", *pieces[1:], b"}")))
    del pieces
    try:
        found = (images.edit if "images" in members else images.generation)(body, max_prompt=max_prompt)
    except ProxyError as error:
        raise relocated(error, places) from None
    named = {f"images[{index}]": _path(places(("images", index))) for index in range(len(found.images))}
    return replace(found, places={**named, "mask": _path(places(("mask",)))})


def _path(loc: Loc) -> str:
    return Problem(("body", *loc), "", "").param


def references(members: Sequence[Pieces]) -> Pieces:
    """The images API's `images`, from the one member of each, `"image_url":...` or `"file_id":...`."""
    pieces: list[Piece] = []
    for member in members:
        pieces += (b",{", *member, b"}")
    return (b"[", pieces[0][1:], *pieces[1:], b"]")


def relocated(error: ProxyError, places: Places) -> ProxyError:
    """The error about the body that the caller sent."""
    found = error.details.problems
    if not found:
        return error
    problems = tuple(replace(problem, loc=("body", *places(problem.loc[1:]))) for problem in found)
    return invalid(problems, error.failure)


def unsupported(message: str, param: str) -> ProxyError:
    """400: what this surface does not do."""
    return ProxyError(Failure.UNSUPPORTED_PARAMETER, message, param=param)
