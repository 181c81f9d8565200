"""Errors of OpenAI-compatible providers: HTTP answers, error objects in a 200, and error events.

The common form is `{"error": {message, type, param, code}}`, but `code` may be an integer, `error` a string, the
members may stand flat beside `"type":"error"` or `"success":false`, there may be a list of `errors`, and FastAPI
services send `detail`. Every string in an error, at any depth, is scrubbed of secrets: the text of a 401 may repeat the
key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC
from email.utils import format_datetime, parsedate_to_datetime
from itertools import islice
from typing import Final

import msgspec

from streamproxy.core.conversation import Job
from streamproxy.core.requests import Head
from streamproxy.core.sse import Piece
from streamproxy.errors import ErrorDetails, Failure, Problem, ProxyError
from streamproxy.providers.refusals import moderated

MESSAGE_LIMIT: Final = 4096
"""Characters of a provider's text that are forwarded."""

PROBLEM_LIMIT: Final = 32
"""Rejected fields that are forwarded; the request schema has 20."""

ERROR_BYTES: Final = 256 * 1024
"""Bytes of an error that is read; the largest recorded one has under 1 KiB."""

NAME_LIMIT: Final = 256
"""Characters of a code, a type or a field's name."""

WORDS_LIMIT: Final = 8
"""Texts of one error that are joined into its message."""

DETAILS_LIMIT: Final = 256
"""Values in `moderation_details`; OpenAI's have about a dozen. Searching a string for secrets takes time."""

DEPTH_LIMIT: Final = 8

_WORDS: Final = ("message", "detail", "msg", "error_msg", "error_message", "errmsg", "error_description", "status_msg")
"""Members with an error's text, best first. `errors` and RFC 9457's `title` come after them."""

_CODES: Final = ("code", "error_code", "errcode", "status_code", "status")

_FINE: Final = frozenset({"", "0", "200", "ok", "success", "succeeded", "completed"})
"""Codes and statuses, in lower case, of success."""

_FAILED: Final = frozenset({"error", "failed", "failure", "rejected", "blocked"})
"""Statuses of failure. Others, like "processing", mean neither."""

_STREAMING: Final = re.compile(r"['\"`](?:stream|partial_images)['\"`]|\bpartial_images\b|\bstreaming\b", re.IGNORECASE)

