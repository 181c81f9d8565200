"""Providers' errors, in every shape in which they send them."""

from __future__ import annotations

import json

import pytest

from streamproxy.core.requests import Head
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.openai.errors import MESSAGE_LIMIT, error_in_answer, refusal, refuses_streaming, verdict
from tests.providers.making import SCRUB

KEY = "sk-abcdefghijklmnopqrstuvwxyz0123456789"
UNSAID = ("The provider refused the request with status 400.", "invalid_request_error", None, "provider_refused")


def refused(status: int, body: object, *, callers: bool = False, retry_after: str | None = None) -> ProxyError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = () if retry_after is None else (("retry-after", retry_after),)
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
        ({"errors": ["a", {"message": "b"}, 5]}, "a; b", "invalid_request_error", None, "provider_refused"),
        (
            {"errors": [{"title": "t", "detail": "d", "code": "c"}]},
            "d",
            "invalid_request_error",
            None,
            "provider_refused",
        ),
        ({"errors": {"prompt": ["too long", "odd"], "n": "no"}}, "prompt: too long; n: no", *UNSAID[1:]),
        ({"error": {"code": "c", "errors": ["a"]}}, "a", "invalid_request_error", None, "c"),
        ({"error": ["a", "b"]}, "a; b", *UNSAID[1:]),
        ({"error": {"code": 5}, "message": "m"}, "m", "invalid_request_error", None, "5"),
        ({"code": 1026, "msg": "m"}, "m", "invalid_request_error", None, "1026"),
        ({"title": "t", "status": 400, "detail": "d"}, "d", "invalid_request_error", None, "400"),
        ({"title": "t"}, "t", *UNSAID[1:]),
        ({"base_resp": {"status_code": 1026, "status_msg": "m"}}, "m", "invalid_request_error", None, "1026"),
        ({"detail": {"error": "x", "message": "m"}}, "m", *UNSAID[1:]),
        ({"errors": []}, *UNSAID),
        ({"errors": [[[[[["deep"]]]]]]}, *UNSAID),
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


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("0", "0"),
        (" 120 ", "120"),
        ("Fri, 27 Nov 2026 16:00:00 GMT", "Fri, 27 Nov 2026 16:00:00 GMT"),
        ("Friday, 27-Nov-26 16:00:00 GMT", "Fri, 27 Nov 2026 16:00:00 GMT"),
        (f"Fri, 27 Nov 2026 16:00:00 GMT ({KEY})", "Fri, 27 Nov 2026 16:00:00 GMT"),
        (KEY, None),
        (f"7 {KEY}", None),
        ("-1", None),
        ("1.5", None),
        ("\u0661", None),
        ("9" * 40, None),
        ("Fri, 99 Nov 2026 16:00:00 GMT", None),
        ("", None),
    ],
)
def test_when_to_come_back_is_a_number_or_a_date(given: str, passed: str | None) -> None:
    assert refused(503, b"", retry_after=given).retry_after == passed


def test_a_path_that_is_not_there_is_told() -> None:
    error = refused(404, {"error": {"message": "Not Found"}})
    assert error.message == "Not Found (The provider was asked for /v1/x: check the provider's base_url.)"
    assert error.details.noted == {"path": "/v1/x"}
    head = Head(404, ())
    secret = refusal(head, b"", path=f"/{KEY}/x", callers_credential=False, scrub=SCRUB)
    assert KEY not in secret.message + repr(secret.details.noted)
    assert refused(400, b"").details.noted == {}


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_credential_is_401_if_the_callers(status: int) -> None:
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
    assert [(problem.loc, problem.type) for problem in error.details.problems] == [
        (("body", "images", 0, "url"), "value_error"),
        (("body", "n"), "less_than"),
    ]
    assert error.message == f"images[0].url: {error.details.problems[0].msg}"
    assert error.param == "images[0].url"
    assert KEY not in error.message
    assert "SECRET" not in repr(error.details.problems)
    both = refused(422, {"detail": detail, "error": {"message": "said", "param": "p"}})
    assert (both.message, both.param, len(both.details.problems)) == ("said", "p", 2)
    assert len(refused(422, {"detail": detail * 1000}).details.problems) <= 32


def test_texts_are_scrubbed_and_bounded() -> None:
    error = refused(400, {"error": {"message": f"m {KEY}" + "x" * 9999, "type": KEY, "param": KEY, "code": KEY}})
    assert len(error.message) <= MESSAGE_LIMIT
    for text in (error.message, error.type, error.param, error.code):
        assert KEY not in str(text)
    assert refused(400, b'{"error":{"message":"' + b"x" * 300_000 + b'"}}').message.startswith("The provider refused")


def test_every_string_of_an_error_is_scrubbed_however_deep() -> None:
    problem = {"loc": ["body", KEY, 3], "msg": KEY, "type": f"x.{KEY}"}
    details = {"stage": KEY, KEY: [{"more": [KEY, 1, None, True]}]}
    body = {"detail": [problem], "error": {"message": "m", "moderation_details": details, "status": KEY}}
    error = refused(400, body)
    assert error.details.members == {
        "moderation_details": {"stage": "[redacted]", "[redacted]": [{"more": ["[redacted]", 1, None, True]}]}
    }
    assert KEY not in repr(
        (error.message, error.details.problems, error.details.members, error.code, error.type, error.param)
    )
    assert KEY not in repr(refused(400, {"errors": [{"message": KEY}, KEY], "title": KEY}).__dict__)


@pytest.mark.parametrize("details", [{"x": ["y"] * 300}, {"x": [[[[[[[[[1]]]]]]]]]}], ids=["wide", "deep"])
def test_details_over_the_limits_do_not_go_along(details: object) -> None:
    error = refused(400, {"error": {"message": "m", "moderation_details": details}})
    assert (error.message, error.details.members) == ("m", {})


def test_a_key_in_an_error_event_is_found() -> None:
    body = '{"type":"error","error":{"message":"m","type":"t","param":null,"code":"c"},"more":["%s"]%s}'
    escaped = KEY.replace("k", "\\u006b", 1)
    for raw in (body % ("fine", ""), body % (KEY, ""), body % (escaped, ""), body % (KEY, ',"more":[]')):
        error = error_in_answer(raw.encode(), SCRUB, (raw.encode(),))
        assert (error.details.as_sent != ()) is ("fine" in raw)


@pytest.mark.parametrize(
    ("value", "well"),
    [
        ({"code": 1026, "msg": "no"}, False),
        ({"success": False}, False),
        ({"ok": False, "message": "no"}, False),
        ({"status": "Failed"}, False),
        ({"type": "error"}, False),
        ({"base_resp": {"status_code": 1026, "status_msg": "no"}}, False),
        ({"base_resp": {"status_code": 0, "status_msg": "success"}}, True),
        ({"code": 0, "message": "ok"}, True),
        ({"code": 200, "message": "ok"}, True),
        ({"success": True, "message": "queued"}, True),
        ({"code": 1026}, None),
        ({"message": "no"}, None),
        ({"status": "processing"}, None),
        ({}, None),
    ],
)
def test_what_an_answer_says_of_itself(value: dict[str, object], well: bool | None) -> None:
    assert verdict(value) is well


def test_moderation_details_go_along() -> None:
    details = {"moderation_stage": "input", "categories": ["violence"]}
    error = refused(400, {"error": {"message": "m", "code": "moderation_blocked", "moderation_details": details}})
    assert error.details.members == {"moderation_details": details}


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
    assert refuses_streaming(Head(status, ()), raw) is yes
