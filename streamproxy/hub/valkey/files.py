"""The uploaded files of all processes, in the Valkey or Redis server that has their streams.

    sp:files            sorted set: `<charged bytes> <id> <owner or ->` of every file; the score is its expiry
    sp:{id}:file        a file's record, as JSON; written after all of its parts
    sp:{id}:part:<n>    its bytes, PIECE each

All keys expire by themselves. A script reserves the room before the bytes are written, so that all processes together
stay under the cap.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import BinaryIO, Final, Self, cast

import anyio
from anyio import to_thread

from streamproxy.core.files import FileRecord
from streamproxy.core.requests import Upload
from streamproxy.errors import Failure, ProxyError, descriptors_exhausted
from streamproxy.hub.files import PIECE, Room, charge_of, full, share_used_up
from streamproxy.hub.store import StoreError
from streamproxy.hub.valkey.client import Argument, Script, ValkeyClient, parse_address

ALL: Final = "sp:files"

REMOVE_SECONDS: Final = 5.0
"""Seconds to remove the parts of a file that could not be kept."""

RESERVE: Final = Script(
    """
local now, expires, member, charge, cap, share = unpack(ARGV)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local owner = string.match(member, '%S+$')
local held, owned = tonumber(charge), tonumber(charge)
for _, other in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if other ~= member then
    local bytes = tonumber(string.match(other, '^%d+'))
    held = held + bytes
    if string.match(other, '%S+$') == owner then owned = owned + bytes end
  end
end
if held > tonumber(cap) then return 'full' end
if owned > tonumber(share) then return 'share' end
redis.call('ZADD', KEYS[1], expires, member)
redis.call('EXPIREAT', KEYS[1], redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2])
return 'kept'
"""
)
"""Reserve room for a file under the cap of all files and that of its owner. May run twice, when a reply was lost."""


class ValkeyFiles:
    """See the module's text: `hub.files.FileStore`."""

    def __init__(self, url: str, *, room: Room) -> None:
        self._client = ValkeyClient(parse_address(url))
        self._room = room

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Self]:
        """Close the connections when the block ends. The server need not be reachable yet."""
        try:
            yield self
        finally:
            await self._client.aclose()

    async def keep(self, record: FileRecord, upload: Upload) -> None:
        room, charge = self._room, charge_of(record.size)
        asked = (int(time.time()), record.expires, _member(record), charge, room.total, room.each)
        match await self._client.run(RESERVE, [ALL], *asked):
            case b"full":
                raise full(room.total)
            case b"share":
                raise share_used_up(room.each)
        try:
            for offset in range(0, record.size, PIECE):
                await self._set(_part(record, offset), await _read(upload, offset), record)
            await self._set(_key(record.id), json.dumps(asdict(record)), record)
        except BaseException:
            with anyio.move_on_after(REMOVE_SECONDS, shield=True), suppress(StoreError):
                await self.remove(record)
            raise

    async def _set(self, key: str, value: Argument, record: FileRecord) -> None:
        await self._client.ask("SET", key, value, "EXAT", record.expires)

    async def find(self, id: str) -> FileRecord | None:
        return _record(await self._client.ask("GET", _key(id)))

    async def owned(self, owner: str) -> list[FileRecord]:
        members = await self._client.ask("ZRANGEBYSCORE", ALL, int(time.time()), "+inf")
        ids = [id.decode() for _, id, whose in (member.split(b" ") for member in members) if whose == owner.encode()]
        if not ids:
            return []
        found = map(_record, await self._client.ask_all([("GET", _key(id)) for id in ids]))
        return [record for record in found if record is not None and record.owner == owner]

    async def content(self, record: FileRecord) -> BinaryIO | None:
        try:
            file = cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=PIECE))  # noqa: SIM115  # the caller's
        except OSError as error:
            raise _failed(error) from None
        try:
            for offset in range(0, record.size, PIECE):
                part = await self._client.ask("GET", _part(record, offset))
                if part is None or len(part) != min(PIECE, record.size - offset):
                    file.close()
                    return None  # just expired, removed, or evicted
                await to_thread.run_sync(file.write, part)
        except OSError as error:
            file.close()
            raise _failed(error) from None
        except BaseException:
            file.close()
            raise
        return file

    async def remove(self, record: FileRecord) -> None:
        keys = [_key(record.id), *(_part(record, offset) for offset in range(0, record.size, PIECE))]
        await self._client.ask_all([("UNLINK", key) for key in keys])
        await self._client.ask("ZREM", ALL, _member(record))


async def _read(upload: Upload, offset: int) -> bytes:
    try:
        return await to_thread.run_sync(upload.read, offset, PIECE)
    except OSError as error:
        raise _failed(error) from None


def _member(record: FileRecord) -> str:
    return f"{charge_of(record.size)} {record.id} {record.owner or '-'}"


def _key(id: str) -> str:
    return f"sp:{{{id}}}:file"


def _part(record: FileRecord, offset: int) -> str:
    return f"sp:{{{record.id}}}:part:{offset // PIECE}"


def _record(raw: bytes | None) -> FileRecord | None:
    if raw is None:
        return None
    try:
        return FileRecord(**json.loads(raw))
    except (ValueError, TypeError):
        raise StoreError("The store has a file's record that this version cannot read.") from None


def _failed(error: OSError) -> ProxyError:
    return descriptors_exhausted(error) or ProxyError(
        Failure.UPLOAD_SPOOL,
        f"The file could not be read back ({error.strerror}). Free space in the temporary directory (TMPDIR).",
    )