_STATUS_OF_CODE: Final[Mapping[str, int]] = {
    "moderation_blocked": 400,
    "content_policy_violation": 400,
    "contentFilter": 400,
    "content_filter": 400,
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
"""HTTP statuses for codes inside a 200, and for types where the code is unknown."""

Scrub = Callable[[str], str]

FILTERED: Final = frozenset({"contentFilter", "content_filter"})
"""Azure's codes for what its filters refuse. Source: its reference of content filtering, November 2026."""


def refusal(head: Head, body: bytes, *, path: str, callers_credential: bool, scrub: Scrub) -> ProxyError:
    """The caller's error for a non-2xx answer. `path`: the path of the provider's URL, without a query."""
    said = _ProviderError(_json(body), scrub)
    status = head.status
    retry_after = _retry_after(head.headers.get("retry-after", ""))
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
        if status != 404:
            return said.error(Failure.PROVIDER_REFUSED, message, status, retry_after)
        asked = scrub(path)
        message += f" (The provider was asked for {asked}: check the provider's base_url.)"
        return said.error(Failure.PROVIDER_REFUSED, message, status, retry_after, noted={"path": asked})
    if status >= 500:
        message = said.message or f"The provider failed with status {status}."
        return said.error(Failure.PROVIDER_FAILED, message, status if status in (502, 503, 504) else 502, retry_after)
    return ProxyError(Failure.NO_IMAGE, f"The provider answered with status {status}, which carries no image.")


def blocked(job: Job, error: ProxyError) -> ProxyError:
    """The same error, or MODERATION_BLOCKED where its code is one of FILTERED or of `Quirks.blocked`."""
    code = error.details.code
    known = FILTERED.union(job.provider.quirks.blocked)
    return moderated(job, error.message, code) if code is not None and code in known else error


def _retry_after(value: str) -> str | None:
    """Retry-After in a form of RFC 9110 (10.2.3): seconds, or an HTTP date, which is formatted again."""
    value = value.strip()
    if value.isascii() and value.isdigit() and len(value) <= 9:
        return value
    try:
        date = parsedate_to_datetime(value)
        return format_datetime((date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC), usegmt=True)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def refuses_streaming(head: Head, body: bytes) -> bool:
    """Whether a 400 or 422 is about `stream` or `partial_images`: by its `param` or `loc`, otherwise by its text."""
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
    """The error inside a 200. `raw`: the JSON of the whole event or answer.

    `as_sent`: the event's data, which is relayed unchanged if it is nested, complete and free of secrets.
    """
    value = _json(raw)
    error = error_of(value, scrub)
    given = _mapping(value.get("error"))
    whole = value.get("type") == "error" and {"message", "type", "param", "code"} <= given.keys()
    if as_sent and whole and given["message"] == error.message:
        sent = raw.decode()
        clean = scrub(sent) == sent and _scrubbed(value, scrub) == value  # as it is written, and as it is decoded
        error.details = replace(error.details, as_sent=as_sent if clean else ())
    return error


def error_of(value: Mapping[str, object], scrub: Scrub) -> ProxyError:
    """The same for decoded members."""
    said = _ProviderError(value, scrub)
    message = said.message or said.problem or "The provider reported an error without a message."
    return said.error(Failure.PROVIDER_STREAM_ERROR, message, said.status, None)


def error_in_words(raw: bytes, scrub: Scrub) -> ProxyError:
    """The error in an event named `error` with plain text."""
    text = scrub(raw[: 4 * MESSAGE_LIMIT].decode("utf-8", "replace").strip())
    return ProxyError(Failure.PROVIDER_STREAM_ERROR, text or "The provider reported an error without a message.")


def verdict(value: Mapping[str, object]) -> bool | None:
    """Whether a 200 without a picture reports success (True) or failure (False); None where it reports neither.

    Failures are `{"success": false}`, `{"code": 1026, "msg": ...}` and `{"status": "failed"}`, at the top or, from
    MiniMax, in `base_resp`.
    """
    said = {**value, **_mapping(value.get("base_resp"))}
    flags = [said[name] for name in ("success", "ok") if isinstance(said.get(name), bool)]
    states = {str(said.get(name)).lower() for name in ("status", "type")}
    codes = {str(said[name]).lower() for name in _CODES[:-1] if isinstance(said.get(name), int | str)}
    if False in flags or states & _FAILED or (codes - _FINE and any(_texts(said, 4))):
        return False
    return True if True in flags or codes & _FINE else None


def words(value: Mapping[str, object], scrub: Scrub) -> str:
    """The text of an answer's error, scrubbed; "" where it has none."""
    return _ProviderError(value, scrub).message


class _ProviderError:
    """An error object in any of its shapes, scrubbed."""

    def __init__(self, value: Mapping[str, object], scrub: Scrub) -> None:
        nested = value.get("error") or value.get("base_resp")
        self._scrub = scrub
        self._error = _mapping(nested) or ({"message": nested} if isinstance(nested, str | list) else value)
        self.problems = tuple(self._problems(value.get("detail")))
        texts = {**self._error, "detail": None} if self.problems else self._error
        found = list(islice(_texts(texts, 4), WORDS_LIMIT))
        if not found and not self.problems:
            found = list(islice(_texts(value, 4), WORDS_LIMIT)) or _listed(value)
        self.message = "; ".join(dict.fromkeys(map(scrub, found)))[:MESSAGE_LIMIT]

    def _problems(self, detail: object) -> Iterator[Problem]:
        """FastAPI's `detail`, reduced to `loc`, `msg` and `type`, because it repeats the caller's values too."""
        for item in detail[:PROBLEM_LIMIT] if isinstance(detail, list) else ():
            problem = _mapping(item)
            loc, msg, kind = problem.get("loc"), problem.get("msg"), problem.get("type")
            if isinstance(loc, list) and isinstance(msg, str) and isinstance(kind, str):
                path = tuple(part if isinstance(part, int) else self._name(str(part)) for part in loc[:16])
                yield Problem(path, self._scrub(msg), self._name(kind))

    def _name(self, text: str) -> str:
        return self._scrub(text)[:NAME_LIMIT]

    @property
    def problem(self) -> str:
        """The first problem as a sentence."""
        return next((f"{problem.param}: {problem.msg}" for problem in self.problems), "")

    def _text(self, *names: str) -> str | None:
        """The first of these members that is a string or an integer."""
        for name in names:
            value = self._error.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if isinstance(value, str) and value:
                return self._name(value)
        return None

    @property
    def status(self) -> int:
        code, type_ = self._text("code") or "", self._text("type") or ""
        if code.isdigit() and 400 <= int(code) <= 599:
            return int(code)
        return _STATUS_OF_CODE.get(code) or _STATUS_OF_CODE.get(type_) or 502

    def error(
        self,
        failure: Failure,
        message: str,
        status: int,
        retry_after: str | None,
        *,
        noted: Mapping[str, str] | None = None,
    ) -> ProxyError:
        type_ = self._text("type")
        moderation = self._error.get("moderation_details")
        details = _scrubbed(moderation, self._scrub) if isinstance(moderation, dict) else None
        return ProxyError(
            failure,
            message,
            param=self._text("param") or next((problem.param for problem in self.problems), None),
            retry_after=retry_after,
            details=ErrorDetails(
                code=self._text(*_CODES),
                type=type_ if type_ != "error" else None,
                status=status,
                problems=self.problems,
                members={} if details is None else {"moderation_details": details},
                noted=noted or {},
            ),
        )


def _texts(value: object, depth: int) -> Iterator[str]:
    """The texts of an error: a string, the items of a list, the first member of an object with texts."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, list) and depth:
        for item in value[:WORDS_LIMIT]:
            yield from _texts(item, depth - 1)
    elif isinstance(value, dict) and depth:
        for name in (*_WORDS, "errors", "title"):
            found = list(islice(_texts(value.get(name), depth - 1), WORDS_LIMIT))
            if found:
                yield from found
                return


def _listed(value: Mapping[str, object]) -> list[str]:
    """The texts of an `errors` object with a list for each field, as Rails and Laravel write it."""
    errors = _mapping(value.get("errors"))
    fields = islice(errors.items(), WORDS_LIMIT)
    return [f"{field}: {text}" for field, texts in fields for text in islice(_texts(texts, 2), 1)]


def _scrubbed(value: object, scrub: Scrub) -> object:
    """A JSON value with every string scrubbed, member names included; None where it is over the limits."""
    left = [DETAILS_LIMIT]

    def clean(value: object, depth: int) -> object:
        left[0] -= 1
        if left[0] < 0 or not depth:
            raise OverflowError
        if isinstance(value, str):
            return scrub(value)
        if isinstance(value, list):
            return [clean(item, depth - 1) for item in value]
        if isinstance(value, dict):
            return {scrub(name): clean(item, depth - 1) for name, item in value.items()}
        return value

    try:
        return clean(value, DEPTH_LIMIT)
    except OverflowError:
        return None


def _json(body: bytes) -> Mapping[str, object]:
    """The body as a JSON object; {} where it is something else, or too large for an error."""
    if len(body) > ERROR_BYTES:
        return {}
    try:
        return _mapping(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
