"""The registry of optimisers: an entry says which of torch's classes takes the steps, and what settings it has.

Only `build` and what comes after it import torch, so that configurations and help texts can read the registry without.
"""

from __future__ import annotations

import hashlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from bnsmooth_cli import user_code
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.settings import flag

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rule:
    """An optimiser that `--optimizer` accepts.

    Attributes:
        name: What the user types.
        builder: "module:class" of the torch.optim.Optimizer.
        text: Its description in help texts and documentation.
        settings: The settings of a run that it has, each with the argument of the class that it sets.
        preconditioner: The form of the diagonal P by which it divides, for `training.optimisers`: that of Adam, that of
            RMSProp, or none that is known.
        decoupled: Whether weight decay acts on the weights themselves, and is no penalty in the loss.
    """

    name: str
    builder: str
    text: str
    settings: Mapping[str, str]
    preconditioner: Literal["", "adam", "rmsprop"] = ""
    decoupled: bool = False


_ADAM: Final = {"betas": "betas", "eps": "eps"}
#: The built-in optimisers.
RULES: Final = (
    Rule("sgd", "torch.optim:SGD", "stochastic gradient descent", {"momentum": "momentum", "nesterov": "nesterov"}),
    Rule("adam", "torch.optim:Adam", "Adam (Kingma & Ba 2015)", _ADAM, "adam"),
    Rule("adamw", "torch.optim:AdamW", "Adam with decoupled weight decay (Loshchilov & Hutter 2019)", _ADAM, "adam",
         decoupled=True),
    Rule("nadam", "torch.optim:NAdam", "Adam with Nesterov momentum (Dozat 2016)", _ADAM),
    Rule("radam", "torch.optim:RAdam", "rectified Adam (Liu et al. 2020)", _ADAM),
    Rule("rmsprop", "torch.optim:RMSprop", "RMSProp (Hinton 2012)",
         {"momentum": "momentum", "square_decay": "alpha", "eps": "eps"}, "rmsprop"),
)  # fmt: skip
#: How users name an optimiser of their own.
USER_RULE: Final = "MODULE:FUNCTION"
#: The settings that some optimisers have and others lack.
SETTINGS: Final = tuple(dict.fromkeys(name for rule in RULES for name in rule.settings))
_SHAPE: Final = "give a function of the parameters that returns a torch.optim.Optimizer of them"


def find(name: str) -> Rule | None:
    """The entry of a built-in optimiser; None for the user's own.

    Raises:
        InputError: If the name is unknown.

    >>> find("adamw").decoupled, find("mymodule:build")
    (True, None)
    """
    for rule in RULES:
        if rule.name == name:
            return rule
    if not user_code.is_code(name):
        raise unknown("optimizer", name, (*(rule.name for rule in RULES), USER_RULE))
    return None


def lacked(name: str) -> list[str]:
    """The settings that an optimiser does not have: all of them if it is the user's, none if the name is unknown.

    >>> lacked("adamw"), lacked("")
    (['momentum', 'nesterov', 'square_decay'], [])
    """
    if user_code.is_code(name):
        return [*SETTINGS]
    return [setting for rule in RULES if rule.name == name for setting in SETTINGS if setting not in rule.settings]


