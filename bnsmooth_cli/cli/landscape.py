"""`bnsmooth landscape`: the loss and its gradient along a line."""

from __future__ import annotations

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import Rows, measuring
from bnsmooth_cli.cli.options import DirectionOptions, LineOptions, ObjectiveOptions


@measuring(LineOptions, DirectionOptions, ObjectiveOptions)
def landscape(rows: Rows) -> None:
    """Probe the loss and its gradient along the gradient's direction (figures 4a-b, 9, 11, 12).

    At each of several step lengths, it records the loss, and the distance between the gradient there and the gradient
    at the measured step. With --direction random, the line goes in a random direction, and the table is
    landscape-random.parquet.

    [bold]Examples[/]

      bnsmooth landscape --norm l1

      bnsmooth landscape runs/vgg-batch-lr0.1-seed0 runs/vgg-none-lr0.1-seed0

      bnsmooth landscape runs/vgg-l1-lr0.1-seed0/checkpoints/000050.pt --points 16

      bnsmooth landscape runs/vgg-batch-lr0.1-seed0 --direction random
    """
    line = rows[rows["alpha"] > 0].groupby(["run", "step"], sort=False)
    table = line[["loss", "grad_distance"]].agg(["min", "max"])
    table.columns = table.columns.map("_".join)
    along = "a random direction" if "direction" in rows else "the gradient"
    terminal.summary(f"along {along}", table.reset_index())
