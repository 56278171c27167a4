"""The normalisations: BatchNorm, the l_p family of Santurkar et al. (2018), section 3.3, the noise of section 2.1, and
those of one sample at a time, by torch's own modules.

Every norm is a plain module over (N, C) or (N, C, H, W); a unit is a channel, and its m values run over N, H and W.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnsmooth_cli import code
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.streams import generator

NAMES: Final = (
    "none", "batch", "l1", "l2", "linf", "lp:P", "noisy-batch", "noisy-none", "layer", "group:G", "instance", "weight",
    "rms", "MODULE:CLASS",
)  # fmt: skip

EPSILON: Final = 1e-5  # Ioffe & Szegedy 2015, algorithm 1, with torch's value
MOMENTUM: Final = 0.1  # of the running statistics, torch's value

# Santurkar et al. 2018, appendix A: the noise of the "noisy" networks.
NOISE_MEAN: Final = 0.5  # n_mu
NOISE_SCALE: Final = 1.25  # n_sigma
NOISE_SPREAD: Final = 0.1  # r_mu and r_sigma


def build(name: str, num_features: int) -> nn.Module:
    """The norm called `name` over `num_features` units, gamma 1 and beta 0 (where it has them).

    A user's own, `module:Class`, is what their class makes of the number of units. Raises InputError for a name that is
    none of NAMES, and for a number of units that the norm cannot be of.

    >>> norm = build("l1", 3)
    >>> norm(torch.randn(8, 3, 4, 4)).shape
    torch.Size([8, 3, 4, 4])
    """
    if name in _SIMPLE:
        return _SIMPLE[name](num_features)
    if name.startswith("group:"):
        return nn.GroupNorm(_groups(name, num_features), num_features)
    if code.is_code(name):
        return _own(name, num_features)
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
        raise InputError(f"norm '{name[:40]}': P is a number of at least 1, as in lp:3 (for the maximum use linf)")
    return p


def _groups(name: str, num_features: int) -> int:
    groups = name.removeprefix("group:")
    if not re.fullmatch("[0-9]{1,6}", groups) or int(groups) == 0:
        raise InputError(f"norm '{name[:40]}': G is a whole number of at least 1, as in group:4")
    if num_features % int(groups):
        raise InputError(f"norm '{name}': {num_features} units do not divide into {groups} groups; choose another G")
    return int(groups)


def _own(name: str, num_features: int) -> nn.Module:
    kind = code.load(name, "norm")
    if not callable(kind):
        raise InputError(f"--norm {name}: is a {type(kind).__name__}, and no class of norms")
    try:
        norm = kind(num_features)
    except (Exception, SystemExit) as error:  # it raises whatever its author likes
        raise InputError(
            f"--norm {name}: cannot be made of the number of units alone, as by {name.partition(':')[2]}"
            f"({num_features}) ({code.explain(error)})"
        ) from error
    if not isinstance(norm, nn.Module):
        raise InputError(f"--norm {name}: makes a {type(norm).__name__}, and no torch.nn.Module")
    return norm


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

    def normalise(
        self, y: Tensor, centre: Tensor, scale: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None
    ) -> Tensor:
        """The affine map of every unit, given its centre and scale, shape (C,) each; gamma and beta are its own."""
        gamma, beta = self.gamma if gamma is None else gamma, self.beta if beta is None else beta
        unit = (-1,) + (1,) * (y.dim() - 2)
        return (y - centre.view(unit)) * (gamma / scale).view(unit) + beta.view(unit)

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

    def forward(self, y: Tensor) -> Tensor:
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
        """s_p of every unit, (C,), of activations (m, C), in operations that autograd differentiates."""
        if self.p == 1:
            s = y.abs().mean(0)
        elif self.p == 2:
            s = y.square().mean(0).clamp_min(EPSILON**2).sqrt()
        elif self.p == math.inf:
            s = y.abs().amax(0)
        else:
            # Divided by the largest value first: |y|^p of a large P would overflow.
            peak = y.detach().abs().amax(0).clamp_min(EPSILON)
            powers = (y.abs() / peak).pow(self.p).mean(0)
            s = powers.clamp_min(torch.finfo(y.dtype).tiny).pow(1 / self.p) * peak
        return s.clamp_min(EPSILON)

    def forward(self, y: Tensor) -> Tensor:
        if not self.training:
            return self.normalise(y, self.running_mean, self.running_scale)
        out, mean, scale = _FusedLpNorm.apply(y, self.gamma, self.beta, self)
        if self.update_statistics:
            self.running_mean.lerp_(mean, MOMENTUM)
            self.running_scale.lerp_(scale, MOMENTUM)
        return out

    def extra_repr(self) -> str:
        return f"{self.num_features}, p={self.p:g}"


def slope(u: Tensor, s: Tensor, p: float, repeat: int = 1, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""m times the slope of the l_p scale s (C,) in what it is taken of, u, a matrix as by `_rows`.

    That is $s^{1-p} |u|^{p-1} \operatorname{sign} u$, for p = inf sign u shared out among the largest: a matrix, which
    may be u or takes the memory of `out`, and the factor of each unit, (C,).
    """
    if p == 1:
        return torch.sign(u, out=out), torch.ones_like(s)
    if p == 2:
        return u, 1 / s
    size = torch.abs(u, out=out)
    if p == math.inf:
        share = size.eq_(_spread(s, repeat)).mean(0).view(-1, repeat).mean(1).clamp_min_(1 / u.numel())
        return size.mul_(u), 1 / (s * share)
    return size.div_(_spread(s, repeat)).pow_(p - 1).copysign_(u), torch.ones_like(s)


