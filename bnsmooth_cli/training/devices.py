"""The device that a run computes on."""

from __future__ import annotations

import torch

from bnsmooth_cli.errors import InputError


def choose_device(name: str = "auto") -> torch.device:
    """`cpu`, `cuda` or `mps`, or with `auto` the best one here; InputError for one that this machine lacks."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(name, False):
        there = ", ".join(kind for kind, here in available.items() if here)
        raise InputError(f"--device {name}: not available on this machine (there is: {there})")
    return torch.device(name)
