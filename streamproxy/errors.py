"""Every way a request can go wrong: one row each.

    ProxyError                 carries a Failure, and what this caller needs to know about it
      raised before our head   -> that row's HTTP status with a JSON body
      raised after it          -> one final `error` event with the same fields

The row decides the status, OpenAI's error `type`, the metric label, and whether the provider may already have charged.
Only where it cannot have, may the same request be sent again.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

INVALID: Final = "invalid_request_error"
AUTHENTICATION: Final = "authentication_error"
QUOTA: Final = "insufficient_quota"  # OpenAI's, for an account that has spent what it may
SERVER: Final = "server_error"
UPSTREAM: Final = "upstream_error"


class Blame(Enum):
    """What a failure says: whether another provider may do what failed, and whether this one works."""

    REQUEST = "the request, or this process: every provider would fail alike"
    ANSWER = "the provider works and does not do it: another one may"
    PROVIDER = "the provider does not work: another one may"


@dataclass(frozen=True, slots=True)
class FailureRow:
    """One failure: `code` and `type` as callers see them, the HTTP status, the metric label.

    `charged`: the provider may have processed, and billed, the request. Such an answer carries `x-should-retry: false`,
    because the OpenAI SDKs repeat a POST on 408, 409, 429 and every 5xx by themselves.
    `blamed`: see Blame; None: the provider for a failure of type UPSTREAM, the request for any other.
    """

    code: str
    status: int
    type: str
    label: str
    charged: bool = False
    blamed: Blame | None = None

    @property
    def blame(self) -> Blame:
        return self.blamed or (Blame.PROVIDER if self.type == UPSTREAM else Blame.REQUEST)


class Failure(Enum):
    """The closed list of failures. A member's value is its FailureRow. /docs/errors is checked against it."""

    # What the caller sent.
    INVALID_HTTP = FailureRow("invalid_http", 400, INVALID, "bad_request")
    INVALID_REQUEST = FailureRow("invalid_request", 422, INVALID, "bad_request")
    INVALID_JSON = FailureRow("invalid_json", 400, INVALID, "bad_request")
    DUPLICATE_KEY = FailureRow("duplicate_key", 400, INVALID, "bad_request")
    INVALID_MULTIPART = FailureRow("invalid_multipart", 400, INVALID, "bad_request")
    UNSUPPORTED_PARAMETER = FailureRow("unsupported_parameter", 400, INVALID, "bad_request")
    UNSUPPORTED_MEDIA_TYPE = FailureRow("unsupported_media_type", 415, INVALID, "bad_request")
    UNREADABLE_IMAGE = FailureRow("unreadable_image", 400, INVALID, "bad_image")
    BODY_TOO_LARGE = FailureRow("body_too_large", 413, INVALID, "body_limit")
    INVALID_EXTRA_HEADERS = FailureRow("invalid_extra_headers", 400, INVALID, "header_policy")
    EXTRA_HEADERS_TOO_LARGE = FailureRow("extra_headers_too_large", 400, INVALID, "header_policy")
    DUPLICATE_HEADER = FailureRow("duplicate_header", 400, INVALID, "header_policy")
    CREDENTIAL_HEADER = FailureRow("credential_header", 400, INVALID, "header_policy")
    CREDENTIAL_VALUE = FailureRow("credential_value", 400, INVALID, "header_policy")
    RESERVED_HEADER = FailureRow("reserved_header", 400, INVALID, "header_policy")
    FORBIDDEN_HEADER = FailureRow("forbidden_header", 400, INVALID, "header_policy")
    INVALID_API_KEY = FailureRow("invalid_api_key", 401, AUTHENTICATION, "caller_auth")
    ORIGIN_NOT_ALLOWED = FailureRow("origin_not_allowed", 403, INVALID, "origin")
    HOST_NOT_ALLOWED = FailureRow("host_not_allowed", 421, INVALID, "host")
    NOT_FOUND = FailureRow("not_found", 404, INVALID, "not_found")
    MODEL_NOT_FOUND = FailureRow("model_not_found", 404, INVALID, "not_found")
    MODEL_NOT_ALLOWED = FailureRow("model_not_allowed", 403, INVALID, "caller_limit")
    METHOD_NOT_ALLOWED = FailureRow("method_not_allowed", 405, INVALID, "bad_request")
    WEBHOOK_REFUSED = FailureRow("webhook_refused", 400, INVALID, "webhook")
    HEAD_TIMEOUT = FailureRow("request_timeout", 408, INVALID, "head_timeout")
    BODY_TIMEOUT = FailureRow("request_body_timeout", 408, INVALID, "client_slow")
    HEAD_TOO_LARGE = FailureRow("request_head_too_large", 431, INVALID, "head_limit")
    CALLER_GONE = FailureRow("client_closed_request", 499, INVALID, "client_gone", charged=True)
    UPLOAD_CUT = FailureRow("upload_cut", 499, INVALID, "upload_cut")
    CALLER_STALLED = FailureRow("client_stalled", 499, INVALID, "client_stall", charged=True)
    STREAM_TOKEN = FailureRow("invalid_stream_token", 401, AUTHENTICATION, "stream_token")
    READ_ONLY_TOKEN = FailureRow("read_only_token", 403, INVALID, "stream_token")
    FILE_NOT_FOUND = FailureRow("file_not_found", 404, INVALID, "not_found")
    FILE_EXPIRED = FailureRow("file_expired", 410, INVALID, "not_found")
    FILES_OF_CALLER = FailureRow("caller_files_full", 413, INVALID, "files")
    GONE = FailureRow("stream_gone", 410, INVALID, "not_found")
    IDEMPOTENCY_MISMATCH = FailureRow("idempotency_key_reused", 422, INVALID, "idempotency")
    TOO_MANY_VIEWERS = FailureRow("too_many_viewers", 429, INVALID, "viewers")
    CALLER_STREAMS = FailureRow("caller_streams", 429, INVALID, "caller_limit")
    BUDGET_EXHAUSTED = FailureRow("budget_exhausted", 429, QUOTA, "budget")
    CANCELLED = FailureRow("cancelled", 409, INVALID, "cancelled", charged=True)
    # This process.
    OVERLOADED = FailureRow("overloaded", 503, SERVER, "shed")
    MEMORY_SHORT = FailureRow("memory_short", 503, SERVER, "overload")
    STREAM_SHED = FailureRow("stream_shed", 503, SERVER, "overload", charged=True)
    DRAINING = FailureRow("draining", 503, SERVER, "drain")
    PRODUCER_LOST = FailureRow("producer_lost", 502, SERVER, "producer_lost", charged=True)
    DESCRIPTORS_EXHAUSTED = FailureRow("descriptors_exhausted", 503, SERVER, "emfile")
    UPLOAD_SPOOL = FailureRow("upload_spool", 507, SERVER, "spool")
    FILES_FULL = FailureRow("files_full", 507, SERVER, "files")
    SERVER_SHUTDOWN = FailureRow("server_shutdown", 503, SERVER, "drain", charged=True)
    INTERNAL = FailureRow("internal_error", 500, SERVER, "internal", charged=True)
    # Towards the provider: nothing of the request can have been processed.
    PROVIDER_NOT_CONFIGURED = FailureRow("provider_not_configured", 503, SERVER, "provider_auth")
    CONNECTION_REFUSED = FailureRow("connection_refused", 502, UPSTREAM, "upstream_connect")
    CONNECTION_TIMEOUT = FailureRow("connection_timeout", 504, UPSTREAM, "upstream_connect_timeout")
    DNS_ERROR = FailureRow("dns_error", 502, UPSTREAM, "dns")
    DNS_TIMEOUT = FailureRow("dns_timeout", 504, UPSTREAM, "dns")
    TLS_CERTIFICATE_ERROR = FailureRow("tls_certificate_error", 502, UPSTREAM, "tls")
    TLS_PROTOCOL_ERROR = FailureRow("tls_protocol_error", 502, UPSTREAM, "tls")
    CONNECTION_LIMIT_REACHED = FailureRow(
        "connection_limit_reached", 503, UPSTREAM, "pool_timeout", blamed=Blame.ANSWER
    )
    BREAKER_OPEN = FailureRow("destination_unavailable", 503, UPSTREAM, "breaker_open", blamed=Blame.ANSWER)
    UPSTREAM_REQUEST = FailureRow("upstream_request", 502, UPSTREAM, "upstream_request", blamed=Blame.REQUEST)
    FOREIGN_HOST = FailureRow("foreign_host", 502, UPSTREAM, "foreign_host", blamed=Blame.ANSWER)
    PROVIDER_AUTH = FailureRow("provider_auth", 502, UPSTREAM, "provider_auth", blamed=Blame.ANSWER)
    UPLOAD_REJECTED = FailureRow("upload_rejected", 502, UPSTREAM, "upload_rejected", blamed=Blame.REQUEST)
    # An image by its URL: a reference of the request, or a provider's result.
    DESTINATION_IP_PROHIBITED = FailureRow("destination_ip_prohibited", 400, INVALID, "ssrf_block")
    FETCH_FAILED = FailureRow("fetch_failed", 502, UPSTREAM, "fetch_fail", blamed=Blame.REQUEST)
    # Before the provider's head: ambiguous, so never sent again.
    FIRST_BYTE_TIMEOUT = FailureRow("first_byte_timeout", 504, UPSTREAM, "ttfb_timeout", charged=True)
    CONNECTION_TERMINATED = FailureRow("connection_terminated", 502, UPSTREAM, "upstream_reset", charged=True)
    HTTP_PROTOCOL_ERROR = FailureRow("http_protocol_error", 502, UPSTREAM, "upstream_protocol", charged=True)
    HEADER_SECTION_SIZE = FailureRow("header_section_size", 502, UPSTREAM, "upstream_protocol", charged=True)
    UNEXPECTED_REDIRECT = FailureRow("unexpected_redirect", 502, UPSTREAM, "upstream_redirect", charged=True)
    UNEXPECTED_CONTENT_TYPE = FailureRow("unexpected_content_type", 502, UPSTREAM, "upstream_protocol", charged=True)
    CONTENT_CODING = FailureRow("content_coding", 502, UPSTREAM, "upstream_encoding", charged=True)
    RESPONSE_BODY_SIZE = FailureRow(
        "response_body_size", 502, UPSTREAM, "upstream_body", charged=True, blamed=Blame.ANSWER
    )
    BAD_JSON = FailureRow("bad_json", 502, UPSTREAM, "upstream_body", charged=True)
    NO_IMAGE = FailureRow("no_image", 502, UPSTREAM, "no_image", charged=True, blamed=Blame.ANSWER)
    # The provider answered with an error of its own; status, code and text are the provider's where they are known.
    PROVIDER_REFUSED = FailureRow("provider_refused", 400, INVALID, "provider_4xx")
    PROVIDER_LIMIT = FailureRow("rate_limit_exceeded", 429, UPSTREAM, "provider_429", blamed=Blame.ANSWER)
    MODERATION_BLOCKED = FailureRow(
        "moderation_blocked", 400, "image_generation_user_error", "moderation", charged=True
    )
    PROVIDER_FAILED = FailureRow("provider_failed", 502, UPSTREAM, "provider_5xx", charged=True)
    PROVIDER_STREAM_ERROR = FailureRow("provider_stream_error", 502, UPSTREAM, "provider_stream_error", charged=True)
    # After the provider's head.
    UPSTREAM_INCOMPLETE = FailureRow("upstream_incomplete", 502, UPSTREAM, "stream_incomplete", charged=True)
    STREAM_RESET = FailureRow("upstream_reset", 502, UPSTREAM, "stream_reset", charged=True)
    STREAM_PROTOCOL = FailureRow("upstream_protocol_error", 502, UPSTREAM, "stream_protocol", charged=True)
    MISSING_TERMINAL_EVENT = FailureRow("missing_terminal_event", 502, UPSTREAM, "stream_no_terminal", charged=True)
    IDLE_TIMEOUT = FailureRow("idle_timeout", 504, UPSTREAM, "stream_idle", charged=True)
    DEADLINE = FailureRow("deadline", 504, UPSTREAM, "stream_deadline", charged=True)
    EVENT_TOO_LARGE = FailureRow("event_too_large", 502, UPSTREAM, "event_size", charged=True, blamed=Blame.ANSWER)


