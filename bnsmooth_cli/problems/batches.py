"""The inputs or the targets of a batch: a tensor, or tensors in tuples and dicts, which may hold further ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Values = Tensor | tuple[Any, ...] | dict[str, Any]  # whose entries are values again


def mapped(function: Callable[[Tensor], Tensor], values: Values) -> Values:
    """Apply a function to each tensor.

    >>> import torch
    >>> mapped(torch.neg, {"x": torch.ones(2), "y": (torch.zeros(1), torch.ones(1))})
    {'x': tensor([-1., -1.]), 'y': (tensor([-0.]), tensor([-1.]))}
    """
    if isinstance(values, dict):
        return {name: mapped(function, value) for name, value in values.items()}
    return tuple(mapped(function, value) for value in values) if isinstance(values, tuple) else function(values)


def named(values: Values, whole: str) -> dict[str, Tensor]:
    """The tensors by what messages call them; `whole` is "input" or "target".

    >>> import torch
    >>> list(named({"ids": torch.ones(2)}, "input")), list(named((torch.ones(2), torch.ones(2)), "input"))
    (["input 'ids'"], ['input 1', 'input 2'])
    """
    if isinstance(values, dict):
        parts = {f"{whole} '{name}'": value for name, value in values.items()}
    elif isinstance(values, tuple):
        parts = {f"{whole} {place}": value for place, value in enumerate(values, 1)}
    else:
        return {whole: values}
    return {name: tensor for part, value in parts.items() for name, tensor in named(value, part).items()}


def size(values: Values) -> int:
    """The number of samples."""
    return len(next(iter(named(values, "").values())))


def squared_deviations(values: Tensor) -> float:
    """The sum of the squared differences from the mean over samples, in float64.

    >>> import torch
    >>> squared_deviations(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    2.0
    """
    exact = values.detach().cpu().double()
    return (exact - exact.mean(0)).square().sum().item()


def described(values: object) -> str:
    """The shapes of tensors for a message, or the type of anything else, such as outputs of a class of their own.

    >>> import torch
    >>> described(torch.ones(2, 3)), described((torch.ones(2), torch.ones(2)))
    ('(2, 3)', '[(2,), (2,)]')
    """
    if isinstance(values, Tensor):
        return str(tuple(values.shape))
    parts = [*values.values()] if isinstance(values, dict) else values
    if isinstance(parts, list | tuple) and all(isinstance(part, Tensor) for part in parts):
        return f"[{', '.join(str(tuple(part.shape)) for part in parts)}]"
    return type(values).__name__
