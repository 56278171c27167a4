"""Which layers and units a measurement is of: the layers that a norm may follow, by name or number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnsmooth_cli import problems
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.problems import Chain, Layer


class Selected(NamedTuple):
    """A layer, the number (from 1) and name it goes by in tables, and some of its units, counted from 0."""

    number: int
    name: str
    layer: Layer
    units: Tensor


def select(model: Chain, layers: Sequence[str] | None = None, units: Sequence[int] | None = None) -> list[Selected]:
    """The layers in the network's order with the units of each; None stands for all that a norm may follow.

    Raises InputError for a layer or a unit that is not there, and where no norm may follow any layer.
    """
    known = [(i, name, layer) for i, (name, layer) in enumerate(model.named_layers(), 1) if layer.normalisable]
    if not known:
        raise InputError("no layer of this network takes a norm: there is nothing to measure")
    for wanted in layers or ():
        if not any(wanted in (str(number), name) for number, name, _ in known):
            raise unknown("layer", wanted, [name for _, name, _ in known])
    found = []
    for number, name, layer in known:
        if layers is None or not {str(number), name}.isdisjoint(layers):
            width = layer.linear.weight.shape[0]
            for unit in units or ():
                if not 0 <= unit < width:
                    raise InputError(f"--units {unit}: the layer {name} has the units 0 to {width - 1}")
            found.append(Selected(number, name, layer, torch.tensor(sorted(set(units)) if units else range(width))))
    return found


def plan(
    config: Config, layers: Sequence[str] | None = None, units: Sequence[int] | None = None
) -> dict[str, Sequence[Any] | None]:
    """The keyword arguments of a measurement that selects, tried on a network that is built for it."""
    if layers or units:
        select(problems.build(config).build(), layers, units)
    return {"layers": layers, "units": units}
