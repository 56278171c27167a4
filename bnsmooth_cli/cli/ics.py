"""`bnsmooth ics`: internal covariate shift, layer by layer."""

from __future__ import annotations

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import measure_sources
from bnsmooth_cli.cli.options import (
    ExportOptions,
    LayerOptions,
    MachineOptions,
    RunOptions,
    Sources,
    StepOptions,
    TableOutput,
    WeightOptions,
    grouped,
)


@grouped
def ics(
    steps: StepOptions,
    layers: LayerOptions,
    run: RunOptions,
    weights: WeightOptions,
    machine: MachineOptions,
    export: ExportOptions,
    sources: Sources = None,
    output: TableOutput = None,
) -> None:
    """Measure internal covariate shift: how each layer's gradient changes when those before it step (figure 3).

    The distance and the cosine of the two gradients of definition 2.1, one row a measured step and layer.

    [bold]Examples[/]

      bnsmooth ics --problem dln --norm none

      bnsmooth ics runs/vgg-batch-lr0.1-seed0 --every 50

      bnsmooth ics runs/vgg-batch-lr0.1-seed0 --layers conv1,conv4,fc1 -o three.parquet
    """
    rows = measure_sources("ics", sources, run, steps, machine, weights, export, output, layers.chosen())
    deeper = rows[rows["layer"] > 1]
    table = deeper.groupby(["run", "step"], sort=False).agg(
        ics_median=("ics", "median"),
        ics_max=("ics", "max"),
        cosine_median=("cosine", "median"),
        cosine_min=("cosine", "min"),
    )
    terminal.summary(
        "internal covariate shift, over layers from the second",
        table.reset_index(),
        ["run", "step", *table.columns],
    )
