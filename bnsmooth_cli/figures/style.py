"""The look of series: a colour, a dash and a rank for each norm, a marker for each learning rate and group of settings;
and the texts of labels."""

from __future__ import annotations

import colorsys
import functools
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex, to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from bnsmooth_cli import norms
from bnsmooth_cli.norms import Dash

_OTHER_COLOURS: Final = ("#E69F00", "#6A3D9A", "#7A5C00", "#A6192E", "#44AA99")
_OTHER_DASHES: Final[tuple[Dash, ...]] = ("-", (0, (6, 2)), (0, (3, 1, 1, 1)), (0, (2, 1)))
_MARKERS: Final = ("", "s", "^", "D", "v", "P", "X")  # without "o", which are the points of a short curve
#: The size of text in points for which lengths in the code are written; others scale with it.
FONT: Final = 8.5
#: How the label of a curve of the paper begins.
PAPER: Final = "paper: "
_FLOOR: Final = "floor: "
#: The column that `rows.prepare` adds: what differs between the settings of runs, in words. A categorical, so that a
#: part of a table still knows all of them.
APART: Final = "apart"
_PALEST: Final = 0.62  # the background's share in the colour of the last group of settings


@dataclass(frozen=True)
class Look:
    """How the runs of one norm at one learning rate, with one group of settings, are drawn and labelled."""

    label: str
    colour: str
    dash: Dash
    marker: str


def groups(table: pd.DataFrame, lrs: Sequence[float] | None = None) -> list[tuple[Look, pd.DataFrame]]:
    """The rows of each norm, learning rate and group of settings with their look, in the order of the norms.

    A norm has the same colour and dash in every figure. Several learning rates differ in label and marker, and groups
    of settings also in lightness. `lrs` are those of the figure, by default of the table.
    """
    lrs = lrs_of(table) if lrs is None else lrs
    words = words_of(table)
    result = []
    taken: set[tuple[str, Dash]] = set()
    for norm in sorted(table["norm"].unique(), key=rank):
        colour, dash = colour_and_dash(norm, taken)
        taken.add((colour, dash))
        for row, lr in enumerate(lrs):
            for place, apart in enumerate(words):
                chosen = (table["norm"] == norm) & (table["lr"] == lr)
                rows = table[chosen & (table[APART] == apart)] if APART in table else table[chosen]
                if len(rows):
                    label = ", ".join([norm, *([lr_text(lr)] if len(lrs) > 1 else []), *([apart] if apart else [])])
                    paler = _mixed(colour, background(), _PALEST * place / max(1, len(words) - 1))
                    result.append((Look(label, paler, dash, marker(row + len(lrs) * place)), rows))
    return result


def marker(place: int) -> str:
    """The marker at a place in the order of a figure's learning rates and groups of settings; the first has none."""
    return _MARKERS[place % len(_MARKERS)]


def words_of(table: pd.DataFrame) -> list[str]:
    """What differs between the groups of settings of a table, for each group; one empty text if there is one group."""
    return [str(words) for words in table[APART].cat.categories] if APART in table else [""]


def identity(table: pd.DataFrame) -> list[str]:
    """The columns that identify a run of a table."""
    return ["run", "norm", "lr", *([APART] if APART in table else [])]


def colour_and_dash(norm: str, taken: Collection[tuple[str, Dash]] = ()) -> tuple[str, Dash]:
    """The colour and the dash pattern of a norm: its entry's, otherwise derived from its name.

    A derived pair that is taken gives way to the next free one.

    >>> colour_and_dash("batch"), colour_and_dash("lp:3")
    (('#0072B2', '-'), ('#44AA99', '-'))
    >>> colour_and_dash("lp:3", taken=[("#44AA99", "-")])
    ('#E69F00', (0, (6, 2)))
    """
    entry = norms.find(norm)
    if entry is not None and entry.colour is not None:
        return ink(entry.colour), entry.dash
    pairs = [(ink(colour), dash) for dash in _OTHER_DASHES for colour in _OTHER_COLOURS]
    first = zlib.crc32(norm.encode()) % len(pairs)
    return next((pair for pair in (*pairs[first:], *pairs[:first]) if pair not in taken), pairs[first])


def papers(look: Look) -> Look:
    """The look of the paper's own curve under ours: densely dashed, in a greyer and fainter colour."""
    grey = "#595959" if is_dark() else "#BFBFBF"
    return Look(f"{PAPER}{look.label}", _mixed(look.colour, grey, 0.5), (0, (3, 0.8)), look.marker)


def floors(look: Look) -> Look:
    """The look of what sampling alone changes, under the curve of what changed: dotted, in the same colour."""
    return Look(f"{_FLOOR}{look.label}", look.colour, (0, (1, 1.5)), look.marker)


