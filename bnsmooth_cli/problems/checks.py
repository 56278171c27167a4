"""Checks of a user's model and loss on one batch, before anything is trained or measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.graphs import begins_before, leaves, own_functions
from bnsmooth_cli.networks.hooks import evaluating, hooked, is_transformed, observable
from bnsmooth_cli.networks.parameters import restored, trainable
from bnsmooth_cli.networks.undisturbed import gradients_kept
from bnsmooth_cli.norms.state import prepared, stateful
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.problems.batches import described
from bnsmooth_cli.problems.draws import DRAWS
from bnsmooth_cli.randomness import seeded, states
from bnsmooth_cli.user_code import explaining


def check(problem: Problem) -> None:
    """Check the user's code of a problem on its first batch.

    Raises:
        InputError: If the network does not take the batch, or the loss fails `check_loss`. The message names the module
            that is at fault.
    """
    option, model = problem.option, problem.initial
    if lost := [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]:
        raise InputError(f"{option}: checkpoints do not hold its state '{lost[0]}' (get_extra_state); make it a buffer")
    inputs, targets = problem.batch(0)
    with prepared(stateful(model), problem.config.seed, 0), torch.enable_grad():
        with explaining(f"{option}: its model does not take a batch"):
            outputs = problem.call(model, inputs)
        kinds = f"outputs {described(outputs)} and targets {described(targets)}"
        with explaining(f"{option}: its loss does not take the model's {kinds}"):
            problem.objective(outputs, targets)
        check_loss(model, lambda: problem.objective(problem.call(model, inputs), targets), option)
    if problem.test_size:
        inputs, targets = next(problem.test_batches())
        taken = explaining(f"{option}: its model and loss do not take the test data")
        with evaluating(model), problem.forward_only(), taken:
            problem.objective(problem.call(model, inputs), targets)


def check_parameters(model: nn.Module, option: str) -> None:
    """Check that a network has trained parameters, and that all of its parameters are plain real numbers.

    Args:
        model: The network, after its first forward pass.
        option: How the user named the code, for the message.

    Raises:
        InputError: If there is nothing to train, or a parameter is of another kind. The message names it.

    >>> check_parameters(nn.Linear(2, 1), "model")
    """
    trained = 0
    for name, parameter in model.named_parameters():
        if (kind := _unusual(parameter)) is not None:
            raise InputError(f"{option}: its parameter '{name}' {kind}")
        trained += parameter.requires_grad
    if not trained:
        raise InputError(f"{option}: its model has no parameters that are trained")
    if (names := _sharing(model)) is not None:
        raise InputError(
            f"{option}: its '{names[0]}' and '{names[1]}' share memory; assign one nn.Parameter to both (a transposed "
            "one: transpose it in the forward pass)"
        )


def _sharing(model: nn.Module) -> tuple[str, str] | None:
    """A parameter and another parameter or buffer that have elements in common; a copy of the model would part them.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> model[1].weight.data = model[0].weight.data.T
    >>> _sharing(model)
    ('0.weight', '1.weight')
    """
    storages: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not is_lazy(tensor) and not tensor.is_meta and tensor.layout == torch.strided and tensor.numel():
            storages.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor.detach()))
    parameters = dict(model.named_parameters())
    for group in storages.values():
        if len(group) < 2 or group[0][0] not in parameters:  # buffers come last, and share among themselves in a copy
            continue
        # The owner of each byte. Ranges alone do not tell, as columns of one matrix interleave.
        owners = torch.full((group[0][1].untyped_storage().nbytes(),), -1, dtype=torch.int32)
        for place, (name, tensor) in enumerate(group):
            size, strides = tensor.element_size(), [stride * tensor.element_size() for stride in tensor.stride()]
            own = owners.as_strided((*tensor.shape, size), (*strides, 1), tensor.storage_offset() * size)
            if (other := int(own.max())) >= 0 and group[other][0] in parameters:
                return group[other][0], name
            own.fill_(place)
    return None


def _unusual(parameter: nn.Parameter) -> str | None:
    """What is wrong with a parameter and how to fix it; None for real numbers of floating point in memory."""
    if is_lazy(parameter):
        return "has no shape yet, as no forward pass has reached its lazy module; run the model once, or give the size"
    if parameter.is_complex():
        return "is complex; keep its real and imaginary parts in a real one (torch.view_as_real)"
    if parameter.is_meta:
        return "has no values (device meta); load them, or build the model on the CPU"
    if parameter.is_quantized or parameter.is_nested or parameter.layout != torch.strided:
        return "is quantised, nested or sparse; make it dense (to_dense, dequantize)"
    if parameter.requires_grad and (not parameter.is_floating_point() or parameter.element_size() < 2):
        return f"is of {str(parameter.dtype).removeprefix('torch.')}; train floating-point numbers of 16 bits or more"
    if parameter.is_inference():
        return "was made in torch.inference_mode(); make the model outside"
    if any(stride == 0 < length - 1 for stride, length in zip(parameter.stride(), parameter.shape, strict=True)):
        return "is expanded: several of its elements are one number in memory; clone it"
    return None


def check_loss(model: nn.Module, loss: Callable[[], Any], option: str) -> None:
    """Check that a loss is a differentiable function of the model's parameters alone.

    The loss must be a scalar with a graph, which begins at the parameters. A second evaluation must give the same
    outputs of all modules and the same loss, whatever is drawn at random (`draws`). An evaluation must change no
    buffer, parameter or gradient. The random generators and the buffers are left as they were.

    Args:
        model: The network.
        loss: Computes the loss from the model.
        option: How the user named the code, for the message.

    Raises:
        InputError: If a condition is violated.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    before = {name: (p._version, p.detach().clone()) for name, p in model.named_parameters() if not is_lazy(p)}
    try:
        with (
            torch.enable_grad(), seeded(0), gradients_kept(model), restored(list(model.parameters())),
            explaining(f"{option}: its loss cannot be computed"),
        ):  # fmt: skip
            value = loss()
            if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
                kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(f"{option}: its loss is no scalar of floating point ({kind}); as in reduction='mean'")
            _check_effects(model, before, option)
            if not value.requires_grad:
                raise InputError(f"{option}: its loss does not depend on the model's parameters")
            _check_buffers(model, buffers, option)
            _check_repeatable(model, loss, option)
            _check_graph(model, loss, option)
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and not _same(buffer, buffers[name]):
                    buffer.copy_(buffers[name])


