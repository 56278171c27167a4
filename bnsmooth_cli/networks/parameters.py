"""The trained parameters of a network as one vector: the theta of every measurement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training updates, by name, in the order that they have in theta."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def flatten(tensors: Iterable[Tensor]) -> Float[Tensor, " n"]:
    """Concatenate all elements of the tensors into one vector.

    >>> flatten([torch.ones(2, 2), torch.zeros(1)])
    tensor([1., 1., 1., 1., 0.])
    """
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def positions(model: nn.Module, names: Sequence[str]) -> Int[Tensor, " n"]:
    """The indices in theta of the elements of the named parameters.

    >>> positions(nn.Linear(2, 1), ["bias"])
    tensor([2])
    """
    parameters = trainable(model)
    sizes = [p.numel() for p in parameters.values()]
    every = torch.arange(sum(sizes), device=next(iter(parameters.values())).device)
    pieces = dict(zip(parameters, every.split(sizes), strict=True))
    return torch.cat([pieces[name] for name in names])
