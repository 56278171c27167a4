"""Gather the rows that the figures need from the tables of the studies, small enough for a repository."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch

import bnsmooth_cli as bns
from benchmarks.harness import machine
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.files import atomic
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies.folder import Study, table_paths
from bnsmooth_cli.studies.metrics import measured_rows
from reproduction.figures import Picture, pictures, source
from reproduction.saturation import paper_lr
from reproduction.scales import Plan

_STEPS: Final = {"train": 200, "activations": 11, "theory": 9}  # the most steps of a run; all would be megabytes


def gather(plans: Sequence[Plan], work: Path, folder: Path, facts: dict[str, Any]) -> None:
    """Write `folder/tables/` and `folder/reproduction.json`.

    Args:
        plans: The studies.
        work: The folder that holds them.
        folder: The folder of the page.
        facts: The options of `make paper`, for the page.
    """
    studies = {plan.name: Study(work / plan.name) for plan in plans}
    runs = {name: study.runs() for name, study in studies.items()}
    tables = {
        path.name.replace("compare", name, 1): bns.read_table(path)
        for name, study in studies.items()
        for path in table_paths(study.table).values()
    }
    for name in studies:  # the commands that measure more contain folders of this machine
        tables[f"{name}.claims.parquet"]["command"] = ""
    drawn = [item for item in pictures(runs) if not item.table]
    tables |= {f"{item.name}.parquet": _rows(item, runs[source(item.study, runs)]) for item in drawn}
    probes = {f"{name}.parquet": work / f"{name}.parquet" for name, _ in probed(runs)}
    tables |= {name: bns.read_table(path) for name, path in probes.items() if path.is_file()}
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        bns.save_table(rows, folder / "tables" / name)
    for path in (folder / "tables").glob("*.parquet"):
        if path.name not in tables:  # from another scale
            path.unlink()
    times = read_times(work)
    content = {
        **facts,
        **machine(),
        "theory": _theory(runs["dln"]),
        "floors": {str(seed): floors(run) for seed, run in {run.config.seed: run for run in runs["dln"]}.items()},
        "measured": {item.name: _measured(item, runs[source(item.study, runs)]) for item in drawn},
        "studies": {
            plan.name: {
                "purpose": plan.purpose,
                "commands": plan.commands(Path("paper", work.name, plan.name)),
                "runs": len(runs[plan.name]),
                "planned": len({config.name for grid in plan.grids for config in grid.configs()}),
                "seconds": math.ceil(times.get(plan.name, 0)),
                "settings": {k: v for k, v in studies[plan.name].read()["settings"].items() if k != "data"},
            }
            for plan in plans
        },
    }
    with atomic(folder / "reproduction.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def probed(runs: Mapping[str, Sequence[Run]]) -> Iterator[tuple[str, Sequence[Run]]]:
    """The tables of the experiment on beta, and the runs that each is measured on."""
    for problem in ("vgg", "dln"):
        if (study := source(problem, runs)) in runs:  # --only leaves out studies
            yield f"saturation-{problem}", runs[study]


def _chosen(picture: Picture, runs: Sequence[Run]) -> list[Run]:
    """The runs of a picture, at the learning rates at which all of its norms have run."""
    lrs = set.intersection(*({run.config.lr for run in runs if run.config.norm == norm} for norm in picture.norms))
    chosen = [run for run in runs if run.config.norm in picture.norms and run.config.lr in lrs]
    if not picture.single:
        return chosen
    papers = [run for run in chosen if run.config.lr == paper_lr(run.config.problem)]
    return [run for run in papers if run.config.seed == min(run.config.seed for run in papers)]


def _rows(picture: Picture, runs: Sequence[Run]) -> pd.DataFrame:
    if not (chosen := _chosen(picture, runs)):
        raise InputError(
            f"{picture.name}: its study, {picture.study}, has no finished runs of all its norms; run it again"
        )
    return pd.concat([_fewer(picture, measured_rows(run, picture.kind)) for run in chosen], ignore_index=True)


def _measured(picture: Picture, runs: Sequence[Run]) -> int:
    """The number of measured steps. The picture may show fewer."""
    return max(measured_rows(run, picture.kind, ["step"])["step"].nunique() for run in _chosen(picture, runs))


def _fewer(picture: Picture, rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the picture's layers, and fewer steps. Minibatch accuracies stay, because figures average them."""
    kind = picture.kind
    if picture.layers:
        rows = rows[rows["layer"].isin(picture.layers)]
    if picture.figure == "moments":  # which are small; it draws every step
        return rows.assign(quantiles=None)
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
    """The results for each statement over all runs, steps, layers and units that have a value."""
    columns = ["statement", "lhs", "residual", "holds", "condition", "mean_fraction", "output_fraction"]
    rows = pd.concat([measured_rows(run, "theory", columns) for run in runs], ignore_index=True).dropna(subset=["lhs"])
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
    r"""The least losses of affine maps of rank 1, 2, ... on a linear network's data: the losses of its saddles.

    min ||Y - X B - 1 c'||^2 over B of rank r is ||Y_c - P||^2 plus the squares of the singular values of P from the
    (r+1)-th on, where P is the projection of the centred Y_c on the centred X (reduced-rank regression, Izenman 1975).
    """
    point = bns.load_point(run.path, step=0)
    inputs, targets = (
        v.double() - v.double().mean(0) for v in (point.inputs, point.targets) if isinstance(v, torch.Tensor)
    )
    projected = inputs @ torch.linalg.lstsq(inputs, targets).solution
    squares = torch.linalg.svdvals(projected).square()
    rest = float((targets - projected).square().sum())
    return [rest + float(squares[rank:].sum()) for rank in range(1, len(squares) + 1)]


def read_times(work: Path) -> dict[str, float]:
    """The seconds that each study has taken so far, by name."""
    path = work / "times.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def add_time(work: Path, study: str, seconds: float) -> None:
    """Add to the seconds of a study."""
    times = read_times(work)
    with atomic(work / "times.json") as temporary:
        temporary.write_text(json.dumps({**times, study: round(times.get(study, 0.0) + seconds, 1)}, indent=2) + "\n")
