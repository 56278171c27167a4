"""bnsmooth: does a normalisation make the loss landscape smoother? The experiments of Santurkar et al. (2018).

import bnsmooth_cli as bns
run = bns.train("vgg", "l1")                   # -> Run, its directory in runs/
point = bns.load_point(run, step=137)          # the network and the batch at a step
bns.landscape(point), bns.smoothness(point), bns.ics(point), bns.activations(point), bns.theory(point)
                                               # -> pandas.DataFrame each
bns.surface(point), bns.smoothness_by_layer(point)
bns.plot(bns.read_table("runs/vgg-l1-lr0.1-seed0/train.parquet"))       # -> matplotlib Figure
bns.Point.of(model, loss, lr=0.1)              # a point of your own training loop
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bnsmooth_cli._version import __version__

if TYPE_CHECKING:
    from bnsmooth_cli import norms
    from bnsmooth_cli.errors import InputError
    from bnsmooth_cli.figures import plot
    from bnsmooth_cli.measures.activations import activations
    from bnsmooth_cli.measures.by_layer import smoothness_by_layer
    from bnsmooth_cli.measures.ics import ics
    from bnsmooth_cli.measures.line import landscape
    from bnsmooth_cli.measures.smoothness import smoothness
    from bnsmooth_cli.measures.surface import surface
    from bnsmooth_cli.measures.theory import theory
    from bnsmooth_cli.points import Point, load_point, load_weights
    from bnsmooth_cli.problems.own import Workload
    from bnsmooth_cli.runs import Run
    from bnsmooth_cli.study import compare
    from bnsmooth_cli.tables import read_table, save_table
    from bnsmooth_cli.training import train

__all__ = [
    "InputError",
    "Point",
    "Run",
    "Workload",
    "__version__",
    "activations",
    "compare",
    "ics",
    "landscape",
    "load_point",
    "load_weights",
    "norms",
    "plot",
    "read_table",
    "save_table",
    "smoothness",
    "smoothness_by_layer",
    "surface",
    "theory",
    "train",
]

_MODULES = {
    "InputError": "errors",
    "Point": "points",
    "Run": "runs",
    "Workload": "problems",
    "activations": "measures",
    "compare": "study",
    "ics": "measures",
    "landscape": "measures",
    "load_point": "points",
    "load_weights": "points",
    "plot": "figures",
    "read_table": "tables",
    "save_table": "tables",
    "smoothness": "measures",
    "smoothness_by_layer": "measures",
    "surface": "measures",
    "theory": "measures",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and reading a table or `bnsmooth --help` does not need it."""
    if name == "norms":
        return importlib.import_module("bnsmooth_cli.norms")
    if name in _MODULES:
        return getattr(importlib.import_module(f"bnsmooth_cli.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'bnsmooth_cli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
