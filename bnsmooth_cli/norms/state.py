"""Set the norms of a network to a training step: the noise to draw, and whether running statistics are updated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from torch import nn

from bnsmooth_cli.norms.noise import Noise

#: Attributes that switch the update of running statistics, of our norms and users' norms, and of PyTorch's.
_SWITCHES: Final = ("update_statistics", "track_running_stats")


def stateful(model: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that `prepare` sets, in the network's order: noise, and every norm with running statistics.

    Those norms are PyTorch's BatchNorm and every module with an attribute `update_statistics`, users' own included.
    """
    kinds = (Noise, nn.modules.batchnorm._BatchNorm)
    return tuple(m for m in model.modules() if isinstance(m, kinds) or hasattr(m, "update_statistics"))


def prepare(modules: Iterable[nn.Module], seed: int, step: int, *, update_statistics: bool = False) -> None:
    """Set norms to a step.

    Args:
        modules: Modules of a network in its order. Modules other than norms are left alone.
        seed: The run's seed, for the noise.
        step: The training step, for the noise.
        update_statistics: Whether forward passes in train mode update running statistics.
    """
    place = 0
    for module in modules:
        if isinstance(module, Noise):
            module.key = (seed, step, place)
            place += 1
        else:
            for switch in _SWITCHES:
                if hasattr(module, switch):
                    setattr(module, switch, update_statistics)


@contextmanager
def prepared(modules: tuple[nn.Module, ...], seed: int, step: int) -> Iterator[None]:
    """Set norms to a step for a measurement, without updating statistics, and restore their settings afterwards."""
    names = ("key", *_SWITCHES)
    before = [{name: vars(module)[name] for name in names if name in vars(module)} for module in modules]
    prepare(modules, seed, step)
    try:
        yield
    finally:
        for module, values in zip(modules, before, strict=True):
            vars(module).update(values)
