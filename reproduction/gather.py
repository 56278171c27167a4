"""The studies' tables, as few rows of them as the figures need, into a folder that a repository can hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch

import bnsmooth_cli as bns
from benchmarks.harness import machine
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.files import atomic
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies import outcome
from bnsmooth_cli.studies.comparison import measured_rows
from bnsmooth_cli.studies.grid import Study
from reproduction.figures import Picture, pictures, source
from reproduction.scales import Plan

_STEPS: Final = {"train": 200, "activations": 11, "theory": 9}  # of a run, at most, where all would be megabytes


def gather(plans: Sequence[Plan], work: Path, folder: Path, facts: dict[str, Any]) -> None:
    """Write `folder/tables/` and `folder/reproduction.json` from the studies in `work`; `facts`: what was asked for."""
    studies = {plan.name: Study(work / plan.name) for plan in plans}
    runs = {name: study.runs()[0] for name, study in studies.items()}
    tables = {
        path.name.replace("compare", name, 1): bns.read_table(path)
        for name, study in studies.items()
        for path in outcome.paths(study.table)
    }
    for name in studies:  # what would measure more names this machine's folders, and no study needs more
        tables[f"{name}.claims.parquet"]["command"] = ""
    tables |= {f"{one.name}.parquet": _rows(one, runs[source(one.study, runs)]) for one in pictures(runs)}
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        bns.save_table(rows, folder / "tables" / name)
    for path in (folder / "tables").glob("*.parquet"):
        if path.name not in tables:  # of another scale, which was here before
            path.unlink()
    times = read_times(work)
    content = {
        **facts,
        **machine(),
        "theory": _theory(runs["dln"]),
        "floors": {str(seed): floors(run) for seed, run in {run.config.seed: run for run in runs["dln"]}.items()},
        "measured": {one.name: _measured(one, runs[source(one.study, runs)]) for one in pictures(runs)},
        "studies": {
            plan.name: {
                "purpose": plan.purpose,
                "commands": plan.shown(Path("paper", work.name, plan.name)),
                "runs": len(runs[plan.name]),
                "seconds": round(times.get(plan.name, 0)),
                "settings": {k: v for k, v in studies[plan.name].read()["settings"].items() if k != "data"},
            }
            for plan in plans
        },
    }
    with atomic(folder / "reproduction.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def _chosen(picture: Picture, runs: Sequence[Run]) -> list[Run]:
    """Those of the learning rates at which all of the picture's norms have run."""
    lrs = set.intersection(*({run.config.lr for run in runs if run.config.norm == norm} for norm in picture.norms))
    chosen = [run for run in runs if run.config.norm in picture.norms and run.config.lr in lrs]
    least = min(((run.config.lr, run.config.seed) for run in chosen), default=None)
    return [run for run in chosen if not picture.single or (run.config.lr, run.config.seed) == least]


def _rows(picture: Picture, runs: Sequence[Run]) -> pd.DataFrame:
    if not (chosen := _chosen(picture, runs)):
        raise InputError(
            f"{picture.name}: its study, {picture.study}, has no finished runs of all its norms; run it again"
        )
    return pd.concat([_fewer(picture.kind, measured_rows(run, picture.kind)) for run in chosen], ignore_index=True)


def _measured(picture: Picture, runs: Sequence[Run]) -> int:
    """How many steps there are of which the picture may show fewer."""
    return max(measured_rows(run, picture.kind, ["step"])["step"].nunique() for run in _chosen(picture, runs))


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
            "fail": int((cases["holds"] == 0).sum()),
            "residual": _known(cases["residual"].abs().max()),
            "condition": _known(cases["condition"].mean()),
            "reduction": _known(cases["reduction"].median()),
        }
        for statement, cases in rows.groupby("statement")
    }


def _known(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def floors(run: Run) -> list[float]:
    r"""The least loss of maps of rank 1, 2, ... with a shift, on a linear network's data: what keeps it at a saddle.

    min ||Y - X B - 1 c'||^2 over B of rank r is ||Y_c - P||^2 and the squares of P's singular values from the r+1st on,
    where P is the projection of the centred Y_c on the centred X (reduced-rank regression, Izenman 1975).
    """
    point = bns.load_point(run.path, step=0)
    inputs, targets = (v.double() - v.double().mean(0) for v in (point.inputs, point.targets))
    projected = inputs @ torch.linalg.lstsq(inputs, targets).solution
    squares = torch.linalg.svdvals(projected).square()
    rest = float((targets - projected).square().sum())
    return [rest + float(squares[rank:].sum()) for rank in range(1, len(squares) + 1)]


def read_times(work: Path) -> dict[str, float]:
    """The seconds that each study has taken so far."""
    path = work / "times.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def add_time(work: Path, study: str, seconds: float) -> None:
    """Add to the seconds that a study has taken."""
    times = read_times(work)
    with atomic(work / "times.json") as temporary:
        temporary.write_text(json.dumps({**times, study: round(times.get(study, 0.0) + seconds, 1)}, indent=2) + "\n")
