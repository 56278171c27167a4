"""One step of an optimiser."""

from __future__ import annotations

import torch
from torch import Tensor

Tensors = list[Tensor] | tuple[Tensor, ...]


def sgd_step(parameters: Tensors, gradients: Tensors, velocity: Tensors, lr: float, momentum: float) -> None:
    r"""Take one step of SGD in place: $v \leftarrow \mu v + g$, $\theta \leftarrow \theta - \eta v$, as torch does.

    Args:
        parameters: The tensors of $\theta$, which are updated.
        gradients: The gradients g, one per parameter.
        velocity: The momentum buffers v, one per parameter, which are updated; empty without momentum.
        lr: The learning rate $\eta$.
        momentum: The momentum $\mu$; at 0, v is g.

    >>> theta, v = [torch.ones(2)], [torch.zeros(2)]
    >>> sgd_step(theta, [torch.ones(2)], v, lr=0.1, momentum=0.9)
    >>> theta, v
    ([tensor([0.9000, 0.9000])], [tensor([1., 1.])])
    """
    with torch.no_grad():
        if momentum:
            torch._foreach_mul_(velocity, momentum)
            torch._foreach_add_(velocity, gradients)
            gradients = velocity
        torch._foreach_add_(parameters, gradients, alpha=-lr)
