"""The studies of each scale: what is trained and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bnsmooth_cli.studies.grid import Grid, command

NORMS: Final = ("none", "batch", "l1", "l2", "linf", "noisy-batch", "noisy-none")
PLAIN: Final = ("none", "batch")
LP: Final = ("none", "batch", "l1", "l2", "linf")
FIVE: Final = (0, 1, 2, 3, 4)  # seeds, as many as a verdict needs


@dataclass(frozen=True)
class Plan:
    """A study of the reproduction: its name in figures.py, its purpose, and its grids."""

    name: str
    purpose: str
    grids: tuple[Grid, ...]

    def commands(self, folder: Path) -> list[str]:
        """The equivalent commands for readers, whose data is in another folder."""
        lines = []
        for request in (grid.request() for grid in self.grids):
            line = command({**request, **({"data": "path/to/cifar10"} if "data" in request else {})}, folder)
            lines.append(f"CIFAR10=path/to/cifar10 {line}" if ":" in request.get("problem", "") else line)
        return lines


def plans(scale: str, data: str | None = None, steps: int | None = None) -> list[Plan]:
    """The studies of a scale.

    Args:
        scale: `quick`, `quarter` or `paper`.
        data: The folder of CIFAR-10; None to download it.
        steps: The largest number of steps of any run.

    >>> [plan.name for plan in plans("paper")]
    ['dln', 'vgg', 'vgg-augmented', 'dln-slow']
    """
    studies = SCALES[scale]
    if data is not None:
        studies = [changed(plan, {"data": data}) if "data" in plan.grids[0].settings else plan for plan in studies]
    return [replace(plan, grids=tuple(_shortened(grid, steps) for grid in plan.grids)) for plan in studies]


def changed(plan: Plan, settings: Mapping[str, Any]) -> Plan:
    """A study with some of its settings changed."""
    return replace(plan, grids=tuple(_with(grid, settings) for grid in plan.grids))


def _with(grid: Grid, settings: Mapping[str, Any]) -> Grid:
    return replace(grid, settings={**grid.settings, **settings})


def _shortened(grid: Grid, steps: int | None) -> Grid:
    if steps is None or grid.configs()[0].steps <= steps:
        return grid
    at = None if grid.at is None else tuple(sorted({min(step, steps) for step in grid.at}))
    return replace(_with(grid, {"steps": steps}), at=at)


def _linear(seeds: tuple[int, ...], at: tuple[int, ...], preset: str) -> Plan:
    settings = {"problem": "dln", "preset": preset}
    return Plan("dln", "the deep linear network", (Grid(NORMS, (), seeds, settings, (*_MEASURE, "theory"), at=at),))


def _slow() -> Plan:
    """The linear network at the smaller learning rate of figure 3, a tenth of the other one."""
    settings = {"problem": "dln", "preset": "paper"}
    grid = Grid(LP, (1e-7,), FIVE, settings, ("smoothness", "ics"), at=_LINEAR)
    return Plan("dln-slow", "the deep linear network at the smaller learning rate of figure 3", (grid,))


def _images(norms: tuple[str, ...], seeds: tuple[int, ...], every: int, **settings: Any) -> Plan:
    """The norms at learning rate 0.1, and the two that the paper shows at 0.5."""
    by_lr = ((norms, 0.1), (PLAIN, 0.5))
    grids = [Grid(chosen, (lr,), seeds, settings, _MEASURE, every=every) for chosen, lr in by_lr]
    which = "every norm" if norms == NORMS else "with BatchNorm and without"
    return Plan("vgg", f"{which}; the two of figure 1 at the larger learning rate as well", tuple(grids))


def _augmented(seeds: tuple[int, ...], **settings: Any) -> Plan:
    grid = Grid(PLAIN, (0.1,), seeds, {**settings, "augment": True})
    return Plan("vgg-augmented", "with random crops and mirror images", (grid,))


def _first(name: str, purpose: str, seeds: tuple[int, ...], **settings: Any) -> Plan:
    """Experiments on the landscape of the first steps."""
    settings = {**settings, "steps": 300, "save_every": 100, "eval_every": 100}
    grid = Grid(PLAIN, (0.1,), seeds, settings, ("landscape",), at=(0, 20, 50, 100, 300))
    return Plan(name, f"the first steps, {purpose}", (grid,))


_THREE: Final = (0, 1, 2)
_MEASURE: Final = ("landscape", "smoothness", "ics", "activations")
_CIFAR: Final[dict[str, Any]] = {"preset": "paper", "data": "cifar10"}
_QUARTER: Final[dict[str, Any]] = {**_CIFAR, "width": 0.25}
#: Measured steps, denser in the first tenth of a run.
_LINEAR: Final = (0, 20, 50, 100, 200, 500, *range(1000, 10001, 1000))
_EARLY: Final = (0, 20, 50, 100, 300, 600, 1000)

#: The cheapest study is first. `vgg-early` exists where `vgg` takes too long for every norm and five seeds.
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
