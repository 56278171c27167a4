"""`bnsmooth spectrum`: the eigenvalues of the Hessian, their density, its trace, and the same of the Gauss-Newton
matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import Rows, measuring
from bnsmooth_cli.cli.options import LayerOptions, ObjectiveOptions, option
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures import CURVATURES, check_curvature


@dataclass(frozen=True)
class SpectrumOptions(LayerOptions):
    """Which matrix is measured, whether its eigenvalues or their density, and whether layer by layer."""

    curvature: str = option(
        "hessian (default), or ggn (the Gauss-Newton matrix).", default="hessian", choices=CURVATURES
    )
    top: int | None = option(
        "The number of the largest eigenvalues (default: 10, or all if there are fewer).", metavar="K"
    )
    density: bool = option("Measure the density of all eigenvalues instead.", default=False)
    nodes: int | None = option("Nodes of the density for each random vector (default: 80).")
    vectors: int | None = option("Random vectors of the density (default: 4).")
    by_layer: bool = option("Measure each layer's block of the Hessian, all other layers held fixed.", default=False)

    def given(self) -> dict[str, Any]:
        """The keyword arguments of the measurement's `plan`, and the kind's `variant`."""
        values = super().given()
        density, by_layer, curvature = values.pop("density"), values.pop("by_layer"), values.pop("curvature")
        check_curvature(curvature)
        for name in ("nodes", "vectors", "top"):
            if name in values and density == (name == "top"):
                other = "not with --density; leave one of them out" if density else "needs --density"
                raise InputError(f"--{name} {values[name]}: {other}")
        if by_layer and (density or curvature != "hessian"):
            other = "--density" if density else f"--curvature {curvature}"
            raise InputError(f"{other}: not with --by-layer; leave one of them out")
        if self.layers is not None and not by_layer:
            raise InputError(f"--layers {self.layers}: needs --by-layer")
        named = {"ggn": curvature == "ggn", "by-layer": by_layer, "density": density}
        variant = "-".join(name for name, given in named.items() if given)
        return {**values, "variant": variant} if variant else values


@measuring(ObjectiveOptions, SpectrumOptions)
def spectrum(rows: Rows) -> None:
    """Measure the eigenvalues of the Hessian: the largest ones and the smallest, the trace, or the whole density.

    The table has one row per measured step, with the K largest eigenvalues, the residual of each, which bounds its
    error, the smallest eigenvalue, the trace with its standard error, and the effective rank. Batch statistics are
    those of the batch, as in training; with --objective eval they are the running ones. The L2 penalty of training
    counts: it adds its factor times the number of weights to the trace.

    With --curvature ggn, it is the Gauss-Newton matrix, the part of the Hessian that a network linear in its parameters
    would have, and spectrum-ggn.parquet also says how large the rest is. With --density, spectrum-density.parquet has
    nodes and weights of the density of all eigenvalues. With --by-layer, spectrum-by-layer.parquet has one row per
    measured step and layer.

    [bold]Examples[/]

      bnsmooth spectrum --norm batch

      bnsmooth spectrum runs/vgg-batch-lr0.1-seed0 --every 100 --top 20

      bnsmooth spectrum runs/vgg-batch-lr0.1-seed0 --at 0,300 --density --vectors 10

      bnsmooth spectrum runs/vgg-batch-lr0.1-seed0 --curvature ggn

      bnsmooth spectrum runs/vgg-batch-lr0.1-seed0 --at 300 --by-layer --top 2

      bnsmooth plot runs/*/spectrum.parquet -o spectrum.png
    """
    if "node" in rows:
        nodes = rows.groupby(["run", "step"], sort=False)["node"]
        table = nodes.agg(["min", "max"]).rename(columns={"min": "from", "max": "to"})
        weighted = (rows["node"] * rows["weight"]).groupby([rows["run"], rows["step"]], sort=False).sum()
        table["mean eigenvalue"] = weighted / rows.groupby(["run", "step"], sort=False)["vector"].nunique()
        terminal.summary("density of the eigenvalues", table.reset_index())
        return
    columns = ["largest", "smallest", "trace", "trace_error", "effective_rank", "top_share"]
    title = "spectrum of the Gauss-Newton matrix" if "beside" in rows else "spectrum"
    if "beside" in rows:
        columns.append("beside")
    if "layer_name" in rows:
        title, columns = "spectrum by layer", ["layer_name", *columns]
    counted = int(rows["product_count"].sum())
    note = f"{counted:,} products, by {' and '.join(dict.fromkeys(rows['products']))}"
    terminal.summary(title, rows[["run", "step", *columns]], note=note)
