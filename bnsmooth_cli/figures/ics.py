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
from bnsmooth_cli.figures.panels import Curves, by_rate, layers_over_depth, papers, series
from bnsmooth_cli.storage.tables import after_the_first

_COSINE: Final = scales.Scale("linear", -1.05, 1.05)
_WIDTH: Final = 1.3  # of a panel


def panels(
    table: pd.DataFrame,
    training: pd.DataFrame | None = None,
    paper: pd.DataFrame | None = None,
    selected: Collection[str] = (),
) -> list[Band]:
    """Figure 3: a column for each shown layer, the distance above the cosine; first the training curves, if given.

    If a norm has several learning rates, each of them has rows of its own, as in the paper: the curves would cover each
    other.
    """
    parts = by_rate(table)
    shifts = [_of_layers(rows, suffix, paper, selected) for rows, suffix in parts]
    scale = scales.fit([values for shift in shifts for distance, _ in shift for values in distance.drawn()])
    bands = []
    for (rows, suffix), shift in zip(parts, shifts, strict=True):
        lrs = style.lrs_of(rows)
        columns: list[list[Panel]] = [[replace(distance, scale=scale), cosine] for distance, cosine in shift]
        if training is not None and len(beside := training[training["lr"].isin(lrs)]):
            lead = curves.progress(beside, paper, lrs)
            columns.insert(0, [replace(lead, title=f"{lead.title}{suffix}", width=_WIDTH)] * 2)
        bands.append(Band([columns]))
    return bands


def _of_layers(
    table: pd.DataFrame, suffix: str, paper: pd.DataFrame | None, selected: Collection[str]
) -> list[tuple[Curves, Curves]]:
    """The distance and the cosine of each shown layer."""
    # The first layer is left out unless it is asked for: nothing below it is updated, so its shift is 0.
    above = after_the_first(table)
    whole = table if above.empty or "layers" in selected else above
    panels = []
    for layer in layers_over_depth(whole, paper, every="layers" in selected):
        rows = table[table["layer"] == layer]
        title = f"layer {layer} ({rows['layer_name'].iloc[0]}){suffix}"
        theirs = papers(paper, rows, "ics")
        distance = Curves(title, "ICS  ‖G − G′‖", series(rows, "ics"), theirs, width=_WIDTH)
        theirs = papers(paper, rows, "cosine")
        panels.append((distance, Curves("", "cos(G, G′)", series(rows, "cosine"), theirs, scale=_COSINE, width=_WIDTH)))
    return panels
