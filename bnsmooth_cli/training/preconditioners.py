"""What is known of an optimiser of torch: its rule, and the diagonal that it divides its step by."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from bnsmooth_cli import optimisers


def rule_of(optimizer: torch.optim.Optimizer) -> optimisers.Rule | None:
    """The entry of torch's own class of an optimiser, in the form that the registry knows."""
    return next((r for r in optimisers.RULES if type(optimizer) is pkgutil.resolve_name(r.builder)), None)


#: Options that give a rule another form.
_OTHER_FORMS: Final = ("amsgrad", "centered", "maximize")
#: Options that a threshold depends on.
_DECISIVE: Final = ("lr", "betas", "momentum", "dampening", "nesterov")


def shared_options(optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """The options that all parameters share, as far as stability depends on them; None if they share none."""
    first, *others = [options_of(optimizer, group) for group in optimizer.param_groups]
    known = not any(group.get(name) for group in (first, *others) for name in _OTHER_FORMS)
    alike = all(group.get(name) == first.get(name) for group in others for name in _DECISIVE)
    return first if known and alike else None


def options_of(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a group that are those of this optimiser.

    PyTorch writes the defaults of an optimiser into the groups that it is given, and the next one given these groups
    does not read those that it does not have.

    >>> groups = [{"params": [torch.zeros(1, requires_grad=True)]}]
    >>> _, later = torch.optim.AdamW(groups), torch.optim.SGD(groups, lr=0.1)
    >>> "betas" in later.param_groups[0], "betas" in options_of(later, later.param_groups[0])
    (True, False)
    """
    return {name: value for name, value in group.items() if name in optimizer.defaults}


def decoupled(rule: optimisers.Rule, group: Mapping[str, Any]) -> bool:
    """Whether the weight decay of a group of parameters acts on the weights themselves, and is no penalty."""
    return rule.decoupled or bool(group.get("decoupled_weight_decay"))


def _adam_divisor(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    steps, (first, second) = int(state["step"]), map(float, group["betas"])
    return ((_wide(state["exp_avg_sq"]) / (1 - second**steps)).sqrt() + group["eps"]) * (1 - first**steps)


def _rmsprop_divisor(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    return _wide(state["square_avg"]).sqrt() + group["eps"]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


DIVISORS: Final = {"adam": _adam_divisor, "rmsprop": _rmsprop_divisor}
