"""What can be wrong with a user's model and loss, found on the first batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnsmooth_cli import user_code as code
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.hooks import evaluating, hooked
from bnsmooth_cli.networks.parameters import trainable
from bnsmooth_cli.norms.state import prepared, stateful
from bnsmooth_cli.problems.base import Problem


def check(problem: Problem) -> None:
    """Find out on the first batch whether code of the user's fits: `check_loss` of the network and its loss there.

    Raises InputError, naming the module that is at fault.
    """
    config = problem.config
    option = f"--problem {config.problem}" if code.is_code(config.problem) else f"--norm {config.norm}"
    model = problem.initial
    inputs, targets = problem.batch(0)
    with prepared(stateful(model), config.seed, 0):
        outputs = _attempt(option, "its model does not take a batch", lambda: model(inputs))
        if not isinstance(outputs, Tensor):
            raise InputError(f"{option}: its model puts out a {type(outputs).__name__}; a tensor is needed")
        misfit = f"its loss does not take the model's outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}"
        _attempt(option, misfit, lambda: problem.objective(outputs, targets))
        check_loss(model, lambda: problem.objective(model(inputs), targets), option)
    if problem.test_size:
        first = next(problem.test_batches())
        with evaluating(model), torch.no_grad():
            misfit = "its model and loss do not take the test data"
            _attempt(option, misfit, lambda: problem.objective(model(first[0]), first[1]))


def _attempt(option: str, what: str, run: Callable[[], Any]) -> Any:
    try:
        return run()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # it raises whatever its author likes
        raise InputError(f"{option}: {what} ({code.explain(error)})") from error


def check_loss(model: nn.Module, loss: Callable[[], Any], option: str) -> list[Tensor]:
    """The gradients of a loss in the model's trained parameters, once it is one that can be measured.

    It is a scalar with a graph; no module puts out something else in a second evaluation, nor does the loss; no buffer
    changes; and the backward pass does not run the network again, whose parameters and norms are set to others by then.
    Raises InputError otherwise, and leaves the model as it was.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    try:
        with torch.enable_grad():
            found = _attempt(option, "its loss cannot be computed", loss)
            if not isinstance(found, Tensor) or found.dim() or not found.is_floating_point():
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise InputError(f"{option}: its loss is no scalar of floating point ({shape}); as in reduction='mean'")
            if not found.requires_grad:
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
    found, again = loss(), []
    with hooked([m.register_forward_pre_hook(lambda m, _: again.append(m)) for m in model.modules()]):
        gradients = _attempt(
            option,
            "its loss cannot be differentiated",
            lambda: torch.autograd.grad(found, list(trainable(model).values()), materialize_grads=True),
        )
    if again:
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
    # In the order in which modules end: the innermost comes first, the loss (which is no module's) last.
    for name in sorted(runs[0], key=lambda name: name == "loss"):
        first, second = runs[0][name], runs[1][name]
        size = float(first.abs().max()) if first.numel() else 0.0
        if not torch.allclose(first, second, rtol=1e-3, atol=1e-5 * size, equal_nan=True):
            what = f"the module '{name or 'model'}' ({type(modules[name]).__name__})" if name in modules else "the loss"
            raise InputError(
                f"{option}: {what} gives another output each time; the loss has to be a function of the parameters: "
                "leave out what draws (dropout), or set its probability to 0"
            )
