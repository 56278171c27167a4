"""One step of an optimiser."""

from __future__ import annotations

import torch
from torch import Tensor

Tensors = list[Tensor] | tuple[Tensor, ...]


def sgd_step(
    parameters: Tensors,
    gradients: Tensors,
    velocity: Tensors,
    lr: float,
    momentum: float,
) -> None:
    r"""One step of SGD in place: $v \leftarrow \mu v + g$, $\theta \leftarrow \theta - \eta v$ (torch's rule).

    Without momentum `velocity` is empty and v is g.

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
