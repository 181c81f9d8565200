"""Settings of glibc's allocator for large, short-lived objects.

Events have 2 to 16 MB. Freed memory stays with the process while it is busy, and is given back to the system once the
process is idle.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

from streamproxy.memory import give_back

M_MMAP_THRESHOLD: Final = -3  # malloc.h
M_TRIM_THRESHOLD: Final = -1


def tune_allocator() -> bool:
    """Keep freed memory of large objects for the next ones. Returns whether the C library supports that.

    Events have 2 to 16 MB. glibc maps an object above its threshold anew and returns it at once, so that each pays a
    page fault per 4 KiB. 32 MiB is the most that glibc takes (HEAP_MAX_SIZE / 2); 64 MiB of freed memory are kept.
    Setting either ends glibc's own adjustment, so a threshold below the objects' size is worse than none. The test of
    this module counts the faults against an untuned process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 32 << 20)) and bool(mallopt(M_TRIM_THRESHOLD, 64 << 20))


def settle() -> None:
    """Free the memory of the start, and exempt the objects that remain from garbage collection.

    To be called once the process serves.
    """
    gc.collect()
    gc.freeze()
    give_back()
