"""The memory that this process uses, and the most that it may use."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

CGROUPS: Final = Path("/sys/fs/cgroup")
STATM: Final = Path("/proc/self/statm")
NO_LIMIT: Final = 1 << 60  # version 1 writes 2^63 less a page where there is none


class Usage(NamedTuple):
    """Bytes in use, and the most that may be."""

    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The files of a control group: bytes in use, their limit, and of the former those of files that can be dropped."""

    current: Path
    limit: Path
    stat: Path
    inactive: str

    def usage(self) -> Usage | None:
        """What all its processes use together, as the kubelet counts ("working set"). None without a limit."""
        try:
            limit = int(self.limit.read_text())
            used = int(self.current.read_text())
            found = re.search(rf"^{self.inactive} (\d+)$", self.stat.read_text(), re.MULTILINE)
        except (OSError, ValueError):  # no such group; "max"
            return None
        if not 0 < limit < NO_LIMIT:
            return None
        return Usage(max(0, used - int(found[1] if found else 0)), limit)


def usage(limit: int | None) -> Usage | None:
    """What this process uses, and its limit; without one, the same of its control group. None where none has any."""
    if limit is not None:
        try:
            return Usage(int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"), limit)
        except (OSError, ValueError):  # another system than Linux
            return None
    return next(filter(None, (group.usage() for group in _cgroups())), None)


def _cgroups() -> list[Cgroup]:
    """The groups that may limit this process. A container sees its own at the root, by another path or by none."""
    try:
        rows = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    found: list[Cgroup] = []
    for _, kinds, path in rows:
        for place in (path.strip("/"), ""):
            if kinds == "":
                at = CGROUPS / place
                found.append(Cgroup(at / "memory.current", at / "memory.max", at / "memory.stat", "inactive_file"))
            elif "memory" in kinds.split(","):
                at = CGROUPS / "memory" / place
                names = (at / "memory.usage_in_bytes", at / "memory.limit_in_bytes", at / "memory.stat")
                found.append(Cgroup(*names, "total_inactive_file"))
    return found


def give_back() -> bool:
    """Give freed memory back to the system, in about 10 ms per GB. Returns whether the C library supports that."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):  # musl, macOS
        return False
