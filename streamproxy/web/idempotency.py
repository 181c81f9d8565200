"""The names of a request that may come again: its Idempotency-Key, or a hash of all it asks for.

The same key with the same body is the same generation (draft-ietf-httpapi-idempotency-key-header). No SDK sends one by
itself, but those of OpenAI number their retries. A retry finds the generation of its own lost request by its mark.
Keys, owners and bodies are kept as hashes only. None can be read back.
"""

from __future__ import annotations

import hashlib
from typing import Final

from anyio import to_thread
from starlette.requests import Request

from streamproxy.core.rawjson import JsonObject
from streamproxy.core.requests import Part, Upload
from streamproxy.core.webhooks import HEADER
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.keys import Names

_PIECE: Final = 1024 * 1024


def names(owner: str | None, key: str | None, body: str) -> Names:
    """The names of a caller's request. `key` is the caller's Idempotency-Key, `body` the fingerprint.

    Callers without a key of their own cannot be told apart, so that an Idempotency-Key of theirs counts together with
    the body. Two of them may choose the same one for different bodies.
    """
    if key is None:
        return Names(body, mark=_hash("mark", owner, body))
    return Names(body, key=_hash("key", owner, key) if owner is not None else _hash("key", None, body, key))


def _hash(*parts: str | None) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


async def fingerprint(request: Request, body: JsonObject | tuple[Part, ...]) -> str:
    """A hash of what is asked: the path below the version, the webhook, and the body without a form's boundary."""
    path: str = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    digest = hashlib.sha256(path.split("/", 2)[2].encode() + b"\n")
    for url in request.headers.getlist(HEADER):
        digest.update(url.encode() + b"\n")
    if isinstance(body, JsonObject):
        if len(body.raw) > _PIECE:
            await to_thread.run_sync(digest.update, body.raw)
        else:
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
    try:
        for offset in range(0, upload.size, _PIECE):
            digest.update(upload.read(offset, _PIECE))
    except OSError as error:
        raise ProxyError(Failure.UPLOAD_SPOOL, f"The upload could not be read back ({error.strerror}).") from None
