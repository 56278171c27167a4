"""`bnsmooth smoothness`: effective beta-smoothness, Lipschitzness, curvature and sharpness."""

from __future__ import annotations

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import measure_sources
from bnsmooth_cli.cli.options import (
    LineOptions,
    MachineOptions,
    RunOptions,
    Sources,
    StepOptions,
    TableOutput,
    grouped,
)


@grouped
def smoothness(
    steps: StepOptions,
    line: LineOptions,
    run: RunOptions,
    machine: MachineOptions,
    sources: Sources = None,
    output: TableOutput = None,
) -> None:
    """Measure how smooth the loss is: effective beta (figure 4c), Lipschitzness, curvature, sharpness.

    One row a measured step; sharpness is the Hessian's largest eigenvalue, by Lanczos to a relative 0.001.

    [bold]Examples[/]

      bnsmooth smoothness --norm l1

      bnsmooth smoothness runs/vgg-batch-lr0.1-seed0 --every 100

      bnsmooth smoothness runs/vgg-batch-lr0.1-seed0 --at 0,10,200 -o early.parquet
    """
    rows = measure_sources("smoothness", sources, run, steps, machine, output, line.chosen())
    terminal.summary(
        "smoothness",
        rows,
        ["run", "step", "beta", "lipschitz", "curvature", "sharpness"],
    )
