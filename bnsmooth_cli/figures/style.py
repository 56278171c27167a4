"""The look of all figures: a colour, a dash and a rank for each norm, a marker for each learning rate,
and scales of axes that overflowing runs do not flatten."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, SymLogNorm, to_hex, to_rgb
from matplotlib.ticker import FixedLocator, LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from bnsmooth_cli import norms
from bnsmooth_cli.norms import Dash

_OTHER_COLOURS: Final = ("#E69F00", "#6A3D9A", "#7A5C00", "#A6192E", "#44AA99")
_OTHER_DASHES: Final[tuple[Dash, ...]] = ("-", (0, (6, 2)), (0, (3, 1, 1, 1)), (0, (2, 1)))
_MARKERS: Final = ("", "o", "s", "^", "D", "v", "P")

#: Settings while a figure is built; sizes are in points at the figure's own size.
RC: Final[dict[Any, Any]] = {
    "font.size": 8.5, "axes.titlesize": 9, "axes.labelsize": 8.5, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8.5, "figure.titlesize": 9.5, "figure.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.6,
    "xtick.major.width": 0.7, "ytick.major.width": 0.7, "legend.frameon": False, "figure.dpi": 150,
}  # fmt: skip
#: Settings for `savefig`, under `matplotlib.rc_context(SAVE)`. Equal tables then give equal bytes, with
#: `metadata={"Date": None}` for SVG and `{"CreationDate": None}` for PDF.
SAVE: Final[dict[Any, Any]] = {"svg.hashsalt": "bnsmooth", "savefig.dpi": 150, "pdf.fonttype": 42}

DECADES: Final = 100.0  # a larger ratio of values makes an axis logarithmic
#: How the label of a curve of the paper begins.
PAPER: Final = "paper: "
_FLOOR: Final = "floor: "
_HEADROOM: Final = 1e3  # an axis reaches at most this many times above the calmer series
_DEPTH: Final = 1e12  # a logarithmic axis reaches at most this many times below its top
#: Round numbers in a decade, from many to few.
_ROUND: Final = (tuple(range(1, 10)), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
_PAPER_GREY: Final = 0.75  # mixed half and half into the colours of the paper's curves


@dataclass(frozen=True)
class Look:
    """How the runs of one norm at one learning rate are drawn and labelled."""

    label: str
    colour: str
    dash: Dash
    marker: str


def groups(table: pd.DataFrame, lrs: Sequence[float] | None = None) -> list[tuple[Look, pd.DataFrame]]:
    """The rows of each norm and learning rate with their look, in the order of the norms.

    A norm has the same colour and dash in every figure. Several learning rates differ in label and marker; `lrs` are
    those of the figure, by default of the table.
    """
    lrs = lrs_of(table) if lrs is None else lrs
    result = []
    for norm in sorted(table["norm"].unique(), key=rank):
        for place, lr in enumerate(lrs):
            rows = table[(table["norm"] == norm) & (table["lr"] == lr)]
            if len(rows):
                label = f"{norm}, {lr_text(lr)}" if len(lrs) > 1 else norm
                result.append((Look(label, *colour_and_dash(norm), _MARKERS[place % len(_MARKERS)]), rows))
    return result


def colour_and_dash(norm: str) -> tuple[str, Dash]:
    """The colour and the dash pattern of a norm: its entry's, otherwise derived from its name.

    >>> colour_and_dash("batch"), colour_and_dash("lp:3")
    (('#0072B2', '-'), ('#44AA99', '-'))
    """
    code = zlib.crc32(norm.encode())
    colours = len(_OTHER_COLOURS)
    other = (_OTHER_COLOURS[code % colours], _OTHER_DASHES[code // colours % len(_OTHER_DASHES)])
    entry = norms.find(norm)
    return other if entry is None or entry.colour is None else (entry.colour, entry.dash)


def papers(look: Look) -> Look:
    """The look of the paper's own curve under ours: densely dashed, in a greyer and lighter colour."""
    red, green, blue = (0.5 * part + 0.5 * _PAPER_GREY for part in to_rgb(look.colour))
    return Look(f"{PAPER}{look.label}", to_hex((red, green, blue)), (0, (3, 0.8)), look.marker)


def floors(look: Look) -> Look:
    """The look of what sampling alone changes, under the curve of what changed: dotted, in the same colour."""
    return Look(f"{_FLOOR}{look.label}", look.colour, (0, (1, 1.5)), look.marker)


def rank(label: str) -> tuple[int, int, str, float]:
    """The sort key of a label: curves, floors, the paper's; then the norms in their order, then the learning rate."""
    prefix = next((prefix for prefix in (_FLOOR, PAPER) if label.startswith(prefix)), "")
    name = label.removeprefix(prefix)
    norm, _, lr = name.partition(", lr ")
    entry = norms.find(norm)
    place = norms.NORMS.index(entry) if entry is not None and entry.colour is not None else len(norms.NORMS)
    return ("", _FLOOR, PAPER).index(prefix), place, norm, float(lr or 0)


def lrs_of(table: pd.DataFrame) -> list[float]:
    """The learning rates of a table, in ascending order."""
    return sorted(float(lr) for lr in table["lr"].unique())


def lr_text(lr: float) -> str:
    """A learning rate in a label.

    >>> lr_text(0.1), lr_text(1e-6)
    ('lr 0.1', 'lr 1e-6')
    """
    return f"lr {lr:g}".replace("e-0", "e-")


