"""Idempotency-Keys: a key stands for its first request, and for the stream that answers it.

The same key with the same body is the same generation (draft-ietf-httpapi-idempotency-key-header).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import anyio

from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.health import StoreHealth, unreachable
from streamproxy.hub.store import Claim, Claims
from streamproxy.hub.stream import Stream

APPEAR_SECONDS: Final = 2.0
"""Longest wait of a repeated request for the first one's stream, which another replica may be creating."""

LOOK_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one request: `key`, its Idempotency-Key, or else `mark`. `body` is its fingerprint."""

    body: str
    key: str | None = None
    mark: str | None = None


class Keys:
    """See the module's text. `find` returns a stream by its id."""

    def __init__(self, claims: Claims, health: StoreHealth, find: Callable[[str], Awaitable[Stream]]) -> None:
        self._claims = claims
        self._health = health
        self._find = find

    async def find(self, key: str, fingerprint: str, id: str) -> Stream | None:
        """The stream that answers this key already; None where this request is the first, or the first was refused.

        Raises ProxyError as `reserve` does, and (GONE) where that stream is no longer known.
        """
        ends_at = anyio.current_time() + APPEAR_SECONDS
        while True:
            earlier = await self.reserve(key, fingerprint, id)
            if earlier is None:
                return None
            try:
                return await self._find(earlier)
            except ProxyError as error:
                if error.failure is not Failure.NOT_FOUND:
                    raise
            if anyio.current_time() > ends_at:  # not a cancel scope: `reserve` must not be cancelled half-way
                message = "The generation of this Idempotency-Key is no longer known. Send a new key."
                raise ProxyError(Failure.GONE, message)
            await anyio.sleep(LOOK_SECONDS)

    async def reserve(self, key: str, fingerprint: str, id: str) -> str | None:
        """Reserve the key for stream `id`. Returns the id of an earlier stream that has it; None for the first.

        Raises ProxyError: IDEMPOTENCY_MISMATCH where the key stands for another request; OVERLOADED where the store
        fails, since a caller with a key would rather wait than pay twice.
        """
        held = await self._health.attempt(self._claims.claim(key, Claim(fingerprint, id)))
        if held is None:
            raise unreachable()
        if held.stream_id == id:
            return None
        if held.fingerprint != fingerprint:
            raise ProxyError(
                Failure.IDEMPOTENCY_MISMATCH,
                "This Idempotency-Key was used for another request. Send a new key, or the same body.",
            )
        return held.stream_id

    async def release(self, key: str) -> None:
        """Free the key: its request was refused, and nothing of it was processed."""
        await self._health.attempt(self._claims.disclaim(key))
