"""Replace the norm modules of any model by another norm."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnsmooth_cli import norms, user_code
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.networks.rescaling import is_known, is_norm, unaltered
from bnsmooth_cli.networks.wrappers import on_one_device
from bnsmooth_cli.norms.batch import UnitNorm
from bnsmooth_cli.norms.noise import Noise
from bnsmooth_cli.norms.over_units import OverUnits
from bnsmooth_cli.norms.per_sample import RmsNorm
from bnsmooth_cli.norms.state import stateful
from bnsmooth_cli.norms.tanh import DynamicTanh

#: Norms whose units are in dimension 1, PyTorch's and ours; subclasses too.
_UNITS_FIRST: Final = (nn.modules.batchnorm._NormBase, nn.GroupNorm, UnitNorm, RmsNorm, DynamicTanh)
#: PyTorch's norms whose units are in the last dimension. A subclass may move them.
_UNITS_LAST: Final = (nn.LayerNorm, nn.RMSNorm)
#: What the factor and the summand of a unit are called.
_GAMMA: Final = ("weight", "gamma")
_BETA: Final = ("bias", "beta")
#: Where a module keeps the hooks that a new one would lose.
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
#: Numbers of positions that tell dimensions apart, where no number of units is among them.
_SIZES: Final = (5, 7, 11, 13, 17, 19)


@dataclass(frozen=True)
class Replacement:
    """What `replace_norms` did.

    Attributes:
        norm: The name of the new norm.
        counts: The number of replaced modules by the name of their class.
        left: The norms that were left in place, by name, with their class and the reason.
    """

    norm: str
    counts: dict[str, int]
    left: dict[str, str]

    def __str__(self) -> str:
        """One line.

        >>> print(Replacement("rms", {"LayerNorm": 5}, {"head.norm": "AdaNorm, whose input is unknown"}))
        5 LayerNorm replaced by rms; left: head.norm (AdaNorm, whose input is unknown)
        """
        done = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        left = ", ".join(f"{name} ({why})" for name, why in self.left.items())
        return f"{done} replaced by {self.norm}" + (f"; left: {left}" if left else "")


def replace_norms(model: nn.Module, norm: str | type[nn.Module]) -> Replacement:
    r"""Replace every norm module of a model by another norm, in place.

    A norm module is one of PyTorch's (BatchNorm, SyncBatchNorm, InstanceNorm, GroupNorm, LayerNorm, RMSNorm) or of
    bnsmooth's, a subclass of it, or a module with "norm" in the name of its class whose output is, per unit, an affine
    function of its normalised input, such as Hugging Face's `LlamaRMSNorm` and timm's `RmsNorm2d`. An activation
    inside, as in timm's `BatchNormAct2d`, stays behind the new norm. Norms that are computed by functions inside
    `forward` (`F.layer_norm`) cannot be found.

    Units stay where they are: in the last dimension of (N, T, C), where the new norm acts on tokens, or in dimension 1
    of (N, C, ...). $\gamma$ and $\beta$ keep their values and whether they are trained, as far as both norms have them,
    so that replacing a norm by itself changes nothing but its $\epsilon$ and the momentum of its running statistics.
    If the old norm has neither $\gamma$ nor $\beta$, those of the new one are not trained. If the old norm multiplies
    by another function of its weight ($1 + w$), the new one starts with $\gamma = 1$ and $\beta = 0$. Parameters that
    several norms share stay shared. Running statistics are kept if both norms have the same; the new norm has those of
    its kind, whatever `track_running_stats` was. Norms with hooks are left in place. The noise of `noisy-batch` and
    `noisy-none` stays the same in a loop of your own, unless you set the `key` of each `bns.norms.noise.Noise` to a new
    step.

    Args:
        model: The model. Modules that are used at several places are replaced by one new module.
        norm: A name of the registry (`bns.norms.NORMS`), `module:Class`, or a class; "none" removes norms.

    Returns:
        What was replaced and what was left.

    Raises:
        InputError: If no norm could be replaced, the new one acts on layers (`weight`) or needs positions that tokens
            do not have (`instance`), it does not fit the number of units, or it would have to use running statistics
            that no batch has set, in a module in eval mode.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    >>> print(replace_norms(model, "rms"))
    1 LayerNorm replaced by rms
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: is a {type(model).__name__}; give the nn.Module whose norms are replaced")
    return put(model, user_code.name_of(norm, "norm"))


