"""The studies of each scale: what is trained and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bnsmooth_cli.errors import unknown
from bnsmooth_cli.studies.grid import Grid, command

PLAIN: Final = ("none", "batch")
LP: Final = (*PLAIN, "l1", "l2", "linf")
_NOISY: Final = ("noisy-batch", "noisy-none")
NORMS: Final = (*LP, *_NOISY)
FIVE: Final = (0, 1, 2, 3, 4)  # seeds, the fewest that a verdict at one learning rate needs
EIGHT: Final = (*FIVE, 5, 6, 7)  # with which one part of up to 12 can be found to break its rule
FRESH: Final = tuple(range(8, 28))
#: The networks of the experiments on noise, by norm: parts of the noise without BatchNorm, and parts of BatchNorm.
NETWORKS: Final = {
    "none": "plain",
    "noisy-none": "plain, with the noise",
    "reproduction.noises:Shift": "plain, shift only",
    "reproduction.noises:UnitShift": "plain, shift shared by the samples only",
    "reproduction.noises:SampleShift": "plain, shift of each sample only",
    "reproduction.noises:Scale": "plain, scale only",
    "batch": "BatchNorm",
    "noisy-batch": "BatchNorm, with the noise",
    "reproduction.noises:Centre": "centre only",
    "reproduction.noises:noisy_centre": "centre only, with the noise",
    "scale": "division only",
    "reproduction.noises:noisy_scale": "division only, with the noise",
}


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
            lines.append(command({**request, **({"data": "path/to/cifar10"} if "data" in request else {})}, folder))
        return lines


def plans(
    scale: str, data: str | None = None, steps: int | None = None, only: Sequence[str] | None = None
) -> list[Plan]:
    """The studies of a scale.

    Args:
        scale: `quick`, `quarter` or `paper`.
        data: The folder of CIFAR-10; None to download it.
        steps: The largest number of steps of any run.
        only: The names of some studies; None for all of them. The page always needs `dln`.

    Raises:
        InputError: If the scale has no such study.

    >>> [plan.name for plan in plans("paper")]
    ['dln', 'dln-slow', 'dln-fresh', 'dln-stated', 'vgg-noise', 'vgg-noise-11', 'vgg', 'vgg-augmented']
    >>> [plan.name for plan in plans("paper", only=["vgg"])]
    ['dln', 'vgg']
    """
    studies = SCALES[scale]
    for name in only or ():
        if name not in (names := [plan.name for plan in studies]):
            raise unknown(f"study of the scale {scale}", name, names)
    studies = [plan for plan in studies if only is None or plan.name in ("dln", *only)]
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


def _linear(seeds: tuple[int, ...], preset: str, **steps: Any) -> Plan:
    settings = {"problem": "dln", "preset": preset}
    grids = (Grid(LP, (), seeds, settings, _MEASURE, **steps),
             Grid(PLAIN, (), seeds, settings, ("theory",), at=_LINEAR[preset]))  # fmt: skip
    return Plan("dln", "the deep linear network", grids)


def _slow() -> Plan:
    """The linear network at the smaller learning rate of figure 3, a tenth of the other one."""
    settings = {"problem": "dln", "preset": "paper"}
    grid = Grid(LP, (1e-7,), EIGHT, settings, _SHIFT, every=50)
    return Plan("dln-slow", "the deep linear network at the smaller learning rate of figure 3", (grid,))


def _stated() -> Plan:
    """The linear network with the matrix A of the paper's text; that of the preset follows its figures."""
    settings = {"problem": "dln", "preset": "paper", "matrix": "normal"}
    grid = Grid(PLAIN, (), EIGHT, settings, _SHIFT, every=50)
    return Plan("dln-stated", "the deep linear network with the matrix A that the paper's text states", (grid,))


def _fresh() -> Plan:
    """More seeds of three norms, none of which was seen before, for claims whose intervals are wide."""
    settings = {"problem": "dln", "preset": "paper"}
    grid = Grid(LP[:3], (1e-6, 1e-7), FRESH, settings, (*_SHIFT, "landscape-random"), every=50)
    return Plan("dln-fresh", "the deep linear network at both learning rates, with twenty other seeds", (grid,))


