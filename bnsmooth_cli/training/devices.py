"""The device that a run computes on."""

from __future__ import annotations

import functools
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bnsmooth_cli import __version__
from bnsmooth_cli.errors import InputError


def choose_device(name: str = "auto") -> torch.device:
    """The device that a name selects.

    Args:
        name: "cpu", "cuda" or "mps"; "auto" selects the fastest one of this machine.

    Raises:
        InputError: If this machine does not have the device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [kind for kind, there in available.items() if there]
    if name == "auto":
        return torch.device(present[0])
    if name not in present:
        raise InputError(f"--device {name}: not available on this machine, which has {', '.join(present)}")
    return torch.device(name)


def machine(device: torch.device) -> dict[str, Any]:
    """What computes on a device in this process, as far as it rounds in its own way, for `storage.stretches`.

    >>> machine(torch.device("cpu"))["threads"] == torch.get_num_threads()
    True
    """
    versions = {"version": __version__, "torch": str(torch.__version__)}
    if device.type == "cpu":
        name = f"cpu {processor()} {torch.backends.cpu.get_cpu_capability()}"
        return {**versions, "device": " ".join(name.split()), "threads": torch.get_num_threads()}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {**versions, "device": name}


@functools.cache
def processor() -> str:
    """The model of the CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