def put(model: nn.Module, name: str) -> Replacement:
    """`replace_norms`, for the name of a norm that the user has already allowed if it is their code."""
    norms.check(name)
    entry = norms.find(name)
    if entry is not None and entry.over == "weights":
        raise InputError(f"norm '{name}': acts on the weights of layers, and takes the place of no module")
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        raise InputError(f"norm '{name}': the model has lazy modules without shapes; run it once on a batch first")
    counts, left = Counter[str](), dict[str, str]()
    made: dict[nn.Module, nn.Module] = {}
    shared: dict[nn.Parameter, nn.Parameter] = {}
    places: list[tuple[nn.Module, str, nn.Module]] = []
    elsewhere = _tensor(model)
    for parent, key, path, module in _candidates(model, "", set()):
        if module not in made:
            old = _understood(module)
            if isinstance(old, str):
                left[path] = f"{type(module).__name__}, {old}"
                continue
            on_tokens = old.last or (isinstance(parent, OverUnits) and parent.last)
            if on_tokens and entry is not None and entry.needs_positions:
                raise InputError(f"norm '{name}': takes statistics over positions, and {path} acts on tokens")
            made[module] = _successor(old, path, name, elsewhere, shared)
            counts[type(module).__name__] += 1
        places.append((parent, key, made[module]))
    if not made:
        known = "".join(f", and {path} ({why}) is left" for path, why in left.items())
        raise InputError(
            f"norm '{name}': the model has no norm module that could be replaced{known}; norms that its forward pass "
            "computes by functions cannot be found"
        )
    for parent, key, new in places:  # once all of them could be made
        if isinstance(parent, OverUnits) and isinstance(new, OverUnits):  # it was replaced before
            new = new.get_submodule("norm")
        parent._modules[key] = new
    for place, noise in enumerate(module for module in model.modules() if isinstance(module, Noise)):
        noise.key = (0, 0, place)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # else its fused path in eval mode reads the weights of its LayerNorms
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # so does its path for padding masks
    return Replacement(name, dict(counts), left)


def _candidates(
    parent: nn.Module, prefix: str, seen: set[nn.Module]
) -> Iterator[tuple[nn.Module, str, str, nn.Module]]:
    """The places of the outermost modules that may be norms: the parent, the key in it, the whole name, the module."""
    seen.add(parent)
    for key, module in parent._modules.items():
        if module is None:
            continue
        path = f"{prefix}{key}"
        if _may_be_norm(module):
            yield parent, key, path, module
        elif module not in seen:
            yield from _candidates(module, f"{path}.", seen)


def _may_be_norm(module: nn.Module) -> bool:
    if isinstance(module, (*_UNITS_FIRST, *_UNITS_LAST, torch.jit.ScriptModule)):
        return True
    if type(module).__module__.startswith("torch.nn.utils."):  # of a weight, as weight_norm's
        return False
    if any(p.numel() > max(p.shape, default=1) for p in module.parameters()):  # a block with a norm inside
        return False
    return bool(re.search("norm", type(module).__name__, re.IGNORECASE)) and not any(
        _may_be_norm(inner) for inner in module.children()
    )


@dataclass(frozen=True)
class _Old:
    """A norm to be replaced: the number of its units, whether they are in the last dimension, and what follows it."""

    module: nn.Module
    units: int
    last: bool
    like: Tensor
    tail: tuple[nn.Module, ...]


def _understood(module: nn.Module) -> _Old | str:
    """What is known of a norm, or why it is left in place."""
    if isinstance(module, torch.jit.ScriptModule):
        return "whose modules torch.jit has compiled"
    if any(vars(module)[hooks] for hooks in _HOOKS):
        return "which has hooks"
    units = _number_of_units(module)
    if not units:
        return "whose units are unknown"
    first, last = _shapes(units)
    known = is_known(module) or isinstance(module, DynamicTanh)
    if known:
        first, last = (first, []) if isinstance(module, _UNITS_FIRST) else ([], last)
    with unaltered(module), on_one_device(), torch.no_grad():
        taken = [next((shape for shape in shapes if _takes(module, shape)), None) for shapes in (first, last)]
    if (taken[0] is None) == (taken[1] is None):
        return "whose units are in an unknown dimension"
    units_last, shape = taken[0] is None, taken[0] or taken[1] or ()
    like, tail = torch.zeros(shape), tuple(module.children())
    if tail and not _ends_with(module, tail, like):
        return "which does not end with the modules inside"
    with _without(module), on_one_device():
        if not known and not is_norm(module, like, units_last):
            return "whose output is not an affine function of its normalised input"
    return _Old(module, units, units_last, like, tail)


def _number_of_units(module: nn.Module) -> int:
    """The number of units of a norm; 0 if it is not known."""
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple | list):
        return int(shape[0]) if len(shape) == 1 else 0
    for name in ("num_features", "num_channels"):
        if isinstance(number := getattr(module, name, None), int):
            return number
    sizes = {t.numel() for t in (*module.parameters(), *module.buffers()) if t.dim() == 1}
    return sizes.pop() if len(sizes) == 1 else 0


