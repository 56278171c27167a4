"""The noise of the paper's noisy networks (Santurkar et al. 2018, section 2.1)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bnsmooth_cli.norms.batch import BatchNorm
from bnsmooth_cli.randomness import generator


class Noise(nn.Module):
    r"""The noise of the noisy networks (Santurkar et al. 2018, section 2.1 and appendix A): $a \leftarrow s a + m$.

    For every unit j and step, $\mu_j \sim U(-n_\mu, n_\mu)$ and $\sigma_j \sim U(1, n_\sigma)$. For every sample and
    position, $m_{ij} \sim U(\mu_j - r_\mu, \mu_j + r_\mu)$ and $s_{ij} \sim N(\sigma_j, r_\sigma^2)$.

    The draw depends only on `key` and on the shape of the activations, and is made in float32 for every dtype: the loss
    of a step is the same function wherever it is evaluated. In eval mode s and m take their means.

    Attributes:
        key: The seed, the step, and the number of the module among the network's noise modules.
        n_mu: The largest size of a unit's shift.
        n_sigma: The largest scale of a unit, at least 1.
        r_mu: The largest deviation of a sample's shift from its unit's.
        r_sigma: The standard deviation of a sample's scale around its unit's.

    >>> noise, a = Noise(), torch.randn(4, 3)
    >>> torch.equal(noise(a), noise(a))
    True
    """

    key: tuple[int, int, int] = (0, 0, 0)
    n_mu: float = 0.5
    n_sigma: float = 1.25
    r_mu: float = 0.1
    r_sigma: float = 0.1

    def __init__(self, num_features: int | None = None) -> None:
        super().__init__()  # the number of units is taken from the activations

    def forward(self, a: Float[Tensor, "batch channels *positions"]) -> Float[Tensor, "batch channels *positions"]:
        if not self.training:
            return a * ((1 + self.n_sigma) / 2)
        seed, step, place = self.key
        random = generator(seed, "noise", step, place, device=a.device)
        per_unit = torch.rand(2, a.shape[1], generator=random, device=a.device, dtype=torch.float32)
        centre = (2 * per_unit[0] - 1) * self.n_mu
        spread = 1 + per_unit[1] * (self.n_sigma - 1)
        # Drawn with the channels last whatever the layout of a, because the draw may depend only on the shape.
        shift = torch.empty(a.movedim(1, -1).shape, device=a.device, dtype=torch.float32)
        scale = torch.empty_like(shift).normal_(0.0, self.r_sigma, generator=random).add_(spread)
        shift.uniform_(-self.r_mu, self.r_mu, generator=random).add_(centre)
        return torch.addcmul(shift.to(a.dtype).movedim(-1, 1), scale.to(a.dtype).movedim(-1, 1), a)


def noisy_batch(num_features: int) -> nn.Module:
    """BatchNorm followed by the noise."""
    return nn.Sequential(BatchNorm(num_features), Noise())
