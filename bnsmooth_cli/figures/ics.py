"""Internal covariate shift (figure 3): distance and cosine of a layer's gradients before and after the layers below it
are updated."""

from __future__ import annotations

from typing import Final

import pandas as pd

from bnsmooth_cli.figures import style
from bnsmooth_cli.figures import training as curves
from bnsmooth_cli.figures.panels import Curves, Panel, series

_COSINE: Final = style.Scale("linear", -1.05, 1.05)


def panels(table: pd.DataFrame, training: pd.DataFrame | None = None) -> list[list[Panel]]:
    """Figure 3: a column for each shown layer, the distance above the cosine; first the training curves, if given."""
    shift: list[Panel] = []
    cosine: list[Panel] = []
    for layer in _shown(table):
        rows = table[table["layer"] == layer]
        first = not shift
        title = f"layer {layer} ({rows['layer_name'].iloc[0]})"
        shift.append(Curves(title, "ICS  ‖G − G′‖" if first else "", series(rows, "ics"), upper=True))
        cosine.append(Curves("", "cos(G, G′)" if first else "", series(rows, "cosine"), scale=_COSINE))
    if training is None or training.empty:
        return [shift, cosine]
    lead = curves.progress(training)
    return [[lead, *shift], [lead, *cosine]]


def _shown(table: pd.DataFrame) -> list[int]:
    """Three layers over the depth. The first is left out: nothing below it is updated, so its shift is 0."""
    layers = sorted(int(layer) for layer in table["layer"].unique())
    layers = layers[1:] or layers
    return sorted({layers[0], layers[len(layers) // 2], layers[-1]})
