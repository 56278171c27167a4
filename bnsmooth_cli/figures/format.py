"""The format of a figure: its size, resolution, title and style; and the figures that show and save themselves."""

from __future__ import annotations

import io
import math
import unicodedata
from dataclasses import dataclass
from typing import Any, Final

import matplotlib
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser

from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.figures.style import FONT
from bnsmooth_cli.kinds import SIZES, STYLES

#: Pixels per inch, unless a size or the user says otherwise.
DPI: Final = 150
_NARROW: Final = 7.5  # figures up to this width have smaller text, as the text around them in a paper
_SMALL: Final = 7.0  # points
_TALK: Final = 1.4  # how much larger everything is in a talk
_WIDTHS: Final = (2.0, 40.0)  # inches
_HEIGHTS: Final = (1.0, 100.0)
_DPIS: Final = (20, 2400)
_MAX_PIXELS: Final = 2e8
#: Categories of characters that control a text or are none. An SVG with some of them is not well formed.
_UNDRAWN: Final = ("Cc", "Cf", "Cn", "Cs")

_BRIGHT: Final[dict[Any, Any]] = {"grid.color": "#E4E4E4"}
_DARK: Final[dict[Any, Any]] = {
    "grid.color": "#30363D", "figure.facecolor": "#14181D", "axes.facecolor": "#14181D",
    "figure.edgecolor": "#14181D", "text.color": "#E6EAEE",
    "axes.labelcolor": "#E6EAEE", "axes.titlecolor": "#E6EAEE", "axes.edgecolor": "#9AA3AC", "xtick.color": "#B9C1C9",
    "ytick.color": "#B9C1C9", "axes3d.xaxis.panecolor": "#20262D", "axes3d.yaxis.panecolor": "#20262D",
    "axes3d.zaxis.panecolor": "#20262D",
}  # fmt: skip
#: The settings of each style that are not those of all styles.
_COLOURS: Final[dict[str, dict[Any, Any]]] = {"paper": _BRIGHT, "talk": _BRIGHT, "dark": _DARK}
#: Settings for saving: SVG and PDF keep text as text. Equal tables give equal bytes.
_SAVING: Final[dict[Any, Any]] = {"svg.hashsalt": "bnsmooth", "svg.fonttype": "none", "pdf.fonttype": 42}
#: Format -> metadata that leaves out the date, so that equal figures are equal bytes.
METADATA: Final[dict[str, dict[str, None]]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


@dataclass(frozen=True, kw_only=True)
class Format:
    """How large a figure is, and how it looks.

    Attributes:
        size: The name of a size in `SIZES`; None for the size that the panels take.
        width: The width in inches, instead of the size's.
        height: The height in inches; None for the height that the panels take at this width.
        dpi: The pixels per inch of a PNG, and of the parts of an SVG or PDF that are pictures; None for the size's.
        title: The title, instead of the one made from the rows; empty for none. Formulas are as in matplotlib: $x^2$.
        style: A member of `STYLES`. "talk" has larger text and wider lines, "dark" a dark background.

    Raises:
        InputError: If a value is unknown or out of bounds.

    >>> Format(size="column").inches
    3.25
    """

    size: str | None = None
    width: float | None = None
    height: float | None = None
    dpi: int | None = None
    title: str | None = None
    style: str = "paper"

    def __post_init__(self) -> None:
        if self.size is not None and self.size not in SIZES:
            raise unknown("size of a figure", self.size, SIZES)
        if self.style not in STYLES:
            raise unknown("style of figures", self.style, STYLES)
        _check("width", self.width, *_WIDTHS, "inches")
        _check("height", self.height, *_HEIGHTS, "inches")
        _check("dpi", self.dpi, *_DPIS, "pixels per inch")
        if self.title is not None and any(unicodedata.category(c) in _UNDRAWN for c in self.title.replace("\n", "")):
            raise InputError(f"--title {self.title[:60]!a}: has characters that cannot be drawn; leave them out")
        if self.title is not None and is_math_text(self.title):
            try:
                MathTextParser("path").parse(self.title)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"--title {self.title[:60]}: its formula cannot be read; write \\$ for a dollar sign"
                ) from error

    @property
    def inches(self) -> float | None:
        """The width in inches; None if the panels decide."""
        return SIZES[self.size].width if self.width is None and self.size is not None else self.width

    @property
    def resolution(self) -> int:
        """The pixels per inch."""
        return self.dpi or (SIZES[self.size].dpi if self.size is not None else DPI)

    def rc(self) -> dict[Any, Any]:
        """The settings of matplotlib under which a figure is built. Sizes are in points at the figure's own size."""
        font = _SMALL if self.inches is not None and self.inches <= _NARROW else FONT
        unit = font / FONT * (_TALK if self.style == "talk" else 1.0)
        sizes = {
            "font.size": FONT, "axes.titlesize": 9, "axes.labelsize": 8.5, "xtick.labelsize": 8, "ytick.labelsize": 8,
            "legend.fontsize": 8.5, "figure.titlesize": 9.5, "axes.linewidth": 0.7, "grid.linewidth": 0.6,
            "xtick.major.width": 0.7, "ytick.major.width": 0.7, "xtick.minor.width": 0.5, "ytick.minor.width": 0.5,
            "xtick.major.size": 3.5, "ytick.major.size": 3.5, "xtick.minor.size": 2, "ytick.minor.size": 2,
        }  # fmt: skip
        others = {
            "figure.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
            "axes.axisbelow": True, "legend.frameon": False, "figure.dpi": self.resolution, **_SAVING,
        }  # fmt: skip
        return others | {name: unit * size for name, size in sizes.items()} | _COLOURS[self.style]

    def check_pixels(self, width: float, height: float) -> None:
        """Raise InputError if a figure of this size in inches has too many pixels."""
        if width * height * self.resolution**2 > _MAX_PIXELS:
            most = math.floor(math.sqrt(_MAX_PIXELS / (width * height)))
            raise InputError(
                f"--dpi {self.resolution}: a figure of {width:.3g} by {height:.3g} inches has at most {most}"
            )


def _check(name: str, value: float | None, low: float, high: float, unit: str) -> None:
    if value is not None and not low <= value <= high:
        raise InputError(f"--{name} {value:g}: give {unit} from {low:g} to {high:g}")


class Picture(Figure):
    """A matplotlib Figure that shows itself in a notebook, whatever the backend, and saves text as text."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """Save the figure as `Figure.savefig` does: with text as text in SVG and PDF, and without a date.

        Args:
            fname: As in `Figure.savefig`.
            **options: As in `Figure.savefig`.
        """
        named = options.get("format") or str(getattr(fname, "name", fname)).rpartition(".")[2]
        options.setdefault("dpi", self.dpi)
        options.setdefault("metadata", METADATA.get(str(named).lower()))
        with matplotlib.rc_context(_SAVING):
            super().savefig(fname, **options)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """What Jupyter shows: the PNG, in its size in inches."""
        stream = io.BytesIO()
        self.savefig(stream, format="png")
        width, height = (round(96 * inches) for inches in self.get_size_inches())
        return stream.getvalue(), {"width": width, "height": height}
