"""The normalisations: BatchNorm, the l_p family of Santurkar et al. (2018), section 3.3, and the noise of section 2.1.

Every norm is a plain module over (N, C) or (N, C, H, W); a unit is a channel, and its m values run over N, H and W.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.streams import generator

NAMES: Final = ("none", "batch", "l1", "l2", "linf", "lp:P", "noisy-batch", "noisy-none")

EPSILON: Final = 1e-5  # Ioffe & Szegedy 2015, algorithm 1, with torch's value
MOMENTUM: Final = 0.1  # of the running statistics, torch's value

# Santurkar et al. 2018, appendix A: the noise of the "noisy" networks.
NOISE_MEAN: Final = 0.5  # n_mu
NOISE_SCALE: Final = 1.25  # n_sigma
NOISE_SPREAD: Final = 0.1  # r_mu and r_sigma


def build(name: str, num_features: int) -> nn.Module:
    """The norm called `name` over `num_features` units, gamma 1 and beta 0 (where it has them).

    Raises InputError for a name that is none of NAMES.

    >>> norm = build("l1", 3)
    >>> norm(torch.randn(8, 3, 4, 4)).shape
    torch.Size([8, 3, 4, 4])
    """
    if name == "none":
        return nn.Identity()
    if name == "batch":
        return BatchNorm(num_features)
    if name == "noisy-batch":
        return nn.Sequential(BatchNorm(num_features), Noise())
    if name == "noisy-none":
        return Noise()
    return LpNorm(num_features, exponent(name))


def exponent(name: str) -> float:
    """The p of `l1`, `l2`, `linf` or `lp:P`; InputError for any other name.

    >>> exponent("lp:3"), exponent("linf")
    (3.0, inf)
    """
    if name in ("l1", "l2", "linf"):
        return float(name.removeprefix("l"))
    if not name.startswith("lp:"):
        raise unknown("norm", name, NAMES)
    try:
        p = float(name.removeprefix("lp:"))
    except ValueError:
        p = math.nan
    if not 1 <= p < math.inf:
        raise InputError(f"norm '{name}': P is a number of at least 1, as in lp:3 (for the maximum use linf)")
    return p


class _Norm(nn.Module):
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

    def normalise(self, y: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
        """The affine map of every unit, given its centre and scale, shape (C,) each."""
        unit = (-1,) + (1,) * (y.dim() - 2)
        return (y - centre.view(unit)) * (self.gamma / scale).view(unit) + self.beta.view(unit)

    def extra_repr(self) -> str:
        return str(self.num_features)


class BatchNorm(_Norm):
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
        self.fused = True  # False computes the batch's statistics in operations that are cheap to differentiate twice

    def forward(self, y: Tensor) -> Tensor:
        if self.training and not self.fused:
            reduced = (0, *range(2, y.dim()))
            var, mean = torch.var_mean(y, reduced, correction=0)
            return self.normalise(y, mean, (var + EPSILON).sqrt())
        running = (self.running_mean, self.running_var)
        if self.training and not self.update_statistics:
            return F.batch_norm(y, None, None, self.gamma, self.beta, True, MOMENTUM, EPSILON)
        return F.batch_norm(y, *running, self.gamma, self.beta, self.training, MOMENTUM, EPSILON)


class LpNorm(_Norm):
    r"""The l_p normalisation (Santurkar et al. 2018, section 3.3): $\gamma (y - \mu) / s_p + \beta$.

    $s_p = (\frac1m \sum |y|^p)^{1/p}$ of the activations before the mean is subtracted ($s_\infty = \max |y|$). A unit
    whose activations are all below EPSILON is divided by EPSILON, so that a dead unit stays finite.

    >>> y = torch.randn(64, 3)
    >>> torch.allclose(LpNorm(3, math.inf)(y), (y - y.mean(0)) / y.abs().amax(0))
    True
    """

    running_mean: Tensor
    running_scale: Tensor

    def __init__(self, num_features: int, p: float) -> None:
        super().__init__(num_features)
        self.p = p
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_scale", torch.ones(num_features))

    def scale(self, y: Tensor) -> Tensor:
        """s_p of every unit, shape (C,)."""
        reduced = (0, *range(2, y.dim()))
        if self.p == 1:
            s = y.abs().mean(reduced)
        elif self.p == 2:
            s = y.square().mean(reduced).clamp_min(EPSILON**2).sqrt()
        elif self.p == math.inf:
            s = y.abs().amax(reduced)
        else:
            # Divided by the largest value first: |y|^p of a large P would overflow.
            peak = y.detach().abs().amax(reduced, keepdim=True).clamp_min(EPSILON)
            s = (y / peak).abs().pow(self.p).mean(reduced).clamp_min(torch.finfo(y.dtype).tiny).pow(1 / self.p)
            s = s * peak.flatten()
        return s.clamp_min(EPSILON)

    def forward(self, y: Tensor) -> Tensor:
        if not self.training:
            return self.normalise(y, self.running_mean, self.running_scale)
        mean, scale = y.mean((0, *range(2, y.dim()))), self.scale(y)
        if self.update_statistics:
            self.running_mean.lerp_(mean.detach(), MOMENTUM)
            self.running_scale.lerp_(scale.detach(), MOMENTUM)
        return self.normalise(y, mean, scale)

    def extra_repr(self) -> str:
        return f"{self.num_features}, p={self.p:g}"


class Noise(nn.Module):
    r"""The noise of the "noisy" networks (Santurkar et al. 2018, section 2.1, appendix A): $a \leftarrow s a + m$.

    For unit j at every step $\mu_j \sim U(-n_\mu, n_\mu)$ and $\sigma_j \sim U(1, n_\sigma)$; then for every sample and
    position $m_{ij} \sim U(\mu_j - r_\mu, \mu_j + r_\mu)$ and $s_{ij} \sim N(\sigma_j, r_\sigma^2)$. The draw is a
    function of `key` = (seed, step, the module's place in the network) and the shape alone, and is made in float32 for
    every dtype, so that a step's loss is one function wherever it is evaluated. In eval mode the noise takes its mean.

    >>> noise, a = Noise(), torch.randn(4, 3)
    >>> torch.equal(noise(a), noise(a))
    True
    """

    key: tuple[int, int, int] = (0, 0, 0)

    def forward(self, a: Tensor) -> Tensor:
        if not self.training:
            return a * ((1 + NOISE_SCALE) / 2)
        seed, step, place = self.key
        random = generator(seed, "noise", step, place, device=a.device)
        per_unit = torch.rand(2, a.shape[1], generator=random, device=a.device)
        centre = (2 * per_unit[0] - 1) * NOISE_MEAN
        spread = 1 + per_unit[1] * (NOISE_SCALE - 1)
        # Drawn channels last whatever a's own layout is: the draw may depend on the shape only.
        shift = torch.empty(a.movedim(1, -1).shape, device=a.device)
        scale = torch.empty_like(shift).normal_(0.0, NOISE_SPREAD, generator=random).add_(spread)
        shift.uniform_(-NOISE_SPREAD, NOISE_SPREAD, generator=random).add_(centre)
        return torch.addcmul(shift.to(a.dtype).movedim(-1, 1), scale.to(a.dtype).movedim(-1, 1), a)


def prepare(
    modules: Iterable[nn.Module], seed: int, step: int, *, update_statistics: bool = False, fused: bool = True
) -> None:
    """Set the norms among `modules`, in the network's order, to a step: its noise, and what a forward pass may do."""
    place = 0
    for module in modules:
        if isinstance(module, Noise):
            module.key = (seed, step, place)
            place += 1
        elif isinstance(module, _Norm):
            module.update_statistics = update_statistics
            if isinstance(module, BatchNorm):
                module.fused = fused
