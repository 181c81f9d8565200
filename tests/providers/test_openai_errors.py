"""What providers mean by an error, in every shape they write it."""

from __future__ import annotations

import json

import pytest

from streamproxy.core.requests import Head
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.openai_errors import MESSAGE_LIMIT, error_in_answer, refusal, refuses_streaming
from tests.providers.making import SCRUB

KEY = "sk-abcdefghijklmnopqrstuvwxyz0123456789"
UNSAID = ("The provider refused the request with status 400.", "invalid_request_error", None, "provider_refused")


def refused(status: int, body: object, *, callers: bool = False, retry_after: str | None = None) -> ProxyError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return refusal(Head(status, headers), raw, path="/v1/x", callers_credential=callers, scrub=SCRUB)


@pytest.mark.parametrize(
    ("body", "message", "type", "param", "code"),
    [
        ({"error": {"message": "m", "type": "t", "param": "p", "code": "c"}}, "m", "t", "p", "c"),
        ({"error": {"message": "m", "code": 400, "param": None}}, "m", "invalid_request_error", None, "400"),
        ({"error": {"message": "m", "status": "INVALID"}}, "m", "invalid_request_error", None, "INVALID"),
        ({"error": "boom"}, "boom", "invalid_request_error", None, "provider_refused"),
        ({"type": "error", "message": "m", "code": "c"}, "m", "invalid_request_error", None, "c"),
        ({"detail": "nope"}, "nope", "invalid_request_error", None, "provider_refused"),
        (b"<html>", *UNSAID),
        (b"[1]", *UNSAID),
        (b"\xff", *UNSAID),
        ({"error": {"message": True, "code": True}}, *UNSAID),
    ],
)
def test_every_shape(body: object, message: str, type: str, param: str | None, code: str) -> None:
    error = refused(400, body)
    assert (error.message, error.type, error.param, error.code) == (message, type, param, code)
    assert (error.status, error.failure) == (400, Failure.PROVIDER_REFUSED)


@pytest.mark.parametrize(
    ("status", "failure", "ours", "retryable"),
    [
        (400, Failure.PROVIDER_REFUSED, 400, True),
        (404, Failure.PROVIDER_REFUSED, 404, True),
        (422, Failure.PROVIDER_REFUSED, 422, True),
        (429, Failure.PROVIDER_LIMIT, 429, True),
        (401, Failure.PROVIDER_AUTH, 502, True),
        (403, Failure.PROVIDER_AUTH, 502, True),
        (500, Failure.PROVIDER_FAILED, 502, False),
        (502, Failure.PROVIDER_FAILED, 502, False),
        (503, Failure.PROVIDER_FAILED, 503, False),
        (504, Failure.PROVIDER_FAILED, 504, False),
        (529, Failure.PROVIDER_FAILED, 502, False),
        (204, Failure.NO_IMAGE, 502, False),
    ],
)
def test_statuses(status: int, failure: Failure, ours: int, retryable: bool) -> None:
    error = refused(status, b"")
    assert (error.failure, error.status, error.retryable) == (failure, ours, retryable)
    assert error.message


def test_when_to_come_back_is_passed_on() -> None:
    for status in (400, 429, 503):
        assert refused(status, b"", retry_after="7").retry_after == "7"
    assert refused(503, b"", retry_after="7").retryable


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_credential_is_the_callers_business_only_if_it_is_theirs(status: int) -> None:
    body = {"error": {"message": f"Incorrect API key provided: {KEY}.", "code": "invalid_api_key"}}
    ours = refused(status, body)
    assert (ours.status, ours.code) == (502, "provider_auth")
    assert "Incorrect" not in ours.message
    theirs = refused(status, body, callers=True)
    assert (theirs.status, theirs.code) == (status, "invalid_api_key")
    assert "Incorrect API key" in theirs.message
    assert KEY not in theirs.message


def test_fastapis_detail_is_passed_on_without_the_value() -> None:
    detail = [
        {"loc": ["body", "images", 0, "url"], "msg": f"bad {KEY}", "type": "value_error", "input": "SECRET", "ctx": {}},
        {"loc": "body", "msg": "m", "type": "t"},
        "odd",
        {"loc": ["body", "n"], "msg": "Too many", "type": "less_than"},
    ]
    error = refused(422, {"detail": detail})
    assert [(problem.loc, problem.type) for problem in error.problems] == [
        (("body", "images", 0, "url"), "value_error"),
        (("body", "n"), "less_than"),
    ]
    assert error.message == f"images[0].url: {error.problems[0].msg}"
    assert error.param == "images[0].url"
    assert KEY not in error.message
    assert "SECRET" not in repr(error.problems)
    both = refused(422, {"detail": detail, "error": {"message": "said", "param": "p"}})
    assert (both.message, both.param, len(both.problems)) == ("said", "p", 2)
    assert len(refused(422, {"detail": detail * 1000}).problems) <= 32


def test_texts_are_scrubbed_and_bounded() -> None:
    error = refused(400, {"error": {"message": f"m {KEY}" + "x" * 9999, "type": KEY, "param": KEY, "code": KEY}})
    assert len(error.message) <= MESSAGE_LIMIT
    for text in (error.message, error.type, error.param, error.code):
        assert KEY not in str(text)
    assert refused(400, b'{"error":{"message":"' + b"x" * 300_000 + b'"}}').message.startswith("The provider refused")


def test_moderation_details_go_along() -> None:
    details = {"moderation_stage": "input", "categories": ["violence"]}
    error = refused(400, {"error": {"message": "m", "code": "moderation_blocked", "moderation_details": details}})
    assert error.details == {"moderation_details": details}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": "moderation_blocked"}, 400),
        ({"code": "x", "type": "image_generation_user_error"}, 400),
        ({"code": "rate_limit_exceeded"}, 429),
        ({"type": "insufficient_quota"}, 429),
        ({"code": 503}, 503),
        ({"code": "404"}, 404),
        ({"code": 200}, 502),
        ({"code": 700}, 502),
        ({}, 502),
        ({"code": "server_error"}, 502),
    ],
)
def test_what_http_would_have_said_of_an_error_in_a_200(error: dict[str, object], status: int) -> None:
    said = error_in_answer(json.dumps({"error": {"message": "m", **error}}).encode(), SCRUB)
    assert (said.status, said.failure, said.retryable) == (status, Failure.PROVIDER_STREAM_ERROR, False)
    assert said.message == "m"


def test_an_error_without_a_message_has_one() -> None:
    assert error_in_answer(b'{"error":{"code":"c"}}', SCRUB).message
    assert error_in_answer(b"not json", SCRUB).message


@pytest.mark.parametrize(
    ("status", "body", "yes"),
    [
        (400, {"error": {"message": "m", "param": "stream"}}, True),
        (400, {"error": {"message": "m", "param": "partial_images"}}, True),
        (422, {"detail": [{"loc": ["body", "stream"], "msg": "m", "type": "extra_forbidden"}]}, True),
        (400, {"error": {"message": "Unknown parameter: 'stream'."}}, True),
        (400, {"error": {"message": "Streaming is not supported for this model."}}, True),
        (400, {"error": {"message": "m", "param": "n"}}, False),
        (400, {"error": {"message": "upstream failed"}}, False),
        (422, {"detail": [{"loc": [], "msg": "m"}, {"loc": 3}, 5]}, False),
        (400, b"stream", False),
        (500, {"error": {"message": "m", "param": "stream"}}, False),
        (429, {"error": {"message": "streaming"}}, False),
    ],
)
def test_refusals_of_streaming_alone(status: int, body: object, yes: bool) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert refuses_streaming(Head(status, {}), raw) is yes