class _FusedLpNorm(torch.autograd.Function):
    r"""LpNorm's forward and backward by few passes through memory, which cost more than the arithmetic.

    With $r = \gamma / s$ and $g$ the gradient at the output, $\dot s = -\frac{r}{s} \sum g (y - \mu)$ and the gradient
    at y is $r g - \frac{r}{m} \sum g + \dot s \, \partial s / \partial y$; `slope` has $m \, \partial s / \partial y$.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, gamma: Tensor, beta: Tensor, norm: LpNorm) -> tuple[Tensor, Tensor, Tensor]:
        ctx.norm = norm
        dense = _dense(y)
        out = torch.empty_like(dense)
        (rows, repeat), (result, _) = _rows(dense), _rows(out)
        mean, scale = _statistics(rows, repeat, norm.p, result)
        # A unit's scale is never below its mean's size, so that no digits are lost between the two products.
        ratio = gamma / scale
        constant = torch.addcmul(beta, ratio, mean, value=-1)
        torch.addcmul(_spread(constant, repeat), rows, _spread(ratio, repeat), out=result)
        ctx.save_for_backward(y, gamma, beta, mean, scale)
        ctx.mark_non_differentiable(mean, scale)
        return out, mean, scale

    @staticmethod
    def backward(ctx: Any, g: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        y, gamma, beta, mean, scale = ctx.saved_tensors
        norm: LpNorm = ctx.norm
        if torch.is_grad_enabled():  # a gradient that is to be differentiated again: by elementary operations
            inputs = [tensor for tensor in (y, gamma, beta) if tensor.requires_grad]
            by_unit = y.movedim(1, -1).flatten(0, -2)
            again = norm.normalise(y, by_unit.mean(0), norm.scale(by_unit), gamma, beta)
            found = iter(torch.autograd.grad(again, inputs, g, create_graph=True))
            return *(next(found) if tensor.requires_grad else None for tensor in (y, gamma, beta)), None

        y = _dense(y)
        g = _dense(g, like=y)
        count = y.numel() // y.shape[1]
        # Both sums at once, of g (y - mean) and of g, are BatchNorm's backward with given statistics. It adds up number
        # by number, so that the sums of blocks are more exact than one of all.
        given = None, mean, torch.ones_like(mean), None, None, False, 0.0, [False, True, True]
        pairs = zip(_blocks(g), _blocks(y), strict=True)
        sums = [torch.ops.aten.native_batch_norm_backward(*pair, *given) for pair in pairs]
        along, total = (torch.stack(found).sum(0) for found in list(zip(*sums, strict=True))[1:])
        ratio = gamma / scale
        along /= scale  # gamma's gradient
        even = ratio / -count
        # A scale that is held at EPSILON does not move.
        pull = (even * along).masked_fill_(scale <= EPSILON, 0)
        out = torch.empty_like(y)
        (rows, repeat), (arriving, _), (result, _) = _rows(y), _rows(g), _rows(out)
        turned, factor = slope(rows, scale, norm.p, repeat, out=result)
        torch.addcmul(_spread(even * total, repeat), turned, _spread(pull * factor, repeat), out=result)
        result.addcmul_(arriving, _spread(ratio, repeat))
        return out, along, total, None


#: Numbers that stay in a CPU's cache from one operation on them to the next.
_BLOCK: Final = 2**20


def _blocks(values: Tensor) -> tuple[Tensor, ...]:
    """Split along the first dimension so that the cache holds a block; whole where no block would stay there."""
    return values.split(max(1, _BLOCK // values[0].numel()) if values.device.type == "cpu" else len(values))


def _statistics(rows: Tensor, repeat: int, p: float, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """The units' means and their scales s_p, (C,) each, reading a block of rows at a time; `scratch` is overwritten."""
    blocks = _blocks(rows)
    found = rows.new_empty(3, len(blocks), rows.shape[1])
    for block, total, power, peak in zip(blocks, *found, strict=True):
        work = scratch[: len(block)]
        torch.sum(block, 0, out=total)
        if p == 2:
            torch.mul(block, block, out=work)
        else:
            torch.abs(block, out=work)
        if p not in (1, 2):
            torch.amax(work, 0, out=peak)
            if p == math.inf:
                continue
            work.div_(peak.clamp_min_(EPSILON)).pow_(p)  # divided by the largest: |y|^p of a large p would overflow
        torch.sum(work, 0, out=power)

    totals, powers, peaks = found.view(3, len(blocks), -1, repeat)
    count = rows.numel() // totals.shape[1]
    mean = totals.sum((0, 2)) / count
    if p == 1:
        scale = powers.sum((0, 2)) / count
    elif p == 2:
        scale = (powers.sum((0, 2)) / count).sqrt_()
    else:
        scale = peaks.amax((0, 2))
        if p != math.inf:
            share = peaks.div_(scale[:, None]).pow_(p).mul_(powers).sum((0, 2)) / count
            scale *= share.clamp_min_(torch.finfo(rows.dtype).tiny).pow_(1 / p)
    return mean, scale.clamp_min_(EPSILON)


