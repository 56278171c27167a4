"""Which layers and units a measurement is of: the linear maps that a norm may follow, by name or number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnsmooth_cli import problems
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.networks.structure import Site, chosen_layers
from bnsmooth_cli.points.reaching import structure_of


class Selected(NamedTuple):
    """A place in the network, and some of its units, counted from 0."""

    site: Site
    units: Tensor

    @property
    def number(self) -> int:
        """The layer's number in tables, from 1."""
        return self.site.number

    @property
    def name(self) -> str:
        """The layer's name in tables."""
        return self.site.name


def select(
    sites: Sequence[Site], layers: Sequence[str] | None = None, units: Sequence[int] | None = None
) -> list[Selected]:
    """The chosen sites in the network's order with the units of each; None stands for all.

    Raises InputError for a layer or a unit that is not there, and where no norm may follow any layer.
    """
    if not sites:
        raise InputError("no layer of this network takes a norm: there is nothing to measure")
    for wanted in layers or ():
        if not any(wanted in (str(site.number), site.name) for site in sites):
            raise unknown("layer", wanted, [site.name for site in sites])
    found = []
    for site in sites:
        if layers is None or not {str(site.number), site.name}.isdisjoint(layers):
            for unit in units or ():
                if not 0 <= unit < site.width:
                    raise InputError(f"--units {unit}: the layer {site.name} has the units 0 to {site.width - 1}")
            found.append(Selected(site, torch.tensor(sorted(set(units)) if units else range(site.width))))
    return found


def plan(
    config: Config, layers: Sequence[str] | None = None, units: Sequence[int] | None = None
) -> dict[str, Sequence[Any] | None]:
    """The keyword arguments of a measurement that selects, tried on a network that is built for it."""
    if layers or units:
        select(structure_of(problems.build(config)).sites, layers, units)
    return {"layers": layers, "units": units}


def plan_layers(config: Config, layers: Sequence[str] | None = None) -> dict[str, Sequence[str] | None]:
    """The keyword arguments of a measurement of layers, tried likewise."""
    if not layers:
        return {}
    structure = structure_of(problems.build(config))
    chosen_layers(structure.model, structure.layers, layers)
    return {"layers": layers}
