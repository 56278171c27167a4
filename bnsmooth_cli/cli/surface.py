"""`bnsmooth surface`: the loss on a line or a plane around a point."""

from __future__ import annotations

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import Rows, measuring
from bnsmooth_cli.cli.options import ObjectiveOptions, SurfaceOptions


@measuring(SurfaceOptions, ObjectiveOptions)
def surface(rows: Rows) -> None:
    """Measure the loss on a plane or a line around a point (Li et al. 2018).

    By default it takes the last checkpoint, random filter-normalised directions, 21 x 21 points, and the batch and
    noise of that step.

    With --directions pca, it takes the plane that captures most of the run's path, and records the path too. This needs
    three checkpoints besides the point's own. With --directions top, it takes the plane of the Hessian's two top
    eigenvectors.

    [bold]Examples[/]

      bnsmooth surface --norm none

      bnsmooth surface runs/vgg-batch-lr0.1-seed0 --objective test --points 31

      bnsmooth surface runs/vgg-batch-lr0.1-seed0 --directions pca -o path.parquet

      bnsmooth surface runs/vgg-batch-lr0.1-seed0 --directions top -o top.parquet

      bnsmooth plot runs/*/surface.parquet -o surface.png
    """
    table = rows[rows["path_step"].isna()].groupby(["run", "step"], sort=False)["loss"].agg(["min", "median", "max"])
    centre = rows[(rows["x"] == 0) & (rows["y"].fillna(0) == 0)].set_index(["run", "step"])["loss"]
    table["at the point"] = centre[~centre.index.duplicated()]
    shares = rows.groupby(["run", "step"], sort=False)[["x_share", "y_share"]].first()
    terminal.summary("loss around the point", table.join(shares).dropna(axis=1, how="all").reset_index())
