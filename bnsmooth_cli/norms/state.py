"""Setting the norms of a network to a step: the noise of that step, and whether running statistics follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from torch import nn

from bnsmooth_cli.norms.noise import Noise

#: What says whether a pass in train mode moves running statistics: ours and a user's, torch's.
_SWITCHES: Final = ("update_statistics", "track_running_stats")


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
