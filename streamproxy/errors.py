"""Every way a request can go wrong: one row each.

    ProxyError                 carries a Failure, and what this caller needs to know about it
      raised before our head   -> that row's HTTP status with a JSON body
      raised after it          -> one final `error` event with the same fields

The row decides the status, OpenAI's error `type`, the metric label, and whether the provider may already have charged:
only where it cannot have, may anybody send the same request again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

INVALID: Final = "invalid_request_error"
AUTHENTICATION: Final = "authentication_error"
SERVER: Final = "server_error"
UPSTREAM: Final = "upstream_error"


@dataclass(frozen=True, slots=True)
class Row:
    """One failure: `code` and `type` as callers see them, the HTTP status, the metric label.

    `charged`: the provider may have processed, and billed, the request. Such an answer carries `x-should-retry: false`,
    because the OpenAI SDKs repeat a POST on 408, 409, 429 and every 5xx by themselves.
    """

    code: str
    status: int
    type: str
    label: str
    charged: bool = False


class Failure(Enum):
    """The closed list of failures. A member's value is its Row; the README table is checked against it."""

    # What the caller sent.
    INVALID_REQUEST = Row("invalid_request", 422, INVALID, "bad_request")
    INVALID_JSON = Row("invalid_json", 400, INVALID, "bad_request")
    DUPLICATE_KEY = Row("duplicate_key", 400, INVALID, "bad_request")
    INVALID_MULTIPART = Row("invalid_multipart", 400, INVALID, "bad_request")
    UNSUPPORTED_PARAMETER = Row("unsupported_parameter", 400, INVALID, "bad_request")
    UNSUPPORTED_MEDIA_TYPE = Row("unsupported_media_type", 415, INVALID, "bad_request")
    BODY_TOO_LARGE = Row("body_too_large", 413, INVALID, "body_limit")
    INVALID_EXTRA_HEADERS = Row("invalid_extra_headers", 400, INVALID, "header_policy")
    EXTRA_HEADERS_TOO_LARGE = Row("extra_headers_too_large", 400, INVALID, "header_policy")
    DUPLICATE_HEADER = Row("duplicate_header", 400, INVALID, "header_policy")
    CREDENTIAL_HEADER = Row("credential_header", 400, INVALID, "header_policy")
    CREDENTIAL_VALUE = Row("credential_value", 400, INVALID, "header_policy")
    RESERVED_HEADER = Row("reserved_header", 400, INVALID, "header_policy")
    FORBIDDEN_HEADER = Row("forbidden_header", 400, INVALID, "header_policy")
    INVALID_API_KEY = Row("invalid_api_key", 401, AUTHENTICATION, "caller_auth")
    ORIGIN_NOT_ALLOWED = Row("origin_not_allowed", 403, INVALID, "origin")
    NOT_FOUND = Row("not_found", 404, INVALID, "not_found")
    MODEL_NOT_FOUND = Row("model_not_found", 404, INVALID, "not_found")
    METHOD_NOT_ALLOWED = Row("method_not_allowed", 405, INVALID, "bad_request")
    HEAD_TIMEOUT = Row("request_timeout", 408, INVALID, "head_timeout")
    BODY_TIMEOUT = Row("request_body_timeout", 408, INVALID, "client_slow")
    HEAD_TOO_LARGE = Row("request_head_too_large", 431, INVALID, "head_limit")
    CALLER_GONE = Row("client_closed_request", 499, INVALID, "client_gone", charged=True)
    UPLOAD_CUT = Row("upload_cut", 499, INVALID, "upload_cut")
    CALLER_STALLED = Row("client_stalled", 499, INVALID, "client_stall", charged=True)
    STREAM_TOKEN = Row("invalid_stream_token", 401, AUTHENTICATION, "stream_token")
    READ_ONLY_TOKEN = Row("read_only_token", 403, INVALID, "stream_token")
    GONE = Row("stream_gone", 410, INVALID, "not_found")
    IDEMPOTENCY_MISMATCH = Row("idempotency_key_reused", 422, INVALID, "idempotency")
    TOO_MANY_VIEWERS = Row("too_many_viewers", 429, INVALID, "viewers")
    CANCELLED = Row("cancelled", 409, INVALID, "cancelled", charged=True)
    # This process.
    OVERLOADED = Row("overloaded", 503, SERVER, "shed")
    DRAINING = Row("draining", 503, SERVER, "drain")
    PRODUCER_LOST = Row("producer_lost", 502, SERVER, "producer_lost", charged=True)
    UPLOAD_SPOOL = Row("upload_spool", 507, SERVER, "spool")
    SERVER_SHUTDOWN = Row("server_shutdown", 503, SERVER, "drain", charged=True)
    INTERNAL = Row("internal_error", 500, SERVER, "internal", charged=True)
    # Towards the provider: nothing of the request can have been processed.
    PROVIDER_NOT_CONFIGURED = Row("provider_not_configured", 503, SERVER, "provider_auth")
    CONNECTION_REFUSED = Row("connection_refused", 502, UPSTREAM, "upstream_connect")
    CONNECTION_TIMEOUT = Row("connection_timeout", 504, UPSTREAM, "upstream_connect_timeout")
    DNS_ERROR = Row("dns_error", 502, UPSTREAM, "dns")
    DNS_TIMEOUT = Row("dns_timeout", 504, UPSTREAM, "dns")
    TLS_CERTIFICATE_ERROR = Row("tls_certificate_error", 502, UPSTREAM, "tls")
    TLS_PROTOCOL_ERROR = Row("tls_protocol_error", 502, UPSTREAM, "tls")
    CONNECTION_LIMIT_REACHED = Row("connection_limit_reached", 503, UPSTREAM, "pool_timeout")
    UPSTREAM_REQUEST = Row("upstream_request", 502, UPSTREAM, "upstream_request")
    PROVIDER_AUTH = Row("provider_auth", 502, UPSTREAM, "provider_auth")
    UPLOAD_REJECTED = Row("upload_rejected", 502, UPSTREAM, "upload_rejected")
    # Before the provider's head: ambiguous, so never sent again.
    FIRST_BYTE_TIMEOUT = Row("first_byte_timeout", 504, UPSTREAM, "ttfb_timeout", charged=True)
    CONNECTION_TERMINATED = Row("connection_terminated", 502, UPSTREAM, "upstream_reset", charged=True)
    HTTP_PROTOCOL_ERROR = Row("http_protocol_error", 502, UPSTREAM, "upstream_protocol", charged=True)
    HEADER_SECTION_SIZE = Row("header_section_size", 502, UPSTREAM, "upstream_protocol", charged=True)
    UNEXPECTED_REDIRECT = Row("unexpected_redirect", 502, UPSTREAM, "upstream_redirect", charged=True)
    UNEXPECTED_CONTENT_TYPE = Row("unexpected_content_type", 502, UPSTREAM, "upstream_protocol", charged=True)
    CONTENT_CODING = Row("content_coding", 502, UPSTREAM, "upstream_encoding", charged=True)
    RESPONSE_BODY_SIZE = Row("response_body_size", 502, UPSTREAM, "upstream_body", charged=True)
    BAD_JSON = Row("bad_json", 502, UPSTREAM, "upstream_body", charged=True)
    NO_IMAGE = Row("no_image", 502, UPSTREAM, "no_image", charged=True)
    # The provider answered with an error of its own; status, code and text are the provider's where they are known.
    PROVIDER_REFUSED = Row("provider_refused", 400, INVALID, "provider_4xx")
    PROVIDER_LIMIT = Row("rate_limit_exceeded", 429, UPSTREAM, "provider_429")
    PROVIDER_FAILED = Row("provider_failed", 502, UPSTREAM, "provider_5xx", charged=True)
    PROVIDER_STREAM_ERROR = Row("provider_stream_error", 502, UPSTREAM, "provider_stream_error", charged=True)
    # After the provider's head.
    UPSTREAM_INCOMPLETE = Row("upstream_incomplete", 502, UPSTREAM, "stream_incomplete", charged=True)
    STREAM_RESET = Row("upstream_reset", 502, UPSTREAM, "stream_reset", charged=True)
    STREAM_PROTOCOL = Row("upstream_protocol_error", 502, UPSTREAM, "stream_protocol", charged=True)
    MISSING_TERMINAL_EVENT = Row("missing_terminal_event", 502, UPSTREAM, "stream_no_terminal", charged=True)
    IDLE_TIMEOUT = Row("idle_timeout", 504, UPSTREAM, "stream_idle", charged=True)
    DEADLINE = Row("deadline", 504, UPSTREAM, "stream_deadline", charged=True)
    EVENT_TOO_LARGE = Row("event_too_large", 502, UPSTREAM, "event_size", charged=True)


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


class ProxyError(Exception):
    """A failure on its way to the caller.

    `message` never holds a secret, a prompt, image bytes or an offending value. `status`, `code` and `type` replace the
    row's where the provider said better ones; `retry_after` is in seconds; `problems` are the rejected fields;
    `details` further members of the provider's error object; `as_sent` its own error event where that can go on;
    `noted` is for the log only.
    """

    def __init__(
        self,
        failure: Failure,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        status: int | None = None,
        retry_after: str | None = None,
        problems: tuple[Problem, ...] = (),
        details: Mapping[str, object] | None = None,
        as_sent: tuple[bytes | memoryview, ...] = (),
        noted: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        row = failure.value
        self.failure = failure
        self.message = message
        self.param = param
        self.code = code or row.code
        self.type = type or row.type
        self.status = status or row.status
        self.retry_after = retry_after
        self.problems = problems
        self.details = details or {}
        self.as_sent = as_sent
        self.noted = noted or {}

    @property
    def retryable(self) -> bool:
        """Whether the same request may be sent again without any risk of paying twice."""
        return not self.failure.value.charged or (self.status == 503 and self.retry_after is not None)
