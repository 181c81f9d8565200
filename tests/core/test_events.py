"""core/events.py: the table of events, frames, and the two forms of an error."""

from __future__ import annotations

import orjson
import pytest
from openai.types import (
    ImageEditCompletedEvent,
    ImageEditPartialImageEvent,
    ImageGenCompletedEvent,
    ImageGenPartialImageEvent,
)
from pydantic import BaseModel

from streamproxy.core.events import ERROR, KINDS, Frame, Operation, Role, error_body, error_frame, type_of
from streamproxy.errors import ErrorDetails, Failure, Problem, ProxyError


@pytest.mark.parametrize(
    ("model", "operation", "role"),
    [
        (ImageGenPartialImageEvent, Operation.GENERATION, Role.PREVIEW),
        (ImageGenCompletedEvent, Operation.GENERATION, Role.COMPLETED),
        (ImageEditPartialImageEvent, Operation.EDIT, Role.PREVIEW),
        (ImageEditCompletedEvent, Operation.EDIT, Role.COMPLETED),
    ],
)
def test_types_are_the_official_sdks(model: type[BaseModel], operation: Operation, role: Role) -> None:
    [name] = model.model_fields["type"].annotation.__args__  # type: ignore[union-attr]
    assert type_of(operation, role) == name
    assert (KINDS[name].operation, KINDS[name].role) == (operation, role)


def test_every_operation_and_role_has_one_type() -> None:
    assert {type_of(operation, role) for operation in Operation for role in Role} == KINDS.keys()
    assert all(kind.type == name for name, kind in KINDS.items())


def test_a_frames_size_is_its_data() -> None:
    assert Frame("t", (b"ab", memoryview(b"cde"))).size == 5


def _error() -> ProxyError:
    problem = Problem(("body", "images", 0, "image_url"), "Field required", "missing")
    return ProxyError(Failure.INVALID_REQUEST, "m", param="p", details=ErrorDetails(problems=(problem,)))


def test_the_http_form() -> None:
    assert error_body(_error(), "req_1") == {
        "error": {"message": "m", "type": "invalid_request_error", "param": "p", "code": "invalid_request"},
        "request_id": "req_1",
        "detail": [{"loc": ("body", "images", 0, "image_url"), "msg": "Field required", "type": "missing"}],
    }
    assert "detail" not in error_body(ProxyError(Failure.NO_IMAGE, "m"), "req_1")


def test_the_final_event_is_nested_and_says_the_status() -> None:
    error = ProxyError(
        Failure.PROVIDER_STREAM_ERROR,
        "m",
        details=ErrorDetails(
            code="moderation_blocked",
            status=400,
            members={"moderation_details": {"categories": ["x"]}, "message": "not this one"},
        ),
    )
    frame = error_frame(error, "req_1")
    assert (frame.type, frame.final) == (ERROR, True)
    assert orjson.loads(b"".join(frame.data)) == {
        "type": "error",
        "error": {
            "message": "m",
            "type": "upstream_error",
            "param": None,
            "code": "moderation_blocked",
            "moderation_details": {"categories": ["x"]},
            "status": 400,
            "charged": True,
        },
        "request_id": "req_1",
    }


def test_a_providers_own_error_event_goes_on_as_it_is() -> None:
    sent = (b'{"type":"error",', b'"error":{}}')
    error = ProxyError(Failure.PROVIDER_STREAM_ERROR, "m", details=ErrorDetails(as_sent=sent))
    assert error_frame(error, "r").data is sent
