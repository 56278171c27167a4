"""The layers of a network and the sites where norms act: a chain's own, or found by running any module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from torch import Tensor, nn

from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.networks.chain import Chain
from bnsmooth_cli.networks.hooks import hooked
from bnsmooth_cli.networks.parameters import trainable
from bnsmooth_cli.norms.noise import Noise

Names = list[tuple[str, list[str]]]  # ordered (layer, its parameters' names)

#: Layers whose outputs are their inputs times a matrix: what a norm may follow.
LINEAR: Final = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class Site:
    """A linear map in a network, and the norms that take its output: where a norm acts, or could.

    `number` counts the network's layers from 1. Units are the outputs' dimension 1, or the last one, as of a linear map
    of many positions (`units_last`).
    """

    number: int
    name: str
    linear: nn.Linear | nn.Conv2d
    norms: tuple[nn.Module, ...]
    units_last: bool = False

    @property
    def width(self) -> int:
        """How many units it has."""
        return int(self.linear.weight.shape[0])

    def by_unit(self, values: Tensor) -> Tensor:
        """Activations with the units in dimension 1."""
        return values.movedim(-1, 1) if self.units_last else values

    def as_found(self, values: Tensor) -> Tensor:
        """The inverse of `by_unit`."""
        return values.movedim(1, -1) if self.units_last else values


class Structure(NamedTuple):
    """The layers of a network, each with the names of its parameters, and the sites where norms act."""

    model: nn.Module
    layers: Names
    sites: list[Site]


def structure(model: nn.Module, forward: Callable[[], object]) -> Structure:
    """The network's layers, each with its parameters' names, and the sites where norms act or could.

    A chain's are its own. Of any other module the layers are the modules with parameters of their own in the order that
    `forward`, which runs the network, first visits them. A module that only scales, shifts or normalises what the one
    before it puts out, and runs once, belongs to that layer (`_follows`); parameters of modules that are not called (as
    in nn.MultiheadAttention) to the one that holds them. Sites are the linear maps and convolutions that run once; of a
    chain, those that the problem lets a norm follow.
    """
    if isinstance(model, Chain):
        named = enumerate(model.named_layers(), 1)
        sites = [Site(i, name, layer.linear, (layer.norm,)) for i, (name, layer) in named if layer.normalisable]
        return Structure(model, [(name, _within(model, f"layers.{name}")) for name in model.layers], sites)
    groups, found = _trace(model, forward), []
    for number, group in enumerate(groups, 1):
        linear = group.module
        if isinstance(linear, LINEAR) and group.calls == 1:
            last = isinstance(linear, nn.Linear) and group.dimensions > 2
            found.append(Site(number, group.name, linear, tuple(group.norms), last))
    return Structure(model, [(group.name, group.parameters) for group in groups], found)


def chosen_layers(model: nn.Module, layers: Names, wanted: Sequence[str]) -> Names:
    """The layers that a user names, in that order: modules of the network, or layers by name or number.

    Raises InputError for what is neither, has no parameters, or shares some with another one.
    """
    known = dict(layers)
    numbered = {str(i): name for i, (name, _) in enumerate(layers, 1)}
    modules = dict(model.named_modules())
    found: Names = []
    for given in wanted:
        name = numbered.get(given, given)
        if name not in known and name not in modules:
            raise unknown("layer", given, known)
        parameters = known.get(name) or _within(model, name)
        if not parameters:
            raise InputError(f"--layers {given}: has no parameters that are trained")
        for other, theirs in found:
            if not set(theirs).isdisjoint(parameters):
                raise InputError(f"--layers {given}: shares parameters with {other}; a parameter is in one layer")
        found.append((name, parameters))
    return found


def _within(model: nn.Module, module: str) -> list[str]:
    return [name for name in trainable(model) if name.startswith(f"{module}.")]


@dataclass
class _Group:
    """A layer while the network runs: the module, what follows it, and what both own."""

    name: str
    module: nn.Module
    parameters: list[str]
    norms: list[nn.Module] = field(default_factory=list)
    calls: int = 0
    dimensions: int = 0


def _trace(model: nn.Module, forward: Callable[[], object]) -> list[_Group]:
    """Run the network once, and group the modules that it visits into layers."""
    called: Counter[str] = Counter()
    with hooked([m.register_forward_pre_hook(lambda m, _, n=n: called.update([n])) for n, m in model.named_modules()]):
        forward()
    owned: dict[str, list[str]] = {}
    for name in trainable(model):
        owned.setdefault(_owner(name, called), []).append(name)

    groups: dict[str, _Group] = {}
    #: The layer that ran last, what it put out, and how often that has been changed in place.
    reached: tuple[_Group, Tensor, int] | None = None
    inside: str | None = None  # the norm that is running, whose own modules are no layers

    def enter(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal inside
        if inside is not None:
            return
        fed = reached is not None and bool(inputs) and inputs[0] is reached[1] and reached[1]._version == reached[2]
        if fed and called[name] == 1 and _follows(module):
            inside = name
        elif name in owned and name not in groups:
            groups[name] = _Group(name or type(model).__name__, module, owned[name])

    def leave(name: str, module: nn.Module, output: object) -> None:
        nonlocal reached, inside
        if inside is not None and inside != name:
            return
        group = groups.get(name)
        if inside is not None:
            inside = None
            parameters = [p for owner in _under(owned, name) for p in owned[owner]]
            assert reached is not None
            if isinstance(output, Tensor) and output.shape == reached[1].shape:
                group = reached[0]
                group.norms.append(module)
                group.parameters += parameters
            else:  # it does more than that
                group = groups[name] = _Group(name, module, parameters)
        elif group is not None and isinstance(output, Tensor):
            group.calls, group.dimensions = group.calls + 1, output.dim()
        if group is not None and isinstance(output, Tensor):
            reached = group, output, output._version

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, inputs, name=name: enter(name, m, inputs)))
        handles.append(module.register_forward_hook(lambda m, _, output, name=name: leave(name, m, output)))
    with hooked(handles):
        forward()
    if "" in owned and "" not in groups:  # a network that is run by its parts: what they do not own is its own
        groups = {"": _Group(type(model).__name__, model, owned[""]), **groups}
    return list(groups.values())


def _owner(parameter: str, called: Counter[str]) -> str:
    """The called module that a parameter belongs to: its own, or the nearest that holds it."""
    name = parameter.rpartition(".")[0].partition(".parametrizations")[0]
    name = "" if name.startswith("parametrizations") else name
    while name and name not in called:
        name = name.rpartition(".")[0]
    return name


def _under(owned: dict[str, list[str]], name: str) -> list[str]:
    return [owner for owner in owned if owner == name or owner.startswith(f"{name}.")]


def _follows(module: nn.Module) -> bool:
    """Whether a module is of the kind that only scales, shifts or normalises each unit, and so belongs to a layer: a
    norm of ours or torch's, or one whose parameters are a number, or a number a unit."""
    if isinstance(module, nn.PReLU | nn.Sequential):  # a non-linearity; modules that are looked at one by one
        return False
    known = (Noise, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    parameters = [p.dim() for p in module.parameters()]
    return isinstance(module, known) or (bool(parameters) and max(parameters) <= 1)
