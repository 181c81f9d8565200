"""Errors, aspect ratios and file formats of Google's two wires, and the difference of Vertex AI and the Gemini API.

Sources: google-genai 3.6.1; cloud.google.com/apis/design/errors; the support codes of Vertex AI's page on responsible
AI and Imagen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import log
from typing import Final, Literal

import msgspec

from streamproxy.core.conversation import Job
from streamproxy.core.requests import Head
from streamproxy.errors import Failure, ProxyError
from streamproxy.providers.refusals import Refusal, bad_credential, moderated, refused

_SUPPORT: Final = re.compile(r"\bSupport codes?: ([0-9]{8}(?:, [0-9]{8})*)")
"""The codes of the filters that refused, in the text of a refusal. It has no other mark."""


class _Detail(msgspec.Struct, rename="camel"):
    reason: str | None = None
    retry_delay: str | None = None


class GoogleError(msgspec.Struct, rename="camel"):
    """The `error` of an answer: google.rpc.Status as JSON."""

    code: int | None = None
    message: str = ""
    status: str | None = None
    details: list[_Detail] | None = None


class _Refused(msgspec.Struct):
    error: GoogleError | None = None


_REFUSED: Final = msgspec.json.Decoder(_Refused)
_ALL_REFUSED: Final = msgspec.json.Decoder(list[_Refused])


def refusal(job: Job, head: Head, raw: bytes) -> ProxyError:
    """Read an error answer: `{"error": {code, message, status, details}}`, or an array of one such object."""
    try:
        said = _ALL_REFUSED.decode(raw)[0] if raw.lstrip()[:1] == b"[" else _REFUSED.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError):
        said = _Refused()
    return refused_by(job, head, said.error or GoogleError())


def refused_by(job: Job, head: Head, error: GoogleError) -> ProxyError:
    """The ProxyError for an error of Google's."""
    details = error.details or []
    if any(detail.reason == "API_KEY_INVALID" for detail in details) and not job.callers_key:
        return bad_credential(head.status)
    if code := support_code(error.message):
        return moderated(job, error.message, code)
    delay = next((detail.retry_delay for detail in details if detail.retry_delay), None)
    after = delay[:-1].partition(".")[0] if delay and delay.endswith("s") else None
    return refused(job, head, Refusal(error.message, error.status, retry_after=after))


def support_code(text: str) -> str:
    """The first support code in a refusal's text; "" without one."""
    found = _SUPPORT.search(text)
    return found[1] if found else ""


def on_vertex(job: Job) -> bool:
    """Whether the provider is Vertex AI, which takes members that the Gemini API refuses."""
    return "/publishers/" in job.provider.base_url


FORMATS: Final[Mapping[str, Literal["png", "jpeg"]]] = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "png"}
"""The file for each `output_format`. Google's models make no WebP."""


def nearest(width: int, height: int, ratios: Iterable[str]) -> str:
    """The ratio, like "16:9", that is the least stretch away from this size."""
    return min(ratios, key=lambda name: abs(log(_ratio(name) * height / width)))


def _ratio(name: str) -> float:
    width, height = name.split(":")
    return int(width) / int(height)


def text_option(job: Job, name: str) -> str | None:
    """The text of a caller's member. Raises ProxyError(INVALID_REQUEST) for another type."""
    value = job.request.option(name)
    if value is None or isinstance(value, str):
        return value or None
    raise invalid(name, "a string")


def invalid(name: str, expected: str) -> ProxyError:
    """The error for a member of the wrong type."""
    return ProxyError(Failure.INVALID_REQUEST, f"{name}: it must be {expected}.", param=name)