def check(name: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check an optimiser's name, and that it has the settings that are not at their defaults. Imports nothing.

    Args:
        name: The name of the optimiser.
        values: The values of `SETTINGS`.
        defaults: Their defaults.

    Raises:
        InputError: If the name is unknown, or the optimiser does not have a setting.
    """
    rule = find(name)
    for setting in SETTINGS:
        if values[setting] == defaults[setting] or (rule is not None and setting in rule.settings):
            continue
        option = f"{flag(setting)} {values[setting]}" if values[setting] is not True else flag(setting)
        if rule is None:
            raise InputError(f"{option}: the optimizer {name} is yours; set it in your function")
        has = " and ".join(map(flag, rule.settings))
        raise InputError(f"{option}: the optimizer {name} has no such setting; it has {has}")
    if values["nesterov"] and not values["momentum"]:
        raise InputError("--nesterov: needs a momentum; give --momentum M as well, as in --momentum 0.9")


def betas(text: str) -> tuple[float, float]:
    """The two decay rates of Adam that a text states.

    Raises:
        InputError: If the text is not two numbers from 0 up to, not including, 1.

    >>> betas("0.9, 0.95")
    (0.9, 0.95)
    """
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        first = second = -1.0
    if not (0 <= first < 1 and 0 <= second < 1):
        raise InputError(f"--betas {text[:40]}: give two numbers from 0 up to, not including, 1, as in 0.9,0.999")
    return first, second


def build(name: str, parameters: Iterable[Any], **arguments: Any) -> torch.optim.Optimizer:
    """An optimiser of some parameters.

    Args:
        name: The name of a built-in optimiser, or the user's own.
        parameters: The parameters, or groups of them. The user's function gets a list of parameters.
        **arguments: The arguments of a built-in optimiser.

    Raises:
        InputError: If the user's function does not return an optimiser of all of the parameters that bnsmooth can use.

    >>> import torch
    >>> type(build("adam", [torch.nn.Parameter(torch.ones(2))], lr=0.1)).__name__
    'Adam'
    """
    rule = find(name)
    if rule is not None:
        built: torch.optim.Optimizer = pkgutil.resolve_name(rule.builder)(parameters, **arguments)
        return built
    from torch.optim import Optimizer

    option, given = f"--optimizer {name}", [*parameters]
    function = user_code.load(name, "optimizer")
    if not callable(function):
        raise InputError(f"{option}: is a {type(function).__name__}; {_SHAPE}")
    with user_code.explaining(f"{option}: called with a list of the parameters, it fails"):
        optimizer = function(given)
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"{option}: returns a {type(optimizer).__name__}; {_SHAPE}")
    check_users(optimizer, given, option)
    return optimizer


def check_users(optimizer: object, parameters: Iterable[Any], option: str) -> None:
    """Check an optimiser of the user's: whether it can take a step without a closure, and updates the parameters.

    Args:
        optimizer: The optimiser.
        parameters: The trained parameters.
        option: How the user gave it, for messages.

    Raises:
        InputError: If it cannot be used.
    """
    from torch.optim import Optimizer

    if not isinstance(optimizer, Optimizer):
        raise InputError(f"{option}: is a {type(optimizer).__name__}; give a torch.optim.Optimizer")
    kind = type(optimizer).__name__
    step = inspect.signature(type(optimizer).step).parameters.values()
    if any(p.name == "closure" and p.default is p.empty for p in step):
        raise InputError(f"{option}: {kind} evaluates the loss several times in a step; give one that needs no closure")
    # One without a gradient stays as it is: people freeze layers and give the optimiser all parameters.
    updated = [id(p) for g in optimizer.param_groups for p in g["params"] if p.requires_grad or p.grad is not None]
    trained = {id(p) for p in parameters}
    if {*updated} != trained or len(updated) != len(trained):
        raise InputError(
            f"{option}: {kind} updates {len(updated)} parameters, {len(trained.intersection(updated))} of them among "
            f"the {len(trained)} that are trained; give it all of these"
        )
    given = optimizer.param_groups[0].get("lr", 0.0)
    try:
        now, first = float(given), unscheduled(optimizer)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{option}: {kind} has the learning rate {str(given)[:40]!r}; give a number above 0"
        ) from error
    for lr in (now or first, first):  # a schedule may begin and end at 0
        if not 0 < lr < float("inf"):
            raise InputError(f"{option}: {kind} has the learning rate {lr:g}; give one above 0")


def unscheduled(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of an optimiser's first group, before a scheduler of torch's multiplies it.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.5)
    >>> _ = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    >>> optimizer.param_groups[0]["lr"], unscheduled(optimizer)
    (0.0, 0.5)
    """
    group = optimizer.param_groups[0]
    return float(group.get("initial_lr", group.get("lr", 0.0)))


def digest(optimizer: torch.optim.Optimizer) -> str:
    """A digest of the class of an optimiser and of the settings in its groups of parameters.

    >>> import torch
    >>> parameters = [torch.nn.Parameter(torch.ones(2))]
    >>> one, other = (torch.optim.Adam(parameters, lr=0.1, eps=eps) for eps in (1e-8, 1e-6))
    >>> digest(one) == digest(other)
    False
    """
    kind = type(optimizer)
    groups = [
        sorted((key, _plain(value)) for key, value in group.items() if key not in ("params", "param_names"))
        for group in optimizer.param_groups
    ]
    sizes = [[tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups]
    text = repr((kind.__module__, kind.__qualname__, groups, sizes))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> str:
    """A value in words that are the same in every process."""
    if hasattr(value, "tolist"):
        return repr(value.tolist())
    if isinstance(value, list | tuple):
        return repr([*map(_plain, value)])
    return repr(value) if isinstance(value, bool | int | float | str | None) else type(value).__qualname__
