"""How much is trained and measured: the studies of each scale, by commands of bnsmooth."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bnsmooth_cli.studies.grid import Grid, command

NORMS: Final = ("none", "batch", "l1", "l2", "linf", "noisy-batch", "noisy-none")
PLAIN: Final = ("none", "batch")
LP: Final = ("none", "batch", "l1", "l2", "linf")
FIVE: Final = (0, 1, 2, 3, 4)  # seeds: what a verdict takes


@dataclass(frozen=True)
class Plan:
    """A study that the reproduction takes, by its name in figures.py, what it is for, and its grids."""

    name: str
    purpose: str
    grids: tuple[Grid, ...]

    def commands(self, folder: Path, jobs: int) -> list[list[str]]:
        """The command lines that execute it, or go on with it, without the program's name."""
        return [[*shlex.split(command(grid.request(), folder))[1:], "--jobs", str(jobs)] for grid in self.grids]

    def shown(self, folder: Path) -> list[str]:
        """The same for a reader, whose data is elsewhere."""
        lines = []
        for request in (grid.request() for grid in self.grids):
            line = command({**request, **({"data": "path/to/cifar10"} if "data" in request else {})}, folder)
            lines.append(f"CIFAR10=path/to/cifar10 {line}" if ":" in request.get("problem", "") else line)
        return lines


def plans(scale: str, data: str | None = None, steps: int | None = None) -> list[Plan]:
    """The studies of a scale; `data` where CIFAR-10 is, by default downloaded; `steps` the most of any run.

    >>> [plan.name for plan in plans("paper")]
    ['dln', 'vgg', 'vgg-augmented', 'dln-slow']
    """
    found = SCALES[scale]
    if data is not None:
        found = [changed(plan, {"data": data}) if "data" in plan.grids[0].settings else plan for plan in found]
    return [replace(plan, grids=tuple(_no_longer(grid, steps) for grid in plan.grids)) for plan in found]


def changed(plan: Plan, settings: Mapping[str, Any]) -> Plan:
    """A study with some of its settings changed."""
    return replace(plan, grids=tuple(_with(grid, settings) for grid in plan.grids))


def _with(grid: Grid, settings: Mapping[str, Any]) -> Grid:
    return replace(grid, settings={**grid.settings, **settings})


def _no_longer(grid: Grid, steps: int | None) -> Grid:
    if steps is None or grid.configs()[0].steps <= steps:
        return grid
    at = None if grid.at is None else tuple(sorted({min(step, steps) for step in grid.at}))
    return replace(_with(grid, {"steps": steps}), at=at)


def _linear(seeds: tuple[int, ...], at: tuple[int, ...], preset: str) -> Plan:
    settings = {"problem": "dln", "preset": preset}
    return Plan("dln", "the deep linear network", (Grid(NORMS, (), seeds, settings, (*_MEASURE, "theory"), at=at),))


def _slow() -> Plan:
    """The linear network at the other learning rate that figure 3 shows, a tenth of the first."""
    settings = {"problem": "dln", "preset": "paper"}
    grid = Grid(LP, (1e-7,), FIVE, settings, ("smoothness", "ics"), at=_LINEAR)
    return Plan("dln-slow", "the deep linear network at the smaller learning rate of figure 3", (grid,))


def _images(norms: tuple[str, ...], seeds: tuple[int, ...], every: int, **settings: Any) -> Plan:
    """The norms at the paper's learning rate, and what the paper shows at its other one."""
    grids = [Grid(its, (lr,), seeds, settings, _MEASURE, every=every) for its, lr in ((norms, 0.1), (PLAIN, 0.5))]
    which = "every norm" if norms == NORMS else "with BatchNorm and without"
    return Plan("vgg", f"{which}; the two of figure 1 at the larger learning rate as well", tuple(grids))


def _augmented(seeds: tuple[int, ...], **settings: Any) -> Plan:
    grid = Grid(PLAIN, (0.1,), seeds, {**settings, "augment": True})
    return Plan("vgg-augmented", "with random crops and mirror images", (grid,))


def _first(name: str, purpose: str, seeds: tuple[int, ...], **settings: Any) -> Plan:
    """Where the landscape of the first steps comes from."""
    settings = {**settings, "steps": 300, "save_every": 100, "eval_every": 100}
    grid = Grid(PLAIN, (0.1,), seeds, settings, ("landscape",), at=(0, 20, 50, 100, 300))
    return Plan(name, f"the first steps, {purpose}", (grid,))


_THREE: Final = (0, 1, 2)
_MEASURE: Final = ("landscape", "smoothness", "ics", "activations")
_CIFAR: Final[dict[str, Any]] = {"preset": "paper", "data": "cifar10"}
_QUARTER: Final[dict[str, Any]] = {**_CIFAR, "width": 0.25}
#: Measured steps, close to each other early, which is the first tenth.
_LINEAR: Final = (0, 20, 50, 100, 200, 500, *range(1000, 10001, 1000))
_EARLY: Final = (0, 20, 50, 100, 300, 600, 1000)

#: The cheapest study first. `vgg-early` is there where `vgg` would take too long for every norm and five seeds.
SCALES: Final[dict[str, list[Plan]]] = {
    "quick": [
        _linear((0,), (0, 20, 100, 300, 1000), "quick"),
        _images(NORMS, (0,), 50, preset="quick"),
        _augmented((0,), preset="quick"),
    ],
    "quarter": [
        _linear(FIVE, _LINEAR, "paper"),
        Plan("vgg-early", "every norm, the first steps", (
            Grid(NORMS, (0.1,), FIVE, {**_QUARTER, "steps": 1000, "save_every": 200, "eval_every": 50}, _MEASURE,
                 at=_EARLY),
        )),
        _images(PLAIN, (0,), 1000, **_QUARTER),
        _augmented((0,), **_QUARTER),
        _slow(),
        _first("vgg-he", "initialised as He et al. (2015) do", _THREE, problem="reproduction.variants:he"),
        _first("vgg-default", "initialised as PyTorch does", _THREE, problem="reproduction.variants:default"),
        _first("vgg-shallow", "with one linear layer, not three", _THREE, problem="reproduction.variants:shallow"),
    ],
    "paper": [
        _linear(FIVE, _LINEAR, "paper"),
        _images(NORMS, FIVE, 500, **_CIFAR),
        _augmented(FIVE, **_CIFAR),
        _slow(),
    ],
}  # fmt: skip
