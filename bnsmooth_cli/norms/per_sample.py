"""Norms whose statistics are taken over each sample alone: layer, group, instance and RMS normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.norms.batch import EPSILON


def layer_norm(num_features: int) -> nn.Module:
    """LayerNorm (Ba et al. 2016) over a sample's units and positions: GroupNorm of one group (Wu & He 2018, section
    3.1)."""
    return nn.GroupNorm(1, num_features)


def group_norm(num_features: int, groups: int) -> nn.Module:
    """GroupNorm (Wu & He 2018); InputError for a number of units that does not divide into the groups."""
    if num_features % groups:
        raise InputError(
            f"norm 'group:{groups}': {num_features} units do not divide into {groups} groups; choose another G"
        )
    return nn.GroupNorm(groups, num_features)


class InstanceNorm(nn.InstanceNorm2d):
    r"""InstanceNorm (Ulyanov et al. 2016): $\gamma (y - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$ by sample and unit.

    The statistics are over the positions of an image; units that have but one, (N, C), keep their values, and only
    gamma and beta act.

    >>> y = torch.randn(2, 3, 8, 8)
    >>> bool(InstanceNorm(3)(y).mean((2, 3)).abs().max() < 1e-6)
    True
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, affine=True)

    def forward(self, y: Tensor) -> Tensor:
        return torch.addcmul(self.bias, y, self.weight) if y.dim() == 2 else super().forward(y)


class RmsNorm(nn.Module):
    r"""RMSNorm (Zhang & Sennrich 2019): $\gamma y / \sqrt{\frac1n \sum y^2 + \epsilon}$ over a sample's n activations.

    As LayerNorm takes them here, those of all units and positions (Wu & He 2018, section 3.1); nothing is subtracted.

    >>> y = torch.randn(2, 3, 8, 8)
    >>> bool(RmsNorm(3)(y).square().mean((1, 2, 3)).sub(1).abs().max() < 1e-3)
    True
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))

    def forward(self, y: Tensor) -> Tensor:
        unit = (-1,) + (1,) * (y.dim() - 2)
        return F.rms_norm(y, y.shape[1:], eps=EPSILON) * self.weight.view(unit)
