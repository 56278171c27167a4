"""Norms with statistics of each sample alone: layer, group, instance and RMS normalisation."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.norms.batch import EPSILON, per_unit


def layer_norm(num_features: int) -> nn.Module:
    """LayerNorm (Ba et al. 2016) over a sample's units and positions.

    It is GroupNorm with one group (Wu & He 2018, section 3.1).
    """
    return nn.GroupNorm(1, num_features)


def group_norm(num_features: int, groups: int) -> nn.Module:
    """GroupNorm (Wu & He 2018).

    Raises:
        InputError: If the number of units does not divide into the groups.
    """
    if num_features % groups:
        raise InputError(
            f"norm 'group:{groups}': {num_features} units do not divide into {groups} groups; choose another G"
        )
    return nn.GroupNorm(groups, num_features)


class InstanceNorm(nn.InstanceNorm2d):
    r"""InstanceNorm (Ulyanov et al. 2016): $\gamma (y - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$.

    $\mu$ and $\sigma^2$ are those of one unit over the positions of one sample. Activations without positions, (N, C),
    are not normalised: only gamma and beta act.

    >>> y = torch.randn(2, 3, 8, 8)
    >>> bool(InstanceNorm(3)(y).mean((2, 3)).abs().max() < 1e-6)
    True
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, affine=True)

    def forward(self, y: Float[Tensor, "batch channels *positions"]) -> Float[Tensor, "batch channels *positions"]:
        return torch.addcmul(self.bias, y, self.weight) if y.dim() == 2 else self._apply_instance_norm(y)


class RmsNorm(nn.Module):
    r"""RMSNorm (Zhang & Sennrich 2019, equation 4): $\gamma y / \sqrt{\frac1n \sum y^2 + \epsilon}$.

    The sum runs over the n activations of a sample, units and positions, as for LayerNorm here. No mean is
    subtracted.

    >>> y = torch.randn(2, 3, 8, 8)
    >>> bool(RmsNorm(3)(y).square().mean((1, 2, 3)).sub(1).abs().max() < 1e-3)
    True
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))

    def forward(self, y: Float[Tensor, "batch channels *positions"]) -> Float[Tensor, "batch channels *positions"]:
        return F.rms_norm(y, y.shape[1:], eps=EPSILON) * per_unit(self.weight, y)
