"""The commands that measure what the claims lack, and that reuse the runs which are there. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bnsmooth_cli import kinds
from bnsmooth_cli.config import KNOWN_LATER, resolve
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies.folder import Study
from bnsmooth_cli.studies.grid import VARIED, command
from bnsmooth_cli.studies.statistics import SEEDS

#: What a claim lacks: values of a request by name (`norms`, `measure` and `lrs`).
Change = dict[str, list[Any]]
_ADDED: Final = ("norms", "measure")


@dataclass(frozen=True)
class Advice:
    """The request of a study that has some runs, with at least as many seeds as a verdict takes.

    Attributes:
        request: The request.
        folder: The folder of the study.
        runs: The runs that the study takes; none if it has them already, and none that could not be measured from
            step 0 on, because checkpoints were removed (`--keep`).
        enough: Whether the runs have as many seeds as a verdict takes.
    """

    request: Mapping[str, Any]
    folder: Path
    runs: tuple[Path, ...]
    enough: bool

    @staticmethod
    def of(runs: Sequence[Run], study: Study | None, folder: Path) -> Advice:
        """The advice for runs of one problem and of the same settings.

        Args:
            runs: The runs.
            study: The study that they belong to, if that is known.
            folder: The folder of a new study, for runs that belong to none.
        """
        study = study or _holding(runs)
        seeds = sorted({run.config.seed for run in runs})
        others = (seed for seed in range(SEEDS + len(seeds)) if seed not in seeds)
        wanted = sorted([*seeds, *(next(others) for _ in range(SEEDS - len(seeds)))])
        request = {**(_described(runs) if study is None else _recorded(study)), "seeds": wanted}
        request["norms"] = list(dict.fromkeys(run.config.norm for run in runs))
        lrs = sorted({run.config.lr for run in runs})
        if "lrs" in request or lrs != [_usual(runs[0])["lr"]]:
            request["lrs"] = lrs
        request["measure"] = _measured(runs)
        return Advice(request, folder if study is None else study.path,
                      () if study else tuple(run.path for run in runs if 0 in run.checkpoints()),
                      len(seeds) >= SEEDS)  # fmt: skip

    def command(self, change: Mapping[str, Sequence[Any]]) -> str:
        """The command for a change: its norms and measurements are added to those of the runs."""
        added = {name: list(dict.fromkeys([*self.request[name], *change.get(name, ())])) for name in _ADDED}
        values = {**self.request, **added, **{name: list(value) for name, value in change.items() if name not in added}}
        if "lrs" in change:  # a further learning rate takes the norms that are compared there, and no others
            values["norms"] = [*change.get("norms", values["norms"])]
        return command({name: value for name, value in values.items() if value != []}, self.folder, self.runs)

    def commands(self, changes: Iterable[Change | None]) -> list[str]:
        """The fewest commands for some changes: one for the runs' learning rates, and one for each further one."""
        merged: Change = {}
        further: list[Change] = []
        for change in filter(None, changes):
            if "lrs" in change:
                further += [change] * (change not in further)
                continue
            for name, values in change.items():
                merged[name] = list(dict.fromkeys([*merged.get(name, ()), *values]))
        return [self.command(change) for change in [*[merged] * (bool(merged) or not self.enough), *further]]


def _holding(runs: Sequence[Run]) -> Study | None:
    """The study whose runs these are; None if they are in other folders."""
    folders = {run.path.parent for run in runs}
    folder = next(iter(folders))
    holds = len(folders) == 1 and folder.name == "runs" and (folder.parent / "study.json").is_file()
    return Study(folder.parent) if holds else None


def _recorded(study: Study) -> dict[str, Any]:
    """The last request of a study that measures something, or else its last one."""
    requests = study.read()["requests"]
    chosen: dict[str, Any] = next((request for request in reversed(requests) if "measure" in request), requests[-1])
    return {"norms": [], "seeds": [], **chosen}


def _described(runs: Sequence[Run]) -> dict[str, Any]:
    """A request for runs that belong to no study, with the steps that they are measured at."""
    config, usual = runs[0].config, _usual(runs[0])
    left_out = ("problem", "keep", *KNOWN_LATER, *VARIED)
    different = {k: v for k, v in config.as_dict().items() if k not in left_out and v != usual.get(k)}
    steps = next((steps for run in runs for kind in _measured([run]) if len(steps := _steps(run, kind)) > 1), [])
    every = steps[1] - steps[0] if steps else 0
    regular = bool(steps) and steps == [*range(0, steps[-1] + 1, every)] and every != config.save_every
    return {"norms": [], "seeds": [], "problem": config.problem, **different, **({"every": every} if regular else {})}


def _usual(run: Run) -> dict[str, Any]:
    """The settings of the default preset."""
    return resolve(run.config.problem, norm=run.config.norm).as_dict()


def _measured(runs: Sequence[Run]) -> list[str]:
    """The kinds of tables that some runs have."""
    return [kind for kind in kinds.measured(studied=True)
            if any(run.source().table_path(kind).is_file() for run in runs)]  # fmt: skip


def _steps(run: Run, kind: str) -> list[int]:
    provenance = tables.read_provenance(run.source().table_path(kind), kind)
    (recorded,) = provenance["runs"]  # another name than the folder's, if that was renamed
    return sorted(tables.steps_in(provenance, recorded))
