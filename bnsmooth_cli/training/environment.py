"""What bnsmooth runs on, for bug reports: versions, the system, its memory and its devices.

torch is imported inside a function, because its import may be what fails.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import bnsmooth_cli
from bnsmooth_cli.memory import in_words, main_memory

#: The package as pip knows it, and as its requirements name its extras.
_PACKAGE: Final = "bnsmooth"
#: Environment variables that change what is computed, where, or with how many threads.
_VARIABLES: Final = re.compile(r"(OMP|MKL|OPENBLAS|CUDA|PYTORCH|TORCH|SLURM_(JOB_ID|CPUS|NTASKS))\w*")


def environment() -> list[tuple[str, str]]:
    """What bnsmooth runs on, as pairs of a label and a text.

    >>> dict(environment())["bnsmooth"].startswith(bnsmooth_cli.__version__)
    True
    """
    required, extras = _requirements()
    return [
        (_PACKAGE, f"{bnsmooth_cli.__version__} in {Path(bnsmooth_cli.__file__).parent}"),
        ("Python", f"{platform.python_version()} ({platform.python_implementation()}) in {sys.prefix}"),
        ("packages", _versions(required)),
        *((f"extra {extra}", _versions(names)) for extra, names in extras.items()),
        ("system", platform.platform()),
        *_compute(),
        ("memory", _memory()),
        ("variables", ", ".join(f"{name}={os.environ[name]}" for name in sorted(os.environ)
                                if _VARIABLES.fullmatch(name)) or "none that matter"),
    ]  # fmt: skip


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """The packages that bnsmooth requires, and those of each of its extras."""
    required: list[str] = []
    extras: dict[str, list[str]] = {}
    for text in metadata.requires(_PACKAGE) or []:
        requirement, _, condition = text.partition(";")
        name = re.split(r"[^\w.-]", requirement.strip())[0]
        extra = re.search(r"""extra *== *['"]([\w.-]+)['"]""", condition)
        names = extras.setdefault(extra[1], []) if extra else required
        if name != _PACKAGE and ("python_version" not in condition or _version(name)):
            names.append(name)
    return required, {extra: names for extra, names in extras.items() if names}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _versions(names: list[str]) -> str:
    return ", ".join(f"{name} {_version(name) or 'is not installed'}" for name in names)


def _compute() -> Iterator[tuple[str, str]]:
    """The CPU, the other devices, and the threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        import torch

        from bnsmooth_cli.training.devices import choose_device, processor
    except Exception as error:  # whatever an installation that does not work raises
        yield "CPU", f"{platform.processor() or platform.machine()}, {cores} cores"
        yield "devices", f"unknown, because torch cannot be imported ({type(error).__name__}: {error})"
        return
    yield "CPU", f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, {cores} of {os.cpu_count()} cores"
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    others = [f"cuda:{number} {name}" for number, name in enumerate(gpus)]
    if gpus:
        others.append(f"CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        others.append("mps")
    yield "devices", f"{', '.join(['cpu', *others])}; --device auto takes {choose_device().type}"
    yield "threads", f"{torch.get_num_threads()}; --threads N changes it"


def _memory() -> str:
    total, available = main_memory()
    if total is None or available is None:
        return "unknown"
    return f"{in_words(total)}, of which {in_words(available)} are available"
