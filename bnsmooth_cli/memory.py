"""The memory of this machine: how much there is, how much is available, and how freed memory stays in the process."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4

#: Where the kernel tells the limits of groups of processes (cgroups), such as those of a container or a SLURM job: the
#: groups' controllers in /proc/self/cgroup, their folder, the files of the limit and of what is in use, and the entry
#: of memory.stat that counts as in use but is given up when memory is short.
_GROUPS: Final = (
    ("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),  # version 2
    ("memory", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class Memory(NamedTuple):
    """Bytes of memory. None is not known.

    Attributes:
        total: What a process could ever have, with all swap space.
        available: What it can have now without swapping.
    """

    total: int | None
    available: int | None


def main_memory(root: Path = Path("/")) -> Memory:
    """The memory of this machine, or of the container or job that this process is in, if that has less.

    Nothing is known on systems other than Linux. macOS makes swap space from the disk as it is needed.

    Args:
        root: The folder of `proc` and `sys`.

    >>> total, available = main_memory()
    """
    try:
        lines = re.findall(r"^(\w+): +(\d+) kB$", (root / "proc/meminfo").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return Memory(None, None)
    machine, limits = {name: 1024 * int(size) for name, size in lines}, [*_limits(root)]
    totals = [limit for limit, _ in limits]
    if "MemTotal" in machine:
        totals.append(machine["MemTotal"])
    free = [limit - used for limit, used in limits]
    if "MemAvailable" in machine:  # not in kernels before 3.14
        free.append(machine["MemAvailable"])
    return Memory(min(totals) + machine.get("SwapTotal", 0) if totals else None, max(0, min(free)) if free else None)


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """The limit of each group that this process is in, and what the group uses of it. Groups without a limit have none.

    A container may see its own groups alone, at the root of the folder, while /proc names those of the host.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller, folder, limit, used, idle in _GROUPS:
            if controller not in controllers.split(","):
                continue
            names = [name for name in path.split("/") if name not in ("", "..")]
            for depth in range(len(names) + 1):
                group = (root / folder).joinpath(*names[:depth])
                with suppress(OSError, ValueError):  # no such file, or a limit of "max"
                    size, taken = (int((group / name).read_text()) for name in (limit, used))
                    found = re.search(rf"^{idle} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
                    yield size, max(0, taken - int(found[1] if found else 0))


def resident_memory() -> int | None:
    """The bytes of main memory that this process has; None where the system does not tell.

    >>> bytes_or_none = resident_memory()
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def in_words(size: float) -> str:
    """A number of bytes to three digits.

    >>> in_words(31_589), in_words(2.5e9)
    ('31.6 kB', '2.5 GB')
    """
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 0.9995 * 10**power:
            return f"{size / 10**power:.3g} {unit}"
    return f"{size:.0f} bytes"


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
