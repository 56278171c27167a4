"""The pages of the reproduction in Markdown: tables, and templates."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import jinja2
import pandas as pd

from bnsmooth_cli.report import number
from bnsmooth_cli.storage.files import atomic
from bnsmooth_cli.studies.statistics import Interval


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table.

    >>> print(table(["norm", "lr"], [["none", "0.1"]]))
    | norm | lr |
    | --- | --- |
    | none | 0.1 |
    """
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows))


def spread(middle: float, of: Interval, text: Callable[[float], str] = number) -> str:
    """A median with its interval, if it has one; a dash if the value of a seed is unknown.

    >>> spread(0.5, Interval(0.25, 1.0, 0.94)), spread(0.5, Interval(-math.inf, math.inf, 0.94))
    ('0.5 [0.25, 1]', '–')
    """
    if of.low == -math.inf:
        return "–"
    return text(middle) if pd.isna(of.low) else f"{text(middle)} [{text(of.low)}, {text(of.high)}]"


def percent(value: float) -> str:
    """A share in percent.

    >>> percent(0.1234)
    '12.3%'
    """
    return f"{100 * value:.1f}%"


def templates() -> jinja2.Environment:
    """The templates beside this module."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip


def write(text: str, target: Path) -> None:
    """Write a page."""
    with atomic(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_others(figures: Path, names: Collection[str]) -> None:
    """Remove the pictures of a folder that have none of these names."""
    for path in figures.glob("*.png"):
        if path.stem not in names:
            path.unlink()
