"""`bnsmooth smoothness`: effective beta-smoothness, Lipschitzness, curvature and sharpness."""

from __future__ import annotations

from typing import Annotated

import typer

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import measure_sources
from bnsmooth_cli.cli.options import (
    ExportOptions,
    LayerOptions,
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
from bnsmooth_cli.errors import InputError


@grouped
def smoothness(
    steps: StepOptions,
    line: LineOptions,
    objective: ObjectiveOptions,
    layers: LayerOptions,
    run: RunOptions,
    weights: WeightOptions,
    machine: MachineOptions,
    export: ExportOptions,
    sources: Sources = None,
    output: TableOutput = None,
    by_layer: Annotated[
        bool,
        typer.Option("--by-layer", help="Restricted to each layer's parameters.", rich_help_panel="What is measured"),
    ] = False,
) -> None:
    """Measure how smooth the loss is: effective beta (figure 4c), Lipschitzness, curvature, sharpness.

    One row a measured step; sharpness is the Hessian's largest eigenvalue, by Lanczos to a relative 0.005. With
    --by-layer a row a layer, of the loss as a function of that layer's parameters alone: smoothness-by-layer.parquet.

    [bold]Examples[/]

      bnsmooth smoothness --norm l1

      bnsmooth smoothness runs/vgg-batch-lr0.1-seed0 --every 100

      bnsmooth smoothness runs/vgg-batch-lr0.1-seed0 --at 0,300 --by-layer

      bnsmooth smoothness runs/vgg-batch-lr0.1-seed0 --at 0,300 --objective train:4
    """
    options = {**line.chosen(), **objective.chosen()}
    kind, columns = "smoothness", ["run", "step", "beta", "lipschitz", "curvature", "sharpness"]
    if by_layer:
        kind, columns = "smoothness-by-layer", ["run", "step", "layer_name", "grad_norm", *columns[2:3], *columns[4:]]
        options |= layers.chosen()
    elif layers.layers is not None:
        raise InputError(f"--layers {layers.layers}: goes with --by-layer")
    rows = measure_sources(kind, sources, run, steps, machine, weights, export, output, options)
    terminal.summary(kind.replace("-", " "), rows, columns)
