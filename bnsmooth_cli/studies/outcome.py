"""What a set of runs says: the comparison, its statistics over seeds, the claims; written as three tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from bnsmooth_cli import __version__, kinds
from bnsmooth_cli.config import resolve
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies.claims import claims
from bnsmooth_cli.studies.comparison import compare, worst_where_diverged
from bnsmooth_cli.studies.grid import VARIED, Study, command
from bnsmooth_cli.studies.statistics import summarise


@dataclass(frozen=True)
class Outcome:
    """The rows of the tables of kinds compare, compare-summary and compare-claims; the commands that would measure
    what the claims lack."""

    comparison: pd.DataFrame
    summary: pd.DataFrame
    claims: pd.DataFrame
    next: list[str]

    def write(self, path: Path, runs: Sequence[Run]) -> None:
        """Write the comparison at `path`, the others beside it."""
        provenance = {"version": __version__, "runs": {run.name: run.config.as_dict() for run in runs}}
        more: list[dict[str, list[str]]] = [{}, {}, {"next": self.next}]
        rows = (self.comparison, self.summary, self.claims)
        for file, kind, frame, its in zip(paths(path), KINDS, rows, more, strict=True):
            tables.write_table(file, kind, [frame], provenance | its)


KINDS: Final = tuple(kind.name for kind in kinds.KINDS if kind.compared)


def paths(path: Path) -> list[Path]:
    """Where the three tables go: compare.parquet, compare.summary.parquet, compare.claims.parquet."""
    return [path, *(path.with_name(f"{path.stem}.{kind.split('-')[1]}{path.suffix}") for kind in KINDS[1:])]


def conclude(
    runs: Sequence[Run],
    study: Study | None = None,
    *,
    target_loss: float | None = None,
    target_accuracy: float | None = None,
) -> Outcome:
    """Compare the runs, and judge the claims by them; `study` is the one that they belong to.

    Of runs that share problem, norm, lr and seed there are no statistics: no seed may count twice.
    """
    comparison = compare([run.path for run in runs], target_loss=target_loss, target_accuracy=target_accuracy)
    twice = comparison.duplicated(["problem", "norm", "lr", "seed"]).any()
    judged = comparison.iloc[:0] if twice else comparison
    verdicts, lacking = [pd.DataFrame(columns=list(kinds.get("compare-claims").columns))], []
    for problem in judged["problem"].unique():
        its = [run for run in runs if run.config.problem == problem]
        remedy = _Remedy(its, study)
        verdicts.append(claims(judged[judged["problem"] == problem], its, remedy))
        lacking += remedy.everything()
    return Outcome(
        comparison,
        summarise(worst_where_diverged(judged)),
        pd.concat(verdicts[1:] or verdicts, ignore_index=True),
        lacking,
    )


class _Remedy:
    """The command that adds norms, learning rates or tables to what is there; and the fewest that add all of them."""

    def __init__(self, runs: Sequence[Run], study: Study | None) -> None:
        first = runs[0].config
        usual = resolve(first.problem, norm=first.norm).as_dict()
        self._folder = Path(f"study-{first.problem}") if study is None else study.path
        if study is None:
            different = {name: value for name, value in first.as_dict().items() if value != usual.get(name)}
            named = {name: value for name, value in different.items() if name not in ("data_digest", *VARIED)}
            self._asked: dict[str, Any] = {"norms": [], "problem": first.problem, **named}
        else:
            requests = study.read()["requests"]
            self._asked = next((one for one in reversed(requests) if "measure" in one), requests[-1])
        self._asked = {**self._asked, "seeds": sorted({run.config.seed for run in runs})}
        lrs = sorted({run.config.lr for run in runs})
        if lrs != [usual["lr"]] or "lrs" in self._asked:
            self._asked["lrs"] = lrs
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

    def everything(self) -> list[str]:
        """One command for all that was asked for at the present learning rates, one for further ones."""
        lacking = bool(self._norms or self._measures)
        return [*([self._command([*self._norms], [*self._measures], [])] if lacking else []), *self._further]

    def _command(self, norms: Sequence[str], measure: Sequence[str], lrs: Sequence[float]) -> str:
        changed: dict[str, object] = {"norms": list(norms) or self._present}
        if measure:
            changed["measure"] = list(measure)
        if lrs:
            changed["lrs"] = list(lrs)
        return command(self._asked, self._folder, **changed)
