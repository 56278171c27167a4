"""`bnsmooth compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnsmooth_cli.cli import terminal


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
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
    shown = [
        "final_loss",
        "final_test_accuracy",
        "steps_to_loss",
        "steps_to_accuracy",
        "predictiveness",
        "beta",
        "sharpness",
    ]
    present = [name for name in shown if frame[name].notna().any()]
    table = frame[["run"]].copy()
    for name in present:
        table[name] = [_with_ratio(v, r) for v, r in zip(frame[name], frame[f"ratio_{name}"], strict=True)]
    table.loc[frame["diverged_at"].notna(), "run"] += " (diverged)"
    terminal.summary("best first; in parentheses the ratio to none", table, ["run", *present], f"{output}")


def _with_ratio(value: float, ratio: float) -> str:
    if value != value:
        return "-"
    return f"{value:.4g}" + ("" if ratio != ratio else f" ({ratio:.2g})")
