"""`bnsmooth activations`: the distributions of the inputs to the non-linearities."""

from __future__ import annotations

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import measure_sources
from bnsmooth_cli.cli.options import (
    ExportOptions,
    MachineOptions,
    RunOptions,
    Sources,
    StepOptions,
    TableOutput,
    UnitOptions,
    WeightOptions,
    grouped,
)


@grouped
def activations(
    steps: StepOptions,
    units: UnitOptions,
    run: RunOptions,
    weights: WeightOptions,
    machine: MachineOptions,
    export: ExportOptions,
    sources: Sources = None,
    output: TableOutput = None,
) -> None:
    """Measure how the inputs to the non-linearities are distributed, and how far they move (figures 1c, 2, 7, 8, 14).

    One row a measured step, layer and unit; by default five layers over the depth and five units of each.

    [bold]Examples[/]

      bnsmooth activations --norm linf

      bnsmooth activations runs/vgg-batch-lr0.1-seed0 --layers conv3,fc1 --units 0,1,2
    """
    rows = measure_sources("activations", sources, run, steps, machine, weights, export, output, units.chosen())
    rows = rows.assign(moved=rows["wasserstein"], moved_in_std=rows["wasserstein"] / rows["std"])
    columns = ["sigma", "std", "skewness", "kurtosis", "moved", "moved_in_std"]
    table = rows.groupby(["run", "layer_name"], sort=False)[columns].median()
    terminal.summary("medians over steps and units", table.reset_index(), ["run", "layer_name", *columns])
