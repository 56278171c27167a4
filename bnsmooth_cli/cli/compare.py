"""`bnsmooth compare`: compare runs; with a grid, run a whole study."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnsmooth_cli.cli import studying, terminal
from bnsmooth_cli.cli.options import (
    ExecutionOptions,
    ExportOptions,
    GridOptions,
    MachineOptions,
    SettingOptions,
    StepOptions,
    WantedOptions,
    grouped,
)
from bnsmooth_cli.errors import IncompleteError, InputError

if TYPE_CHECKING:
    import pandas as pd

    from bnsmooth_cli.studies.outcome import Outcome


@grouped
def compare(
    grid: GridOptions,
    execution: ExecutionOptions,
    wanted: WantedOptions,
    steps: StepOptions,
    settings: SettingOptions,
    machine: MachineOptions,
    export: ExportOptions,
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            show_default=False,
            help="Run directories. A study copies them, and does not train them again.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="TABLE|FOLDER",
            show_default=False,
            help="The table (default: compare.parquet), or the folder of the study (default: study).",
        ),
    ] = None,
    target_loss: Annotated[
        float | None,
        typer.Option(
            "--target-loss",
            help="Count the steps to this loss (default: the last loss of the `none` run).",
            show_default=False,
        ),
    ] = None,
    target_accuracy: Annotated[
        float | None,
        typer.Option(
            "--target-accuracy",
            help="Count the steps to this test accuracy (default: the last one of the `none` run).",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Say how many seeds each claim takes, for effects of some sizes or of the runs."),
    ] = False,
) -> None:
    """Compare runs and judge the paper's claims. With a grid, train and measure its runs first.

    The comparison lists each run's training and smoothness metrics, its steps to a target, and its ratios to the run
    without a norm. With several seeds, it adds medians and intervals.

    A grid is run as a study, in a folder of its own. The same command resumes the study, and a command with more norms
    or seeds extends it. A study that is given runs goes on from them. `bnsmooth report` turns it into a page.

    [bold]Examples[/]

      bnsmooth compare runs/vgg-none-lr0.1-seed0 runs/vgg-batch-lr0.1-seed0

      bnsmooth compare --norms none,batch,l1 --seeds 0-4 --measure ics --jobs 2

      bnsmooth compare --study study.toml --dry-run

      bnsmooth compare --plan --problem dln
    """
    from bnsmooth_cli.studies.folder import table_paths
    from bnsmooth_cli.studies.outcome import Outcome, conclude, recorded

    options = {**grid.given(), **wanted.given(), **steps.given(), **settings.given()}
    exported = {name: value for name, value in export.given().items() if value}
    if plan:
        given = {"study": grid.study, **exported, **{name: value for name, value in execution.given().items() if value},
                 "output": output, "target_loss": target_loss, "target_accuracy": target_accuracy}  # fmt: skip
        _plan(runs or [], options | {name: value for name, value in given.items() if value is not None})
        return
    failed: list[str] = []
    if not runs or grid.norms or grid.study:
        study = studying.run_study(
            output or Path("study"), grid.study, options, execution, machine, export, target_loss, target_accuracy,
            runs or (),
        )  # fmt: skip
        if study is None:
            return
        table, failed = study.table, list(study.failed)
        outcome = Outcome.read(table)
    else:
        if options or exported or execution != ExecutionOptions() or grid != GridOptions():
            name = next(iter(options | exported), "study" if grid.study else "jobs, --dask, --dry-run")
            raise InputError(
                f"--{name.replace('_', '-')}: describes runs to train; leave it out, or say with --norms which"
            )
        from bnsmooth_cli.storage.runs import open_run

        table, opened = output or Path("compare.parquet"), [open_run(path) for path in runs]
        _check_tables(table, recorded(opened), machine.force)
        outcome = conclude(opened, target_loss=target_loss, target_accuracy=target_accuracy)
        outcome.write(table, opened)
    if terminal.is_json():
        for kind, rows in zip(table_paths(table), (outcome.comparison, outcome.summary, outcome.claims), strict=True):
            terminal.summary(kind, rows, max_rows=None)
    else:
        _show(outcome)
    for path in table_paths(table).values():
        terminal.wrote(path)
    if failed:
        raise IncompleteError(
            f"left out: {', '.join(failed)}; the same command tries again (delete a damaged table or run folder first)"
        )


def _check_tables(table: Path, runs: dict[str, Any], force: bool) -> None:
    """Check that tables may be written: they do not exist, compare no other runs, or may be replaced."""
    from bnsmooth_cli.storage.tables import check_target, read_provenance
    from bnsmooth_cli.studies.folder import table_paths

    for kind, path in table_paths(table).items():
        check_target(path, kind, force)
        recorded = read_provenance(path, kind).get("runs") if path.exists() and not force else None
        if isinstance(recorded, dict) and (lost := [name for name in recorded if recorded[name] != runs.get(name)]):
            raise InputError(
                f"{path}: compares {', '.join(lost[:3])} too; --force replaces it, -o writes another table"
            )


def _plan(runs: list[Path], options: dict[str, Any]) -> None:
    """Print how many seeds the claims take: for the effects that the runs show, or for some effects."""
    from bnsmooth_cli.config import resolve
    from bnsmooth_cli.storage.runs import open_run
    from bnsmooth_cli.studies.evidence import Record
    from bnsmooth_cli.studies.grid import read_grid
    from bnsmooth_cli.studies.planning import plan
    from bnsmooth_cli.studies.statistics import POWER
    from bnsmooth_cli.studies.verdicts import claims

    unused = [name for name in options if name not in ("problem", "preset", "lrs")]
    if unused:
        raise InputError(f"--{unused[0].replace('_', '-')}: makes no difference to --plan; leave it out")
    if runs and options:
        raise InputError(f"--{next(iter(options)).replace('_', '-')}: the runs have it; leave it out with --plan RUN")
    note = (f"seeds for a verdict with probability {POWER:g}; 1 sd: if every effect is one standard deviation over "
            "seeds beyond its bound; refuted: if one is as far on the other side")  # fmt: skip
    if not runs:
        problem, preset = options.get("problem", "vgg"), options.get("preset", "quick")
        lrs = read_grid({"lrs": options.get("lrs", "")}).lrs or (None,)
        configs = [resolve(problem, preset, lr=lr) for lr in dict.fromkeys(lrs)]
        table = plan(problem, [config.lr for config in configs])
        terminal.summary(f"{problem}: seeds that each claim takes", *_planned(table), note, exact=table)
        return
    records = [Record.of_run(open_run(path)) for path in runs]
    for problem in dict.fromkeys(record.problem for record in records):
        chosen = [record for record in records if record.problem == problem]
        table = plan(problem, sorted({record.lr for record in chosen}), claims(chosen))
        terminal.summary(f"{problem}: seeds that each claim takes", *_planned(table),
                         f"{note}; here: with the effects of these runs", exact=table)  # fmt: skip


def _planned(plan: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A plan reduced to fit a terminal."""
    import pandas as pd

    from bnsmooth_cli.studies.claims import CLAIMS

    short = {claim.number: claim.short for claim in CLAIMS}
    table = pd.DataFrame({"#": plan["claim"].astype(str), "claim": plan["claim"].map(short), "tests": plan["tests"]})
    for name in (name for name in plan if str(name).startswith("seeds_")):
        table[f"{str(name).removeprefix('seeds_')} sd"] = [_whole(value) for value in plan[name]]
    table["1 sd, refuted"] = [_whole(value) for value in plan["refuted_1"]]
    if "weakest" in plan:
        table["weakest effect here"] = [f"{value:.2g} sd" if value == value else "-" for value in plan["weakest"]]
        table["here"] = [_whole(value) for value in plan["seeds"]]
    return table, list(table)