def _dense(y: Tensor, like: Tensor | None = None) -> Tensor:
    """y in the layout of `like`, or in the one of the two below that it is in already."""
    layout = torch.contiguous_format
    if y.dim() == 4 and (y if like is None else like).is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    return y.contiguous(memory_format=layout)


def _rows(y: Tensor) -> tuple[Tensor, int]:
    """Activations as a matrix whose columns belong to one unit each, and how often a unit comes in a row.

    A view that operations run through as one stretch of memory: (N H W, C) and 1 where the channels come last, else
    (N, C H W) and H W.
    """
    if y.dim() == 2 or y.is_contiguous():
        return y.flatten(1), y[0, 0].numel()
    return y.movedim(1, -1).flatten(0, -2), 1


def _spread(values: Tensor, repeat: int) -> Tensor:
    """A value a unit, (C,), as a row."""
    return values if repeat == 1 else values.repeat_interleave(repeat)


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


class WeightNorm(nn.Identity):
    r"""Weight normalisation (Salimans & Kingma 2016): $w = g \, v / \|v\|$ for each unit's weights, g and v learned.

    It acts on the weights of the layer that it follows and lets activations through: `attach` is called with the layer,
    once its weights are initialised, and keeps their values.

    >>> linear = nn.Linear(3, 2)
    >>> WeightNorm.attach(linear)
    >>> sorted(name for name, _ in linear.named_parameters())
    ['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1']
    """

    @staticmethod
    def attach(linear: nn.Module) -> None:
        """Let the layer's weight be computed of g and v from here on."""
        nn.utils.parametrizations.weight_norm(linear)


#: LayerNorm (Ba et al. 2016) over a sample's units and positions is GroupNorm of one group (Wu & He 2018, section 3.1).
_SIMPLE: Final[dict[str, Callable[[int], nn.Module]]] = {
    "none": lambda units: nn.Identity(),
    "batch": BatchNorm,
    "noisy-batch": lambda units: nn.Sequential(BatchNorm(units), Noise()),
    "noisy-none": lambda units: Noise(),
    "layer": lambda units: nn.GroupNorm(1, units),
    "instance": InstanceNorm,
    "weight": lambda units: WeightNorm(),
    "rms": RmsNorm,
}


def stateful(model: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that `prepare` sets, in the network's order: our norms, torch's BatchNorm, and whatever has an
    `update_statistics` (by which a user's own norm is told to leave its running statistics alone)."""
    kinds = (Noise, nn.modules.batchnorm._BatchNorm)
    return tuple(m for m in model.modules() if isinstance(m, kinds) or hasattr(m, "update_statistics"))


def prepare(modules: Iterable[nn.Module], seed: int, step: int, *, update_statistics: bool = False) -> None:
    """Set the norms among `modules`, in the network's order, to a step: its noise, and what a forward pass may do."""
    place = 0
    for module in modules:
        if isinstance(module, Noise):
            module.key = (seed, step, place)
            place += 1
        else:
            for switch in _SWITCHES:
                if hasattr(module, switch):
                    setattr(module, switch, update_statistics)


#: What says whether a pass in train mode moves running statistics: ours and a user's, torch's.
_SWITCHES: Final = ("update_statistics", "track_running_stats")


@contextmanager
def prepared(modules: tuple[nn.Module, ...], seed: int, step: int) -> Iterator[None]:
    """`prepare` for as long as a measurement takes; afterwards the modules are set as before."""
    names = ("key", *_SWITCHES)
    before = [{name: vars(module)[name] for name in names if name in vars(module)} for module in modules]
    prepare(modules, seed, step)
    try:
        yield
    finally:
        for module, values in zip(modules, before, strict=True):
            vars(module).update(values)
