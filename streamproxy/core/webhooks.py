"""Webhooks: where one may go, how its message is written and signed, and how long a failed delivery waits.

    receiver(url, origins)                      the destination of a URL that the setting `webhook_origins` allows
    outcome(frames)                             the end of a stream, without its pictures
    message(...)                                the body
    signed(key, stream_id, timestamp, body)     the headers, with the signature
    pause(attempts, chance)                     seconds until the next attempt

The message has names, numbers and URLs. It repeats neither a provider's words nor a prompt.

Source: Standard Webhooks 1.0 (github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md).
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import msgspec

from streamproxy.core.addresses import Destination, destination, prohibited
from streamproxy.core.completion import USAGE_BYTES, collected
from streamproxy.core.eventdata import outline
from streamproxy.core.events import ANSWER, ERROR, Frame, read_error
from streamproxy.core.rawjson import present
from streamproxy.errors import Failure, ProxyError

HEADER: Final = "Streamproxy-Webhook"

MAX_URL: Final = 2048
"""Characters of a receiver's URL, which is kept with each pending message."""

MAX_BODY: Final = 64 * 1024
"""Bytes of a message. Ten presigned URLs and a usage have under 32 KiB; what is over it goes without its usage."""

SCHEDULE: Final = (5.0, 30.0, 120.0, 600.0, 3600.0, 21_600.0)
"""Seconds between attempts, seven in all within 7 to 9 hours. The spec asks for a backoff over hours, with jitter."""

JITTER: Final = 0.25

SECRET_PREFIX: Final = "whsec_"

INTERNAL: Final = " internal"
"""Behind an origin of the setting: its host may have an address of an internal network."""

_IDENTIFIER: Final = re.compile(r"[a-z][a-z0-9_.\[\]-]{0,63}")
"""A code or a field's name. Any other text of a provider may repeat the prompt."""


def receiver(url: str, origins: Collection[str]) -> Destination:
    """The destination of a webhook, whose `listed` says that it may be internal. Names are not resolved here.

    Raises ProxyError(WEBHOOK_REFUSED) for a URL of no listed origin, or with an address that must not be dialled.
    """
    if len(url) > MAX_URL:
        raise refused(f"its URL has over {MAX_URL} characters")
    hosts = [entry.removesuffix(INTERNAL).partition("://")[2] for entry in origins]
    try:
        place = destination(url, hosts)
    except ProxyError:
        raise refused("its URL has no listed origin, or is not in the usual form") from None
    origin = f"{place.scheme}://{place.authority}"
    internal = origin + INTERNAL in origins
    if not internal and origin not in origins:
        raise refused("its origin is not listed")
    if place.literal is not None and (reason := prohibited(place.literal, listed=internal)):
        raise refused(f"its address is {reason}")
    return replace(place, listed=internal)


