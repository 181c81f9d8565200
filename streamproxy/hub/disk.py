"""The uploaded files of one process: in a temporary folder, which is removed with the process, under caps in bytes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Final, Self

import anyio
from anyio import to_thread

from streamproxy.core.files import FileRecord
from streamproxy.core.requests import Upload
from streamproxy.errors import Failure, ProxyError, descriptors_exhausted
from streamproxy.hub.files import PIECE, Room, charge_of

SWEEP_SECONDS: Final = 60.0
"""Longest time that an expired file stays on disk. It cannot be found meanwhile."""


class DiskFiles:
    """See the module's text: `hub.files.FileStore`. `now` gives Unix seconds."""

    def __init__(self, *, room: Room, now: Callable[[], float]) -> None:
        self._room = room
        self._now = now
        self._records: dict[str, FileRecord] = {}
        self._owned: dict[str | None, int] = {}
        self._folder: TemporaryDirectory[str] | None = None
        self.bytes = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Self]:
        """Remove expired files until the block ends, then the folder."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._tend)
                yield self
                tasks.cancel_scope.cancel()
        finally:
            if self._folder is not None:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(self._folder.cleanup)

    async def _tend(self) -> None:
        while True:
            await anyio.sleep(SWEEP_SECONDS)
            await self._sweep()

    async def _sweep(self) -> None:
        for record in [record for record in self._records.values() if record.expires <= self._now()]:
            await self.remove(record)

    async def keep(self, record: FileRecord, upload: Upload) -> None:
        await self._sweep()
        self._room.check(charge_of(record.size), self.bytes, self._owned.get(record.owner, 0))
        self._count(record, 1)
        try:
            await to_thread.run_sync(_write, self._path(record), upload)
        except BaseException as error:
            self._count(record, -1)
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(_unlink, self._path(record))
            if isinstance(error, OSError):
                raise _failed(error) from None
            raise
        self._records[record.id] = record

    async def find(self, id: str) -> FileRecord | None:
        record = self._records.get(id)
        return record if record is not None and record.expires > self._now() else None

    async def owned(self, owner: str) -> list[FileRecord]:
        now = self._now()
        found = [record for record in self._records.values() if record.owner == owner and record.expires > now]
        return sorted(found, key=lambda record: record.expires)

    async def content(self, record: FileRecord) -> BinaryIO | None:
        if record.id not in self._records:
            return None
        try:
            return await to_thread.run_sync(_opened, self._path(record))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed(error) from None

    async def remove(self, record: FileRecord) -> None:
        if self._records.pop(record.id, None) is not None:
            self._count(record, -1)
            await to_thread.run_sync(_unlink, self._path(record))

    def _count(self, record: FileRecord, times: int) -> None:
        charge = times * charge_of(record.size)
        self.bytes += charge
        owned = self._owned.get(record.owner, 0) + charge
        if owned:
            self._owned[record.owner] = owned
        else:
            del self._owned[record.owner]

    def _path(self, record: FileRecord) -> Path:
        if self._folder is None:  # made for the first file: a proxy without uploads needs no disk
            self._folder = TemporaryDirectory(prefix="streamproxy-files-", ignore_cleanup_errors=True)
        return Path(self._folder.name, record.id)


def _write(path: Path, upload: Upload) -> None:
    with path.open("xb") as file:
        for offset in range(0, upload.size, PIECE):
            file.write(upload.read(offset, PIECE))


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _failed(error: OSError) -> ProxyError:
    return descriptors_exhausted(error) or ProxyError(
        Failure.UPLOAD_SPOOL,
        f"The file could not be kept ({error.strerror}). Free space in the temporary directory (TMPDIR), or lower the "
        "setting file_bytes.",
    )
