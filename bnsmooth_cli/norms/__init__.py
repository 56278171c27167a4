"""The registry of norms: an entry says how a norm is built, what it normalises over and how figures draw it.

Every norm is a module over activations of shape (N, C) or (N, C, H, W). A unit is a channel; its m activations run over
N, H and W. In a transformer, N runs over all tokens. Only `build` imports torch, so that help texts and figures can
read the registry without it.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from bnsmooth_cli import user_code
from bnsmooth_cli.errors import InputError, unknown

if TYPE_CHECKING:
    from torch import nn

Dash = Literal["-"] | tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class Norm:
    """A norm that `--norm` accepts.

    Attributes:
        name: What the user types. A parameter is a capital letter after a colon, as in `lp:P`.
        builder: "module:class" within this package, called with the number of units and further arguments.
        text: Its description in help texts and documentation.
        over: What its statistics are taken over.
        arguments: The further arguments of a norm without a parameter.
        parse: Reads the parameter, which is the further argument; ValueError if it does not fit.
        parameter: The requirement on the parameter, for the error message.
        example: A name with a parameter that can be typed as it is.
        fast_path: Whether the deep linear network's fast path can compute it: it shifts and scales a unit by the same
            amounts for every sample, and `derivatives/fast_path.py` knows its scale.
        needs_positions: Whether it is undefined for activations (N, C), which have no positions.
        colour, dash: How figures draw it; a norm without a colour gets one derived from its name.
    """

    name: str
    builder: str
    text: str
    over: Literal["nothing", "batch", "sample", "weights"]
    arguments: tuple[Any, ...] = ()
    parse: Callable[[str], Any] | None = None
    parameter: str = ""
    example: str = ""
    fast_path: bool = False
    needs_positions: bool = False
    colour: str | None = None
    dash: Dash = "-"


def _power(text: str) -> float:
    p = float(text)
    if not 1 <= p < float("inf"):
        raise ValueError
    return p


def _groups(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) == 0:
        raise ValueError
    return int(text)


#: The built-in norms in the order of legends, the paper's first. Their colours are those of Okabe and Ito, which
#: colour-blind readers can tell apart.
NORMS: Final = (
    Norm("none", "torch.nn:Identity", "no normalisation", "nothing", fast_path=True,
         colour="#000000", dash=(0, (4, 1.5))),
    Norm("batch", "batch:BatchNorm", "BatchNorm", "batch", fast_path=True, colour="#0072B2"),
    Norm("l1", "lp:LpNorm", "mean subtracted, divided by the mean absolute value", "batch", (1.0,), fast_path=True,
         colour="#D55E00", dash=(0, (7, 1.5, 1.5, 1.5))),
    Norm("l2", "lp:LpNorm", "mean subtracted, divided by the root mean square", "batch", (2.0,), fast_path=True,
         colour="#009E73", dash=(0, (1.5, 1))),
    Norm("linf", "lp:LpNorm", "mean subtracted, divided by the largest absolute value", "batch", (float("inf"),),
         fast_path=True, colour="#CC79A7", dash=(0, (4, 1, 1, 1, 1, 1))),
    Norm("lp:P", "lp:LpNorm", "mean subtracted, divided by the l_P scale, with P at least 1", "batch", parse=_power,
         parameter="P is a number of at least 1, as in lp:3 (for the maximum use linf)", example="lp:3",
         fast_path=True),
    Norm("noisy-batch", "noise:noisy_batch", "BatchNorm, then the paper's noise", "batch",
         colour="#56B4E9", dash=(0, (8, 1.5))),
    Norm("noisy-none", "noise:Noise", "the paper's noise alone", "nothing",
         colour="#8A8A8A", dash=(0, (2.5, 1.5))),
    Norm("layer", "per_sample:layer_norm", "LayerNorm over a sample's units and positions", "sample",
         colour="#B15928"),
    Norm("group:G", "per_sample:group_norm", "GroupNorm of G groups", "sample", parse=_groups,
         parameter="G is a whole number of at least 1, as in group:4", example="group:4"),
    Norm("instance", "per_sample:InstanceNorm", "InstanceNorm over a unit's positions", "sample",
         needs_positions=True, colour="#1B3A57", dash=(0, (6, 2))),
    Norm("weight", "weight:WeightNorm", "weight normalisation of the layer before it", "weights",
         colour="#9C8FD9", dash=(0, (5, 1, 1, 1))),
    Norm("rms", "per_sample:RmsNorm", "RMSNorm over a sample's units and positions", "sample",
         colour="#8DB600", dash=(0, (2, 1))),
    Norm("scale", "scale:ScaleNorm", "divided by the standard deviation, nothing subtracted", "batch"),
    Norm("dyt", "tanh:DynamicTanh", "Dynamic Tanh, which takes the place of a norm", "nothing",
         colour="#E69F00", dash=(0, (9, 2, 2, 2))),
)  # fmt: skip
#: How users name a norm of their own.
USER_NORM: Final = "MODULE:CLASS"


def find(name: str) -> Norm | None:
    """The entry of a built-in norm, by its name with its parameter; None for any other name.

    >>> find("lp:3").name, find("mymodule:MyNorm")
    ('lp:P', None)
    """
    stem = name.partition(":")[:2]
    return next((norm for norm in NORMS if norm.name.partition(":")[:2] == stem), None)


def examples() -> list[str]:
    """Names that can be typed as they are, one for each entry."""
    return [norm.example or norm.name for norm in NORMS]


def parameter(norm: Norm, name: str) -> tuple[Any, ...]:
    """The arguments that a norm's class takes after the number of units.

    Raises:
        InputError: If the parameter in `name` does not fit.
    """
    if norm.parse is None:
        return norm.arguments
    try:
        return (norm.parse(name.partition(":")[2]),)
    except ValueError:
        raise InputError(f"norm '{name[:40]}': {norm.parameter}") from None


def check(name: str) -> None:
    """Check the name of a norm without importing anything.

    Raises:
        InputError: If it is unknown, or its parameter does not fit.
    """
    norm = find(name)
    if norm is not None:
        parameter(norm, name)
    elif not user_code.is_code(name):
        raise unknown("norm", name, (*(norm.name for norm in NORMS), USER_NORM))


def build(name: str, num_features: int) -> nn.Module:
    """A norm over `num_features` units, with gamma 1 and beta 0 if it has them.

    Args:
        name: A built-in norm, or the user's own as `module:Class`.
        num_features: The number of units C.

    Returns:
        A module that keeps the shape of activations (N, C) and (N, C, H, W).

    Raises:
        InputError: If the name is unknown, or the parameter or the number of units does not fit.

    >>> import torch
    >>> build("l1", 3)(torch.randn(8, 3, 4, 4)).shape
    torch.Size([8, 3, 4, 4])
    """
    check(name)
    norm = find(name)
    if norm is None:
        return _build_user_norm(name, num_features)
    built: nn.Module = _imported(norm.builder)(num_features, *parameter(norm, name))
    return built


def name_of(kind: type) -> str:
    """How the user names the norm that a class builds, for messages.

    >>> from torch import nn
    >>> from bnsmooth_cli.norms.tanh import DynamicTanh
    >>> name_of(DynamicTanh), name_of(nn.Tanh)
    ('dyt', 'torch.nn.modules.activation:Tanh')
    """
    name = f"{kind.__module__}:{kind.__qualname__}"
    return next((norm.name for norm in NORMS if name == f"{__name__}.{norm.builder}"), name)


def _imported(builder: str) -> Any:
    return pkgutil.resolve_name(builder if builder.startswith("torch") else f"{__name__}.{builder}")


def _build_user_norm(name: str, num_features: int) -> nn.Module:
    from torch import nn

    kind = user_code.load(name, "norm")
    if not callable(kind):
        raise InputError(f"--norm {name}: is a {type(kind).__name__}; give a class that builds norms")
    call = f"{name.partition(':')[2]}({num_features})"
    with user_code.explaining(f"--norm {name}: cannot be built from the number of units alone, as by {call}"):
        norm = kind(num_features)
    if not isinstance(norm, nn.Module):
        raise InputError(f"--norm {name}: builds a {type(norm).__name__}; it must build a torch.nn.Module")
    return norm


def __getattr__(name: str) -> Any:
    """The classes of the registry, as in `norms.LpNorm`, imported on use."""
    for norm in NORMS:
        if norm.builder.partition(":")[2] == name:
            return _imported(norm.builder)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