def _check_effects(model: nn.Module, before: dict[str, tuple[int, Tensor]], option: str) -> None:
    """Check that computing the loss has changed neither gradients nor parameters."""
    if any(p.grad is not None for p in model.parameters()):
        raise InputError(f"{option}: calls backward(); give a function that returns the loss and leaves backward() out")
    for name, p in model.named_parameters():
        if name not in before or p._version != before[name][0] or not _same(p.detach(), before[name][1]):
            raise InputError(
                f"{option}: changes the parameter '{name}'; leave out what writes to it (an optimiser's step, "
                "nn.Embedding's max_norm, a moving average inside forward)"
            )


def _check_graph(model: nn.Module, loss: Callable[[], Tensor], option: str) -> None:
    """Check that each evaluation computes everything that depends on the parameters, and can be differentiated in them.

    What was computed from the parameters before would keep its value at other parameters.
    """
    first, second, parameters = loss(), loss(), list(trainable(model).values())
    if (operation := begins_before(model, first, second)) is not None:
        raise InputError(
            f"{option}: depends on a tensor that was computed from the parameters before ({operation}); compute it "
            "inside the function"
        )
    functions = own_functions([first])
    if "CheckpointFunction" in functions:
        raise InputError(
            f"{option}: uses torch.utils.checkpoint with use_reentrant=True, which only backward() can differentiate; "
            "give use_reentrant=False"
        )
    with explaining(f"{option}: its loss cannot be differentiated"):
        gradients = torch.autograd.grad(first, parameters, allow_unused=True)
        _check_hooks(model, loss, gradients, option)
        if not functions or any(p._post_accumulate_grad_hooks for p in parameters):  # such a hook may be an optimiser
            return
        # A function of the user's may run backward() inside, which autograd.grad does not see.
        others = [(leaf, leaf.grad) for leaf in leaves(second)]  # of other networks too
        for leaf, _ in others:
            leaf.grad = None
        second.backward()
    seen = [parameter.grad for parameter in parameters]
    for leaf, gradient in others:
        leaf.grad = gradient
    for gradient, after in zip(gradients, seen, strict=True):
        if after is not None and (gradient is None or not torch.allclose(gradient.to_dense(), after.to_dense())):
            raise InputError(
                f"{option}: its gradients by torch.autograd.grad are not those of backward() ({', '.join(functions)}); "
                "write the function's backward without backward()"
            )