def _shapes(units: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Shapes of activations with their units in dimension 1, and with them in the last dimension."""
    a, b, c = [size for size in _SIZES if size != units][:3]
    return [(4, units, a, b), (4, units, a), (4, units, a, b, c)], [(4, a, units), (4, a, b, units)]


def _takes(module: nn.Module, shape: tuple[int, ...]) -> bool:
    with suppress(Exception):  # a module may refuse a shape in any way
        return bool(module(torch.zeros(shape).to(_tensor(module))).shape == shape)
    return False


def _tensor(module: nn.Module, otherwise: Tensor | None = None) -> Tensor:
    """A floating-point tensor of a module, for its type and device."""
    tensors = (t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
    return next(tensors, torch.empty(0) if otherwise is None else otherwise)


@contextmanager
def _without(module: nn.Module) -> Iterator[None]:
    """A module without the modules inside."""
    before = dict(module._modules)
    try:
        module._modules.update(dict.fromkeys(before, nn.Identity()))
        yield
    finally:
        module._modules.update(before)


def _ends_with(module: nn.Module, tail: tuple[nn.Module, ...], like: Tensor) -> bool:
    """Whether a module applies the modules inside, one after another, to what it computes without them."""
    with unaltered(module), on_one_device(), torch.no_grad():
        x = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(_tensor(module))
        with _without(module):
            z = module(x.clone())
        return torch.allclose(nn.Sequential(*tail)(z.clone()), module(x.clone()))


def _successor(
    old: _Old, path: str, name: str, elsewhere: Tensor, shared: dict[nn.Parameter, nn.Parameter]
) -> nn.Module:
    """The new norm in the place of the old one. `shared` has the new parameter for each old one."""
    module, built = old.module, norms.build(name, old.units)
    if type(built) is nn.Identity:
        return nn.Sequential(*old.tail) if old.tail else built
    new = OverUnits(built, old.last)
    tensor = _tensor(module, elsewhere)
    new.to(tensor.device, tensor.dtype)
    gamma, beta = _parameter(module, _GAMMA, old.units), _parameter(module, _BETA, old.units)
    holder = next((m for m in built.modules() if _parameter(m, _GAMMA, old.units) is not None), None)
    if holder is not None and _is_factor(OverUnits(holder, old.last), holder, old.like):
        pairs = ((gamma, _parameter(holder, _GAMMA, old.units)), (beta, _parameter(holder, _BETA, old.units)))
        with _without(module):
            plain = gamma is None or _is_factor(module, module, old.like)
        for before, after in pairs:
            if after is not None and before is not None and plain:
                after.data.copy_(before.data)
                after.requires_grad_(before.requires_grad)
            elif after is not None and gamma is None and beta is None:
                after.requires_grad_(False)
            if after is not None and before is not None:
                place = next(key for key, own in holder._parameters.items() if own is after)
                holder._parameters[place] = shared.setdefault(before, after)
    statistics, present = dict(built.named_buffers()), dict(module.named_buffers())
    if all(key in present and present[key].shape == value.shape for key, value in statistics.items()):
        for key, value in statistics.items():
            value.copy_(present[key])
    elif not module.training and stateful(built):
        raise InputError(
            f"norm '{name}': {path} is in eval mode, where the new norm would use running statistics that no batch has "
            "set; call model.train() first"
        )
    new.train(module.training)
    return nn.Sequential(new, *old.tail) if old.tail else new


def _parameter(module: nn.Module, names: tuple[str, ...], units: int) -> nn.Parameter | None:
    """The factor or the summand of a norm, with a value for each unit."""
    values = (getattr(module, name, None) for name in names)
    return next((v for v in values if isinstance(v, nn.Parameter) and v.shape == (units,)), None)


def _is_factor(module: nn.Module, holder: nn.Module, like: Tensor) -> bool:
    """Whether the output of a norm without its summand is proportional to what it has as its factor."""
    gamma = next(v for name in _GAMMA if isinstance(v := getattr(holder, name, None), nn.Parameter))
    beta = next((v for name in _BETA if isinstance(v := getattr(holder, name, None), nn.Parameter)), None)
    with unaltered(module), on_one_device(), torch.no_grad(), suppress(Exception):  # of a user's norm
        x = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(gamma)
        if beta is not None:
            beta.zero_()
        gamma.fill_(1.0)
        once = module(x.clone())
        gamma.fill_(2.0)
        return torch.allclose(module(x.clone()), 2 * once, rtol=1e-3)
    return False
