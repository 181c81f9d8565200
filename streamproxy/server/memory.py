"""glibc's allocator, told what kind of objects this process has.

Events have 2 to 16 MB, and come and go. What is freed stays with the process while it is busy, and goes back to the
system when it has been idle for a while.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

M_MMAP_THRESHOLD: Final = -3  # malloc.h
M_TRIM_THRESHOLD: Final = -1


def tune_allocator() -> bool:
    """Keep the memory of large objects for the next ones; whether the C library could be told.

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


def give_back() -> bool:
    """Return freed memory to the system; whether the C library could be told. It takes some 10 ms per GB."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False


def settle() -> None:
    """Call once a process serves: what it has now stays.

    What reading its configuration left behind goes back to the system, and no collection of reference cycles looks at
    the rest again.
    """
    gc.collect()
    gc.freeze()
    give_back()
