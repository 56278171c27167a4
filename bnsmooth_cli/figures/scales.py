"""Scales of axes, which overflowing runs do not flatten."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.ticker import FixedLocator, LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

DECADES: Final = 100.0  # a larger ratio of values makes an axis logarithmic
HEADROOM: Final = 1e3  # an axis reaches at most this many times above the calmer series
_DEPTH: Final = 1e12  # a logarithmic axis reaches at most this many times below its top
#: Round numbers in a decade, from many to few.
_ROUND: Final = (tuple(range(1, 10)), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))


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


def fit(series: Sequence[NDArray[np.float64]], decades: float = DECADES, headroom: float = HEADROOM) -> Scale | None:
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
