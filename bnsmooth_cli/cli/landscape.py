"""`bnsmooth landscape`: the loss and its gradient along the gradient."""

from __future__ import annotations

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import measure_sources
from bnsmooth_cli.cli.options import (
    ExportOptions,
    LineOptions,
    MachineOptions,
    ObjectiveOptions,
    RunOptions,
    Sources,
    StepOptions,
    TableOutput,
    WeightOptions,
    grouped,
)


@grouped
def landscape(
    steps: StepOptions,
    line: LineOptions,
    objective: ObjectiveOptions,
    run: RunOptions,
    weights: WeightOptions,
    machine: MachineOptions,
    export: ExportOptions,
    sources: Sources = None,
    output: TableOutput = None,
) -> None:
    """Probe the loss and its gradient along the gradient's own direction (figures 4a-b, 9, 11, 12).

    At each measured step the loss, and the distance of the gradient from the starting one, at several step lengths.

    [bold]Examples[/]

      bnsmooth landscape --norm l1

      bnsmooth landscape runs/vgg-batch-lr0.1-seed0 runs/vgg-none-lr0.1-seed0

      bnsmooth landscape runs/vgg-l1-lr0.1-seed0/checkpoints/000050.pt --points 16
    """
    rows = measure_sources(
        "landscape", sources, run, steps, machine, weights, export, output, {**line.chosen(), **objective.chosen()}
    )
    moved = rows[rows["alpha"] > 0]
    table = moved.groupby(["run", "step"], sort=False).agg(
        loss_min=("loss", "min"),
        loss_max=("loss", "max"),
        grad_distance_min=("grad_distance", "min"),
        grad_distance_max=("grad_distance", "max"),
    )
    terminal.summary("along the gradient", table.reset_index(), ["run", "step", *table.columns])
