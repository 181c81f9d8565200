"""Webhooks without a network: where they may go, what they say, and how they are signed."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import pytest
from standardwebhooks.webhooks import Webhook

from streamproxy.core.events import ANSWER, ERROR, Frame, Operation, Role, error_frame, type_of
from streamproxy.core.webhooks import (
    MAX_BODY,
    MAX_URL,
    SCHEDULE,
    Outcome,
    StreamUrls,
    message,
    outcome,
    pause,
    receiver,
    signed,
    signing_key,
)
from streamproxy.errors import ErrorDetails, Failure, ProxyError

SECRET: Final = "whsec_" + base64.b64encode(bytes(range(32))).decode()
ORIGINS: Final = (
    "https://hooks.example.com",
    "https://hooks.example.com:8443",
    "http://plain.example.com",
    "http://10.0.0.5:8080 internal",
    "https://hooks.lan internal",
    "https://192.168.1.9",
    "http://169.254.169.254 internal",
)
COMPLETED: Final = "image_generation.completed"


@pytest.mark.parametrize(
    ("url", "internal"),
    [
        ("https://hooks.example.com/a?b=c#d", False),
        ("HTTPS://Hooks.Example.com:443", False),
        ("https://hooks.example.com:8443/", False),
        ("http://plain.example.com/x", False),
        ("http://10.0.0.5:8080/x", True),
        ("https://hooks.lan/", True),
    ],
)
def test_a_listed_origin(url: str, internal: bool) -> None:
    assert receiver(url, ORIGINS).listed is internal


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "https://hooks.example.com:444/",
        "https://plain.example.com/",
        "http://plain.example.com:8080/",
        "https://hooks.example.com.evil.test/",
        "https://evil.test/https://hooks.example.com",
        "https://hooks.example.com@evil.test/",
        "https://user:word@hooks.example.com/",
        "https://hooks.example.com\\@evil.test/",
        "https://hooks.example.com /",
        "ftp://hooks.example.com/",
        "//hooks.example.com/",
        "data:text/plain,x",
        "",
        "http://10.0.0.5/",
        "http://10.0.0.5:8081/",
        "https://10.0.0.5:8080/",
        "http://0x0a000005:8080/",
        "http://167772165:8080/",
        "http://[::ffff:10.0.0.5]:8080/",
        "https://192.168.1.9/",
        "http://169.254.169.254/latest/meta-data",
        "https://hooks.example.com/" + "a" * MAX_URL,
    ],
)
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(ProxyError) as raised:
        receiver(url, ORIGINS)
    assert (raised.value.failure, raised.value.status) == (Failure.WEBHOOK_REFUSED, 400)
    assert "webhook_origins" in raised.value.message
    assert not url or url not in raised.value.message


def test_nothing_is_listed_by_default() -> None:
    with pytest.raises(ProxyError):
        receiver("https://hooks.example.com/", ())


def test_the_signature_is_that_of_the_librarys() -> None:
    at, body = 1_700_000_000, '{"ä": 1}'
    headers = signed(signing_key(SECRET), "str_1", at, body.encode())
    assert headers["webhook-id"] == "msg_str_1"
    assert headers["webhook-timestamp"] == str(at)
    expected = Webhook(SECRET).sign("msg_str_1", datetime.fromtimestamp(at, UTC), body)
    assert headers["webhook-signature"] == expected


def frame(image: int = 0, **members: object) -> Frame:
    data = orjson.dumps({"type": COMPLETED, "b64_json": "QUJD", **members})
    return Frame(COMPLETED, (data,), image, final=True)


def test_cost_and_usage_are_those_of_all_images() -> None:
    usage = {"total_tokens": 3, "output_tokens": 2}
    ended = outcome([frame(1, cost=0.25, usage=usage), frame(0, cost=0.5, usage=usage)])
    assert (ended.status, ended.images, ended.cost, ended.error) == ("completed", (0, 1), 0.75, None)
    assert orjson.loads(ended.usage or b"") == {"total_tokens": 6, "output_tokens": 4}


def test_a_sum_of_a_job_is_no_image() -> None:
    sums = type_of(Operation.GENERATION, Role.USAGE)
    data = orjson.dumps({"type": sums, "cost": 0.25, "usage": {"total_tokens": 4}})
    ended = outcome([frame(cost=0.5, usage={"total_tokens": 3}), Frame(sums, (data,), 1, final=True)])
    assert (ended.images, ended.cost, ended.usage) == ((0,), 0.75, b'{"total_tokens":7}')


def test_an_image_without_figures() -> None:
    assert outcome([frame()]) == Outcome("completed", (0,))


def test_an_answer_has_its_own_figures() -> None:
    data = orjson.dumps({"data": [{"b64_json": "QUJD"}] * 3, "cost": 0.5, "usage": {"total_tokens": 1}})
    ended = outcome([Frame(ANSWER, (data,), final=True)])
    assert (ended.status, ended.images, ended.cost, ended.usage) == ("completed", (0, 1, 2), 0.5, b'{"total_tokens":1}')


def test_a_usage_that_is_too_large_is_left_out() -> None:
    assert outcome([frame(usage={"x": "y" * 20_000})]).usage is None


def test_a_failure_has_no_words() -> None:
    error = ProxyError(
        Failure.PROVIDER_REFUSED,
        "No lighthouse at dusk here.",
        param="a lighthouse at dusk",
        details=ErrorDetails(code="content_policy", status=451),
    )
    ended = outcome([frame(), error_frame(error, "req_1")])
    assert (ended.status, ended.images) == ("failed", (0,))
    assert ended.error is not None
    assert (ended.error["code"], ended.error["status"], ended.error["param"]) == ("content_policy", 451, None)
    assert ended.error["charged"] is False
    assert "dusk" not in repr(ended.error)


def test_a_cancelled_stream() -> None:
    cancelled = error_frame(ProxyError(Failure.CANCELLED, "The generation was cancelled."), "req_1")
    assert outcome([cancelled]).status == "cancelled"


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b'{"error":1}', b'{"data":1}'])
@pytest.mark.parametrize("type", [ERROR, ANSWER, COMPLETED])
def test_what_cannot_be_read_is_no_obstacle(type: str, data: bytes) -> None:
    assert outcome([Frame(type, (data,), final=True)]).status == ("failed" if type == ERROR else "completed")


def written(ended: Outcome, images: int) -> dict[str, Any]:
    urls = tuple(f"https://bucket.example.com/{number}?{'s' * 1500}" for number in range(images))
    place = StreamUrls("https://p.example.com/s?token=t", "https://p.example.com/s/status?token=t", urls)
    body = message("str_1", ended, place, at=1_700_000_000.9, made_by={"provider": "sim", "model": None})
    assert len(body) <= MAX_BODY
    found: dict[str, Any] = orjson.loads(body)
    return found


def test_a_message() -> None:
    said = written(Outcome("completed", (0,), 0.5, b'{"total_tokens":1}'), 1)
    assert list(said) == ["type", "timestamp", "data"]
    assert (said["type"], said["timestamp"]) == ("image.stream.completed", "2023-11-14T22:13:20Z")
    data = said["data"]
    assert (data["id"], data["status"], data["cost"]) == ("str_1", "completed", 0.5)
    assert (data["provider"], data["model"], data["error"]) == ("sim", None, None)
    assert data["usage"] == {"total_tokens": 1}
    assert data["stream_url"] == "https://p.example.com/s?token=t"
    assert data["status_url"] == "https://p.example.com/s/status?token=t"
    assert len(data["images"]) == 1


def test_a_message_is_bounded() -> None:
    assert len(written(Outcome("completed", ()), 20)["data"]["images"]) == 20
    assert written(Outcome("completed", ()), 200)["data"]["images"] == []


def test_pauses_grow_and_end() -> None:
    assert [pause(tried, 0) for tried in range(1, len(SCHEDULE) + 2)] == [*SCHEDULE, None]
    assert pause(1, 1) == SCHEDULE[0] * 1.25
