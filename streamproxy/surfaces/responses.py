"""Responses with the `image_generation` tool.

    draws(body)                whether a request is for a picture, and for nothing else
    request(body, ...)         its body -> what is wanted
    Response(...)              frames and answers as a response with one image_generation_call

There is no text model here that would decide whether to draw, so a request is answered with a picture where the tool
is the only one, or is the one that `tool_choice` asks for. The tool's own model draws. Its members are the images API's
and go on as they came; the words and the pictures of `input` are the prompt and the input images.

No response is kept under its id, so what refers to one is refused: the next request says everything again.

Sources: openai-python 3.57, types/responses; OpenAI's recorded event stream of the tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from streamproxy.core.events import ERROR, KINDS, Frame, Operation, Role, read_error
from streamproxy.core.rawjson import JsonObject, Member, Pieces, elements, members, shown
from streamproxy.core.requests import ImageRequest
from streamproxy.core.schema import CHOICE, MAX_IMAGES, Checklist, Loc
from streamproxy.core.sse import Piece
from streamproxy.errors import ProxyError
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

TOOL: Final = "image_generation"
CALL: Final = "image_generation_call"

OWN: Final = frozenset({"type", "action", "model", "input_image_mask", "n"})
"""Members of the tool that the images API has not, or has elsewhere."""

READ: Final = frozenset(
    {"model", "input", "instructions", "tools", "tool_choice", "stream", "user", "extra_headers", "metadata", "store"}
    | {"parallel_tool_calls", "background", "previous_response_id", "conversation", "include", *CHOICE}
)
"""Members that are honoured, refused, or change nothing where there is one call of one tool."""

ECHOED: Final = ("quality", "size", "background", "output_format", "output_compression", "moderation", "partial_images")

MAX_ITEMS: Final = 4096

_SAID: Final = ("size", "quality", "background", "output_format", "revised_prompt")
"""What an item says of its picture."""

Span = tuple[int, int]


def draws(body: JsonObject) -> bool:
    """Whether the tool is the only one, or the one that has to be called."""
    kinds = [_tool_type(body, start) for start, _ in _tools(body)]
    if TOOL not in kinds:
        return False
    choice = body.decode("tool_choice")
    forced = isinstance(choice, dict) and choice.get("type") == TOOL
    return (forced or len(set(kinds)) == 1) and choice != "none"


def _tools(body: JsonObject) -> tuple[Span, ...]:
    member = body.members.get("tools")
    if member is None or not body.raw.startswith(b"[", member.value):
        return ()
    return elements(body, member.value, limit=MAX_ITEMS, where="tools")


def _tool_type(body: JsonObject, start: int) -> str:
    if not body.raw.startswith(b"{", start):
        return ""
    kind = members(body, start, where="tools").get("type")
    return "" if kind is None else _string(body, kind)


def _string(body: JsonObject, member: Member) -> str:
    """A member that is a string; "" for any other."""
    found = body.raw.startswith(b'"', member.value)
    return msgspec.json.decode(memoryview(body.raw)[member.value : member.end], type=str) if found else ""


@dataclass(frozen=True, slots=True)
class Tool:
    """The tool of a request: its place, and its members."""

    index: int
    members: Mapping[str, Member]


def tool_of(body: JsonObject) -> Tool:
    """The tool; the request must have one."""
    for index, (start, _) in enumerate(_tools(body)):
        if _tool_type(body, start) == TOOL:
            return Tool(index, members(body, start, where=f"tools[{index}]"))
    raise ValueError("the request has no such tool")


def model_of(body: JsonObject, tool: Tool) -> str | None:
    """The model that the tool names. Raises ProxyError(INVALID_REQUEST) for one that is no name."""
    member = tool.members.get("model")
    if member is None or body.raw.startswith(b"null", member.value):
        return None
    found = _string(body, member)
    if not found:
        checks = Checklist()
        checks.problem(("tools", tool.index, "model"), "Input should be a valid string", "string_type")
        checks.end()
    return found


def request(body: JsonObject, tool: Tool, model: str, max_prompt: int) -> ImageRequest:
    """What the tool is to make, with the model that is served. Raises ProxyError, in this wire's terms."""
    _refuse(body, tool)
    checks = Checklist()
    reading = _Reader(body, tool, checks)
    reading.input()
    action = reading.action()
    checks.end()
    made = reading.members(model, pictures=action != "generate")
    wanted = translated(made, max_prompt, reading.places)
    unheard = tuple(
        shown(name, place)
        for place, name in enumerate(body.members, 1)
        if name not in READ and not body.raw.startswith(b"null", body.members[name].value)
    )
    return replace(wanted, response_format="b64_json", unheard=unheard)