def ink(colour: str) -> str:
    """A colour that is made for a white background, on the present one: on a dark one, dark colours become light.

    >>> with matplotlib.rc_context({"figure.facecolor": "black"}):
    ...     ink("#000000"), ink("#0072B2"), ink("#CC79A7")
    ('#ffffff', '#4dbfff', '#CC79A7')
    """
    hue, lightness, saturation = colorsys.rgb_to_hls(*to_rgb(colour))
    if not is_dark() or lightness >= 0.5:
        return colour
    return to_hex(colorsys.hls_to_rgb(hue, 1 - lightness, saturation))


def grey() -> str:
    """The colour of remarks inside panels."""
    return ink("#666666")


def background() -> str:
    """The colour behind figures."""
    return str(matplotlib.rcParams["figure.facecolor"])


def is_dark() -> bool:
    """Whether figures have a dark background at present."""
    return colorsys.rgb_to_hls(*to_rgb(background()))[1] < 0.5


def _mixed(colour: str, other: str, share: float) -> str:
    """A colour with a share of another one."""
    if share == 0:
        return colour
    parts = zip(to_rgb(colour), to_rgb(other), strict=True)
    return to_hex(tuple((1 - share) * one + share * two for one, two in parts))  # type: ignore[arg-type]


def scaled(length: float) -> float:
    """A length, such as the width of a line in points, that grows with the size of the text."""
    return length * float(matplotlib.rcParams["font.size"]) / FONT


def rank(label: str) -> tuple[int, int, str, float, str]:
    """The sort key of a label: curves, floors, the paper's; then the norms in their order, the learning rate, the rest.

    >>> sorted(["batch, lr 0.5", "batch, lr 0.1, width 0.5", "none"], key=rank)
    ['none', 'batch, lr 0.1, width 0.5', 'batch, lr 0.5']
    """
    prefix = next((prefix for prefix in (_FLOOR, PAPER) if label.startswith(prefix)), "")
    norm, _, rest = label.removeprefix(prefix).partition(", ")
    lr = re.match(r"lr ([^,]+)", rest)
    entry = norms.find(norm)
    place = norms.NORMS.index(entry) if entry is not None and entry.colour is not None else len(norms.NORMS)
    return ("", _FLOOR, PAPER).index(prefix), place, norm, float(lr[1]) if lr else 0.0, rest


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


def count_text(part: int, whole: int) -> str:
    """How many of several runs a mark stands for; empty for one run.

    >>> count_text(2, 5), count_text(1, 1)
    ('2 of 5', '')
    """
    return f"{part} of {whole}" if whole > 1 else ""


@functools.lru_cache(maxsize=4096)
def text_width(text: str, points: float, weight: str = "normal") -> float:
    """The width of a line of text in inches, at a size in points."""
    font = FontProperties(family=matplotlib.rcParams["font.family"], size=points, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / 72


def wrapped(text: str, inches: float, points: float, weight: str = "normal") -> str:
    """A text in lines that fit into a width. A learning rate stays in one line; a longer word is broken.

    >>> wrapped("Lipschitz constant of the loss on the line", 1.5, 8.5)
    'Lipschitz constant of the\\nloss on the line'
    >>> wrapped("vgg-none-lr0.1-width0.25", 1.0, 8.5)
    'vgg-none-lr0.1-\\nwidth0.25'
    """
    lines: list[str] = []
    for part in text.split("\n"):
        lines.append("")
        for word in re.findall(r"lr [^ ]+|[^ ]+", part):
            longer = f"{lines[-1]} {word}" if lines[-1] else word
            if text_width(longer, points, weight) <= inches:
                lines[-1] = longer
                continue
            pieces = _broken(word, inches, points, weight)
            lines += pieces if lines[-1] else []
            lines[-1:] = lines[-1:] if lines[-1] else pieces
    return "\n".join(lines)


def _broken(word: str, inches: float, points: float, weight: str) -> list[str]:
    """A word in pieces that fit into a width, after hyphens if there are some."""
    pieces = [""]
    for letter in word:
        if text_width(pieces[-1] + letter, points, weight) > inches and pieces[-1]:
            head, hyphen, tail = pieces[-1].rpartition("-")
            pieces[-1:] = [head + hyphen, tail] if hyphen else [pieces[-1], ""]
        pieces[-1] += letter
    return pieces


def small() -> float:
    """The size in points of remarks inside panels."""
    return 0.85 * points_of("font.size")


def points_of(name: Any) -> float:
    """The size in points of a kind of text, such as "axes.titlesize"."""
    return float(matplotlib.rcParams[name])
