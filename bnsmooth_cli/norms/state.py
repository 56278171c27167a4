"""Set the norms of a network to a training step: the noise to draw, and whether running statistics are updated."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from bnsmooth_cli.norms.noise import Noise

# PyTorch warns that the hook of `others_still` is called twice for a compiled module, which does no harm. The filter
# stays: one for the time of a measurement would let Python show all other warnings again at the next measurement.
warnings.filterwarnings("ignore", ".*there are global hooks on modules", UserWarning)
#: Attributes that switch the update of running statistics, of our norms and users' norms, and of PyTorch's.
_SWITCHES: Final = ("update_statistics", "track_running_stats")
#: All attributes that `prepare` sets.
_SET: Final = ("key", *_SWITCHES)


def stateful(model: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that `prepare` sets, in the network's order: noise, and every norm with running statistics.

    Those norms are PyTorch's BatchNorm, unless the user has switched its running statistics off, and every module with
    an attribute `update_statistics`, users' own included.
    """
    return tuple(module for module in model.modules() if _is_stateful(module))


def _is_stateful(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return bool(module.track_running_stats)
    return isinstance(module, Noise) or hasattr(module, "update_statistics")


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
def others_still(model: nn.Module) -> Iterator[None]:
    """Update no buffers of other networks, which a user's loss may run, such as a discriminator.

    Running statistics of BatchNorm stand still. Other buffers, as of spectral normalisation, are restored.
    """
    own, switched = {*model.modules()}, dict[nn.Module, dict[str, object]]()
    buffers: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def switch_off(module: nn.Module, inputs: object) -> None:
        if module not in own and module not in buffers:
            buffers[module] = [
                (buffer, buffer.detach().clone()) for buffer in module.buffers(recurse=False) if not is_lazy(buffer)
            ]
        if module not in own and _is_stateful(module) and any(getattr(module, name, False) for name in _SWITCHES):
            switched[module] = _settings(module)
            prepare([module], 0, 0)

    handle = register_module_forward_pre_hook(switch_off)
    try:
        yield
    finally:
        handle.remove()
        for module, settings in switched.items():
            _restore(module, settings)
        for buffer, before in (pair for pairs in buffers.values() for pair in pairs):
            if not torch.equal(buffer, before):
                buffer.data.copy_(before)


def _settings(module: nn.Module) -> dict[str, object]:
    return {name: vars(module)[name] for name in _SET if name in vars(module)}


def _restore(module: nn.Module, settings: dict[str, object]) -> None:
    for name in _SET:
        vars(module).pop(name, None)  # if it was that of its class
    vars(module).update(settings)


@contextmanager
def prepared(modules: tuple[nn.Module, ...], seed: int, step: int) -> Iterator[None]:
    """Set norms to a step for a measurement, without updating statistics, and restore their settings afterwards."""
    before = [_settings(module) for module in modules]
    prepare(modules, seed, step)
    try:
        yield
    finally:
        for module, settings in zip(modules, before, strict=True):
            _restore(module, settings)