_REFUSED: Final = {
    "previous_response_id": "No response is kept under its id: send the earlier turns and pictures in `input`.",
    "conversation": "No conversation is kept: send the earlier turns and pictures in `input`.",
    "background": "A response is not made in the background: send `Prefer: respond-async`, or an Idempotency-Key.",
}


def _refuse(body: JsonObject, tool: Tool) -> None:
    for name, message in _REFUSED.items():
        if (body.value(name) or b"null") not in (b"null", b"false"):
            raise unsupported(message, name)
    if "n" in tool.members:
        name = f"tools[{tool.index}].n"
        raise unsupported(f"Unknown parameter: '{name}'. One call makes one picture.", name)


class _Reader:
    """Reads one body. Pictures are spans of it."""

    def __init__(self, body: JsonObject, tool: Tool, checks: Checklist) -> None:
        self._body = body
        self._tool = tool
        self._checks = checks
        self._turns: list[Turn] = []
        self._images: list[tuple[Pieces, Loc]] = []

    def input(self) -> None:
        """Read `instructions` and `input`: a text, or a list of items."""
        instructions = self._body.members.get("instructions")
        if instructions is not None and (words := _string(self._body, instructions)):
            self._turns.append(Turn("system", [words]))
        member = self._body.members.get("input")
        if member is None:
            return self._checks.missing("input")
        if self._is(member.value, b'"'):
            return self._turns.append(Turn("user", [_string(self._body, member)]))
        if not self._is(member.value, b"["):
            return self._checks.problem(("input",), "Input should be a valid string or a list", "string_type")
        spans = elements(self._body, member.value, limit=MAX_ITEMS + 1, where="input")
        if self._checks.items(("input",), len(spans), 1, MAX_ITEMS):
            for index, (start, _) in enumerate(spans):
                self._item(("input", index), start)
            self._checks.items(("input",), len(self._images), 0, MAX_IMAGES)
        return None

    def _item(self, loc: Loc, start: int) -> None:
        """A message, or the result of an earlier call of the tool."""
        found = self._object(loc, start)
        if found is None:
            return
        kind = _string(self._body, found["type"]) if "type" in found else "message"
        if kind == CALL:
            self._turns.append(Turn("assistant"))
            self._result((*loc, "result"), found.get("result"))
        elif kind == "message":
            role = _string(self._body, found["role"]) if "role" in found else ""
            if not role:
                self._checks.problem((*loc, "role"), "Input should be a valid string", "string_type")
            self._turns.append(Turn(role))
            self._content((*loc, "content"), found.get("content"))
        elif kind != "reasoning":
            message = f"Input should be 'message', '{CALL}' or 'reasoning'"
            self._checks.problem((*loc, "type"), message, "literal_error")

    def _result(self, loc: Loc, result: Member | None) -> None:
        if result is None or not self._is(result.value, b'"'):
            message = "No response is kept under its id: send the picture itself, as the item had it"
            return self._checks.problem(loc, message, "missing")
        base64 = memoryview(self._body.raw)[result.value + 1 : result.end - 1]
        return self._show((b'"image_url":"data:image/png;base64,', base64, b'"'), loc)

    def _content(self, loc: Loc, content: Member | None) -> None:
        if content is None:
            return self._checks.missing(*loc)
        if self._is(content.value, b'"'):
            return self._turns[-1].content.append(_string(self._body, content))
        if not self._is(content.value, b"["):
            return self._checks.problem(loc, "Input should be a valid string or a list", "string_type")
        for index, (start, _) in enumerate(elements(self._body, content.value, limit=MAX_ITEMS, where="content")):
            self._part((*loc, index), start)
        return None

    def _part(self, loc: Loc, start: int) -> None:
        found = self._object(loc, start)
        if found is None:
            return None
        kind = _string(self._body, found["type"]) if "type" in found else ""
        if kind in ("input_text", "output_text", "text"):
            if "text" not in found:
                return self._checks.missing(*loc, "text")
            return self._turns[-1].content.append(_string(self._body, found["text"]))
        if kind != "input_image":
            return self._checks.problem(
                (*loc, "type"), "Input should be 'input_text', 'output_text' or 'input_image'", "literal_error"
            )
        for name in ("image_url", "file_id"):
            if (source := found.get(name)) is not None and self._is(source.value, b'"'):
                value = memoryview(self._body.raw)[source.value : source.end]
                return self._show((b'"%b":' % name.encode(), value), (*loc, name))
        return self._checks.problem((*loc, "image_url"), "Input should be a valid string", "string_type")

    def _show(self, member: Pieces, loc: Loc) -> None:
        self._images.append((member, loc))
        self._turns[-1].content.append(len(self._images))

    def action(self) -> str:
        """`auto`, `generate`, which takes no input images, or `edit`, which needs one."""
        member = self._tool.members.get("action")
        if member is None or self._is(member.value, b"null"):
            return "auto"
        found = _string(self._body, member)
        if found not in ("auto", "generate", "edit"):
            loc = ("tools", self._tool.index, "action")
            self._checks.problem(loc, "Input should be 'auto', 'generate' or 'edit'", "literal_error")
        if found == "edit" and not self._images:
            self._checks.problem(("input",), "An edit needs an input image", "missing")
        return found

    def members(self, model: str, *, pictures: bool) -> dict[str, Pieces]:
        """The members of a body of the images API."""
        raw = memoryview(self._body.raw)
        made: dict[str, Pieces] = {
            "model": (msgspec.json.encode(model),),
            "prompt": (msgspec.json.encode(prompt_of(self._turns)),),
        }
        for name in ("stream", "user", "extra_headers", *CHOICE):
            if (member := self._body.members.get(name)) is not None:
                made[name] = (raw[member.value : member.end],)
        for name, member in self._tool.members.items():
            if name not in OWN and name not in made:
                made[name] = (raw[member.value : member.end],)
        if self._images and pictures:
            made["images"] = references([member for member, _ in self._images])
            mask = self._tool.members.get("input_image_mask")
            if mask is not None:
                made["mask"] = (raw[mask.value : mask.end],)
        return made

    def places(self, loc: Loc) -> Loc:
        """Where what the images API's body has at `loc` stands in this one."""
        match loc:
            case ("prompt", *_):
                return ("input",)
            case ("images", int(index), *_):
                return self._images[index][1]
            case ("images", *_):
                return ("input",)
            case ("mask", *rest):
                return ("tools", self._tool.index, "input_image_mask", *rest)
            case (str(name), *_) if name in self._tool.members:
                return ("tools", self._tool.index, *loc)
            case _:
                return loc

    def _object(self, loc: Loc, start: int) -> Mapping[str, Member] | None:
        if self._is(start, b"{"):
            return members(self._body, start, where="input")
        self._checks.problem(loc, "Input should be a valid dictionary", "dict_type")
        return None

    def _is(self, start: int, first: bytes) -> bool:
        return self._body.raw.startswith(first, start)


