"""Observing a network while it runs: hooks, the inputs and outputs of modules, eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.parameters import restored


@contextmanager
def hooked(handles: Sequence[Any]) -> Iterator[None]:
    """Remove the hooks when the context ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def observable(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The names and modules that can be observed. Inside a scripted module, no Python is called."""
    return [(name, m) for name, m in model.named_modules() if not isinstance(m, torch.jit.ScriptModule)]


def is_transformed(value: Tensor) -> bool:
    """Whether a tensor stands for others inside a transformation of `torch.func`, which it must not leave."""
    return torch._C._functorch.is_functorch_wrapped_tensor(value)


@contextmanager
def evaluating(model: nn.Module, differentiated: bool = False) -> Iterator[None]:
    """Set the network to eval mode, and give each module its mode back when the context ends.

    A user's module may do more than that in its `train`, such as merge low-rank weights into others. Its `train` is
    called on the way back too, and the rounding that this leaves in its parameters and buffers is undone.

    Raises:
        InputError: If the loss is `differentiated`, and eval mode changes parameters or buffers.
    """
    modes = [(module, module.training) for module in model.modules()]
    own = any(type(module).train is not nn.Module.train for module, _ in modes)
    tensors = [*model.parameters(), *model.buffers()] if own else []
    before = [tensor.detach().clone() for tensor in tensors] if differentiated else []
    with restored(tensors):
        model.eval()
        try:
            if not all(map(torch.equal, tensors, before)):
                raise InputError(
                    "objective: eval mode merges weights into others, as LoRA does, so that gradients would not be "
                    "those of the loss; measure the objective batch, or merge the weights for good"
                )
            yield
        finally:
            for module, training in modes:
                if module.training != training:
                    module.train(training)
            for module, training in modes:
                module.training = training


def captured(modules: Sequence[nn.Module], forward: Callable[[], object]) -> list[tuple[Tensor, Tensor]]:
    """Run the network by `forward`. Returns the first input and the output of each module in its first call, without
    their graphs.

    Raises:
        InputError: If a module is not called, or only inside `torch.func`.
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        if is_transformed(output):
            raise InputError(f"{type(module).__name__}: runs inside torch.func, so its outputs cannot be observed")
        if module not in seen:
            first = [*inputs, *named.values()][0]
            seen[module] = first.detach().clone(), output.detach().clone()  # later modules may work in place

    with hooked([module.register_forward_hook(record, with_kwargs=True) for module in modules]):
        forward()
    if idle := [module for module in modules if module not in seen]:
        raise InputError(f"{type(idle[0]).__name__}: does not run on every batch, so its outputs cannot be observed")
    return [seen[module] for module in modules]
