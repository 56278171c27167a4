"""Internal covariate shift (figure 3): distance and cosine of a layer's gradients before and after the layers below it
are updated."""

from __future__ import annotations

from typing import Final

import pandas as pd

from bnsmooth_cli.figures import style
from bnsmooth_cli.figures import training as curves
from bnsmooth_cli.figures.panels import Curves, Panel, layers_over_depth, papers, series

_COSINE: Final = style.Scale("linear", -1.05, 1.05)


def panels(
    table: pd.DataFrame, training: pd.DataFrame | None = None, paper: pd.DataFrame | None = None
) -> list[list[Panel]]:
    """Figure 3: a column for each shown layer, the distance above the cosine; first the training curves, if given."""
    shift: list[Panel] = []
    cosine: list[Panel] = []
    # The first layer is left out: nothing below it is updated, so its shift is 0.
    above = table[table["layer"] > 1]
    for layer in layers_over_depth(table if above.empty else above, paper):
        rows = table[table["layer"] == layer]
        first = not shift
        title = f"layer {layer} ({rows['layer_name'].iloc[0]})"
        shift.append(
            Curves(title, "ICS  ‖G − G′‖" if first else "", series(rows, "ics"), papers(paper, rows, "ics"), upper=True)
        )
        cosine.append(
            Curves(
                "", "cos(G, G′)" if first else "", series(rows, "cosine"), papers(paper, rows, "cosine"), scale=_COSINE
            )
        )
    lead: list[Panel] = []
    if training is not None and training["run"].isin(table["run"]).any():
        lead = [curves.progress(training[training["run"].isin(table["run"])], paper)]
    return [[*lead, *shift], [*lead, *cosine]]
