"""Checks of a user's model and loss on one batch, before anything is trained or measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.hooks import evaluating, hooked
from bnsmooth_cli.networks.parameters import trainable
from bnsmooth_cli.norms.state import prepared, stateful
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.user_code import explaining, is_code


def check(problem: Problem) -> None:
    """Check the user's code of a problem on its first batch.

    Raises:
        InputError: If the network does not take the batch, or the loss fails `check_loss`. The message names the module
            that is at fault.
    """
    config = problem.config
    option = f"--problem {config.problem}" if is_code(config.problem) else f"--norm {config.norm}"
    model = problem.initial
    inputs, targets = problem.batch(0)
    with prepared(stateful(model), config.seed, 0):
        with explaining(f"{option}: its model does not take a batch"):
            outputs = model(inputs)
        if not isinstance(outputs, Tensor):
            raise InputError(f"{option}: its model puts out a {type(outputs).__name__}; a tensor is needed")
        shapes = f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}"
        with explaining(f"{option}: its loss does not take the model's {shapes}"):
            problem.objective(outputs, targets)
        check_loss(model, lambda: problem.objective(model(inputs), targets), option)
    if problem.test_size:
        inputs, targets = next(problem.test_batches())
        with evaluating(model), torch.no_grad(), explaining(f"{option}: its model and loss do not take the test data"):
            problem.objective(model(inputs), targets)


def check_loss(model: nn.Module, loss: Callable[[], Any], option: str) -> list[Tensor]:
    """Check that a loss is a differentiable function of the model's parameters alone; the model is left as it was.

    The loss must be a scalar with a graph. A second evaluation must give the same outputs of all modules and the same
    loss, and change no buffer. The backward pass must not run the network again, because a measurement has restored
    parameters and norms by then.

    Args:
        model: The network.
        loss: Computes the loss from the model.
        option: How the user named the code, for the message.

    Returns:
        The gradients in the model's trained parameters.

    Raises:
        InputError: If a condition is violated.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    try:
        with torch.enable_grad():
            with explaining(f"{option}: its loss cannot be computed"):
                value = loss()
            if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
                kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(f"{option}: its loss is no scalar of floating point ({kind}); as in reduction='mean'")
            if not value.requires_grad:
                raise InputError(f"{option}: its loss does not depend on the model's parameters")
            _check_buffers(model, buffers, option)
            _check_repeatable(model, loss, option)
            return _gradients(model, loss, option)
    finally:
        with torch.no_grad():
            for name, value in model.named_buffers():
                if name in buffers and not torch.equal(value, buffers[name]):
                    value.copy_(buffers[name])


def _check_buffers(model: nn.Module, before: dict[str, Tensor], option: str) -> None:
    for name, value in model.named_buffers():
        if name not in before or not torch.equal(value, before[name]):
            raise InputError(
                f"{option}: its buffer '{name}' changes while it is measured; let it change only where the module's "
                "attribute update_statistics is true, or put a module of torch's into eval mode"
            )


def _gradients(model: nn.Module, loss: Callable[[], Tensor], option: str) -> list[Tensor]:
    value, repeated = loss(), []
    handles = [m.register_forward_pre_hook(lambda m, _: repeated.append(m)) for m in model.modules()]
    with hooked(handles), explaining(f"{option}: its loss cannot be differentiated"):
        gradients = torch.autograd.grad(value, list(trainable(model).values()), materialize_grads=True)
    if repeated:
        raise InputError(
            f"{option}: its backward pass runs the network again (gradient checkpointing); switch that off"
        )
    return list(gradients)


def _check_repeatable(model: nn.Module, loss: Callable[[], Tensor], option: str) -> None:
    device = next(model.parameters()).device
    runs: list[dict[str, Tensor]] = []
    for run in range(2):
        outputs: dict[str, Tensor] = {}

        def record(name: str, output: object, outputs: dict[str, Tensor] = outputs) -> None:
            if isinstance(output, Tensor):
                outputs.setdefault(name, output.detach().clone())

        handles = [
            m.register_forward_hook(lambda m, _, output, name=name, record=record: record(name, output))
            for name, m in model.named_modules()
        ]
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), hooked(handles):
            torch.manual_seed(run) if device.type == "cuda" else torch.default_generator.manual_seed(run)
            outputs["loss"] = loss().detach()
        runs.append(outputs)
    modules = dict(model.named_modules())
    # Modules are in the order in which they end: the innermost one at fault comes first, and the whole loss last.
    for name in sorted(runs[0], key=lambda name: name == "loss"):
        first, second = runs[0][name], runs[1][name]
        size = float(first.abs().max()) if first.numel() else 0.0
        if not torch.allclose(first, second, rtol=1e-3, atol=1e-5 * size, equal_nan=True):
            part = f"the module '{name or 'model'}' ({type(modules[name]).__name__})" if name in modules else "the loss"
            raise InputError(
                f"{option}: {part} gives another output each time; the loss has to be a function of the parameters: "
                "leave out what draws (dropout), or set its probability to 0"
            )