# -------------------------------------------------------------------------------------------------------------- answers


@dataclass(frozen=True, slots=True)
class Response:
    """The surface of one response. `model` as the caller wrote it; `tool`: what it repeats of the tool."""

    model: str
    operation: Operation
    tool: Mapping[str, object]
    instructions: object = None
    metadata: object = None
    tool_choice: object = None

    @classmethod
    def of(cls, body: JsonObject, tool: Tool, wanted: ImageRequest) -> Response:
        """The surface of a request. `wanted` is what became of it."""
        said = {"type": TOOL, "model": wanted.model}
        given = {name: tool.members[name] for name in ECHOED if name in tool.members}
        values = {name: _scalar(body, member) for name, member in given.items()}
        written = body.decode("model")
        return cls(
            model=written if isinstance(written, str) else wanted.model,
            operation=wanted.operation,
            tool={**said, **values},
            instructions=body.decode("instructions"),
            metadata=body.decode("metadata"),
            tool_choice=body.decode("tool_choice"),
        )

    def layout(self, stream: str, created: int) -> Layout:
        return _Layout(self, stream.removeprefix("str_"), created)


def _scalar(body: JsonObject, member: Member) -> object:
    return msgspec.json.decode(memoryview(body.raw)[member.value : member.end])


@dataclass(slots=True)
class _Layout:
    """One reader's events, numbered from 0."""

    response: Response
    id: str
    created: int
    number: int = 0
    spent: Spent = field(default_factory=Spent)

    def opening(self) -> tuple[Piece, ...]:
        item = {"id": f"ig_{self.id}", "type": CALL, "status": "in_progress"}
        return (
            *self._event("response.created", b',"response":', *self._response("in_progress")),
            *self._event("response.in_progress", b',"response":', *self._response("in_progress")),
            *self._event("response.output_item.added", b',"output_index":0,"item":', msgspec.json.encode(item)),
            *self._call("in_progress"),
            *self._call("generating"),
        )

    def event(self, frame: Frame) -> tuple[Piece, ...]:
        """A preview, the picture with what follows it, or the failure."""
        kind = KINDS.get(frame.type)
        if frame.type == ERROR or (kind is not None and kind.role is Role.FAILED):
            return self._failure(read_error(frame))
        if kind is None or kind.role is Role.USAGE:
            return ()
        result = result_of(frame)
        if kind.role is Role.PREVIEW:
            return self._preview(result)
        self.spent.add(result.members)
        item = self._item(result)
        return (
            *self._call("completed"),
            *self._event("response.output_item.done", b',"output_index":0,"item":', *item),
            *self._event("response.completed", b',"response":', *self._response("completed", item)),
        )

    def answer(self, answer: tuple[Piece, ...]) -> tuple[Piece, ...]:
        results, said = results_in(answer)
        self.spent.add(said)
        items: list[Piece] = []
        for result in results[:1]:
            items += self._item(result)
        return self._response("completed", tuple(items))

    def _preview(self, result: Result) -> tuple[Piece, ...]:
        number = bytes(result.members.get("partial_image_index", msgspec.Raw())) or b"0"
        said = {name: result.members[name] for name in _SAID if name in result.members}
        head = b',"output_index":0,"item_id":"ig_%b","partial_image_index":%b,"partial_image_b64":"' % (
            self.id.encode(),
            number,
        )
        tail = b'"' if not said else b'",' + msgspec.json.encode(said)[1:-1]
        return self._event("response.image_generation_call.partial_image", head, *result.base64, tail)

    def _item(self, result: Result) -> tuple[Piece, ...]:
        """The finished call. A picture that is only known by its URL has that instead of `result`."""
        said: dict[str, object] = {name: result.members[name] for name in _SAID if name in result.members}
        action = "edit" if self.response.operation is Operation.EDIT else "generate"
        members = {"id": f"ig_{self.id}", "type": CALL, "status": "completed", **said, "action": action}
        if not result.base64:
            return (msgspec.json.encode({**members, "result": None, "url": result.url}),)
        return (msgspec.json.encode(members)[:-1] + b',"result":"', *result.base64, b'"}')

    def _failure(self, error: ProxyError) -> tuple[Piece, ...]:
        said = {"code": error.code, "message": error.message, "param": error.param}
        failed = {"code": error.code, "message": error.message}
        return (
            *self._event("error", b"," + msgspec.json.encode(said)[1:-1]),
            *self._event("response.failed", b',"response":', *self._response("failed", error=failed)),
        )

    def _call(self, what: str) -> tuple[Piece, ...]:
        members = b',"output_index":0,"item_id":"ig_%b"' % self.id.encode()
        return self._event(f"response.image_generation_call.{what}", members)

    def _event(self, kind: str, *members: Piece) -> tuple[Piece, ...]:
        head = f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":{self.number}'
        self.number += 1
        return (head.encode(), *members, b"}\n\n")

    def _response(
        self, status: str, item: tuple[Piece, ...] = (), error: Mapping[str, object] | None = None
    ) -> tuple[Piece, ...]:
        head: dict[str, object] = {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": None,
            "instructions": self.response.instructions,
            "metadata": self.response.metadata or {},
            "model": self.response.model,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": None,
            "tool_choice": self.response.tool_choice or "auto",
            "tools": [self.response.tool],
            "top_p": None,
            "usage": None,
        }
        if status == "completed":
            head |= _totals(self.spent)
        return (msgspec.json.encode(head)[:-1] + b',"output":[', *item, b"]}")


def _totals(spent: Spent) -> dict[str, object]:
    """The tokens of the picture: there is no text model whose own would be beside them."""
    used = {"input_tokens": spent.input, "output_tokens": spent.output, "total_tokens": spent.total}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    usage = {**used, **details}
    return {"usage": usage, "tool_usage": {"image_gen": used}, "cost": spent.cost, "provider": spent.provider}
