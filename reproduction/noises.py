"""Parts of the paper's noise, and parts of BatchNorm with the noise: what stops the plain network, and what helps?

They are custom norms: `bnsmooth train --norm reproduction.noises:Shift`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bnsmooth_cli.norms.batch import MOMENTUM, UnitNorm
from bnsmooth_cli.norms.noise import Noise
from bnsmooth_cli.norms.scale import ScaleNorm


class Shift(Noise):
    """The shift alone: $a + m$."""

    n_sigma = 1.0
    r_sigma = 0.0


class UnitShift(Shift):
    """The shift alone, shared by all samples and positions of a step."""

    r_mu = 0.0


class SampleShift(Shift):
    """The shift alone, drawn anew for each sample and position."""

    n_mu = 0.0


class Scale(Noise):
    """The scale alone: $s a$."""

    n_mu = 0.0
    r_mu = 0.0


class Centre(UnitNorm):
    r"""BatchNorm without its scale: $\gamma (y - \mu) + \beta$, with $\mu$ of the batch.

    >>> y = torch.randn(64, 3) + 5
    >>> bool(Centre(3)(y).mean(0).abs().max() < 1e-5)
    True
    """

    running_mean: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.register_buffer("running_mean", torch.zeros(num_features))

    def forward(self, y: Float[Tensor, "batch channels *positions"]) -> Float[Tensor, "batch channels *positions"]:
        mean = y.mean((0, *range(2, y.dim()))) if self.training else self.running_mean
        if self.training and self.update_statistics:
            self.running_mean.lerp_(mean.detach(), MOMENTUM)
        return self.normalise(y, mean, torch.ones_like(mean))


def noisy_centre(num_features: int) -> nn.Module:
    """`Centre`, then the paper's noise."""
    return nn.Sequential(Centre(num_features), Noise())


def noisy_scale(num_features: int) -> nn.Module:
    """`scale`, a norm that subtracts nothing, then the paper's noise."""
    return nn.Sequential(ScaleNorm(num_features), Noise())
