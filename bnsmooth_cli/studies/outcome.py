"""What a set of runs shows: the comparison, its summary over seeds and the claims, written as three tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bnsmooth_cli import __version__, kinds
from bnsmooth_cli.config import resolve
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies.claims import claims
from bnsmooth_cli.studies.comparison import compare, worst_where_diverged
from bnsmooth_cli.studies.folder import Study, table_paths
from bnsmooth_cli.studies.grid import VARIED, command
from bnsmooth_cli.studies.statistics import summarise


@dataclass(frozen=True)
class Outcome:
    """The rows of the tables of kind compare, compare-summary and compare-claims.

    `next` holds the commands that would measure what the claims lack.
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

    If two runs share problem, norm, learning rate and seed, there are no statistics, as no seed may count twice.
    """
    comparison = compare([run.path for run in runs], target_loss=target_loss, target_accuracy=target_accuracy)
    twice = comparison.duplicated(["problem", "norm", "lr", "seed"]).any()
    judged = comparison.iloc[:0] if twice else comparison
    verdicts, missing = [pd.DataFrame(columns=list(kinds.get("compare-claims").columns))], []
    for problem in judged["problem"].unique():
        runs_of_problem = [run for run in runs if run.config.problem == problem]
        remedy = _Remedy(runs_of_problem, study)
        verdicts.append(claims(judged[judged["problem"] == problem], runs_of_problem, remedy))
        missing += remedy.all_commands()
    return Outcome(
        comparison,
        summarise(worst_where_diverged(judged)),
        pd.concat(verdicts[1:] or verdicts, ignore_index=True),
        missing,
    )


class _Remedy:
    """Makes the commands that add norms, learning rates or tables to runs, and the fewest commands that add all."""

    def __init__(self, runs: Sequence[Run], study: Study | None) -> None:
        first = runs[0].config
        usual = resolve(first.problem, norm=first.norm).as_dict()
        self._folder = Path(f"study-{first.problem}") if study is None else study.path
        if study is None:
            different = {name: value for name, value in first.as_dict().items() if value != usual.get(name)}
            named = {name: value for name, value in different.items() if name not in ("data_digest", *VARIED)}
            self._request: dict[str, Any] = {"norms": [], "problem": first.problem, **named}
        else:
            requests = study.read()["requests"]
            self._request = next((request for request in reversed(requests) if "measure" in request), requests[-1])
        self._request = {**self._request, "seeds": sorted({run.config.seed for run in runs})}
        lrs = sorted({run.config.lr for run in runs})
        if lrs != [usual["lr"]] or "lrs" in self._request:
            self._request["lrs"] = lrs
        self._present = list(dict.fromkeys(run.config.norm for run in runs))
        self._norms: dict[str, None] = {}
        self._measures: dict[str, None] = {}
        self._further: dict[str, None] = {}  # commands for other learning rates

    def __call__(self, norms: Sequence[str], measure: Sequence[str] = (), lrs: Sequence[float] = ()) -> str:
        line = self._command(norms, measure, lrs)
        if lrs:
            self._further[line] = None
        else:
            self._norms |= dict.fromkeys(norms)
            self._measures |= dict.fromkeys(measure)
        return line

    def all_commands(self) -> list[str]:
        """One command for everything at the present learning rates, and one for each further learning rate."""
        at_present = [self._command([*self._norms], [*self._measures], [])] if self._norms or self._measures else []
        return [*at_present, *self._further]

    def _command(self, norms: Sequence[str], measure: Sequence[str], lrs: Sequence[float]) -> str:
        changed: dict[str, object] = {"norms": list(norms) or self._present}
        if measure:
            changed["measure"] = list(measure)
        if lrs:
            changed["lrs"] = list(lrs)
        return command(self._request, self._folder, **changed)
