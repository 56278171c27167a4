"""Find the layers of a network, and the sites where norms act or could act."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.networks.chain import Chain
from bnsmooth_cli.networks.hooks import captured, hooked, is_transformed, observable
from bnsmooth_cli.networks.parameters import trainable
from bnsmooth_cli.networks.rescaling import is_known, is_norm
from bnsmooth_cli.networks.transformer import Transformer

#: Layers in order, each as its name and the names of its parameters.
Names = list[tuple[str, list[str]]]


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map whose outputs are units."""
    return isinstance(module, nn.Linear | nn.Conv2d) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is the Conv1D of Hugging Face's GPT-2: a linear map over positions with its weight transposed.

    If there is one, its library has been imported.
    """
    kind = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return kind is not None and isinstance(module, kind)


def unit_weights(linear: nn.Module) -> Float[Tensor, "units ..."]:
    """The weight of a linear map, with a row for each unit.

    >>> unit_weights(nn.Linear(3, 2)).shape
    torch.Size([2, 3])
    """
    weight = cast(Tensor, linear.weight)
    return weight.T if is_transposed(linear) else weight


@dataclass(frozen=True)
class Site:
    """A place in a network where norms act or could act: a linear map and the norms applied to its output.

    Attributes:
        number: The number of the layer in the network, from 1.
        name: The name of the layer.
        linear: The linear map: nn.Linear, nn.Conv2d, or the Conv1D of Hugging Face's GPT-2.
        norms: The modules that normalise its output, in order.
        units_last: Whether the last dimension of the output holds the units, as in a linear map over positions;
            otherwise dimension 1 does.
        unfit: The module after them that has the parameters of a norm and is none, for messages; "" without one.
    """

    number: int
    name: str
    linear: nn.Module
    norms: tuple[nn.Module, ...]
    units_last: bool = False
    unfit: str = ""

    @property
    def width(self) -> int:
        """The number of units."""
        return len(unit_weights(self.linear))

    def by_unit(self, output: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch units ..."]:
        """The output with the units in dimension 1."""
        return output.movedim(-1, 1) if self.units_last else output

    def remainder(self, forward: Callable[[], Tensor]) -> Callable[[Float[Tensor, "batch units ..."]], Tensor]:
        """The network as a function of this site's normalised output, with the units in dimension 1.

        Args:
            forward: Runs the whole network on fixed inputs.
        """
        last = [self.linear, *self.norms][-1]

        def run(z: Tensor) -> Tensor:
            output = (z.movedim(1, -1) if self.units_last else z).clone()  # later modules may work in place
            with hooked([last.register_forward_hook(lambda *_: output)]):
                return forward()

        return run


class Structure(NamedTuple):
    """The layers of a network and the sites where norms act.

    Attributes:
        model: The network.
        layers: Its layers.
        sites: Its sites.
        unfit: What is in the place of a chain's norm and is no norm, if there is one.
    """

    model: nn.Module
    layers: Names
    sites: list[Site]
    unfit: nn.Module | None = None


def structure(model: nn.Module, forward: Callable[[], object]) -> Structure:
    """Find the layers of a network, and the sites where norms act or could act.

    A chain defines its own layers, and a site for each layer that can have a norm, unless it is not a norm that is
    there (`networks.rescaling`). So does a transformer: its norms belong to the layers that they feed, and its sites
    are its linear maps, whose output no norm takes.

    The layers of any other module are the modules with parameters of their own, in the order in which they are first
    called. A norm that acts on the output of the module before it, and is called once, belongs to that module's layer;
    so does a module that only scales or shifts. Of a loss that runs the network several times, each run counts for
    itself. The parameters of modules that are not called (as in nn.MultiheadAttention) belong to the module that
    contains them. The sites are the linear maps and convolutions that are called once on a batch.

    Args:
        model: The network.
        forward: Runs the network; a chain is run only if its norm is the user's.
    """
    if isinstance(model, Chain):
        return _of_chain(model, forward)
    if isinstance(model, Transformer):
        return _of_transformer(model)
    groups = _Trace(model, forward).layers()
    sites = [
        Site(i, group.name, group.module, tuple(group.norms), group.units_last, group.unfit)
        for i, group in enumerate(groups, 1)
        if _is_linear(group.module) and group.calls == 1 and group.batched
    ]
    return Structure(model, [(group.name, group.parameters) for group in groups], sites)


def _of_chain(model: Chain, forward: Callable[[], object]) -> Structure:
    layers = [(name, _within(model, f"layers.{name}")) for name in model.layers]
    sites = [
        Site(i, name, layer.linear, (layer.norm,))
        for i, (name, layer) in enumerate(model.named_layers(), 1)
        if layer.normalisable
    ]
    users = [site for site in sites if not is_known(site.norms[0])]
    outputs = [output for _, output in captured([site.linear for site in users], forward)] if users else []
    for site, output in zip(users, outputs, strict=True):
        if not is_norm(site.norms[0], output):
            return Structure(model, layers, [], site.norms[0])
    return Structure(model, layers, sites)


def _of_transformer(model: Transformer) -> Structure:
    layers, maps = [(name, _within(model, name)) for name in model.layers()], model.linear_maps()
    sites = [Site(i, name, maps[name], ()) for i, (name, _) in enumerate(layers, 1) if name in maps]
    return Structure(model, layers, sites)


def chosen_layers(structure: Structure, layers: Sequence[str] | None) -> Names:
    """The layers that the user selects, in the user's order; all layers by default.

    Args:
        structure: The structure of the network.
        layers: Layers by name or number, or names of other modules of the network.

    Raises:
        InputError: If a name is unknown, or a layer has no trained parameters or shares some with another one.
    """
    if layers is None:
        return structure.layers
    known, modules = dict(structure.layers), dict(structure.model.named_modules())
    numbered = {str(i): name for i, name in enumerate(known, 1)}
    chosen: Names = []
    for text in layers:
        name = text if text in known else numbered.get(text, text)  # names may be numbers, as in nn.Sequential
        if name not in known and name not in modules:
            raise unknown("layer", text, known)
        parameters = known.get(name) or _within(structure.model, name)
        if not parameters:
            raise InputError(f"--layers {text}: has no trained parameters")
        for other, others in chosen:
            if not set(others).isdisjoint(parameters):
                raise InputError(f"--layers {text}: shares parameters with {other}; give each parameter once")
        chosen.append((name, parameters))
    return chosen


def layer_numbers(structure: Structure, chosen: Names) -> list[int]:
    """The numbers of chosen layers, from 1 in the order of the network; other modules have the numbers after them."""
    known = {name: number for number, (name, _) in enumerate(structure.layers, 1)}
    others = itertools.count(len(known) + 1)
    return [known[name] if name in known else next(others) for name, _ in chosen]


def _within(model: nn.Module, module: str) -> list[str]:
    return [name for name in trainable(model) if name.startswith(f"{module}.")]


@dataclass
class _Group:
    """A layer under construction: its first module, the norms after it, and the parameters of all of them."""

    name: str
    module: nn.Module
    parameters: list[str]
    norms: list[nn.Module] = field(default_factory=list)
    calls: int = 0
    rank: int = 0  # of the module's output
    unfit: str = ""

    @property
    def batched(self) -> bool:
        """Whether the first dimension of the module's output is that of samples."""
        return self.rank == 4 if isinstance(self.module, nn.Conv2d) else self.rank > 1

    @property
    def units_last(self) -> bool:
        """Whether the last dimension of the module's output holds the units."""
        return not isinstance(self.module, nn.Conv2d) and _is_linear(self.module) and self.rank > 2


