"""BatchNorm (Ioffe & Szegedy 2015), and the affine map that it shares with the l_p norms."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON: Final = 1e-5  # Ioffe & Szegedy 2015, algorithm 1, with PyTorch's value
MOMENTUM: Final = 0.1  # of the running statistics, PyTorch's value


class UnitNorm(nn.Module):
    """gamma (y - centre) / scale + beta per unit; subclasses say what centre and scale are.

    In train mode both come from the batch, and `update_statistics` says whether the running ones follow;
    in eval mode the running ones are used.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.gamma = nn.Parameter(torch.ones(num_features))
        self.beta = nn.Parameter(torch.zeros(num_features))
        self.update_statistics = True

    def normalise(
        self, y: Tensor, centre: Tensor, scale: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None
    ) -> Tensor:
        """The affine map of every unit, given its centre and scale, shape (C,) each; gamma and beta are its own."""
        gamma, beta = self.gamma if gamma is None else gamma, self.beta if beta is None else beta
        unit = (-1,) + (1,) * (y.dim() - 2)
        return (y - centre.view(unit)) * (gamma / scale).view(unit) + beta.view(unit)

    def extra_repr(self) -> str:
        return str(self.num_features)


class BatchNorm(UnitNorm):
    r"""BatchNorm (Ioffe & Szegedy 2015): $\gamma (y - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$.

    $\mu$ and the biased $\sigma^2$ are those of the batch; the running variance follows the unbiased one, as torch's.

    >>> y = torch.randn(64, 3)
    >>> bool(BatchNorm(3)(y).std(0, unbiased=False).sub(1).abs().max() < 1e-4)
    True
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, y: Tensor) -> Tensor:
        running = (self.running_mean, self.running_var)
        if self.training and not self.update_statistics:
            return F.batch_norm(y, None, None, self.gamma, self.beta, True, MOMENTUM, EPSILON)
        return F.batch_norm(y, *running, self.gamma, self.beta, self.training, MOMENTUM, EPSILON)
