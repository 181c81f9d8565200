"""When the provider had written the last byte of each event: shared memory between it and the callers.

A file of 8-byte numbers, mapped by both processes. CLOCK_MONOTONIC is the same clock in every process of a machine.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Final

STREAMS: Final = 10_000
"""Streams of one run; a full one has under 5 000."""

EVENTS: Final = 4
_NUMBER: Final = struct.Struct("=q")


class Stamps:
    """The numbers in `path`, which is made when it does not exist."""

    def __init__(self, path: Path) -> None:
        size = STREAMS * EVENTS * _NUMBER.size
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)

    def wrote(self, stream: int, event: int, nanoseconds: int) -> None:
        """The provider has written the last byte of this event."""
        _NUMBER.pack_into(self._map, (stream * EVENTS + event) * _NUMBER.size, nanoseconds)

    def written(self, stream: int, event: int) -> int:
        """When that was, 0 when it has not been."""
        value: int = _NUMBER.unpack_from(self._map, (stream * EVENTS + event) * _NUMBER.size)[0]
        return value
