"""The layers and units that a measurement selects, by name or number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.networks.structure import Site, Structure
from bnsmooth_cli.norms import name_of


class Selected(NamedTuple):
    """A site, and some of its units.

    Attributes:
        site: The site.
        units: The units in ascending order, counted from 0.
    """

    site: Site
    units: Int[Tensor, " units"]


def select(
    structure: Structure, layers: Sequence[str] | None = None, units: Sequence[int] | None = None
) -> list[Selected]:
    """Select sites and units.

    Args:
        structure: The structure of the network.
        layers: Layers by name or number; all of them by default.
        units: Units of each layer; all of them by default.

    Returns:
        The selected sites, in the order of the network.

    Raises:
        InputError: If the network does not have a layer or unit, or has no sites.
    """
    sites = structure.sites
    if (unfit := structure.unfit) is not None:
        raise InputError(
            f"--norm {name_of(type(unfit))}: its output is not an affine function of its "
            "normalised input, so that it is no norm, which activations and theory need; leave them out"
        )
    if not sites:
        raise InputError(
            "no layer of this network takes a norm, or none runs once on a batch, so nothing can be measured; give a "
            "loss that runs the network once"
        )
    names = {site.name: site for site in sites}
    numbered = {str(site.number): site for site in sites}
    for name in layers or ():
        if name not in names and name not in numbered:
            raise unknown("layer", name, list(names))
    # A name may be a number, as in nn.Sequential.
    wanted = sites if layers is None else [names.get(name) or numbered[name] for name in layers]
    selected = []
    for site in sites:
        if site in wanted:
            for unit in units or ():
                if not 0 <= unit < site.width:
                    raise InputError(f"--units {unit}: the layer {site.name} has the units 0 to {site.width - 1}")
            selected.append(Selected(site, torch.tensor(sorted(set(units)) if units else range(site.width))))
    return selected


def plan(
    config: Config, layers: Sequence[str] | None = None, units: Sequence[int] | None = None
) -> dict[str, Sequence[Any] | None]:
    """The keyword arguments of a measurement of units."""
    return {"layers": layers, "units": units}


def plan_layers(config: Config, layers: Sequence[str] | None = None) -> dict[str, Sequence[str]]:
    """The keyword arguments of a measurement of layers."""
    return {"layers": layers} if layers else {}
