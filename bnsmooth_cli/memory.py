"""How the process holds its memory."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Have the C library hand freed memory out again instead of giving it back; False where it is not glibc.

    The activations of a wide network are so large that glibc maps them anew in every step, and the system zeroes them
    page by page (`python -m benchmarks allocator` shows what that costs). The process keeps what it needed at most. The
    command line calls this for itself; a script or notebook may, before its first step.

    >>> kept = keep_freed_memory()  # True on most Linux systems
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(_TRIM_THRESHOLD, -1) and mallopt(_MMAP_MAX, 0))
