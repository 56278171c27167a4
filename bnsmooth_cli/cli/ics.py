"""`bnsmooth ics`: internal covariate shift, layer by layer."""

from __future__ import annotations

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import Rows, measuring
from bnsmooth_cli.cli.options import LayerOptions


@measuring(LayerOptions)
def ics(rows: Rows) -> None:
    """Measure internal covariate shift: how each layer's gradient changes when the layers before it step (figure 3).

    The table has one row per measured step and layer, with the distance and the cosine between the two gradients of
    definition 2.1.

    [bold]Examples[/]

      bnsmooth ics --problem dln --norm none

      bnsmooth ics runs/vgg-batch-lr0.1-seed0 --every 50

      bnsmooth ics runs/vgg-batch-lr0.1-seed0 --layers conv1,conv4,fc1 -o three.parquet
    """
    from bnsmooth_cli.storage.tables import after_the_first

    later = after_the_first(rows)
    if later.empty:
        terminal.say("internal covariate shift: none, since there is one layer, before which nothing moves")
        return
    table = later.groupby(["run", "step"], sort=False).agg({"ics": ["median", "max"], "cosine": ["median", "min"]})
    table.columns = table.columns.map("_".join)
    terminal.summary("internal covariate shift, over layers from the second", table.reset_index())