def _images(seeds: tuple[int, ...], every: int, more: tuple[int, ...] = (), **settings: Any) -> Plan:
    """The two networks of figures 1 and 3 at their learning rates, and the others at 0.1.

    At 0.5 there are more seeds: claim 2 is corrected for the number of learning rates, so that five cannot decide it.
    """
    others = (*LP[2:], *_NOISY)
    by_lr = ((PLAIN, 0.1, seeds), (PLAIN, 0.5, (*seeds, *more)), (PLAIN, 0.01, seeds), (others, 0.1, seeds))
    grids = tuple(Grid(norms, (lr,), those, settings, _MEASURE, every=every, probe=True) for norms, lr, those in by_lr)
    return Plan("vgg", "every norm; the two of figures 1 and 3 at their other learning rates as well", grids)


def _noise(**settings: Any) -> list[Plan]:
    """Which part of the noise stops the plain network, and whether it stops a shallower one."""
    short = {**settings, "steps": 1000, "eval_every": 100}
    parts = Grid((*NETWORKS,), (0.1,), FIVE[:3], short)
    shallow = Grid(("none", "noisy-none"), (0.1,), FIVE[:3], {**short, "depth": 11})
    return [Plan("vgg-noise", "parts of the noise, and parts of BatchNorm against it", (parts,)),
            Plan("vgg-noise-11", "the noise without BatchNorm, in VGG-11", (shallow,))]  # fmt: skip


def _wide(**settings: Any) -> Plan:
    """The first steps at full width."""
    grid = Grid(PLAIN, (0.1,), (0,), {**settings, "save_every": 1000, "steps": 6500}, _MEASURE, every=100, probe=True)
    return Plan("vgg-full", "the paper's widths, the first steps", (grid,))


def _augmented(seeds: tuple[int, ...], **settings: Any) -> Plan:
    grid = Grid(PLAIN, (0.1,), seeds, {**settings, "augment": True})
    return Plan("vgg-augmented", "with random crops and mirror images", (grid,))


_SHIFT: Final = ("smoothness", "ics")
_MEASURE: Final = ("landscape", "smoothness", "ics", "activations", "landscape-random")
_CIFAR: Final[dict[str, Any]] = {"preset": "paper", "data": "cifar10"}
#: A quarter of all widths.
_QUARTER: Final[dict[str, Any]] = {**_CIFAR, "width": 0.25, "save_every": 1000}
#: The steps at which the theory is measured.
_LINEAR: Final = {"quick": (0, 10, 100, 1000), "paper": (0, 100, 1000, 10_000)}
#: The first steps of every norm, for the figures of scales where `vgg` takes days.
_FIRST: Final[dict[str, Any]] = {**_QUARTER, "save_every": 100, "steps": 1000, "eval_every": 50}
_EARLY: Final = Plan("vgg-early", "every norm, the first steps", (
    Grid(NORMS, (0.1,), FIVE, _FIRST, _MEASURE, every=100, probe=True),
))  # fmt: skip

#: The cheapest studies are first. The paper measures VGG every 100 and the linear network every 50 steps.
SCALES: Final[dict[str, list[Plan]]] = {
    "quick": [
        _linear((0,), "quick", at=_LINEAR["quick"]),
        _images((0,), 50, preset="quick", depth=16),
        _augmented((0,), preset="quick", depth=16),
    ],
    "quarter": [
        _linear(EIGHT, "paper", every=50),
        _slow(),
        _fresh(),
        _stated(),
        *_noise(**_QUARTER),
        _EARLY,
        _images(FIVE, 100, (5,), **_QUARTER),
        _augmented(FIVE[:3], **_QUARTER),
        _wide(**_CIFAR),
    ],
    "paper": [
        _linear(EIGHT, "paper", every=50),
        _slow(),
        _fresh(),
        _stated(),
        *_noise(**_CIFAR),
        _images(FIVE, 100, (5,), **_CIFAR),
        _augmented(FIVE, **_CIFAR),
    ],
}
