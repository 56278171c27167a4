"""`bnsmooth compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnsmooth_cli.cli import terminal

if TYPE_CHECKING:
    import pandas as pd


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run directories.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="TABLE", help="The table.")] = Path(
        "compare.parquet"
    ),
    target_loss: Annotated[
        float | None,
        typer.Option(
            "--target-loss",
            help="Count steps to this loss (default: the `none` run's last).",
            show_default=False,
        ),
    ] = None,
    target_accuracy: Annotated[
        float | None,
        typer.Option(
            "--target-accuracy",
            help="Count steps to this test accuracy (default: the `none` run's last).",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is not a compare table.")] = False,
) -> None:
    """Compare runs: final and best figures, steps to a target, smoothness, and ratios to the run without a norm.

    Smoothness is in it where `bnsmooth smoothness RUN` has been measured. Best first; ratios in parentheses.

    [bold]Examples[/]

      bnsmooth compare runs/vgg-none-lr0.1-seed0 runs/vgg-batch-lr0.1-seed0

      bnsmooth compare runs/* -o compare.parquet --target-accuracy 0.7
    """
    from bnsmooth_cli import study, tables

    tables.check_target(output, "compare", force)
    frame = study.compare(runs, target_loss=target_loss, target_accuracy=target_accuracy)
    study.write(output, frame, runs)
    for problem, rows in frame.groupby("problem", sort=False):
        terminal.summary(f"{problem}, best first; in parentheses the ratio to none", *_readable(rows))
    terminal.out.print(f"{output}", soft_wrap=True)


def _readable(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """What of a comparison fits a terminal: what tells the runs apart, and the figures that were measured."""
    varying = [name for name in ("lr", "seed") if frame[name].nunique() > 1]
    table = frame[["norm", *varying]].astype(str)
    table.loc[frame["diverged_at"].notna(), "norm"] += " (diverged)"
    steps = "steps_to_loss" if frame["final_test_accuracy"].isna().all() else "steps_to_accuracy"
    for name in ("final_loss", "final_test_accuracy", steps, "predictiveness", "beta"):
        if frame[name].notna().any():
            table[name] = [_with_ratio(v, r) for v, r in zip(frame[name], frame[f"ratio_{name}"], strict=True)]
    if table[["norm", *varying]].duplicated().any():  # runs that differ in something else go by their names
        table.insert(0, "run", frame["run"])
    return table, list(table)


def _with_ratio(value: float, ratio: float) -> str:
    if value != value:
        return "-"
    shown = f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.3g}"
    return shown if ratio != ratio else f"{shown} ({ratio:.2g})"
