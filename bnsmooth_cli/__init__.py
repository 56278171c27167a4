"""bnsmooth: does a normalisation make the loss landscape smoother? The experiments of Santurkar et al. (2018).

import bnsmooth_cli as bns

run = bns.train("vgg", "l1")                    # a Run, in the folder runs/vgg-l1-lr0.1-seed0
point = bns.load_point(run, step=137)           # the network and the batch at a step
bns.landscape(point), bns.smoothness(point), bns.ics(point), bns.activations(point), bns.theory(point)
bns.surface(point), bns.smoothness_by_layer(point)              # a pandas.DataFrame each
bns.plot(bns.read_table(run.train_path))                        # a matplotlib Figure
bns.study(norms=["none", "batch"], seeds=range(5), measure=["smoothness"], problem="dln")
bns.Point.of(model, loss, lr=0.1)               # a point of your own training loop
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

#: From the installed package's metadata: pyproject.toml is its one place.
__version__ = version("bnsmooth")

if TYPE_CHECKING:
    from bnsmooth_cli import norms
    from bnsmooth_cli.errors import InputError
    from bnsmooth_cli.figures import plot
    from bnsmooth_cli.measures.activations import activations
    from bnsmooth_cli.measures.by_layer import smoothness_by_layer
    from bnsmooth_cli.measures.ics import ics
    from bnsmooth_cli.measures.landscape import landscape
    from bnsmooth_cli.measures.smoothness import smoothness
    from bnsmooth_cli.measures.surface import surface
    from bnsmooth_cli.measures.theory import theory
    from bnsmooth_cli.points.point import Point
    from bnsmooth_cli.points.reaching import load_point, load_weights
    from bnsmooth_cli.problems.custom import Workload
    from bnsmooth_cli.storage.runs import Run
    from bnsmooth_cli.storage.tables import read_table, save_table
    from bnsmooth_cli.studies.comparison import compare
    from bnsmooth_cli.training.run import train

#: Public name -> the module that defines it, imported on first use: torch takes seconds to import, and reading a table
#: or `bnsmooth --help` does not need it.
_HOMES = {
    "InputError": "errors",
    "Point": "points.point",
    "Run": "storage.runs",
    "Workload": "problems.custom",
    "activations": "measures.activations",
    "compare": "studies.comparison",
    "ics": "measures.ics",
    "landscape": "measures.landscape",
    "load_point": "points.reaching",
    "load_weights": "points.reaching",
    "norms": "",
    "plot": "figures",
    "read_table": "storage.tables",
    "save_table": "storage.tables",
    "smoothness": "measures.smoothness",
    "smoothness_by_layer": "measures.by_layer",
    "surface": "measures.surface",
    "theory": "measures.theory",
    "train": "training.run",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bnsmooth_cli' has no attribute '{name}'")
    home = _HOMES[name]
    return (
        getattr(importlib.import_module(f"bnsmooth_cli.{home}"), name)
        if home
        else importlib.import_module(f"bnsmooth_cli.{name}")
    )


def __dir__() -> list[str]:
    return __all__
