"""BatchNorm (Ioffe & Szegedy 2015), and the affine map that it shares with other norms."""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON: Final = 1e-5  # Ioffe & Szegedy 2015, algorithm 1, with PyTorch's value
MOMENTUM: Final = 0.1  # of the running statistics, PyTorch's value


def per_unit(values: Float[Tensor, " channels"], y: Float[Tensor, "batch channels *positions"]) -> Tensor:
    """One value for each unit, in a shape that broadcasts against the activations y."""
    return values.view(-1, *(1,) * (y.dim() - 2))


class UnitNorm(nn.Module):
    r"""A norm of the form $\gamma (y - c) / s + \beta$; subclasses define the centre c and the scale s of each unit.

    In train mode both come from the batch, and the running statistics follow if `update_statistics` is true. In eval
    mode the running statistics are used.

    Args:
        num_features: The number of units C.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.gamma = nn.Parameter(torch.ones(num_features))
        self.beta = nn.Parameter(torch.zeros(num_features))
        self.update_statistics = True

    def normalise(
        self,
        y: Float[Tensor, "batch channels *positions"],
        centre: Float[Tensor, " channels"],
        scale: Float[Tensor, " channels"],
    ) -> Float[Tensor, "batch channels *positions"]:
        """Subtract the centre, divide by the scale, and apply the module's gamma and beta."""
        return (y - per_unit(centre, y)) * per_unit(self.gamma / scale, y) + per_unit(self.beta, y)

    def extra_repr(self) -> str:
        return str(self.num_features)


class BatchNorm(UnitNorm):
    r"""BatchNorm (Ioffe & Szegedy 2015, algorithm 1): $\gamma (y - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$.

    $\mu$ and the biased $\sigma^2$ are those of the batch. The running variance follows the unbiased one, as in
    PyTorch.

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

    def forward(self, y: Float[Tensor, "batch channels *positions"]) -> Float[Tensor, "batch channels *positions"]:
        unchanged = self.training and not self.update_statistics
        mean, var = (None, None) if unchanged else (self.running_mean, self.running_var)
        return F.batch_norm(y, mean, var, self.gamma, self.beta, self.training, MOMENTUM, EPSILON)
