"""The device that a run computes on."""

from __future__ import annotations

import torch

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


def machine(device: torch.device) -> str:
    """What computes on a device, as far as it rounds in its own way: the version of PyTorch and the kind of device.

    >>> machine(torch.device("cpu")) == f"torch {torch.__version__} on cpu"
    True
    """
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"torch {torch.__version__} on {kind}"