def _check_hooks(model: nn.Module, loss: Callable[[], Tensor], gradients: Sequence[Tensor | None], option: str) -> None:
    """Check that no hook changes the gradient of a parameter: it would not be the gradient of the loss any more."""
    hooks = [(parameter, parameter._backward_hooks) for parameter in trainable(model).values()]
    if not any(hook for _, hook in hooks):
        return
    try:
        for parameter, _ in hooks:
            parameter._backward_hooks = None
        free = torch.autograd.grad(loss(), [parameter for parameter, _ in hooks], allow_unused=True)
    finally:
        for parameter, hook in hooks:
            parameter._backward_hooks = hook
    for name, gradient, own in zip(trainable(model), gradients, free, strict=True):
        if gradient is not None and own is not None and not torch.allclose(gradient.to_dense(), own.to_dense()):
            raise InputError(f"{option}: a hook changes the gradient of '{name}'; remove it (register_hook)")


def _check_buffers(model: nn.Module, before: dict[str, Tensor], option: str) -> None:
    for name, value in model.named_buffers():
        if name not in before or not _same(value, before[name]):
            raise InputError(
                f"{option}: its buffer '{name}' changes while it is measured; let it change only where the module's "
                "attribute update_statistics is true, or put a module of torch's into eval mode"
            )


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN included."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


#: What an objective has to be, for messages.
_FUNCTION: Final = (
    "the loss has to be a function of the parameters: leave out what draws (dropout), or set its probability to 0"
)
#: The relative difference of two evaluations that may be rounding. Those of a GPU may add in another order.
_ROUNDING: Final = {"cpu": 1e-5}


def _check_repeatable(model: nn.Module, loss: Callable[[], Tensor], option: str) -> None:
    runs: list[dict[str, Tensor]] = []
    for draws in DRAWS:
        outputs: dict[str, Tensor] = {}

        def record(name: str, output: object, outputs: dict[str, Tensor] = outputs) -> None:
            if isinstance(output, Tensor) and not is_transformed(output):
                outputs.setdefault(name, output.detach().clone())

        handles = [
            m.register_forward_hook(lambda m, _, output, name=name, record=record: record(name, output))
            for name, m in observable(model)
        ]
        with draws(), hooked(handles):
            before = states()
            outputs["loss"] = loss().detach()
            drawn = states() != before
        runs.append(outputs)
        if len(runs) == 2 and not drawn:
            break
    modules = dict(model.named_modules())
    rounding = _ROUNDING.get(next(model.parameters()).device.type, 1e-3)
    # Modules are in the order in which they end: the innermost one at fault comes first, and the whole loss last.
    pairs = ((name, other) for name in sorted(runs[0], key=lambda name: name == "loss") for other in runs[1:])
    for name, others in pairs:
        if name not in others:  # what takes its output differs then, if that matters
            continue
        first, second = runs[0][name], others[name]
        size = float(first.nan_to_num(0, 0, 0).abs().max()) if first.numel() else 0.0  # of the finite numbers
        if first.shape != second.shape or not torch.allclose(
            first, second, rtol=rounding, atol=rounding / 10 * size, equal_nan=True
        ):
            part = f"the module '{name or 'model'}' ({type(modules[name]).__name__})" if name in modules else "the loss"
            raise InputError(f"{option}: {part} gives another output each time; {_FUNCTION}{_probabilities(model)}")


def _probabilities(model: nn.Module) -> str:
    """How a Hugging Face model turns its dropout off, for messages: by settings of its config."""
    settings = getattr(getattr(model, "config", None), "__dict__", {}).items()
    names = [name for name, value in settings if "drop" in name and isinstance(value, float) and value > 0]
    return f" (in its config: {', '.join(f'{name}=0' for name in names)})" if names else ""
