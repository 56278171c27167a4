"""The studies' tables, as few rows of them as the figures need, into a folder that a repository can hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

import bnsmooth_cli as bns
from benchmarks.harness import machine
from bnsmooth_cli.files import atomic
from bnsmooth_cli.runs import Run
from bnsmooth_cli.study import outcome
from bnsmooth_cli.study.comparison import measured_rows
from bnsmooth_cli.study.grid import Study
from reproduction.figures import Picture, pictures, source
from reproduction.scales import Plan

_STEPS: Final = {"train": 200, "activations": 11, "theory": 9}  # of a run, at most, where all would be megabytes


def gather(plans: Sequence[Plan], work: Path, folder: Path, facts: dict[str, Any]) -> None:
    """Write `folder/tables/` and `folder/reproduction.json` from the studies in `work`, as far as they have come.

    `facts` are the scale, the data and a word about it; `work/times.jsonl` has the seconds that the studies took.
    """
    studies = {plan.name: Study(work / plan.name) for plan in plans}
    runs = {name: study.runs()[0] for name, study in studies.items()}
    tables = {
        path.name.replace("compare", name, 1): bns.read_table(path)
        for name, study in studies.items()
        for path in outcome.paths(study.table)
    }
    tables |= {f"{one.name}.parquet": _rows(one, runs[source(one.study, runs)]) for one in pictures(runs)}
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        bns.save_table(rows, folder / "tables" / name)
    for path in (folder / "tables").glob("*.parquet"):
        if path.name not in tables:  # of another scale, which was here before
            path.unlink()
    times = _times(work / "times.jsonl")
    content = {
        **facts,
        **machine(),
        "theory": _theory(runs["dln"]),
        "studies": {
            plan.name: {
                "purpose": plan.purpose,
                "commands": plan.shown(Path("paper", facts["scale"], plan.name)),
                "runs": len(runs[plan.name]),
                "seconds": round(times.get(plan.name, 0)),
                "settings": {k: v for k, v in studies[plan.name].read()["settings"].items() if k != "data"},
            }
            for plan in plans
        },
    }
    with atomic(folder / "reproduction.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def _rows(picture: Picture, runs: Sequence[Run]) -> pd.DataFrame:
    """Of the learning rates at which all of the picture's norms have run."""
    its = [{run.config.lr for run in runs if run.config.norm == norm} for norm in picture.norms]
    lrs = set.intersection(*its)
    chosen = [run for run in runs if run.config.norm in picture.norms and run.config.lr in lrs]
    if picture.single and chosen:
        least = min((run.config.lr, run.config.seed) for run in chosen)
        chosen = [run for run in chosen if (run.config.lr, run.config.seed) == least]
    return pd.concat([_fewer(picture.kind, measured_rows(run, picture.kind)) for run in chosen], ignore_index=True)


def _fewer(kind: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of fewer steps, and of three layers of the theory's; of minibatches' accuracies, drawn as means, all."""
    if kind not in _STEPS or rows["step"].nunique() <= _STEPS[kind]:
        return rows
    if kind == "train" and rows["accuracy"].notna().any():
        return rows
    if kind == "theory":
        layers = sorted(rows["layer"].unique())
        rows = rows[rows["layer"].isin([layers[0], layers[len(layers) // 2], layers[-1]])]
    steps = sorted(rows["step"].unique())
    every = -(-len(steps) // (_STEPS[kind] - 1))
    return rows[rows["step"].isin([*steps[::every], steps[-1]])]


def _theory(runs: Sequence[Run]) -> dict[str, dict[str, float | None]]:
    """What the statements came to over all runs, steps, layers and units, those without a value left out."""
    columns = ["statement", "lhs", "residual", "holds", "condition", "mean_fraction", "output_fraction"]
    found = [measured_rows(run, "theory", columns) for run in runs]
    rows = pd.concat(found, ignore_index=True).dropna(subset=["lhs"])
    numbers = rows[["holds", "condition"]].astype("float64")
    rows = rows.assign(**numbers, reduction=rows["mean_fraction"] + rows["output_fraction"])
    return {
        str(statement): {
            "cases": len(cases),
            "holds": _known(cases["holds"].mean()),
            "residual": _known(cases["residual"].abs().max()),
            "condition": _known(cases["condition"].mean()),
            "reduction": _known(cases["reduction"].median()),
        }
        for statement, cases in rows.groupby("statement")
    }


def _known(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def _times(path: Path) -> dict[str, float]:
    lines = path.read_text().splitlines() if path.exists() else []
    times: dict[str, float] = {}
    for one in map(json.loads, lines):
        times[one["study"]] = times.get(one["study"], 0.0) + one["seconds"]
    return times
