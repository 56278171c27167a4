"""Keep freed memory in the process, which speeds up wide networks."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let the C library reuse freed memory instead of returning it to the system.

    Otherwise glibc maps the activations of a wide network anew in every step, and the system zeroes them page by page;
    `python -m benchmarks allocator` shows the cost. In exchange, the process never shrinks below its peak memory. The
    command line calls this function; a script or a notebook may call it before its first step.

    Returns:
        Whether it took effect: False if the C library is not glibc.

    >>> kept = keep_freed_memory()  # True on most Linux systems
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(_TRIM_THRESHOLD, -1) and mallopt(_MMAP_MAX, 0))
