"""`bnsmooth smoothness`: effective beta-smoothness, Lipschitzness, curvature and sharpness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import Rows, line_of, measuring
from bnsmooth_cli.cli.options import BatchOptions, DirectionOptions, LayerOptions, LineOptions, ObjectiveOptions, option
from bnsmooth_cli.errors import InputError


@dataclass(frozen=True)
class SmoothnessOptions(DirectionOptions, BatchOptions, LayerOptions):
    """The direction of the line probe, the batches of batch sharpness, and whether smoothness is measured layer by
    layer, and for which layers."""

    by_layer: bool = option("Measure each layer, with the parameters of all other layers held fixed.", default=False)

    def given(self) -> dict[str, Any]:
        """The keyword arguments of the measurement's `plan`, and the kind's `variant`."""
        values = super().given()
        if values.pop("by_layer"):
            if "variant" in values:
                raise InputError(f"--direction {self.direction}: not with --by-layer; leave one of them out")
            if "batches" in values:
                raise InputError(f"--batches {self.batches}: not with --by-layer; leave one of them out")
            values["variant"] = "by-layer"
        elif self.layers is not None:
            raise InputError(f"--layers {self.layers}: needs --by-layer")
        return values


@measuring(LineOptions, ObjectiveOptions, SmoothnessOptions)
def smoothness(rows: Rows) -> None:
    """Measure how smooth the loss is: effective beta (figure 4c), Lipschitzness, curvature, sharpness.

    The table has one row per measured step. Sharpness is the Hessian's eigenvalue of largest magnitude, by Lanczos'
    iteration to a relative accuracy of 0.005. At a saturated point, the gradient vanishes within the shortest step, and
    beta is 1 / (shortest step * lr), whatever the network. The critical learning rate is the shortest step that raises
    the loss. With --batches, batch sharpness is the mean curvature of minibatch losses along their own
    gradients.

    Preconditioned sharpness accounts for the diagonal preconditioner of Adam or RMSProp; the threshold is the largest
    stable value of the sharpness that belongs to the optimiser.

    With --direction update, the line goes along the optimiser's own step, and the table is smoothness-update.parquet;
    with --direction random, in a random direction, and it is smoothness-random.parquet. With --by-layer, the loss is
    taken as a function of one layer's parameters at a time, and smoothness-by-layer.parquet has one row per measured
    step and layer.

    [bold]Examples[/]

      bnsmooth smoothness --norm l1

      bnsmooth smoothness runs/vgg-batch-lr0.1-seed0 --every 100

      bnsmooth smoothness runs/vgg-batch-lr0.1-seed0 --at 0,300 --by-layer

      bnsmooth smoothness runs/vgg-batch-lr0.1-seed0 --at 0 --objective train:4

      bnsmooth smoothness runs/vgg-batch-lr0.1-seed0 --direction random

      bnsmooth smoothness runs/vgg-batch-lr0.1-seed0 --batches 16
    """
    title = f"smoothness {line_of(rows)}".strip()
    columns, note = ["beta", "lipschitz", "curvature", "sharpness", "critical_lr"], ""
    if "preconditioned" in rows:
        columns += [name for name in ("preconditioned", "threshold") if rows[name].notna().any()]
    if "batch_sharpness" in rows and rows["batch_sharpness"].notna().any():
        columns += ["batch_sharpness", "batch_sharpness_error"]
    if "layer_name" in rows:
        title, columns = "smoothness by layer", ["layer_name", "grad_norm", "beta", "curvature", "sharpness"]
    elif known := rows["saturated"].count():
        saturated = int(rows["saturated"].sum())
        note = f"saturated: {saturated} of {known} points (if so, the shortest step sets beta)"
    terminal.summary(title, rows[["run", "step", *columns]], note=note)
