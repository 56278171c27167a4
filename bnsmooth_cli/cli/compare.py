"""`bnsmooth compare`: compare runs; with a grid, run a whole study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnsmooth_cli.cli import outcomes, studying, terminal
from bnsmooth_cli.cli.options import (
    ExecutionOptions,
    ExportOptions,
    GridOptions,
    MachineOptions,
    Options,
    SettingOptions,
    StepOptions,
    WantedOptions,
    grouped,
)
from bnsmooth_cli.errors import IncompleteError, InputError

if TYPE_CHECKING:
    import pandas as pd


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
    or seeds extends it. A study that is given runs starts from copies of them. `bnsmooth report` turns it into a page.

    [bold]Examples[/]

      bnsmooth compare runs/vgg-none-lr0.1-seed0 runs/vgg-batch-lr0.1-seed0

      bnsmooth compare --norms none,batch,l1 --seeds 0-4 --measure ics --jobs 2

      bnsmooth compare --study study.toml --dry-run

      bnsmooth compare --plan --problem dln
    """
    from bnsmooth_cli.studies.comparison import check_targets
    from bnsmooth_cli.studies.folder import table_paths
    from bnsmooth_cli.studies.outcome import Outcome, conclude, recorded

    check_targets(target_loss, target_accuracy)
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
        if unused := options | exported | _changed(execution) | _changed(replace(machine, force=False)):
            name = next(iter(unused)).replace("_", "-")
            raise InputError(f"--{name}: describes runs to train; leave it out, or say with --norms which")
        from bnsmooth_cli.storage.runs import open_run

        table, opened = output or Path("compare.parquet"), [open_run(path) for path in runs]
        _check_tables(table, recorded(opened), machine.force)
        outcome = conclude(opened, target_loss=target_loss, target_accuracy=target_accuracy)
        outcome.write(table, opened)
    outcomes.show(outcome)
    for path in table_paths(table).values():
        terminal.wrote(path)
    if failed:
        raise IncompleteError(
            f"left out: {', '.join(failed)}; the same command tries again (delete a damaged table, or the folder of a "
            "run that cannot be measured, first)"
        )


def _changed(options: Options) -> dict[str, Any]:
    """The options that are not at their defaults."""
    usual = type(options)().given()
    return {name: value for name, value in options.given().items() if value != usual.get(name)}


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
    from bnsmooth_cli.studies.comparison import groups
    from bnsmooth_cli.studies.evidence import Record
    from bnsmooth_cli.studies.folder import labels
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
    records = [Record.of_run(run, name) for name, run in labels([open_run(path) for path in runs]).items()]
    for title, chosen in groups(records):
        table = plan(chosen[0].problem, sorted({record.lr for record in chosen}), claims(chosen))
        terminal.summary(f"{title}: seeds that each claim takes", *_planned(table),
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
