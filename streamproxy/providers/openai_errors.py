"""What OpenAI-compatible providers mean by an error: HTTP answers, error objects in a 200, and error events.

They agree on `{"error": {message, type, param, code}}` and on little else: `code` may be an integer, `error` a string,
the members may stand flat beside `"type":"error"`, and FastAPI services answer `detail`. Whatever a provider says is
scrubbed of what looks like a secret, because their 401 texts echo keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from streamproxy.core.requests import Head
from streamproxy.core.sse import Piece
from streamproxy.errors import Failure, Problem, ProxyError

MESSAGE_LIMIT: Final = 4096
"""Characters of a provider's text that are passed on."""

PROBLEM_LIMIT: Final = 32
"""Rejected fields that are passed on; the request schema has 20."""

_STREAMING: Final = re.compile(r"['\"`](?:stream|partial_images)['\"`]|\bpartial_images\b|\bstreaming\b", re.IGNORECASE)

_STATUS_OF_CODE: Final[Mapping[str, int]] = {
    "moderation_blocked": 400,
    "content_policy_violation": 400,
    "invalid_request_error": 400,
    "image_generation_user_error": 400,
    "model_not_found": 404,
    "not_found_error": 404,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "timeout": 504,
    "overloaded_error": 503,
}
"""HTTP equivalents of codes, and of types where the code says nothing, that come inside a 200."""

Scrub = Callable[[str], str]


def refusal(head: Head, body: bytes, *, callers_credential: bool, scrub: Scrub) -> ProxyError:
    """The error that a non-2xx answer means for the caller."""
    said = _Said(_json(body), scrub)
    status = head.status
    retry_after = head.headers.get("retry-after")
    if status in (401, 403) and not callers_credential:
        return ProxyError(
            Failure.PROVIDER_AUTH,
            f"The provider refused the configured credential with status {status}. "
            "The caller's request is fine; the operator must check the provider's `credential` setting.",
        )
    if status == 429:
        message = said.message or "The provider's rate limit is reached."
        return said.error(Failure.PROVIDER_LIMIT, message, status, retry_after)
    if 400 <= status < 500:
        message = said.message or said.problem or f"The provider refused the request with status {status}."
        return said.error(Failure.PROVIDER_REFUSED, message, status, retry_after)
    if status >= 500:
        message = said.message or f"The provider failed with status {status}."
        return said.error(Failure.PROVIDER_FAILED, message, status if status in (502, 503, 504) else 502, retry_after)
    return ProxyError(Failure.NO_IMAGE, f"The provider answered with status {status}, which carries no image.")


def refuses_streaming(head: Head, body: bytes) -> bool:
    """A 400 or 422 that is about `stream` or `partial_images`: by its `param` or `loc`, else by its text."""
    if head.status not in (400, 422):
        return False
    value = _json(body)
    error = _mapping(value.get("error"))
    if error.get("param") in ("stream", "partial_images"):
        return True
    detail = value.get("detail")
    for problem in detail if isinstance(detail, list) else ():
        loc = _mapping(problem).get("loc")
        if isinstance(loc, list) and loc and loc[-1] in ("stream", "partial_images"):
            return True
    message = error.get("message")
    return isinstance(message, str) and bool(_STREAMING.search(message[:MESSAGE_LIMIT]))


def error_in_answer(raw: bytes, scrub: Scrub, as_sent: tuple[Piece, ...] = ()) -> ProxyError:
    """The error that stands inside a 200: the raw JSON of the whole event or answer.

    `as_sent` is the event's data: it goes on unchanged when it is nested, complete and free of secrets.
    """
    value = _json(raw)
    said = _Said(value, scrub)
    message = said.message or "The provider reported an error without a message."
    error = said.error(Failure.PROVIDER_STREAM_ERROR, message, said.status, None)
    given = _mapping(value.get("error"))
    whole = value.get("type") == "error" and {"message", "type", "param", "code"} <= given.keys()
    if as_sent and whole and given["message"] == error.message:
        sent = raw.decode()
        error.as_sent = as_sent if scrub(sent) == sent else ()
    return error


class _Said:
    """An error object in any of its shapes, scrubbed."""

    def __init__(self, value: Mapping[str, object], scrub: Scrub) -> None:
        nested = value.get("error")
        self._scrub = scrub
        self._error = _mapping(nested) or ({"message": nested} if isinstance(nested, str) else value)
        self.message = self._text("message") or self._text("detail") or ""
        self.problems = tuple(self._problems(value.get("detail")))

    def _problems(self, detail: object) -> Iterator[Problem]:
        """FastAPI's `detail`: only its `loc`, `msg` and `type`, for it echoes the caller's values too."""
        for item in detail[:PROBLEM_LIMIT] if isinstance(detail, list) else ():
            problem = _mapping(item)
            loc, msg, kind = problem.get("loc"), problem.get("msg"), problem.get("type")
            if isinstance(loc, list) and isinstance(msg, str) and isinstance(kind, str):
                path = tuple(part if isinstance(part, int) else self._scrub(str(part)[:256]) for part in loc[:16])
                yield Problem(path, self._scrub(msg), kind[:256])

    @property
    def problem(self) -> str:
        """The first problem as a sentence."""
        return next((f"{problem.param}: {problem.msg}" for problem in self.problems), "")

    def _text(self, name: str) -> str | None:
        value = self._error.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        return self._scrub(value) if isinstance(value, str) and value else None

    @property
    def status(self) -> int:
        code, type_ = self._text("code") or "", self._text("type") or ""
        if code.isdigit() and 400 <= int(code) <= 599:
            return int(code)
        return _STATUS_OF_CODE.get(code) or _STATUS_OF_CODE.get(type_) or 502

    def error(self, failure: Failure, message: str, status: int, retry_after: str | None) -> ProxyError:
        type_ = self._text("type")
        moderation = self._error.get("moderation_details")
        return ProxyError(
            failure,
            message,
            param=self._text("param") or next((problem.param for problem in self.problems), None),
            code=self._text("code") or self._text("status"),
            type=type_ if type_ != "error" else None,
            status=status,
            retry_after=retry_after,
            problems=self.problems,
            details={"moderation_details": moderation} if isinstance(moderation, dict) else None,
        )


def _json(body: bytes) -> Mapping[str, object]:
    """The body as a JSON object; {} where it is none, or too large for an error."""
    if len(body) > 256 * 1024:
        return {}
    try:
        return _mapping(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
