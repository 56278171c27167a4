"""Gather the rows that figures, numbers and verdicts need from the tables of studies, small enough for a repository.

Everything on the page is computed from the gathered tables, so that a reader can compute it again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pandas as pd
import torch

import bnsmooth_cli as bns
from benchmarks.harness import machine
from bnsmooth_cli import kinds
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.files import atomic
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.storage.tables import read_provenance
from bnsmooth_cli.studies.comparison import compare_records, worst_where_diverged
from bnsmooth_cli.studies.evidence import Record
from bnsmooth_cli.studies.folder import Study, table_paths
from bnsmooth_cli.studies.metrics import SMOOTHING, bare, measured_rows, train_rows
from bnsmooth_cli.studies.statistics import summarise
from bnsmooth_cli.studies.verdicts import claims
from reproduction.figures import Picture, pictures, source
from reproduction.published import Earlier, Published
from reproduction.saturation import paper_lr
from reproduction.scales import PLAIN, Plan

_STEPS: Final = {"activations": 11, "theory": 9}  # the most steps of a run; all would be megabytes
AnyRun = TypeVar("AnyRun", Run, Run | Earlier)
_MOST: Final = 1000  # rows of a run of minibatches in a figure's table
#: The kinds of tables that numbers and verdicts are computed from.
EVIDENCE: Final = (*dict.fromkeys(metric.kind for metric in kinds.METRICS), "theory")
#: The most steps of a run that are kept of them.
_KEPT: Final = {
    "train": 302,
    "smoothness": 151,
    "spectrum": 151,
    "landscape-random": 51,
    "ics": 151,
    "activations": 16,
    "theory": 4,
}
_LINEAR_ICS: Final = 51  # of the linear network, which has twice the layers
#: The kinds that claims and numbers need of the plain network and BatchNorm alone.
_OF_PLAIN: Final = ("landscape-random", "ics", "theory")
#: The columns of settings, which are not rounded.
_EXACT: Final = ("lr", "step_lr", "threshold", "alpha", "step_size", "beta_alpha", "critical_alpha", "critical_lr")
#: The columns of activations that no number on the page needs.
_UNUSED: Final = ("quantiles", "skewness", "sigma", "mean_drift", "var_drift")


def gather(
    plans: Sequence[Plan], work: Path, folder: Path, facts: dict[str, Any], earlier: Published | None = None
) -> None:
    """Write `folder/tables/` and `folder/reproduction.json`.

    Args:
        plans: The studies. Those without a finished run are left out.
        work: The folder that holds them.
        folder: The folder of the page.
        facts: The options of `make paper`, for the page.
        earlier: The page whose runs are kept if `work` does not have them.
    """
    new = finished(plans, work)
    runs = {plan.name: [*new.get(plan.name, ()), *(earlier.runs(plan, new.get(plan.name, ())) if earlier else ())]
            for plan in plans}  # fmt: skip
    runs = {name: of_study for name, of_study in runs.items() if of_study}
    plans = [plan for plan in plans if plan.name in runs]
    if "dln" not in runs:
        raise InputError(f"{work / 'dln'}: has no finished run, which the page needs")
    available = _norms(runs)
    tables: dict[str, pd.DataFrame] = {}
    for name, of_study in runs.items():
        tables |= {f"{name}.{kind}.parquet": rows for kind, rows in _evidence(name, of_study)}
    of_picture = {item: runs[str(source(item.study, item.norms, available))]
                  for item in pictures(available) if not item.table}  # fmt: skip
    tables |= {f"{item.name}.parquet": _rows(item, chosen) for item, chosen in of_picture.items()}
    for name, lines in probed(runs):
        if not (rows := _probes(name, lines, work)).empty:
            tables[f"{name}.parquet"] = rows
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        bns.save_table(rounded(rows), folder / "tables" / name)
    for path in (folder / "tables").glob("*.parquet"):
        if path.name not in tables:  # from another scale
            path.unlink()
    content = {
        **facts,
        **machine(),
        "machines": _machines(earlier),
        "floors": _floors(runs["dln"]),
        "measured": {item.name: _measured(item, chosen) for item, chosen in of_picture.items()},
        "studies": {
            plan.name: {
                "purpose": plan.purpose,
                "commands": plan.commands(Path("paper", work.name, plan.name)),
                "runs": {run.name: _about(run) for run in runs[plan.name]},
                "planned": len({config.name for grid in plan.grids for config in grid.configs()}),
                "log": _log(earlier, work / plan.name),
                "settings": _settings(earlier, work, plan.name, new),
            }
            for plan in plans
        },
    }
    with atomic(folder / "reproduction.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    for name in runs:
        for path, rows in zip(
            table_paths(folder / f"tables/{name}.parquet").values(), judged(folder, name), strict=True
        ):
            bns.save_table(rows, path)


def rounded(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose measured numbers have the 24 bits of a float32 and the range of a float64, which take less space.

    Tables of training are as they are: accuracies are short decimal numbers. So are those of the theory, which say
    whether two sides are equal.
    """
    if {"accuracy", "statement"} & {*rows}:
        return rows
    doubles = rows.select_dtypes("float64").drop(columns=[*_EXACT], errors="ignore")
    fractions, exponents = np.frexp(doubles.to_numpy())
    values = np.ldexp(fractions.astype("float32").astype("float64"), exponents)
    return rows.assign(**pd.DataFrame(values, index=rows.index, columns=doubles.columns))


