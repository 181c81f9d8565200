"""The known events, one row each, and the frame: the currency of every part behind the adapters.

No other module may spell an event's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import msgspec
import orjson

from streamproxy.core.sse import Piece
from streamproxy.errors import ErrorDetails, Failure, ProxyError


class Operation(Enum):
    """The kind of work asked for: by endpoint, or by an image in the body. It decides the family of events."""

    GENERATION = "generation"
    EDIT = "edit"


class Role(Enum):
    """The meaning of an event for its image."""

    PREVIEW = "preview"
    COMPLETED = "completed"
    FAILED = "failed"
    USAGE = "usage"


@dataclass(frozen=True, slots=True)
class EventKind:
    """One event type. Source: openai-openapi, ImageGen*Event and ImageEdit*Event; those of usage are our own."""

    type: str
    operation: Operation
    role: Role


KINDS: Final[dict[str, EventKind]] = {
    kind.type: kind
    for kind in (
        EventKind("image_generation.partial_image", Operation.GENERATION, Role.PREVIEW),
        EventKind("image_generation.completed", Operation.GENERATION, Role.COMPLETED),
        EventKind("image_generation.failed", Operation.GENERATION, Role.FAILED),
        EventKind("image_generation.usage", Operation.GENERATION, Role.USAGE),
        EventKind("image_edit.partial_image", Operation.EDIT, Role.PREVIEW),
        EventKind("image_edit.completed", Operation.EDIT, Role.COMPLETED),
        EventKind("image_edit.failed", Operation.EDIT, Role.FAILED),
        EventKind("image_edit.usage", Operation.EDIT, Role.USAGE),
    )
}

ERROR: Final = "error"
"""The final event of a stream that failed."""

ANSWER: Final = "answer"
"""Not an event: the frame with the whole JSON answer, for a request without `stream`."""


_TYPES: Final = {(kind.operation, kind.role): kind.type for kind in KINDS.values()}


_SUMS: Final = frozenset(kind.type for kind in KINDS.values() if kind.role is Role.USAGE)


def type_of(operation: Operation, role: Role) -> str:
    """The event type for this family and role, e.g. `image_edit.completed`."""
    return _TYPES[operation, role]


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole event on its way to callers: its type and the pieces of its data, shared by all readers.

    `image`: the index of the image among the n of the request. `final`: no later frame for this image. `cost`: USD that
    the data states, None where it states none, and for a frame from a store.
    """

    type: str
    data: tuple[Piece, ...]
    image: int = 0
    final: bool = False
    cost: float | None = field(default=None, compare=False)
    size: int = field(init=False, compare=False, repr=False)
    """Bytes of data."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sum(map(len, self.data)))  # once: each log of the stream asks for it

    @property
    def sums(self) -> bool:
        """Whether it is about a whole job, and shows no picture."""
        return self.type in _SUMS


def error_body(error: ProxyError, request_id: str, *, status: bool = False) -> dict[str, object]:
    """OpenAI's error object, with FastAPI's `detail` beside it where single fields are wrong. Never has a value in it.

    `status`: include the HTTP status, for answers whose head had another.
    """
    said = {"status": error.status} if status else {}
    body: dict[str, object] = {
        "error": {**error.details.members, **_named(error), **said},
        "request_id": request_id,
    }
    if error.details.problems:
        body["detail"] = [{"loc": p.loc, "msg": p.msg, "type": p.type} for p in error.details.problems]
    return body


def error_frame(error: ProxyError, request_id: str) -> Frame:
    """The final `error` event. The error is nested, the only form that SDKs recognise, with the `status` for HTTP."""
    if error.details.as_sent:
        return Frame(ERROR, error.details.as_sent, final=True)
    data = {
        "type": ERROR,
        "error": {**error.details.members, **_named(error), "status": error.status, "charged": error.charged},
        "request_id": request_id,
    }
    return Frame(ERROR, (orjson.dumps(data),), final=True)


class _Error(msgspec.Struct):
    message: str = "The generation failed."
    type: str | None = None
    param: str | None = None
    code: str | None = None
    status: int = 502


class _Failed(msgspec.Struct):
    error: _Error


_OURS: Final = {(failure.value.code, failure.value.status): failure for failure in Failure}
"""Our failures by code and status. A provider's own code is not among them."""


def read_error(frame: Frame) -> ProxyError:
    """The failure in an `error` frame of this proxy, perhaps from another process."""
    try:
        said = msgspec.json.decode(b"".join(frame.data), type=_Failed).error
    except msgspec.DecodeError:
        said = _Error()
    return ProxyError(
        _OURS.get((said.code or "", said.status), Failure.PROVIDER_STREAM_ERROR),
        said.message,
        param=said.param,
        details=ErrorDetails(
            code=said.code,
            type=said.type,
            status=said.status if 400 <= said.status <= 599 else 502,
        ),
    )


def _named(error: ProxyError) -> dict[str, object]:
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
