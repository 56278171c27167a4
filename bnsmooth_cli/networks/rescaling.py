r"""Whether a module is a norm: its output is, per unit, an affine function of its normalised input.

A norm computes $\gamma (y - c) / s + \beta$, where the statistics c and s are those of a group of activations. On an
input whose groups all hold the same values, c and s are the same everywhere, so that each unit's output is exactly an
affine function of its input, whatever the statistics are. The output of a module with a non-linearity inside is not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bnsmooth_cli.norms.batch import BatchNorm
from bnsmooth_cli.norms.lp import LpNorm
from bnsmooth_cli.norms.noise import Noise
from bnsmooth_cli.norms.over_units import OverUnits
from bnsmooth_cli.norms.per_sample import InstanceNorm, RmsNorm
from bnsmooth_cli.norms.scale import ScaleNorm

#: The forward passes that are known to be those of a norm, or of the noise that follows one.
_FORWARDS: Final = {
    kind.forward
    for kind in (
        nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm,
        nn.LayerNorm, nn.RMSNorm, nn.Identity, BatchNorm, LpNorm, ScaleNorm, InstanceNorm, RmsNorm, Noise,
    )
}  # fmt: skip
#: The forward passes of what holds norms.
_HOLDERS: Final = {nn.Sequential.forward, OverUnits.forward}
#: The largest distance from an affine function, as a share of the output's range.
TOLERANCE: Final = 1e-4
#: The sizes of the parameters of the test, besides the module's own: large ones saturate what follows them.
_SIZES: Final = (1.0, 100.0)
_POSITIONS: Final = 8  # per dimension, unless the module needs others
_SAMPLES: Final = 64  # unless a number in _SUITABLE makes groups of more kinds equal
_SUITABLE: Final = range(16, 257)
_TINY: Final = 1e-12

Coordinates = Float[Tensor, "batch units positions"]


def is_known(module: nn.Module) -> bool:
    """Whether a module runs the forward passes of known norms alone: PyTorch's, ours, or of subclasses that keep them.

    They may be in nn.Sequential, or in an `OverUnits`.

    >>> is_known(nn.BatchNorm2d(3)), is_known(nn.Sequential(nn.LayerNorm(3), nn.Tanh()))
    (True, False)
    """
    forward = getattr(module.forward, "__func__", None)
    return forward in _FORWARDS or (forward in _HOLDERS and all(map(is_known, module.children())))


def is_norm(module: nn.Module, output: Float[Tensor, "batch ..."], units_last: bool = False) -> bool:
    """Whether a module is a norm, by running it on designed inputs. The module is left as it was.

    The module must keep the shape of its input, and take any batch size.

    Args:
        module: The module, in the mode in which it is used.
        output: The output of the layer before it, for its shape.
        units_last: Whether the last dimension holds the units; otherwise dimension 1 does.

    >>> is_norm(nn.BatchNorm1d(3), torch.ones(2, 3)), is_norm(nn.PReLU(), torch.ones(2, 3))
    (True, False)
    """
    if output.dim() < 2:
        return False
    units, positions = output.shape[1], tuple(output.shape[2:])
    if units_last:
        units, positions = output.shape[-1], tuple(output.shape[1:-1])
    smaller = tuple(min(size, _POSITIONS) for size in positions)
    for places in dict.fromkeys((smaller, positions)):

        def run(x: Tensor, places: tuple[int, ...] = places) -> Tensor:
            shaped = x.unflatten(2, places) if places else x.squeeze(2)
            shaped = (shaped.movedim(1, -1) if units_last else shaped).to(output.device)
            try:
                found = module(shaped.clone())
            except Exception as error:
                raise _DoesNotTake from error
            if not isinstance(found, Tensor) or found.shape != shaped.shape:
                raise _DoesNotTake
            return (found.movedim(-1, 1) if units_last else found).detach().reshape(x.shape).cpu().double()

        with unaltered(module), warnings.catch_warnings(), torch.enable_grad(), suppress(_DoesNotTake):
            warnings.simplefilter("ignore")
            return _is_affine(module, run, units, torch.Size(places).numel())
    return False


class _DoesNotTake(Exception):
    """The module does not map an input to an output of the same shape."""


def _is_affine(module: nn.Module, run: Callable[[Coordinates], Coordinates], units: int, positions: int) -> bool:
    random = torch.Generator().manual_seed(0)
    design = _design(_group(run, units, positions, random), random)
    if design is None:
        return False
    judged = False
    for size in (None, *_SIZES):
        if size is not None:
            with torch.no_grad():
                for p in module.parameters():
                    p.copy_(torch.randn(p.shape, generator=random) * size)
        for scale, offset in ((1.0, 0.0), (-30.0, 3.0), (0.03, -0.01)):
            x = design * scale + offset
            z = run(x)
            if not torch.isfinite(z).all():
                if size is None:
                    return False
                continue  # parameters that the module does not take
            judged = True
            if not _fits(x, z):
                return False
    return judged


def _fits(x: Coordinates, z: Coordinates) -> bool:
    """Whether each coordinate of z is an affine function of that of x over the samples."""
    x, centred = x - x.mean(0), z - z.mean(0)
    slope = (x * centred).sum(0) / x.square().sum(0).clamp_min(_TINY)
    apart = (centred - slope * x).abs().amax(0)
    extent = centred.abs().amax(0)
    return bool((apart <= TOLERANCE * extent + 1e-6 * z.abs().amax(0) + _TINY).all())


def _group(
    run: Callable[[Coordinates], Coordinates], units: int, positions: int, random: torch.Generator
) -> Bool[Tensor, "4 units positions"]:
    """The activations whose output depends on the first activation of the first sample, as a NaN there shows."""
    x = torch.randn(4, units, positions, generator=random).double()
    x[0, 0, 0] = torch.nan
    return run(x).isnan()


def _design(group: Bool[Tensor, "4 units positions"], random: torch.Generator) -> Coordinates | None:
    """Inputs whose groups all hold the same values; None if a group is not one of a norm."""
    _, units, positions = group.shape
    inside = group[0]
    if group[1:].any():
        # Statistics over the batch: every coordinate takes all values, and so does every sample of every unit, or every
        # sample, if there are as many of them.
        samples = next((n for n in (positions, units * positions) if n in _SUITABLE), _SAMPLES)
        first = torch.arange(units * positions).view(units, positions)
        places = (torch.arange(samples)[:, None, None] + first) % samples
        return _values(samples, random)[places]
    block, within = inside.any(1), inside.any(0)
    members, covered = int(block.sum()), int(within.sum())
    if int(inside.sum()) not in (0, members * covered) or covered not in (0, 1, positions) or units % max(members, 1):
        return None
    size = members * covered
    if size <= 1:  # no statistics
        count = _SAMPLES * units * positions
        order = torch.randperm(count, generator=random)
        return _values(count, random)[order].view(_SAMPLES, units, positions)
    if size == 2:  # two values always fit
        return None
    number = torch.arange(units)
    if bool(block[:members].all()):
        number = number % members
    elif bool(block[:: units // members].all()):
        number = number // (units // members)
    else:
        return None
    first = number[:, None] * covered + torch.arange(positions) % covered
    orders = torch.stack([torch.randperm(size, generator=random) for _ in range(_SAMPLES)])
    return _values(size, random)[orders[:, first]]


def _values(count: int, random: torch.Generator) -> Float[Tensor, " count"]:
    """Distinct values on both sides of 0, most of them small, and one far from the others."""
    even = torch.linspace(-1, 1, count, dtype=torch.float64)
    values = torch.sinh(3 * even + torch.rand(count, generator=random, dtype=torch.float64) / count)
    values[-1] *= 4
    return values


@contextmanager
def unaltered(module: nn.Module) -> Iterator[None]:
    """Run a module in float64, and restore its tensors, its attributes and torch's generators afterwards."""
    modules = list(module.modules())
    before = [(held, dict(held)) for inner in modules for held in (vars(inner), inner._parameters, inner._buffers)]
    tensors = {id(t): t for inner in modules for t in (*inner.parameters(), *inner.buffers())}.values()
    kept = [(tensor, tensor.data) for tensor in tensors]
    devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    with torch.random.fork_rng(list(devices)):
        for tensor, data in kept:
            kind = torch.float64 if data.is_floating_point() and data.device.type != "mps" else data.dtype
            tensor.data = data.to(kind, copy=True)
        try:
            yield
        finally:
            for tensor, data in kept:
                tensor.data = data
            for held, values in before:
                for name in held.keys() - values.keys():
                    del held[name]
                held.update(values)
