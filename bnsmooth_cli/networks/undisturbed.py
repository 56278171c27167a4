"""The context of all measurements: gradients are recorded, nothing is compiled, and the network is left as it was."""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.networks.precision import full_precision
from bnsmooth_cli.networks.wrappers import ALTERED, on_one_device, say_eager, uncompiled
from bnsmooth_cli.randomness import kept


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The context in which a network is measured.

    Gradients are recorded, even if the caller has switched them off (`no_grad`, `inference_mode`). Compiled modules run
    eagerly: compiled code has no second derivatives. What is made for several devices runs on one
    (`networks.wrappers`). Parameters of less than 32 bits are converted to float32, and autocast is off: rounding would
    move parameters to other points than the measurement asks for, and hide the differences of gradients. When the
    context ends, the parameters, their gradients, the attributes of modules and the random generators are those from
    before. Threads take turns.
    """
    device = next(model.parameters()).device.type
    with (
        ALTERED, recording(), torch.autocast(device, enabled=False), _no_autocast(model),
        _eager(model), on_one_device(), kept(), _attributes(model), gradients_kept(model), _wide(model),
    ):  # fmt: skip
        yield


@contextmanager
def recording() -> Iterator[None]:
    """Record gradients, even if the caller has switched them off, in full precision and with the same bits each time.

    cuDNN's usual gradients of convolutions differ from one call to the next: after 100 steps of VGG, two runs on one
    GPU (H200) are no longer the same. A point that is visited again must be the one that training passed.
    """
    library = torch.backends.cudnn
    before = library.deterministic, library.benchmark
    library.deterministic, library.benchmark = True, False
    try:
        with torch.inference_mode(False), torch.enable_grad(), full_precision():
            yield
    finally:
        library.deterministic, library.benchmark = before


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import takes seconds
        yield
        return
    if any(uncompiled(m) is not m or vars(m).get("_compiled_call_impl") is not None for m in model.modules()):
        say_eager(model)
    with torch.compiler.set_stance("force_eager"):
        yield


#: The largest tensor of which `_attributes` makes a copy: the state of a metric, but no data set.
_SMALL: Final = 2**20


@contextmanager
def _attributes(model: nn.Module) -> Iterator[None]:
    """Restore what forward passes change in modules besides parameters and buffers: counters, metrics, caches.

    These are the attributes of modules, such as the tensors that hooks replace in every forward pass, and what is
    directly in their lists, dicts and sets. Of tensors that are changed in place, those of at most `_SMALL` numbers are
    restored.

    >>> model = nn.Linear(1, 1)
    >>> model.calls, model.seen = 3, torch.zeros(2)
    >>> with _attributes(model):
    ...     model.calls += 1
    ...     model.seen += 1
    >>> model.calls, model.seen.tolist()
    (3, [0.0, 0.0])
    """
    attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
    held = [value for _, before in attributes for value in before.values()]
    holders = [(value, copy.copy(value)) for value in held if isinstance(value, list | dict | set | deque)]
    inside = chain.from_iterable(c.values() if isinstance(c, dict) else c for _, c in holders)
    own = {*map(id, chain(model.parameters(), model.buffers()))}
    tensors = [value for value in chain(held, inside) if isinstance(value, Tensor) and id(value) not in own]
    small = [t for t in tensors if t.layout == torch.strided and t.numel() <= _SMALL]
    contents = [(tensor, tensor.detach().clone()) for tensor in small]
    try:
        yield
    finally:
        for present, before in attributes:
            present.clear()
            present.update(before)
        for holder, items in holders:
            holder.clear()
            holder.extend(items) if isinstance(holder, list | deque) else holder.update(items)
        for tensor, content in contents:
            if not torch.equal(tensor.detach(), content):
                tensor.data.copy_(content)


@contextmanager
def gradients_kept(model: nn.Module) -> Iterator[None]:
    """Take the gradients away from the parameters, and give them back when the context ends."""
    kept = [(p, p.grad) for p in model.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


@contextmanager
def _no_autocast(model: nn.Module) -> Iterator[None]:
    """Let `torch.autocast` do nothing, also where the user's code enters it."""
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__

    def skip(self: torch.autocast) -> torch.autocast:
        if self._enabled:
            remark("autocast is off in measurements: they are in float32", model)
        return self

    try:
        torch.autocast.__enter__ = skip  # type: ignore[method-assign]
        torch.autocast.__exit__ = lambda *_: None  # type: ignore[method-assign]
        yield
    finally:
        torch.autocast.__enter__, torch.autocast.__exit__ = enter, leave  # type: ignore[method-assign]


@contextmanager
def _wide(model: nn.Module) -> Iterator[None]:
    """Convert parameters and buffers of reduced precision to float32, and compute with float32 in their place."""
    narrow = [t for t in chain(model.parameters(), model.buffers()) if _is_narrow(t)]
    if not any(isinstance(t, nn.Parameter) for t in narrow):
        yield
        return
    types = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in narrow}))
    remark(f"parameters of {types} are measured in float32", model)
    kept = [t.data for t in narrow]
    try:
        for tensor, value in zip(narrow, kept, strict=True):
            tensor.data = value.float()
        with _Widened(), torch.autograd.graph.disable_saved_tensors_hooks(_NARROW_CHECKPOINT):
            yield
    except RuntimeError as error:
        if str(error) != _NARROW_CHECKPOINT:
            raise
        raise InputError(_NARROW_CHECKPOINT) from error
    finally:
        for tensor, value in zip(narrow, kept, strict=True):
            tensor.data = value


#: PyTorch leaves function modes out where it runs a network again in the backward pass.
_NARROW_CHECKPOINT: Final = (
    "torch.utils.checkpoint cannot be measured in reduced precision; switch it off, or convert the model to float32"
)


class _Widened(TorchFunctionMode):
    """Every operation takes and gives float32 in place of reduced precision."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is Tensor.__deepcopy__:  # it notes the tensor's identity, which a converted one does not keep
            return function(*args, **(kwargs or {}))
        named = {name: _widen(value) for name, value in (kwargs or {}).items()}
        return _widen(function(*(_widen(value) for value in args), **named))


def _is_narrow(value: Tensor) -> bool:
    return value.is_floating_point() and value.dtype.itemsize < 4


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if _is_narrow(value) else value
    if type(value) in (list, tuple):
        return type(value)(_widen(each) for each in value)
    return value
