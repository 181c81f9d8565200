"""Provider refusals as ProxyErrors, the same for every wire: the HTTP status decides the failure.

An adapter reads its provider's error into a Refusal. Its texts are scrubbed here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import msgspec

from streamproxy.core.conversation import Job, decoded
from streamproxy.core.requests import Head
from streamproxy.errors import ErrorDetails, Failure, ProxyError

MESSAGE_LIMIT: Final = 4096
"""Characters of a provider's text that are passed on."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A provider's refusal: message, its own code, the member at fault, seconds to wait."""

    message: str = ""
    code: str | None = None
    param: str | None = None
    retry_after: str | None = None


class _Problem(msgspec.Struct):
    msg: str = ""
    type: str = ""
    loc: list[str | int] | None = None


class _Detailed(msgspec.Struct):
    detail: str | list[_Problem] = ""
    error_type: str | None = None


def detailed(raw: bytes, before: str = "") -> Refusal:
    """Read FastAPI's error: `{"detail": "..."}` or a list of problems, where one of type `before` counts first."""
    try:
        said = decoded(raw, _Detailed)
    except ProxyError:
        said = _Detailed()
    if isinstance(said.detail, str):
        return Refusal(said.detail, said.error_type)
    problems = said.detail or [_Problem()]
    found = next((problem for problem in problems if problem.type == before), problems[0])
    return Refusal(found.msg, found.type or said.error_type, ".".join(map(str, (found.loc or ())[1:])) or None)


def refused(job: Job, head: Head, said: Refusal) -> ProxyError:
    """The error for an answer with this head and refusal."""
    status = head.status
    said = said if said.code is not None else replace(said, code=_CLASSES.get(status))
    retry_after = said.retry_after or head.headers.get("retry-after")
    if status in (401, 403) and not job.callers_key:
        return bad_credential(status)
    if status == 429:
        return _error(job, Failure.PROVIDER_LIMIT, said, "The provider's rate limit is reached.", status, retry_after)
    if 400 <= status < 500:
        message = f"The provider refused the request with status {status}."
        return _error(job, Failure.PROVIDER_REFUSED, said, message, status, retry_after)
    if status >= 500:
        shown = status if status in (502, 503, 504) else 502
        message = f"The provider failed with status {status}."
        return _error(job, Failure.PROVIDER_FAILED, said, message, shown, retry_after)
    return ProxyError(Failure.NO_IMAGE, f"The provider answered with status {status}, which carries no image.")


def said_instead(head: Head) -> Head:
    """A head with the right status for a refusal that came with a success."""
    return Head(422, head.items)


def lost(job: Job, head: Head) -> ProxyError:
    """The error for a job that the provider has accepted and no longer knows."""
    return failed(job, f"The provider lost the job: it answers a poll with status {head.status}.", "not_found")


def bad_credential(status: int) -> ProxyError:
    """The error for a configured credential that the provider refuses."""
    return ProxyError(
        Failure.PROVIDER_AUTH,
        f"The provider refused the configured credential with status {status}. "
        "The caller's request is fine; the operator must check the provider's `credential` setting.",
    )


def moderated(job: Job, message: str, code: str) -> ProxyError:
    """The error for a refusal of the content of a prompt or a picture, under any status. `code`: the provider's own."""
    text = job.scrub(message)[:MESSAGE_LIMIT] or "The provider's moderation blocked the request."
    return ProxyError(Failure.MODERATION_BLOCKED, text, details=_with_code(job, code))


def no_image(job: Job, message: str, code: str) -> ProxyError:
    """The error for an answer without its picture."""
    text = job.scrub(message)[:MESSAGE_LIMIT] or "The provider's answer holds no image."
    return ProxyError(Failure.NO_IMAGE, text, details=_with_code(job, code) if code else None)


def failed(job: Job, message: str, code: str) -> ProxyError:
    """The error for work that has failed at the provider."""
    text = job.scrub(message)[:MESSAGE_LIMIT] or "The provider reported an error without a message."
    return ProxyError(Failure.PROVIDER_FAILED, text, details=_with_code(job, code) if code else None)


def _with_code(job: Job, code: str) -> ErrorDetails:
    return ErrorDetails(members={"provider_code": job.scrub(code)[:_CODE_LIMIT]})


def _error(job: Job, failure: Failure, said: Refusal, otherwise: str, status: int, after: str | None) -> ProxyError:
    return ProxyError(
        failure,
        job.scrub(said.message)[:MESSAGE_LIMIT] or otherwise,
        param=None if said.param is None else job.scrub(said.param),
        retry_after=after,
        details=ErrorDetails(
            code=None if said.code is None else job.scrub(said.code)[:_CODE_LIMIT],
            status=status,
        ),
    )


_CLASSES: Final = {402: "insufficient_quota", 404: "model_not_found", 413: "body_too_large"}
"""Codes, by status, for refusals without a code of the provider."""

_CODE_LIMIT: Final = 64
"""Most characters of a code. OpenAI's and Google's have under 40."""
