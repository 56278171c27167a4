"""The outcome of a set of runs: the comparison, its summary over seeds and the claims, written as three tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bnsmooth_cli import __version__, kinds
from bnsmooth_cli.errors import DamagedError
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.files import checksum
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies.advice import Advice
from bnsmooth_cli.studies.comparison import compare_records, worst_where_diverged
from bnsmooth_cli.studies.evidence import Record
from bnsmooth_cli.studies.folder import Study, labels, table_paths
from bnsmooth_cli.studies.statistics import summarise
from bnsmooth_cli.studies.verdicts import claims


@dataclass(frozen=True)
class Outcome:
    """The rows of the tables of kind compare, compare-summary and compare-claims.

    `next` holds commands that make the measurements that the claims lack, and reuse the runs; `targets` the options
    `--target-loss` and `--target-accuracy` that were given.
    """

    comparison: pd.DataFrame
    summary: pd.DataFrame
    claims: pd.DataFrame
    next: list[str]
    targets: dict[str, float]

    @staticmethod
    def read(path: Path) -> Outcome:
        """The outcome whose comparison is the table at `path`.

        Raises:
            DamagedError: If the three tables are not of one comparison, as when it was interrupted between them.
        """
        comparison, summary, claims = (tables.read_table(file, kind) for kind, file in table_paths(path).items())
        written, whole = comparison.attrs["bnsmooth"], checksum(path)
        for file, other in zip([*table_paths(path).values()][1:], (summary, claims), strict=True):
            about = other.attrs["bnsmooth"]
            if about.get("runs") != written.get("runs") or about.get("of", whole) != whole:
                raise DamagedError(f"{file}: is of another comparison than {path}; compare again")
        return Outcome(
            comparison, summary, claims, claims.attrs["bnsmooth"].get("next", []), written.get("targets", {})
        )

    def write(self, path: Path, runs: Sequence[Run]) -> None:
        """Write the comparison to `path` and the other tables beside it."""
        provenance: dict[str, Any] = {"version": __version__, "runs": recorded(runs), "targets": self.targets}
        for (kind, file), rows in zip(
            table_paths(path).items(), (self.comparison, self.summary, self.claims), strict=True
        ):
            more = {"next": self.next} if kind == "compare-claims" else {}
            tables.write_table(file, kind, [rows], provenance | more)
            if kind == "compare":
                provenance |= {"of": checksum(file)}


def recorded(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """What the tables of a comparison record of its runs: their configurations by name."""
    return {name: run.config.as_dict() for name, run in labels(runs).items()}


def conclude(
    runs: Sequence[Run],
    study: Study | None = None,
    *,
    target_loss: float | None = None,
    target_accuracy: float | None = None,
) -> Outcome:
    """Compare runs and judge the claims by them; `study` is the study that they belong to.

    Runs of different settings are judged apart. Those of which two share norm, learning rate and seed have no
    statistics, because no seed may count twice.
    """
    targets = {"target_loss": target_loss, "target_accuracy": target_accuracy}
    named = labels(runs)
    records = [Record.of_run(run, name) for name, run in named.items()]
    comparison = compare_records(records, target_loss, target_accuracy)
    columns = list(kinds.get("compare-claims").columns)
    twice = comparison.duplicated(["problem", "settings", "norm", "lr", "seed"])
    judged = comparison[~twice.groupby([comparison["problem"], comparison["settings"]]).transform("any")]
    verdicts: list[pd.DataFrame] = []
    missing: list[str] = []
    for (problem, settings), group in judged.groupby(["problem", "settings"], sort=False):
        names, others = {*group["run"]}, sum(rows["problem"].iloc[0] == problem for rows in verdicts)
        folder = Path(f"study-{problem}-{others + 1}" if others else f"study-{problem}")
        advice = Advice.of([run for name, run in named.items() if name in names], study, folder)
        rows = claims(record for record in records if record.name in names).assign(settings=str(settings))
        missing += advice.commands(rows["command"])
        rows["command"] = [advice.command(change) if change else "" for change in rows["command"]]
        verdicts.append(rows)
    return Outcome(
        comparison,
        summarise(worst_where_diverged(judged)),
        pd.concat(verdicts, ignore_index=True) if verdicts else pd.DataFrame(columns=columns),
        missing,
        {name: value for name, value in targets.items() if value is not None},
    )
