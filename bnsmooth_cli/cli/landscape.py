"""`bnsmooth landscape`: the loss and its gradient along the gradient."""

from __future__ import annotations

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import Rows, measuring
from bnsmooth_cli.cli.options import LineOptions, ObjectiveOptions


@measuring(LineOptions, ObjectiveOptions)
def landscape(rows: Rows) -> None:
    """Probe the loss and its gradient along the gradient's direction (figures 4a-b, 9, 11, 12).

    At each of several step lengths, it records the loss, and the distance between the gradient there and the gradient
    at the measured step.

    [bold]Examples[/]

      bnsmooth landscape --norm l1

      bnsmooth landscape runs/vgg-batch-lr0.1-seed0 runs/vgg-none-lr0.1-seed0

      bnsmooth landscape runs/vgg-l1-lr0.1-seed0/checkpoints/000050.pt --points 16
    """
    line = rows[rows["alpha"] > 0].groupby(["run", "step"], sort=False)
    table = line[["loss", "grad_distance"]].agg(["min", "max"])
    table.columns = table.columns.map("_".join)
    terminal.summary("along the gradient", table.reset_index())