def _whole(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.0f}"


def _show(outcome: Outcome) -> None:
    from bnsmooth_cli.studies.statistics import SEEDS

    for problem, rows in outcome.comparison.groupby("problem", sort=False):
        summary = outcome.summary[outcome.summary["problem"] == problem]
        if rows["seed"].nunique() > 1 and len(summary):
            title = f"{problem}, medians over seeds [{_confidence(summary)} interval]; x: the median ratio to none"
            terminal.summary(title, *_statistics(summary))
        else:
            note = "" if len(summary) else "no statistics and no verdicts: two runs share norm, lr and seed"
            terminal.summary(f"{problem}, best first; in parentheses the ratio to none", *_readable(rows), note)
    for problem, rows in outcome.claims.groupby("problem", sort=False):
        few = rows["seeds"].max() < SEEDS
        note = (
            f"a verdict needs {SEEDS} seeds or more; --plan says how many"
            if few
            else "n: seeds; power: for effects of 1 sd"
        )
        terminal.summary(f"{problem}, the paper's claims (rules: docs/claims.md)", *_verdicts(rows), note)
    for command in outcome.next:
        terminal.say(f"to measure more: {command}")


def _readable(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A comparison reduced to fit a terminal: the settings that differ between runs, and the main metrics."""
    varying = [name for name in ("lr", "seed") if frame[name].nunique() > 1]
    table = frame[["norm", *varying]].astype(str)
    table.loc[frame["diverged_at"].notna(), "norm"] += " (diverged)"
    steps = "steps_to_loss" if frame["final_test_accuracy"].isna().all() else "steps_to_accuracy"
    for name in ("final_loss", "final_test_accuracy", steps, "predictiveness", "beta"):
        if frame[name].notna().any():
            table[name] = [_with_ratio(v, r) for v, r in zip(frame[name], frame[f"ratio_{name}"], strict=True)]
    if table[["norm", *varying]].duplicated().any():  # the runs differ in something else, so show their names
        table.insert(0, "run", frame["run"])
    return table, list(table)


def _with_ratio(value: float, ratio: float) -> str:
    if value != value:
        return "-"
    shown = f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.3g}"
    return shown if ratio != ratio else f"{shown} ({ratio:.2g})"


def _statistics(summary: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row per norm and learning rate: medians and intervals of beta, and of accuracy or (without it) loss."""
    import pandas as pd

    accuracy = "final_test_accuracy" in set(summary["figure"])
    wanted = ["final_test_accuracy", "steps_to_accuracy"] if accuracy else ["final_loss", "steps_to_loss"]
    rows = []
    for (norm, lr), of_norm in summary.groupby(["norm", "lr"], sort=False):
        by_metric = of_norm.set_index("figure")
        row: dict[str, object] = {"norm": norm, "lr": f"{lr:g}", "seeds": int(of_norm["seeds"].max())}
        for metric in (*wanted, "beta"):
            if metric in by_metric.index:
                row[metric] = _with_interval(by_metric.loc[metric])
        rows.append(row)
    table = pd.DataFrame(rows).fillna("-")
    if table["lr"].nunique() == 1:
        del table["lr"]
    return table, list(table)


def _confidence(rows: pd.DataFrame) -> str:
    """The least coverage of the intervals."""
    return f"{rows['confidence'].min():.0%}"


def _with_interval(row: pd.Series[float]) -> str:
    never = "never" if str(row.name).startswith("steps_to") else "inf"
    median, low, high = (never if math.isinf(row[name]) else f"{row[name]:.3g}" for name in ("median", "low", "high"))
    text = f"{median} [{low}, {high}]" if row["low"] == row["low"] else median
    return text + (f" x{row['ratio']:.2g}" if math.isfinite(row["ratio"]) and row["ratio"] != 1 else "")


def _verdicts(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row per claim: its verdict and the part that decides it."""
    import pandas as pd

    from bnsmooth_cli.studies.claims import CLAIMS
    from bnsmooth_cli.studies.verdicts import deciding

    rows_shown, short = [], {claim.number: claim.short for claim in CLAIMS}
    for number, parts in rows.groupby("claim", sort=False):
        part = deciding(parts)
        statistic = f"{part['median']:.2g}" if part["median"] == part["median"] else "-"
        if part["low"] == part["low"]:
            statistic += f" [{part['low']:.2g}, {part['high']:.2g}]"
        rows_shown.append({
            "#": str(number),
            "claim": short[int(str(number))],
            "verdict": part["verdict"],
            "statistic": statistic,
            "rule": part["rule"] if part["seeds"] else "-",
            "n": str(part["seeds"]),
            "power": f"{part['power']:.2g}" if part["power"] == part["power"] else "-",
            "paper": f"{part['paper']:.2g}" if part["paper"] == part["paper"] else "-",
        })  # fmt: skip
    table = pd.DataFrame(rows_shown)
    if (table["paper"] == "-").all():
        del table["paper"]
    return table, list(table)