class _Trace:
    """Runs a network and groups the modules that it calls into layers.

    It runs the network twice. The first pass counts the calls of each module, because only a module that is called once
    counts as a norm: once in each pass of the network, of which a loss may have several.
    """

    def __init__(self, model: nn.Module, forward: Callable[[], object]) -> None:
        self.model = model
        self.calls: Counter[str] = Counter()
        modules = observable(model)
        #: The modules that hooks of the user's may turn into something else.
        self.hooked = {module for _, module in modules if module._forward_hooks or module._forward_pre_hooks}
        with hooked([m.register_forward_pre_hook(lambda m, _, n=n: self.calls.update([n])) for n, m in modules]):
            forward()
        self.passes = max(1, self.calls[""])
        self.parameters: dict[str, list[str]] = {}  # by the called module that contains them
        for name in trainable(model):
            self.parameters.setdefault(self._owner(name), []).append(name)
        self.groups: dict[str, _Group] = {}
        #: The layer that ended last, its output, and the output's version, which counts changes in place.
        self.last: tuple[_Group, Tensor, int] | None = None
        #: The norm that is running, or the module that is tested for being one; the modules inside are not layers.
        self.norm: str | None = None
        handles: list[Any] = []
        for name, module in modules:
            handles.append(module.register_forward_pre_hook(lambda m, inputs, n=name: self._enter(n, m, inputs)))
            handles.append(module.register_forward_hook(lambda m, _, output, n=name: self._leave(n, m, output)))
        with hooked(handles):
            forward()

    def layers(self) -> list[_Group]:
        """The layers in order."""
        groups = list(self.groups.values())
        if "" in self.parameters and "" not in self.groups:  # the network's own forward is not called as a module
            groups.insert(0, _Group(type(self.model).__name__, self.model, self.parameters[""]))
        return groups

    def _owner(self, parameter: str) -> str:
        """The innermost called module that contains a parameter."""
        name = parameter.rpartition(".")[0].partition(".parametrizations")[0]
        name = "" if name.startswith("parametrizations") else name
        while name and name not in self.calls:
            name = name.rpartition(".")[0]
        return name

    def _enter(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.norm is not None:
            return
        _, output, version = self.last or (None, None, 0)
        takes_output = output is not None and bool(inputs) and inputs[0] is output and output._version == version
        if takes_output and self.calls[name] == self.passes and self._is_norm(name, module):
            self.norm = name
        elif name in self.parameters and name not in self.groups:
            self.groups[name] = _Group(name or type(self.model).__name__, module, self.parameters[name])

    def _is_norm(self, name: str, module: nn.Module) -> bool:
        """Whether a module that takes the last layer's output is a norm.

        A user's module is tested if its parameters have at most a value per unit, or one per activation of a sample.
        """
        if isinstance(module, nn.Sequential):  # a container, whose modules are examined one by one
            return False
        if isinstance(module, torch.jit.ScriptModule):
            return False
        if is_known(module) and module not in self.hooked:
            return True
        assert self.last is not None
        group, output, _ = self.last
        shapes = [p.shape for p in module.parameters()]
        if any(shape.numel() > max(shape, default=1) and shape != output.shape[1:] for shape in shapes):
            return False
        if type(module).__module__.startswith("torch.nn.") and not is_known(module):
            return False
        self.norm = "."  # no module's name, so that the hooks wait for the end of the test
        try:
            fits = is_norm(module, output, group.units_last)
        finally:
            self.norm = None
        if shapes and not fits:  # without parameters, it is an activation
            group.unfit = f"{name} ({type(module).__name__})"
        return fits

    def _leave(self, name: str, module: nn.Module, output: object) -> None:
        if self.norm not in (None, name):
            return
        group = self.groups.get(name) if self.norm is None else self._end_norm(name, module)
        if group is not None and isinstance(output, Tensor):
            if group.module is module:
                group.calls, group.rank = group.calls + 1, output.dim() + is_transformed(output)
            self.last = group, output, output._version

    def _end_norm(self, name: str, module: nn.Module) -> _Group:
        assert self.last is not None
        self.norm = None
        group = self.last[0]
        if module in group.norms:  # in a second pass
            return group
        group.norms.append(module)
        group.unfit = ""  # a container of this norm
        for holder, parameters in self.parameters.items():
            if holder == name or holder.startswith(f"{name}."):
                group.parameters += parameters
        return group