def refused(reason: str) -> ProxyError:
    """The error for a webhook that cannot be ordered."""
    return ProxyError(
        Failure.WEBHOOK_REFUSED,
        f"{HEADER} is refused: {reason}. The setting webhook_origins lists the origins that webhooks may go to.",
        param=HEADER,
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a stream. `images`: the indices of those that are there; `usage` is raw JSON, None for none."""

    status: str
    images: tuple[int, ...]
    cost: float | None = None
    usage: bytes | None = field(default=None, repr=False)
    error: Mapping[str, object] | None = None


class _Answer(msgspec.Struct):
    data: list[msgspec.Raw] = []  # msgspec copies it
    usage: msgspec.Raw = msgspec.Raw()
    cost: float | None = None


class _Charge(msgspec.Struct):
    charged: bool | None = None


class _Failed(msgspec.Struct):
    error: _Charge = msgspec.field(default_factory=_Charge)


def outcome(frames: Sequence[Frame]) -> Outcome:
    """The end of a stream by its critical frames."""
    failed = next((frame for frame in frames if frame.type == ERROR), None)
    answer = next((frame for frame in frames if frame.type == ANSWER), None)
    completed = [frame for frame in frames if frame.type not in (ERROR, ANSWER)]
    if answer is not None:
        said = _decoded(b"".join(answer.data))
        images = tuple(range(len(said.data)))
    else:
        said = _decoded(_together(completed))
        images = tuple(sorted(frame.image for frame in completed if not frame.sums))
    error = None if failed is None else _error(failed)
    usage = present(said.usage)
    usage = usage if usage is not None and len(usage) <= USAGE_BYTES else None
    return Outcome(_status(error), images, said.cost, usage, error)


def _together(completed: Sequence[Frame]) -> bytes:
    """What the events say of usage and cost, summed as in a JSON answer."""
    found = [outline(frame.data) for frame in completed]
    small = [
        msgspec.json.encode(
            {"usage": msgspec.Raw(each.usage or b"null"), "cost": msgspec.Raw(bytes(each.cost) or b"null")}
        )
        for each in found
        if each is not None
    ]
    return collected(small, 0) if small else b"{}"


def _decoded(raw: bytes) -> _Answer:
    try:
        return msgspec.json.decode(raw, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Answer()


def _error(frame: Frame) -> dict[str, object]:
    """The error without its words: those may be the provider's."""
    error = read_error(frame)
    try:
        charged = msgspec.json.decode(b"".join(frame.data), type=_Failed).error.charged
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        charged = None
    return {
        "code": _identifier(error.code),
        "type": _identifier(error.type),
        "param": _identifier(error.param),
        "status": error.status,
        "charged": error.charged if charged is None else charged,
    }


def _status(error: Mapping[str, object] | None) -> str:
    if error is None:
        return "completed"
    return "cancelled" if error["code"] == Failure.CANCELLED.value.code else "failed"


def _identifier(text: str | None) -> str | None:
    return text if text is not None and _IDENTIFIER.fullmatch(text) else None


@dataclass(frozen=True, slots=True)
class StreamUrls:
    """The URLs of one stream, absolute, each with a token that reads."""

    stream: str = field(repr=False)
    status: str = field(repr=False)
    images: tuple[str, ...] = field(repr=False)


def message(id: str, ended: Outcome, urls: StreamUrls, *, at: float, made_by: Mapping[str, str | None]) -> bytes:
    """The body, at most MAX_BODY bytes. `at` in Unix seconds; `made_by`: provider and model."""
    data: dict[str, object] = {
        "id": id,
        "status": ended.status,
        "stream_url": urls.stream,
        "status_url": urls.status,
        "images": [{"url": url} for url in urls.images],
        "error": ended.error,
        "cost": ended.cost,
        "usage": None if ended.usage is None else msgspec.Raw(ended.usage),
        **made_by,
    }
    said = {
        "type": f"image.stream.{ended.status}",
        "timestamp": datetime.fromtimestamp(int(at), UTC).isoformat().replace("+00:00", "Z"),
    }
    body = msgspec.json.encode({**said, "data": data})
    if len(body) > MAX_BODY:
        body = msgspec.json.encode({**said, "data": {**data, "usage": None, "images": []}})
    return body


def signing_key(secret: str) -> bytes:
    """The key in a secret of the form `whsec_<base64>`."""
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX))


def signed(key: bytes, stream_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of one attempt. The id is the same in each of them, so that a receiver can tell a repetition."""
    id = f"msg_{stream_id}"
    digest = hmac.digest(key, b"%b.%d.%b" % (id.encode(), timestamp, body), "sha256")
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def pause(attempts: int, chance: float, schedule: Sequence[float] = SCHEDULE) -> float | None:
    """Seconds until the attempt after so many failed ones; None after the last. `chance` is from 0 to 1."""
    return schedule[attempts - 1] * (1 + JITTER * chance) if attempts <= len(schedule) else None
