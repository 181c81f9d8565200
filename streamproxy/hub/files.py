"""Uploaded files, from the upload until they expire: access to them, and the errors for a file that is missing.

    keep, find, owned, content, delete      the operations of callers
    FileStore                               the protocol that every store of files fulfils

Where callers have keys of this proxy, a file belongs to the key that uploaded it and does not exist for any other. In
other cases keys are not checked, so they cannot tell callers apart. The id alone, which cannot be guessed, then opens
the file.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol, TypeVar

from streamproxy.core.files import FileRecord, NewFile, expiry, file_id
from streamproxy.core.requests import Upload
from streamproxy.errors import Failure, ProxyError
from streamproxy.hub.health import StoreHealth
from streamproxy.hub.store import StoreError

Result = TypeVar("Result")

LEAST: Final = 64 * 1024
"""Least bytes that a file counts, so that the cap bounds the number of small files too."""

PIECE: Final = 1024 * 1024
"""Bytes that are read and written at a time."""


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes for files: of all callers together, and of each one. Callers without a key are one caller."""

    total: int
    each: int

    @property
    def largest(self) -> int:
        """Bytes that one file may have."""
        return min(self.total, self.each)

    def check(self, charge: int, held: int, owned: int) -> None:
        """Raises ProxyError where a file finds no room beside what all callers, and its own, hold already."""
        if held + charge > self.total:
            raise full(self.total)
        if owned + charge > self.each:
            raise share_used_up(self.each)


class FileStore(Protocol):
    """See the module's text. Every method may raise StoreError. One contract suite holds every store to this."""

    async def keep(self, record: FileRecord, upload: Upload) -> None:
        """Keep a file until it expires. Raises ProxyError(FILES_FULL) or (FILES_OF_CALLER) where it finds no room."""
        ...

    async def find(self, id: str) -> FileRecord | None:
        """The record of a file that is kept; None where there is none."""
        ...

    async def owned(self, owner: str) -> list[FileRecord]:
        """The files uploaded with this key, in the order of their expiry."""
        ...

    async def content(self, record: FileRecord) -> BinaryIO | None:
        """The file, open for reading, even if it is removed meanwhile; None where it is already removed."""
        ...

    async def remove(self, record: FileRecord) -> None:
        """Remove a file."""
        ...


def charge_of(size: int) -> int:
    """Bytes that a file of this size counts."""
    return max(size, LEAST)


def full(limit: int) -> ProxyError:
    """The error for a file for which there is no room."""
    return ProxyError(
        Failure.FILES_FULL,
        f"There is no room for this file: all uploads together may have {limit} bytes, and each counts {LEAST >> 10} "
        "KiB at least. Delete files that are not needed any more. The setting is file_bytes.",
    )


def share_used_up(limit: int) -> ProxyError:
    """The error for a file that would take room of other callers."""
    return ProxyError(
        Failure.FILES_OF_CALLER,
        f"There is no room for this file: the uploads of one caller may have {limit} bytes together, and each counts "
        f"{LEAST >> 10} KiB at least. Delete files that are not needed any more. The setting is file_bytes_per_caller.",
        param="file",
    )


@dataclass(frozen=True, slots=True)
class Files:
    """See the module's text. `tenants`: whether keys of this proxy tell callers apart."""

    store: FileStore
    health: StoreHealth
    room: Room
    seconds: float
    tenants: bool

    async def keep(self, new: NewFile, owner: str | None) -> FileRecord:
        """Keep an upload for `new.seconds`, at most for the setting `file_seconds`."""
        if new.upload.size > self.room.largest:
            setting = "file_bytes_per_caller" if self.room.each < self.room.total else "file_bytes"
            raise ProxyError(
                Failure.BODY_TOO_LARGE,
                f"The file is over {self.room.largest} bytes, which uploads may have. The setting is {setting}.",
                param="file",
            )
        created = int(time.time())
        expires = created + max(1, int(min(new.seconds or self.seconds, self.seconds)))
        id = file_id(expires, secrets.token_hex(16))
        record = FileRecord(
            id, owner, new.name, new.upload.size, new.media_type, new.purpose, created=created, expires=expires
        )
        await self._reached(self.store.keep(record, new.upload))
        return record

    async def find(self, id: str, owner: str | None) -> FileRecord:
        """The file, for the caller with this key. Raises ProxyError: FILE_NOT_FOUND, FILE_EXPIRED."""
        expires = expiry(id)
        if expires is not None and expires <= time.time():
            raise ProxyError(
                Failure.FILE_EXPIRED,
                "This file has expired: upload it again. The setting file_seconds says how long uploads are kept.",
            )
        found = None if expires is None else await self._reached(self.store.find(id))
        if found is None or (self.tenants and found.owner != owner):
            raise missing()
        return found

    async def owned(self, owner: str | None) -> list[FileRecord]:
        """The files uploaded with this key, oldest first; none without a key."""
        if owner is None:
            return []
        return sorted(await self._reached(self.store.owned(owner)), key=lambda record: (record.created, record.id))

    async def content(self, record: FileRecord) -> BinaryIO:
        """The file, open for reading. Raises ProxyError(FILE_NOT_FOUND) where it is already removed."""
        found = await self._reached(self.store.content(record))
        if found is None:
            raise missing()
        return found

    async def delete(self, record: FileRecord) -> None:
        """Remove the file. Reads that have begun go on."""
        await self._reached(self.store.remove(record))

    async def _reached(self, operation: Awaitable[Result]) -> Result:
        """The store's answer. Raises ProxyError(OVERLOADED) where the store fails."""
        try:
            return await operation
        except StoreError as error:
            self.health.note(error)
            raise ProxyError(
                Failure.OVERLOADED,
                "The store of files cannot be reached now, or has no memory left. The setting is store.",
                retry_after="2",
            ) from None


def missing() -> ProxyError:
    """The error for an id without a file."""
    return ProxyError(
        Failure.FILE_NOT_FOUND,
        "No such file. It was never uploaded here, was deleted or is another caller's, or the process that kept it has "
        "ended (the setting `store`). POST /v1/files uploads one.",
    )
