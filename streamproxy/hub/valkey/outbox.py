"""The outbox of many processes, in the Valkey or Redis server that keeps their streams.

    sp:{outbox}:due       sorted set: ids of pending notices, by when they are due, in milliseconds
    sp:{outbox}:notices   hash: each notice as JSON, by its id
    sp:{outbox}:owners    hash: how many notices each caller has

All three expire by themselves, long after the last attempt. Each script may run twice for one request, when a reply was
lost.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Final, Self

from streamproxy.hub.outbox import Lease, Notice, OutboxLimits
from streamproxy.hub.valkey.client import Script, ValkeyClient, parse_address

KEYS: Final = tuple(f"sp:{{outbox}}:{name}" for name in ("due", "notices", "owners"))

KEPT_MS: Final = 2 * 86_400_000
"""From the last notice that was put. Its last attempt is within 9 hours."""

PUT: Final = Script(
    """
local due, notices, owners = KEYS[1], KEYS[2], KEYS[3]
local id, at, notice, owner, total, caller, ms = unpack(ARGV)
if redis.call('HEXISTS', notices, id) == 1 then return 'kept' end
if redis.call('HLEN', notices) >= tonumber(total) then return 'full' end
if tonumber(redis.call('HGET', owners, owner) or '0') >= tonumber(caller) then return 'full' end
redis.call('ZADD', due, at, id)
redis.call('HSET', notices, id, notice)
redis.call('HINCRBY', owners, owner, 1)
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ms) end
return 'kept'
"""
)
"""Arguments: id, when it is due, the notice, its owner, the room of all and of one caller, how long all is kept."""

CLAIM: Final = Script(
    """
local due, notices = KEYS[1], KEYS[2]
local now, till, most = unpack(ARGV)
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, most)) do
  local notice = redis.call('HGET', notices, id)
  if notice then
    redis.call('ZADD', due, till, id)
    found[#found + 1] = notice
  else
    redis.call('ZREM', due, id)
  end
end
return found
"""
)
"""Arguments: now, when the claims end, how many at most. Where a reply is lost, they are claimed in vain until then."""

REPLACE: Final = Script(
    """
local due, notices = KEYS[1], KEYS[2]
local id, notice, held, at = unpack(ARGV)
if redis.call('HEXISTS', notices, id) == 0 then return 'gone' end
redis.call('HSET', notices, id, notice)
if tonumber(redis.call('ZSCORE', due, id) or held) == tonumber(held) then redis.call('ZADD', due, at, id) end
return 'kept'
"""
)
"""Arguments: id, the notice, when its claim ends, when it is due."""

DROP: Final = Script(
    """
local due, notices, owners = KEYS[1], KEYS[2], KEYS[3]
local id, owner = unpack(ARGV)
redis.call('ZREM', due, id)
if redis.call('HDEL', notices, id) == 1 and redis.call('HINCRBY', owners, owner, -1) <= 0 then
  redis.call('HDEL', owners, owner)
end
return 'gone'
"""
)
"""Arguments: id, and its owner."""


class ValkeyNotices:
    """See the module's text: `hub.outbox.NoticeStore`."""

    def __init__(self, url: str) -> None:
        self._client = ValkeyClient(parse_address(url))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Self]:
        """Close the connections with the block. The server need not be there yet."""
        try:
            yield self
        finally:
            await self._client.aclose()

    async def put(self, notice: Notice, due: float, room: OutboxLimits) -> bool:
        kept = (notice.id, _ms(due), _written(notice), notice.owner or "-", room.total, room.caller, KEPT_MS)
        return bool(await self._client.run(PUT, KEYS, *kept) == b"kept")

    async def set_due(self, ids: Sequence[str], due: float) -> None:
        await self._client.ask_all([("ZADD", KEYS[0], "XX", _ms(due), id) for id in ids])

    async def claim(self, now: float, until: float, most: int) -> list[Lease]:
        end = _ms(until)
        found = await self._client.run(CLAIM, KEYS, _ms(now), end, most)
        return [Lease(notice, end / 1000) for raw in found if (notice := _read(raw)) is not None]

    async def replace(self, lease: Lease, notice: Notice, due: float) -> None:
        await self._client.run(REPLACE, KEYS, notice.id, _written(notice), _ms(lease.until), _ms(due))

    async def drop(self, notice: Notice) -> None:
        await self._client.run(DROP, KEYS, notice.id, notice.owner or "-")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _written(notice: Notice) -> str:
    return json.dumps(asdict(notice))


def _read(raw: bytes) -> Notice | None:
    """The notice; None for one of another version, which its own processes deliver."""
    try:
        return Notice(**json.loads(raw))
    except (ValueError, TypeError):
        return None
