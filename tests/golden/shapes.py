"""The shapes in which providers answer an image request, and what callers must see of each.

One row per shape that trips an official SDK, or is said to, when it meets the SDK undiluted: SHAPES. The picture is a
real one, so that whatever calls itself completed can be decoded.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Final

# A PNG of one pixel.
PICTURE: Final = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
        "0000000c49444154789c6388aada0f0002c501944ad680140000000049454e44ae426082"
    )
)

FIELDS: Final = b'"created_at":1795248000,"size":"1x1","quality":"low","background":"opaque","output_format":"png"'
USAGE: Final = (
    b'"usage":{"total_tokens":3,"input_tokens":1,"output_tokens":2,'
    b'"input_tokens_details":{"text_tokens":1,"image_tokens":0}}'
)
IMAGE: Final = b'"b64_json":"' + PICTURE + b'"'
PREVIEW: Final = b'{"type":"image_generation.partial_image",' + IMAGE + b"," + FIELDS + b',"partial_image_index":0}'
COMPLETED: Final = b'{"type":"image_generation.completed",' + IMAGE + b"," + FIELDS + b"," + USAGE + b"}"

_BLOCKED: Final = b'{"message":"blocked","type":"image_generation_user_error","param":null,"code":"moderation_blocked"}'
_FLAT: Final = b'{"type":"error","code":"server_error","message":"flat","param":null}'
_SLOW: Final = b'{"error":{"message":"slow","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}'
_DETAIL: Final = b'"detail":[{"loc":["body","prompt"],"msg":"field required","type":"missing","input":"secret"}]'


def named(data: bytes, name: bytes) -> bytes:
    """One frame with its `event` line."""
    return b"event: " + name + b"\ndata: " + data + b"\n\n"


def unnamed(data: bytes) -> bytes:
    """One data-only frame."""
    return b"data: " + data + b"\n\n"


P: Final = named(PREVIEW, b"image_generation.partial_image")
C: Final = named(COMPLETED, b"image_generation.completed")


@dataclass(frozen=True, slots=True)
class Shape:
    """One answer. `previews` come through, then the completed image, unless `code` says with which error it ends.

    `status`: what HTTP says where the error is known before our head. `cut`: the connection breaks after `body`.
    """

    name: str
    body: bytes = field(repr=False)
    previews: int = 0
    code: str | None = None
    status: int = 502
    answers: int = 200
    content_type: str | None = "text/event-stream"
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False


def _json(name: str, answers: int, body: bytes, code: str, status: int, *headers: tuple[str, str]) -> Shape:
    return Shape(name, body, 0, code, status, answers, "application/json", headers)


SHAPES: Final = (
    # Good streams, however framed.
    Shape("ends without done", P + C, 1),
    Shape("ends with done", P + C + unnamed(b"[DONE]"), 1),
    Shape("done with a suffix", unnamed(COMPLETED) + unnamed(b"[DONE] bye")),
    Shape("data lines only", unnamed(PREVIEW) + unnamed(COMPLETED), 1),
    Shape("comments between", b": ping\n\n" + P + b": ping\n\n: ping\n\n" + C, 1),
    Shape("ids and comments", b"id: 1\n" + P + b": ping\n\nid: 2\n" + C, 1),
    Shape("ids and blank lines", b"id: 1\n" + P + b"\nid: 2\n" + C, 1),
    Shape("ids", b"id: 1\n" + P + b"id: 2\n" + C, 1),
    Shape("ids and a comment line", b"id: 1\n" + P + b": ping\nid: 2\n" + C, 1),
    Shape("retry alone", b"retry: 3000\n\n" + P + C, 1),
    Shape("retry in a frame", b"retry: 3000\n" + P + C, 1),
    Shape("event alone", b"event: ping\n\n" + C),
    Shape("ping with an empty object", named(b"{}", b"ping") + C),
    Shape("keepalive of its own type", named(b'{"type":"keepalive"}', b"keepalive") + C),
    Shape("byte order mark", b"\xef\xbb\xbf" + unnamed(PREVIEW) + C, 1),
    Shape("crlf", (P + C).replace(b"\n", b"\r\n"), 1),
    Shape("cr", (P + C).replace(b"\n", b"\r"), 1),
    Shape("no last blank line", P + C[:-1], 1),
    Shape("no last line end", P + C[:-2], 1),
    Shape("two data lines", b"event: image_generation.completed\n" + unnamed(COMPLETED.replace(b",", b",\ndata: ", 1))),
    # Errors inside a 200.
    Shape(
        "error, nested and named",
        P + named(b'{"type":"error","error":' + _BLOCKED + b"}", b"error"),
        1,
        "moderation_blocked",
        400,
    ),
    Shape("error, nested", P + unnamed(b'{"error":' + _BLOCKED + b"}"), 1, "moderation_blocked", 400),
    Shape("error, flat and named", P + named(_FLAT, b"error"), 1, "server_error"),
    Shape("error, flat", P + unnamed(_FLAT), 1, "server_error"),
    Shape(
        "error, then done",
        P + named(b'{"error":' + _BLOCKED + b"}", b"error") + unnamed(b"[DONE]"),
        1,
        "moderation_blocked",
        400,
    ),
    Shape("error, a string", unnamed(b'{"error":"boom"}'), 0, "provider_stream_error"),
    Shape(
        "error, null", b"event: image_generation.completed\n" + unnamed(COMPLETED.replace(b"{", b'{"error":null,', 1))
    ),
    # Streams that are broken or not there.
    Shape("not json", named(b"{oops", b"image_generation.partial_image"), 0, "bad_json"),
    Shape("cut after a preview", P, 1, "upstream_incomplete", cut=True),
    Shape("ends after a preview", P, 1, "missing_terminal_event"),
    Shape("nothing", b"", 0, "missing_terminal_event"),
    # Content type and content disagree, or members do.
    Shape("json for a stream", b'{"created":1,"data":[{' + IMAGE + b"}]}", content_type="application/json"),
    Shape("events as json", P + C, 1, content_type="application/json"),
    Shape("required members missing", unnamed(b'{"type":"image_generation.completed",' + IMAGE + b"}")),
    Shape("more members", unnamed(COMPLETED.replace(b"{", b'{"id":"img-1","cost":0.1,"provider":"elsewhere",', 1))),
    Shape("the other family", unnamed(COMPLETED.replace(b"image_generation", b"image_edit"))),
    # Refusals.
    _json("400", 400, b'{"error":' + _BLOCKED + b"}", "moderation_blocked", 400, ("x-request-id", "req_1")),
    _json("422 with detail", 422, b"{" + _DETAIL + b"}", "provider_refused", 422),
    _json(
        "422 with both",
        422,
        b"{" + _DETAIL + b',"error":{"message":"m","type":"invalid_request_error","param":"prompt","code":null}}',
        "provider_refused",
        422,
    ),
    _json("400 with a string", 400, b'{"detail":"nope"}', "provider_refused", 400),
    _json("401", 401, b'{"error":{"message":"bad key","code":"invalid_api_key"}}', "provider_auth", 502),
    Shape("500 in html", b"<html>x</html>", 0, "provider_failed", 502, 500, "text/html"),
    _json("429", 429, _SLOW, "rate_limit_exceeded", 429, ("retry-after", "0")),
    _json("429, not to be retried", 429, _SLOW, "rate_limit_exceeded", 429, ("x-should-retry", "false")),
    _json("400 with a number", 400, b'{"error":{"message":"m","code":400}}', "400", 400),
    Shape("204", b"", 0, "no_image", 502, 204, None),
)
