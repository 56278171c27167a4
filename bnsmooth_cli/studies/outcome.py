"""The outcome of a set of runs: the comparison, its summary over seeds and the claims, written as three tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bnsmooth_cli import __version__, kinds
from bnsmooth_cli.config import resolve
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies.comparison import compare_records, worst_where_diverged
from bnsmooth_cli.studies.evidence import Record
from bnsmooth_cli.studies.folder import Study, table_paths
from bnsmooth_cli.studies.grid import VARIED, command
from bnsmooth_cli.studies.statistics import summarise
from bnsmooth_cli.studies.verdicts import claims


@dataclass(frozen=True)
class Outcome:
    """The rows of the tables of kind compare, compare-summary and compare-claims.

    `next` holds commands that make the measurements that the claims lack.
    """

    comparison: pd.DataFrame
    summary: pd.DataFrame
    claims: pd.DataFrame
    next: list[str]

    @staticmethod
    def read(path: Path) -> Outcome:
        """The outcome whose comparison is the table at `path`."""
        comparison, summary, claims = (tables.read_table(file, kind) for kind, file in table_paths(path).items())
        return Outcome(comparison, summary, claims, claims.attrs["bnsmooth"].get("next", []))

    def write(self, path: Path, runs: Sequence[Run]) -> None:
        """Write the comparison to `path` and the other tables beside it."""
        provenance = {"version": __version__, "runs": {run.name: run.config.as_dict() for run in runs}}
        for (kind, file), rows in zip(
            table_paths(path).items(), (self.comparison, self.summary, self.claims), strict=True
        ):
            more = {"next": self.next} if kind == "compare-claims" else {}
            tables.write_table(file, kind, [rows], provenance | more)


def conclude(
    runs: Sequence[Run],
    study: Study | None = None,
    *,
    target_loss: float | None = None,
    target_accuracy: float | None = None,
) -> Outcome:
    """Compare runs and judge the claims by them; `study` is the study that they belong to.

    Runs of different settings are judged apart. If two runs share problem, settings, norm, learning rate and seed,
    there are no statistics, because no seed may count twice.
    """
    records = [Record.of_run(run) for run in runs]
    comparison = compare_records(records, target_loss, target_accuracy)
    twice = comparison.duplicated(["problem", "settings", "norm", "lr", "seed"]).any()
    judged = comparison.iloc[:0] if twice else comparison
    verdicts, missing = [pd.DataFrame(columns=list(kinds.get("compare-claims").columns))], []
    for (problem, settings), group in judged.groupby(["problem", "settings"], sort=False):
        names = {*group["run"]}
        folder = Path(f"study-{problem}") if study is None else study.path
        request = _request([run for run in runs if run.name in names], study)
        rows = claims(record for record in records if record.name in names).assign(settings=str(settings))
        missing += [command(request, folder, **change) for change in _merged(rows["command"])]
        rows["command"] = [command(request, folder, **change) if change else "" for change in rows["command"]]
        verdicts.append(rows)
    return Outcome(
        comparison,
        summarise(worst_where_diverged(judged)),
        pd.concat(verdicts[1:] or verdicts, ignore_index=True),
        missing,
    )


def _request(runs: Sequence[Run], study: Study | None) -> dict[str, Any]:
    """A request for these runs, with all of their norms, learning rates and seeds."""
    first = runs[0].config
    usual = resolve(first.problem, norm=first.norm).as_dict()
    if study is None:
        left_out = ("problem", "data_digest", *VARIED)
        different = {k: v for k, v in first.as_dict().items() if k not in left_out and v != usual.get(k)}
        request = {"norms": [], "problem": first.problem, **different}
    else:
        requests = study.read()["requests"]
        request = next((request for request in reversed(requests) if "measure" in request), requests[-1])
    norms = list(dict.fromkeys(run.config.norm for run in runs))
    lrs, seeds = sorted({run.config.lr for run in runs}), sorted({run.config.seed for run in runs})
    request = {**request, "norms": norms, "seeds": seeds}
    return {**request, "lrs": lrs} if lrs != [usual["lr"]] or "lrs" in request else request


def _merged(changes: Iterable[dict[str, list[Any]] | None]) -> list[dict[str, list[Any]]]:
    """The fewest changes: one at the learning rates of the runs, and one for each further learning rate."""
    merged: dict[str, list[Any]] = {}
    further = []
    for change in filter(None, changes):
        if "lrs" in change:
            further += [change] * (change not in further)
            continue
        for name, values in change.items():
            merged[name] = list(dict.fromkeys([*merged.get(name, ()), *values]))
    return [merged, *further] if merged else further
