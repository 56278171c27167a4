"""Internal covariate shift (figure 3): distance and cosine of a layer's gradients before and after the layers below it
are updated."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

import pandas as pd

from bnsmooth_cli.figures import scales, style
from bnsmooth_cli.figures import training as curves
from bnsmooth_cli.figures.page import Band, Panel
from bnsmooth_cli.figures.panels import Curves, layers_over_depth, papers, series, shared
from bnsmooth_cli.storage.tables import after_the_first

_COSINE: Final = scales.Scale("linear", -1.05, 1.05)
_WIDTH: Final = 1.3  # of a panel


def panels(
    table: pd.DataFrame,
    training: pd.DataFrame | None = None,
    paper: pd.DataFrame | None = None,
    selected: Collection[str] = (),
) -> list[Band]:
    """Figure 3: a column for each shown layer, the distance above the cosine; first the training curves, if given."""
    shift: list[Curves] = []
    cosine: list[Curves] = []
    # The first layer is left out unless it is asked for: nothing below it is updated, so its shift is 0.
    above = after_the_first(table)
    whole = table if above.empty or "layers" in selected else above
    for layer in layers_over_depth(whole, paper, every="layers" in selected):
        rows = table[table["layer"] == layer]
        title = f"layer {layer} ({rows['layer_name'].iloc[0]})"
        theirs = papers(paper, rows, "ics")
        shift.append(Curves(title, "ICS  ‖G − G′‖", series(rows, "ics"), theirs, width=_WIDTH))
        theirs = papers(paper, rows, "cosine")
        cosine.append(Curves("", "cos(G, G′)", series(rows, "cosine"), theirs, scale=_COSINE, width=_WIDTH))
    columns: list[list[Panel]] = [[*column] for column in zip(shared(shift), cosine, strict=True)]
    if training is not None and len(training):
        lead = replace(curves.progress(training, paper, style.lrs_of(table)), width=_WIDTH)
        columns.insert(0, [lead, lead])
    return [Band([columns])]