def number_text(value: float) -> str:
    """A round number at a tick, as short as possible.

    >>> number_text(0.5), number_text(20000), number_text(1.0000025), number_text(1e-12)
    ('0.5', '2e4', '1.0000025', '1e-12')
    """
    texts = (f"{value:.{digits}g}" for digits in range(4, 18))
    text = next(text for text in texts if np.isclose(float(text), value, rtol=1e-9, atol=0))
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


@dataclass(frozen=True)
class Scale:
    """The scale and the limits of an axis.

    Attributes:
        name: "linear", "log" or "symlog".
        low: The lower limit.
        high: The upper limit.
        linear_to: The size up to which a "symlog" axis is linear.
    """

    name: str
    low: float
    high: float
    linear_to: float | None = None

    def apply(self, axes: Axes, which: Literal["x", "y"]) -> None:
        """Set the scale and the limits of an axis."""
        options = {} if self.linear_to is None else {"linthresh": self.linear_to}
        axes.set(**{f"{which}lim": (self.low, self.high)})
        (axes.set_xscale if which == "x" else axes.set_yscale)(self.name, **options)
        if self.linear_to is not None:
            (axes.xaxis if which == "x" else axes.yaxis).set_major_locator(FixedLocator(self._powers(self.linear_to)))
        if which == "x" and self.name == "log":
            # Labels of minor ticks (2 x 10^4, 3 x 10^4, ...) would overlap.
            axes.xaxis.set_minor_formatter(NullFormatter())
            if self.high < DECADES * self.low:
                axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
                axes.xaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))

    def norm(self) -> Normalize:
        """The same scale for colours: 0 at the lower limit and below, 1 at the upper limit and above."""
        if self.linear_to is not None:
            return SymLogNorm(self.linear_to, vmin=self.low, vmax=self.high, clip=True)
        return (LogNorm if self.name == "log" else Normalize)(self.low, self.high, clip=True)

    def levels(self, most: int) -> list[float]:
        """At most `most` round values over the axis.

        >>> Scale("linear", 0.2, 2.2).levels(5), Scale("log", 0.2, 300).levels(5)
        ([0.5, 1.0, 1.5, 2.0], [1.0, 10.0, 100.0])
        """
        if self.linear_to is not None:
            return self._powers(self.linear_to)
        if self.name == "linear":
            return self._inside(MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(self.low, self.high))
        decades = 10.0 ** np.arange(np.floor(np.log10(self.low)), np.ceil(np.log10(self.high)))
        choices = [self._inside(np.outer(decades, parts).ravel()) for parts in _ROUND]
        fewest = choices[-1]
        return next((values for values in choices if len(values) <= most), fewest[:: -(-len(fewest) // most)])

    def _inside(self, values: Iterable[float]) -> list[float]:
        return [float(value) for value in values if self.low <= value <= self.high]

    def _powers(self, linear_to: float) -> list[float]:
        """Zero and a few powers of ten on both sides. Matplotlib's own ticks would overlap around zero."""
        first, last = np.log10(linear_to), np.floor(np.log10(max(self.high, -self.low)))
        apart = max(2, int(np.ceil((last - first) / 2)))
        powers = [10.0**exponent for exponent in np.arange(last, first, -apart)]
        return sorted([-p for p in powers if -p >= self.low] + [0.0] + [p for p in powers if p <= self.high])

    def width(self, values: pd.DataFrame) -> float:
        """The median width of the band from the smallest to the largest value of each row."""
        shown = values.clip(self.low, self.high)
        low, high = shown.min(axis=1), shown.max(axis=1)
        return float((high / low if self.name == "log" else high - low).median())


def fit(series: Sequence[NDArray[np.float64]], decades: float = DECADES, headroom: float = _HEADROOM) -> Scale | None:
    """The scale that shows the calmer series in full, and as much of the others as keeps the calmer ones readable.

    Args:
        series: The values of each series. The caller marks those above the scale (overflows, diverged runs).
        decades: The ratio of values from which the scale is logarithmic, or symmetric-logarithmic if the sign changes.
        headroom: How many times above the calmer series the scale may reach.

    Returns:
        The scale; None if there is no finite value.
    """
    finite = [values[np.isfinite(values)] for values in series]
    every = np.concatenate([*finite, np.empty(0)])
    if not every.size:
        return None
    peaks = sorted(peak for values in finite if (peak := float(np.abs(values).max(initial=0.0))) > 0)
    # The calmer series are the lower quartile by their peaks.
    shown = every[np.abs(every) <= headroom * peaks[(len(peaks) - 1) // 4]] if peaks else every
    low, high = float(shown.min()), float(shown.max())
    sizes = np.abs(shown[np.abs(shown) > np.abs(shown).max() / _DEPTH])
    if low < 0:
        # Values that change sign pass through zero, so the smallest sizes do not count.
        small = 10.0 ** np.ceil(np.log10(np.quantile(sizes, 0.1)))
        if sizes.max() > decades * small:
            return Scale("symlog", 1.5 * low, max(1.5 * high, small), small)
    elif sizes.size and sizes.max() > decades * sizes.min():
        pad = (sizes.max() / sizes.min()) ** 0.05
        return Scale("log", float(sizes.min() / pad), float(high * pad))
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale("linear", low - pad, high + pad)
