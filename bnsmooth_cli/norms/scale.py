"""A norm that divides by the standard deviation of the batch and subtracts nothing."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bnsmooth_cli.norms.batch import EPSILON, MOMENTUM, UnitNorm, per_unit


class ScaleNorm(UnitNorm):
    r"""BatchNorm without its centre: $\gamma y / \sqrt{\sigma^2 + \epsilon} + \beta$.

    $\sigma^2$ is the biased variance of the batch. The running variance follows it.

    >>> y = torch.randn(64, 3) + 5
    >>> torch.allclose(ScaleNorm(3)(y), y / y.std(0, unbiased=False), rtol=1e-3)
    True
    """

    running_var: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, y: Float[Tensor, "batch channels *positions"]) -> Float[Tensor, "batch channels *positions"]:
        var = y.var((0, *range(2, y.dim())), unbiased=False) if self.training else self.running_var
        if self.training and self.update_statistics:
            self.running_var.lerp_(var.detach().to(self.running_var), MOMENTUM)  # under autocast it has fewer bits
        return y * per_unit(self.gamma / (var + EPSILON).sqrt(), y) + per_unit(self.beta, y)