@dataclass(frozen=True, slots=True)
class Problem:
    """One rejected field: `loc` as in FastAPI's 422 (`("body", "images", 0, "image_url")`), never with its value."""

    loc: tuple[str | int, ...]
    msg: str
    type: str

    @property
    def param(self) -> str:
        """The field as OpenAI's `param` writes it: `images[0].image_url`."""
        path = ""
        for part in self.loc[1:] if self.loc[:1] == ("body",) else self.loc:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
        return path


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDetails:
    """The rest of a failure, beyond its row and its message.

    `code`, `type` and `status` replace the row's where the provider said better ones. `problems` are the rejected
    fields, `members` further members of the provider's error object, `as_sent` its own error event where that can go
    on, and `noted` is for the log only. `attempts`: those that led to it, as `account.told` writes them.
    """

    code: str | None = None
    type: str | None = None
    status: int | None = None
    problems: tuple[Problem, ...] = ()
    members: Mapping[str, object] = field(default_factory=dict)
    as_sent: tuple[bytes | memoryview, ...] = ()
    noted: Mapping[str, str] = field(default_factory=dict)
    attempts: str = ""


class ProxyError(Exception):
    """A failure on its way to the caller.

    `message` never holds a secret, a prompt, image bytes or an offending value. `retry_after` is in seconds, or an HTTP
    date. `charged`: the provider may have charged. It begins as the row says, and is set once the provider has accepted
    the request.
    """

    def __init__(
        self,
        failure: Failure,
        message: str,
        *,
        param: str | None = None,
        retry_after: str | None = None,
        details: ErrorDetails | None = None,
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.details = details or ErrorDetails()
        # A 503 with Retry-After says that the request was not handled (RFC 9110, 15.6.4).
        self.charged = failure.value.charged and not (self.status == 503 and retry_after is not None)

    @property
    def code(self) -> str:
        """OpenAI's `code`."""
        return self.details.code or self.failure.value.code

    @property
    def type(self) -> str:
        """OpenAI's `type`."""
        return self.details.type or self.failure.value.type

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.details.status or self.failure.value.status

    @property
    def blame(self) -> Blame:
        """What it says of the provider. A status of 4xx but 429 is about the request, whatever the row says."""
        found = self.failure.value.blame
        if found is Blame.PROVIDER and 400 <= self.status < 500:
            return Blame.ANSWER if self.status == 429 else Blame.REQUEST
        return found

    @property
    def retryable(self) -> bool:
        """Whether the same request may be sent again without any risk of paying twice."""
        return not self.charged


def descriptors_exhausted(error: BaseException) -> ProxyError | None:
    """DESCRIPTORS_EXHAUSTED where this process (EMFILE), or the machine (ENFILE), can open no more files; else None."""
    number = error.errno if isinstance(error, OSError) else None
    if number not in (errno.EMFILE, errno.ENFILE):
        return None
    return ProxyError(
        Failure.DESCRIPTORS_EXHAUSTED,
        "The proxy can open no more files or connections. Raise its limit of open files (ulimit -n, LimitNOFILE).",
        retry_after="2",
        details=ErrorDetails(noted={"errno": errno.errorcode[number]}),
    )
