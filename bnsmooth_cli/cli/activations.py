"""`bnsmooth activations`: the distributions of the inputs to the non-linearities."""

from __future__ import annotations

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import Rows, measuring
from bnsmooth_cli.cli.options import UnitOptions


@measuring(UnitOptions)
def activations(rows: Rows) -> None:
    """Measure how the inputs to the non-linearities are distributed, and how far they move (figures 1c, 2, 7, 8, 14).

    The table has one row per measured step, layer and unit. By default it covers five units of each layer that
    the paper shows. If the network lacks one of these layers, it covers five layers spread over the depth.

    [bold]Examples[/]

      bnsmooth activations --norm linf

      bnsmooth activations runs/vgg-batch-lr0.1-seed0 --layers conv3,fc1 --units 0,1,2
    """
    rows = rows.assign(moved_in_std=rows["wasserstein"] / rows["std"])
    columns = ["sigma", "std", "skewness", "kurtosis", "mean_change", "var_change", "moved_in_std"]
    table = rows.groupby(["run", "layer_name"], sort=False)[columns].median()
    terminal.summary("medians over steps and units", table.reset_index())
