"""Idempotency-Key: the same key with the same body is the same generation (draft-ietf-httpapi-idempotency-key-header).

The key is kept as a hash together with its owner, the body as a hash too: neither can be read back.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from anyio import to_thread
from starlette.requests import Request

from streamproxy.core.jsonbody import JsonObject
from streamproxy.core.requests import Part, Upload
from streamproxy.errors import Failure, ProxyError

_KEY: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")
_PIECE: Final = 1024 * 1024


def idempotency_key(request: Request, owner: str | None) -> str | None:
    """The caller's key as the store knows it; raises ProxyError(INVALID_REQUEST) for one that cannot be a key."""
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise ProxyError(
            Failure.INVALID_REQUEST,
            "Idempotency-Key must be one header of 1 to 255 visible ASCII characters.",
            param="Idempotency-Key",
        )
    return hashlib.sha256(f"{owner}\n{given[0]}".encode()).hexdigest()


async def fingerprint(request: Request, body: JsonObject | tuple[Part, ...]) -> str:
    """A hash of what is asked: the path below the version, and the body, in a form without its boundary."""
    digest = hashlib.sha256(request.url.path.split("/", 2)[2].encode() + b"\n")
    if isinstance(body, JsonObject):
        digest.update(body.raw)
        return digest.hexdigest()
    for part in body:
        size = len(part.value) if isinstance(part.value, bytes) else part.value.size
        digest.update(f"{part.name!r} {part.filename!r} {part.content_type!r} {size}\n".encode())
        if isinstance(part.value, bytes):
            digest.update(part.value)
        else:
            await to_thread.run_sync(_add, digest, part.value)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, upload: Upload) -> None:
    for offset in range(0, upload.size, _PIECE):
        digest.update(upload.read(offset, _PIECE))
