"""`bnsmooth activations`: the distributions of the inputs to the non-linearities."""

from __future__ import annotations

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import Rows, measuring
from bnsmooth_cli.cli.options import ProbeOptions, UnitOptions


@measuring(UnitOptions, ProbeOptions)
def activations(rows: Rows) -> None:
    """Measure how the inputs to the non-linearities are distributed, and how far they move (figures 1c, 2, 7, 8, 14).

    The table has one row per measured step, layer and unit. By default it covers five units of each layer that
    the paper shows. If the network lacks one of these layers, it covers five layers spread over the depth.

    The batches of two steps differ, so the moments differ between them even if the weights do not. --probe tells the
    two apart: it measures the batch of step 0 at every step too, and the floor, which is the change of the moments to
    the next step's batch and noise at fixed weights.

    [bold]Examples[/]

      bnsmooth activations --norm linf

      bnsmooth activations runs/vgg-batch-lr0.1-seed0 --layers conv3,fc1 --units 0,1,2

      bnsmooth activations runs/vgg-batch-lr0.1-seed0 --probe
    """
    rows = rows.assign(moved_in_std=rows["wasserstein"] / rows["std"])
    medians = rows.groupby(["run", "layer_name"], sort=False).median(numeric_only=True).reset_index()
    lead, changes = ["run", "layer_name"], ["mean_change", "var_change"]
    columns = ["sigma", "std", "skewness", "kurtosis", *changes, "moved_in_std"]
    terminal.summary("medians over steps and units", medians, [*lead, *columns])
    if rows["probe_mean"].notna().any():
        columns = [f"{batch}{change}" for change in changes for batch in ("", "probe_", "floor_")]
        title = "changes on each step's batch, on the probe batch, and at fixed weights (the floor)"
        terminal.summary(title, medians, [*lead, *columns])
