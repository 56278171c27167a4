"""bnsmooth measures whether a normalisation makes the loss landscape smoother, after Santurkar et al. (2018).

import bnsmooth_cli as bns

run = bns.train("vgg", "l1")                    # a Run, in the folder runs/vgg-l1-lr0.1-seed0
bns.train("dln", measure=["ics"], every=100)    # measured as it trains, which saves a second walk
point = bns.load_point(run, step=137)           # the network at a step, and the batch of that step
bns.landscape(point), bns.smoothness(point), bns.ics(point)     # each returns a pandas.DataFrame, as do
bns.activations(point), bns.theory(point), bns.surface(point), bns.smoothness_by_layer(point)
bns.spectrum(point), bns.spectral_density(point), bns.spectrum_by_layer(point)
bns.plot(bns.read_table(run.train_path))        # a matplotlib Figure; with paper="1a", over the paper's own curves
bns.study(norms=["none", "batch"], seeds=range(5), measure=["smoothness"], problem="dln")
bns.list_runs("runs"), bns.compare("study")     # what there is, and the comparison of runs or of a study
bns.Point.of(model, loss, lr=0.1)               # a point of your own training loop
bns.Monitor(model, loss, lr=0.1, budget=0.05)   # measures in your own training loop, in 5% of its time
bns.replace_norms(model, "rms")                 # another norm in the place of each norm of a model
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bnsmooth_cli import norms as norms
    from bnsmooth_cli import paper as paper
    from bnsmooth_cli.errors import InputError as InputError
    from bnsmooth_cli.errors import Remark as Remark
    from bnsmooth_cli.figures import plot as plot
    from bnsmooth_cli.measures.activations import activations as activations
    from bnsmooth_cli.measures.by_layer import smoothness_by_layer as smoothness_by_layer
    from bnsmooth_cli.measures.ics import ics as ics
    from bnsmooth_cli.measures.landscape import landscape as landscape
    from bnsmooth_cli.measures.one_pass import train as train
    from bnsmooth_cli.measures.smoothness import smoothness as smoothness
    from bnsmooth_cli.measures.spectrum import spectral_density as spectral_density
    from bnsmooth_cli.measures.spectrum import spectrum as spectrum
    from bnsmooth_cli.measures.spectrum import spectrum_by_layer as spectrum_by_layer
    from bnsmooth_cli.measures.surface import surface as surface
    from bnsmooth_cli.measures.theory import theory as theory
    from bnsmooth_cli.monitoring.hugging_face import TrainerMonitor as TrainerMonitor
    from bnsmooth_cli.monitoring.lightning import LightningMonitor as LightningMonitor
    from bnsmooth_cli.monitoring.monitor import Monitor as Monitor
    from bnsmooth_cli.networks.replacing import replace_norms as replace_norms
    from bnsmooth_cli.points.point import Point as Point
    from bnsmooth_cli.points.reaching import load_point as load_point
    from bnsmooth_cli.points.reaching import load_weights as load_weights
    from bnsmooth_cli.problems.custom import Workload as Workload
    from bnsmooth_cli.storage.listing import list_runs as list_runs
    from bnsmooth_cli.storage.runs import Run as Run
    from bnsmooth_cli.storage.tables import read_table as read_table
    from bnsmooth_cli.storage.tables import save_table as save_table
    from bnsmooth_cli.studies.comparison import compare as compare
    from bnsmooth_cli.studies.folder import Study as Study
    from bnsmooth_cli.studies.progress import StudyProgress as StudyProgress
    from bnsmooth_cli.studies.run import study as study

    __version__: str

#: Public name -> the module that defines it, imported on first use: torch takes seconds to import, and reading a table
#: does not need it.
_HOMES: Final = {
    "InputError": "errors",
    "LightningMonitor": "monitoring.lightning",
    "Monitor": "monitoring.monitor",
    "Point": "points.point",
    "Remark": "errors",
    "Run": "storage.runs",
    "Study": "studies.folder",
    "StudyProgress": "studies.progress",
    "TrainerMonitor": "monitoring.hugging_face",
    "Workload": "problems.custom",
    "activations": "measures.activations",
    "compare": "studies.comparison",
    "ics": "measures.ics",
    "landscape": "measures.landscape",
    "list_runs": "storage.listing",
    "load_point": "points.reaching",
    "load_weights": "points.reaching",
    "norms": "",
    "paper": "",
    "plot": "figures",
    "read_table": "storage.tables",
    "replace_norms": "networks.replacing",
    "save_table": "storage.tables",
    "smoothness": "measures.smoothness",
    "smoothness_by_layer": "measures.by_layer",
    "spectral_density": "measures.spectrum",
    "spectrum": "measures.spectrum",
    "spectrum_by_layer": "measures.spectrum",
    "study": "studies.run",
    "surface": "measures.surface",
    "theory": "measures.theory",
    "train": "measures.one_pass",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":  # from the installed package, so that only pyproject.toml states it
        from importlib.metadata import version

        return version("bnsmooth")
    if name not in _HOMES:
        module = sys.modules[__name__]  # for Python's "Did you mean"
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'", name=name, obj=module)
    module = importlib.import_module(f"{__name__}.{_HOMES[name] or name}")
    return getattr(module, name) if _HOMES[name] else module


def __dir__() -> list[str]:
    return ["__version__", *_HOMES]


if not TYPE_CHECKING:  # type checkers read the imports above, which re-export each name
    __all__ = __dir__()