def finished(plans: Sequence[Plan], work: Path) -> dict[str, Sequence[Run]]:
    """The finished runs of the studies in `work` that have any, by study."""
    begun = {plan.name: Study(work / plan.name) for plan in plans if (work / plan.name / "study.json").is_file()}
    return {name: runs for name, study in begun.items() if (runs := study.runs())}


def _norms(runs: Mapping[str, Sequence[AnyRun]]) -> dict[str, set[str]]:
    return {name: {run.config.norm for run in of_study} for name, of_study in runs.items()}


def _machines(earlier: Published | None) -> list[dict[str, str]]:
    """What the runs were made by: this machine, and those of the earlier page."""
    before = [] if earlier is None else earlier.facts.get("machines") or [
        {name: earlier.facts[name] for name in machine()}
    ]  # fmt: skip
    return [*before, *([machine()] if machine() not in before else [])]


def _earlier_study(earlier: Published | None, name: str) -> dict[str, Any]:
    """What the earlier page says of a study; nothing if it does not have it."""
    return {} if earlier is None else dict(earlier.facts["studies"].get(name, {}))


def _settings(earlier: Published | None, work: Path, name: str, new: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """The settings of a study, without the folder of its images."""
    if name not in new:
        return dict(_earlier_study(earlier, name)["settings"])
    return {k: v for k, v in Study(work / name).read()["settings"].items() if k != "data"}


def _log(earlier: Published | None, study: Path) -> list[dict[str, Any]]:
    """When commands trained or measured runs, as far as it is recorded: those of the earlier page and of the study."""
    entries = [*_earlier_study(earlier, study.name).get("log", ()), *Study(study).log()]
    return [*{entry["began"]: entry for entry in entries}.values()]


def _floors(runs: Sequence[Run | Earlier]) -> dict[str, list[float]]:
    """`floors` by seed, of one run of each seed."""
    found = {}
    for run in sorted(runs, key=lambda run: run.config.seed):
        seed = str(run.config.seed)
        if seed not in found:
            found[seed] = floors(run) if isinstance(run, Run) else run.page.facts["floors"][seed]
    return found


def _probes(name: str, runs: Sequence[Run | Earlier], work: Path) -> pd.DataFrame:
    """The rows of the experiment on beta, as far as its lines are measured."""
    path, others = work / f"{name}.parquet", [run.rows(name) for run in runs if isinstance(run, Earlier)]
    mine = bns.read_table(path) if path.is_file() else pd.DataFrame({"run": []})
    mine = mine[mine["run"].isin([run.name for run in runs if isinstance(run, Run)])]
    parts = [rows for rows in (mine, *others) if not rows.empty]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def judged(folder: Path, study: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The comparison, the summary and the verdicts of a study, computed from the gathered tables."""
    found = records(folder, study)
    comparison, verdicts = compare_records(found), claims(found)
    verdicts["command"] = ""  # it would name norms and tables that the study has, but that are not gathered
    return comparison, summarise(worst_where_diverged(comparison)), verdicts


def records(folder: Path, study: str) -> list[Record]:
    """The runs of a study as the claims see them, from the gathered tables."""
    paths = {kind: folder / f"tables/{study}.{kind}.parquet" for kind in EVIDENCE}
    tables = {
        kind: {str(run): rows for run, rows in bare(bns.read_table(path)).groupby("run")}
        for kind, path in paths.items()
        if path.is_file()
    }
    settings = json.loads((folder / "reproduction.json").read_text())["studies"][study]
    return [
        Record(name, settings["settings"]["problem"], about["norm"], about["lr"], about["seed"],
               settings["settings"]["steps"], about["diverged_at"], about["baseline"],
               functools.partial(_of_run, tables, name),
               frozenset(kind for kind, of_kind in tables.items() if name in of_kind))
        for name, about in settings["runs"].items()
    ]  # fmt: skip


def _of_run(
    tables: Mapping[str, Mapping[str, pd.DataFrame]], name: str, kind: str, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    rows = tables.get(kind, {}).get(name)
    if rows is None:
        rows = pd.DataFrame(columns=list(kinds.get(kind).columns), dtype="float64")
    return rows if columns is None else rows[list(columns)]


def _about(run: Run | Earlier) -> dict[str, Any]:
    """What the claims need to know about a run beside its tables."""
    if isinstance(run, Earlier):
        return run.about
    provenance = read_provenance(run.train_path)
    return {"norm": run.config.norm, "lr": run.config.lr, "seed": run.config.seed,
            "diverged_at": provenance.get("diverged_at"), "baseline": provenance.get("baseline", {}),
            "gpus": _gpus(provenance.get("stretches", ()), run.config.steps)}  # fmt: skip


def _gpus(stretches: Sequence[Mapping[str, Any]], steps: int) -> list[str]:
    """The GPUs that computed a run, each with its version of PyTorch, and up to which step if not to its end."""
    return [
        f"{stretch['device']}, torch {stretch['torch']}"
        + (f" (to step {stretch['last']:,})" if stretch["last"] < steps - 1 else "")
        for stretch in stretches
        if not stretch["device"].startswith("cpu")
    ]


def _evidence(study: str, runs: Sequence[Run | Earlier]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each kind of table that numbers and verdicts of a study are computed from."""
    for kind in EVIDENCE:
        if kind == "activations" and runs[0].config.problem == "dln":
            continue  # no claim is about them
        found = (run.rows(f"{study}.{kind}") if isinstance(run, Earlier) else _kept(kind, run) for run in runs)
        parts = [rows for rows in found if not rows.empty]
        if parts:
            yield kind, pd.concat(parts, ignore_index=True)


def _kept(kind: str, run: Run) -> pd.DataFrame:
    """The rows of a run that are kept: those of evenly spaced steps; of training the measured ones and the evaluations.

    Minibatch losses and accuracies are means over the steps before each, as the comparison of runs smooths them.
    """
    if kind == "train":
        rows = train_rows(run)
        if run.config.batch_size != run.config.settings.full_batch:
            rows["accuracy"] = rows["accuracy"].rolling(SMOOTHING, min_periods=1).mean()
        measured = measured_rows(run, "smoothness", ["step"])["step"]
        return rows[
            rows["test_accuracy"].notna() | rows["step"].isin([*measured] or _spaced(rows["step"], _KEPT[kind]))
        ]
    rows = measured_rows(run, kind)
    if kind in _OF_PLAIN and run.config.norm not in PLAIN:
        return rows.iloc[:0]
    if kind == "activations":
        rows = rows.assign(**dict.fromkeys(_UNUSED))
    if kind == "theory" and not rows.empty:
        layers = sorted(rows["layer"].unique())
        rows = rows[rows["layer"].isin([layers[0], layers[len(layers) // 2], layers[-1]])]
    most = _LINEAR_ICS if (kind, run.config.problem) == ("ics", "dln") else _KEPT[kind]
    return rows[rows["step"].isin(_spaced(rows["step"], most))]


def _spaced(steps: pd.Series[int], most: int) -> list[int]:
    """Evenly spaced ones of the steps, and the last one."""
    distinct = sorted(steps.unique())
    if len(distinct) <= most:
        return distinct
    return [*distinct[:: -(-len(distinct) // (most - 1))], distinct[-1]]


def probed(runs: Mapping[str, Sequence[AnyRun]]) -> Iterator[tuple[str, Sequence[AnyRun]]]:
    """The tables of the experiment on beta, and the runs that each is measured on."""
    available = _norms(runs)
    for problem in ("vgg", "dln"):
        if (study := source(problem, PLAIN, available)) is not None:  # --only leaves out studies
            yield f"saturation-{problem}", runs[study]


def _chosen(picture: Picture, runs: Sequence[AnyRun]) -> list[AnyRun]:
    """The runs of a picture, at the learning rates at which all of its norms have run; those of the paper's figure."""
    lrs = set.intersection(*({run.config.lr for run in runs if run.config.norm == norm} for norm in picture.norms))
    lrs &= picture.paper_lrs() or lrs
    chosen = [run for run in runs if run.config.norm in picture.norms and run.config.lr in lrs]
    if not picture.single:
        return chosen
    papers = [run for run in chosen if run.config.lr == paper_lr(run.config.problem)]
    return [run for run in papers if run.config.seed == min(run.config.seed for run in papers)]


def _rows(picture: Picture, runs: Sequence[Run | Earlier]) -> pd.DataFrame:
    if not (chosen := _chosen(picture, runs)):
        raise InputError(
            f"{picture.name}: its norms have finished runs at no common learning rate; run its study again"
        )
    return pd.concat([drawn(picture, run) for run in chosen], ignore_index=True)


def drawn(picture: Picture, run: Run | Earlier) -> pd.DataFrame:
    """The rows of a run that a picture draws.

    Raises:
        InputError: If the run is of an earlier page, which has not drawn the picture, or from other runs.
    """
    if isinstance(run, Run):
        return _fewer(picture, run, measured_rows(run, picture.kind))
    if not run.page.has(picture.name):
        raise InputError(f"--add: the earlier page has no {picture.name}; publish all runs of {run.study} at once")
    rows = run.rows(picture.name)  # none if the run was not measured so
    if source(picture.study, picture.norms, run.page.norms()) != run.study:
        raise InputError(f"--add: the earlier page has no rows of {run.name} for {picture.name}; run its study again")
    return rows


def _measured(picture: Picture, runs: Sequence[Run | Earlier]) -> int:
    """The number of measured steps. The picture may show fewer."""
    return max(
        measured_rows(run, picture.kind, ["step"])["step"].nunique()
        if isinstance(run, Run)
        else run.page.facts["measured"].get(picture.name, 0)
        for run in _chosen(picture, runs)
    )


def _fewer(picture: Picture, run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the picture's layers, and fewer steps."""
    kind = picture.kind
    if picture.layers:
        rows = rows[rows["layer"].isin(picture.layers)]
    if picture.figure == "moments":  # which are small; it draws every step
        return rows.assign(quantiles=None)
    if kind == "train" and run.config.eval_every is not None:
        return averaged(rows, run.config.eval_every)
    return rows[rows["step"].isin(_spaced(rows["step"], _STEPS[kind]))] if kind in _STEPS else rows


def averaged(rows: pd.DataFrame, eval_every: int) -> pd.DataFrame:
    """Thin a train table to every n-th step and the evaluations; accuracies become means of the last n steps.

    The figure's running mean is then that of all rows.
    """
    every = min(
        n for n in range(1, eval_every + 1) if eval_every % n == 0 and (n == eval_every or len(rows) <= n * _MOST)
    )
    mean = rows["accuracy"].rolling(every, min_periods=1).mean()
    return rows.assign(accuracy=mean)[(rows["step"] % every == 0) | rows["test_accuracy"].notna()]


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
