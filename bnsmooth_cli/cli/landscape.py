"""`bnsmooth landscape`: the loss and its gradient along a line."""

from __future__ import annotations

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import Rows, line_of, measuring
from bnsmooth_cli.cli.options import DirectionOptions, LineOptions, ObjectiveOptions


@measuring(LineOptions, DirectionOptions, ObjectiveOptions)
def landscape(rows: Rows) -> None:
    """Probe the loss and its gradient along the gradient's direction (figures 4a-b, 9, 11, 12).

    At each of several step lengths, it records the loss, and the distance between the gradient there and the gradient
    at the measured step. With --direction update, the line goes along the optimiser's own step, and the table is
    landscape-update.parquet; with --direction random, in a random direction, and it is landscape-random.parquet.

    [bold]Examples[/]

      bnsmooth landscape --norm l1

      bnsmooth landscape runs/vgg-batch-lr0.1-seed0 runs/vgg-none-lr0.1-seed0

      bnsmooth landscape runs/vgg-l1-lr0.1-seed0/checkpoints/000050.pt --points 16

      bnsmooth landscape runs/vgg-batch-lr0.1-seed0 --direction random
    """
    line = rows[rows["alpha"] > 0].groupby(["run", "step"], sort=False)
    table = line[["loss", "grad_distance"]].agg(["min", "max"])
    table.columns = table.columns.map("_".join)
    terminal.summary(line_of(rows) or "along the gradient", table.reset_index())
