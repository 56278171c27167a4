"""`bnsmooth surface`: the loss on a line or a plane around a point."""

from __future__ import annotations

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import measure_sources
from bnsmooth_cli.cli.options import (
    ExportOptions,
    GridPointOptions,
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
def surface(
    steps: StepOptions,
    grid: GridPointOptions,
    objective: ObjectiveOptions,
    run: RunOptions,
    weights: WeightOptions,
    machine: MachineOptions,
    sources: Sources = None,
    output: TableOutput = None,
) -> None:
    """Measure the loss around a point, on a plane or a line: random filter-normalised directions, or the run's own.

    Li et al. (2018). By default around the last checkpoint, 21 x 21 points, with the step's own batch and noise.

    With --directions pca in the plane that holds most of the run's path, and the path in it.

    [bold]Examples[/]

      bnsmooth surface --norm none

      bnsmooth surface runs/vgg-batch-lr0.1-seed0 --objective test --points 31

      bnsmooth surface runs/vgg-batch-lr0.1-seed0 --directions pca -o path.parquet

      bnsmooth plot runs/*/surface.parquet -o surface.png
    """
    options = {**grid.chosen(), **objective.chosen()}
    rows = measure_sources("surface", sources, run, steps, machine, weights, ExportOptions(), output, options)
    table = rows[rows["path_step"].isna()].groupby(["run", "step"], sort=False)["loss"].agg(["min", "median", "max"])
    centre = rows[(rows["x"] == 0) & (rows["y"].fillna(0) == 0)].set_index(["run", "step"])["loss"]
    table["at the point"] = centre[~centre.index.duplicated()]
    shares = rows.groupby(["run", "step"], sort=False)[["x_share", "y_share"]].first()
    table = table.join(shares).dropna(axis=1, how="all").reset_index()
    terminal.summary("loss around the point", table, list(table))
