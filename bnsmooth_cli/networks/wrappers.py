"""What wraps a network for several devices or a compiler, and the network itself, as it computes on one device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from bnsmooth_cli.errors import InputError, remark

#: The classes of torch.distributed.fsdp: that of its wrapper, and a base of the modules that `fully_shard` changes.
_SHARDED: Final = frozenset({"FullyShardedDataParallel", "FSDPModule"})
#: Held while classes of torch are altered: two threads that overlap would not restore them.
ALTERED: Final = threading.RLock()


def unwrapped(model: nn.Module, option: str) -> nn.Module:
    """The network inside what `torch.compile`, DataParallel or DistributedDataParallel made of it.

    Args:
        model: The network, wrapped any number of times or not at all.
        option: How the user named it, for the message.

    Raises:
        InputError: If each process has only a part of the parameters (FSDP).

    >>> linear = nn.Linear(2, 1)
    >>> unwrapped(nn.DataParallel(linear), "model") is linear
    True
    """
    for module in model.modules():
        if not _SHARDED.isdisjoint(kind.__name__ for kind in type(module).__mro__):
            raise InputError(
                f"{option}: its parameters are distributed over processes (FSDP); measure a copy that is not, with the "
                "full state dict (torch.distributed.checkpoint.state_dict.get_model_state_dict)"
            )
    while True:
        inner: Any = model.module if isinstance(model, DataParallel | DistributedDataParallel) else uncompiled(model)
        if inner is model:
            return model
        model = inner


def uncompiled(model: nn.Module) -> nn.Module:
    """The network itself, if the argument is what `torch.compile` made of it."""
    if type(model).__name__ != "OptimizedModule":
        return model
    say_eager(model)
    inner: Any = model._orig_mod
    return inner


def say_eager(model: nn.Module) -> None:
    """Remark that compiled modules run eagerly."""
    remark("compiled modules are measured in eager mode; the last digits may differ", model)


@contextmanager
def on_one_device() -> Iterator[None]:
    """Let modules for several devices compute on this process's device alone.

    DataParallel and DistributedDataParallel call the network that they wrap: the latter would wait for a `backward`
    after each forward pass. SyncBatchNorm takes its statistics over the batch of this process, as BatchNorm does: it
    would wait for other processes, which measure nothing.

    >>> import torch
    >>> parallel, x = nn.DataParallel(nn.Linear(3, 1)), torch.ones(2, 3)
    >>> with on_one_device():
    ...     torch.equal(parallel(x), parallel.module(x))
    True
    """
    passes: dict[Any, Any] = {
        DataParallel: _inner,
        DistributedDataParallel: _inner,
        nn.SyncBatchNorm: nn.modules.batchnorm._BatchNorm.forward,
    }
    with ALTERED:
        before = {kind: kind.forward for kind in passes}
        try:
            for kind, forward in passes.items():
                kind.forward = forward
            yield
        finally:
            for kind, forward in before.items():
                kind.forward = forward


def _inner(self: DataParallel[nn.Module] | DistributedDataParallel, *args: Any, **kwargs: Any) -> Any:
    return self.module(*args, **kwargs)
