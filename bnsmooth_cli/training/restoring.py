"""Copy the tensors of a checkpoint into those that they are the state of, if they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Misfit(Exception):
    """A tensor of a checkpoint does not fit. The message says what it was, and what it is to be."""

    def __init__(self, name: str, saved: object, current: Tensor | None) -> None:
        self.name = name[:80]
        super().__init__(f"{self.name} was {_kind(saved)} and is {_kind(current)}")


def copy_into(current: Mapping[str, Tensor], saved: Mapping[Any, Any]) -> None:
    """Copy saved tensors into tensors of the same names.

    Raises:
        Misfit: If the names, shapes or types differ. Nothing is copied then.

    >>> target = torch.zeros(2)
    >>> copy_into({"weight": target}, {"weight": torch.ones(2)})
    >>> target
    tensor([1., 1.])
    """
    for name in (*current, *saved):
        if not _fits(saved.get(name), current.get(name)):
            raise Misfit(str(name), saved.get(name), current.get(name))
    with torch.no_grad():
        for name, tensor in current.items():
            tensor.copy_(saved[name])


def numbered(name: str, tensors: Sequence[Any]) -> dict[str, Any]:
    """The tensors of a list by names that tell their places."""
    return {f"{name} {place}": tensor for place, tensor in enumerate(tensors)}


def _kind(value: object) -> str:
    """What a tensor is, in words."""
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}" if isinstance(value, Tensor) else "none"


def _fits(saved: object, target: Tensor | None) -> bool:
    return (
        target is not None
        and isinstance(saved, Tensor)
        and (saved.shape, saved.dtype, saved.layout) == (target.shape, target.dtype, torch.strided)
        and saved.device.type == "cpu"
    )
