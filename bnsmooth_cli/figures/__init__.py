"""Figures of tables, as matplotlib Figures. Imports neither torch nor pyplot, so no global state is kept."""

from __future__ import annotations

import inspect
import io
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from xml.parsers.expat import ExpatError, ParserCreate

import matplotlib
import numpy as np
import pandas as pd

from bnsmooth_cli import kinds
from bnsmooth_cli.config import resolve
from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.figures import rows, style
from bnsmooth_cli.figures.format import DPI as DPI
from bnsmooth_cli.figures.format import METADATA, Format, Picture
from bnsmooth_cli.figures.page import page
from bnsmooth_cli.figures.rows import Selection
from bnsmooth_cli.identity import differing, read_settings
from bnsmooth_cli.paper.matching import curves, distances, select
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.files import atomic

#: The largest number of values of a column that fits in a figure.
MAX_SHOWN: Final = {"problem": 12, "norm": 40, "lr": 40}
_MAX_LAYERS: Final = 12  # that the user selects
#: Larger numbers are drawn as overflows, because matplotlib squares numbers internally.
_MAX_DRAWN: Final = 1e200


def render(
    kind: str,
    table: pd.DataFrame,
    training: pd.DataFrame | None = None,
    figure: str | None = None,
    paper: str | None = None,
    form: Format | None = None,
    selection: Selection | None = None,
) -> Picture:
    """The figure of a table. Problems are drawn below each other.

    Runs with different settings are drawn apart, with what differs in the legend. Equal tables give equal files.

    Args:
        kind: The kind of table.
        table: The rows of one table, or of several of the kind concatenated.
        training: For "ics", the train tables of the same runs; their training curves become the first panel (figure 3).
        figure: The figure of the kind by its name in `kinds`; by default the one that corresponds to `paper`, otherwise
            the first one.
        paper: Figures of the paper whose curves are drawn under those of the table, up to the problem's last step
            there, as "4a" or "4a,4b"; "4" stands for all parts of figure 4 that this kind of table shows. Only runs
            that the table has are drawn.
        form: The size, title and style of the figure.
        selection: The layers, units and steps that are drawn.

    Raises:
        InputError: If the kind is unknown or has no such figure; if the table has no rows, lacks the selected ones, or
            has too many norms or settings, or two tables that disagree; if the paper has no such figure, or its figure
            shows none of the table's runs; or if the panels do not fit into the height.
    """
    form, selection = form or Format(), selection or Selection()
    drawing = kinds.drawing(kind, figure)
    if table.empty:
        raise InputError(f"no rows to plot in the {kind} table")
    for column, most in MAX_SHOWN.items():
        if (count := table[column].nunique()) > most:
            raise InputError(f"a figure shows at most {most} of '{column}'; these are {count}")
    table = _finite(selection.of(kind, table))
    training = None if training is None or kind != "ics" else _finite(selection.of_steps("train", training))
    if "layers" in (selected := selection.names()) and (count := table["layer"].nunique()) > _MAX_LAYERS:
        raise InputError(f"--layers: a figure shows at most {_MAX_LAYERS} layers; these are {count}")
    theirs: pd.DataFrame | None = None
    if paper is not None:
        shown = _by_kind(kind, table, training)
        chosen = select(paper, kind, shown, figure)
        theirs = _as_far(curves(chosen, shown), shown)
        _remark_other_settings(theirs, table)
        drawing = next((kinds.drawing(kind, entry.drawing) for entry in chosen if entry.table == kind), drawing)
    with matplotlib.rc_context(form.rc()):
        panels = pkgutil.resolve_name(f"{__name__}.{drawing.panels}")
        chooses = {"selected": selected} if "selected" in inspect.signature(panels).parameters else {}
        blocks = []
        for _, part in table.groupby("problem", sort=False):
            ready, more = _prepared(kind, part, training, theirs)
            blocks.append((_title(form.title, ready, table), panels(ready, **chooses, **more)))
        return page(blocks, form)


def _prepared(
    kind: str, part: pd.DataFrame, training: pd.DataFrame | None, theirs: pd.DataFrame | None
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The rows of one problem, and what is drawn beside them: `training` and `paper`, as far as there are such rows."""
    problem = part["problem"].iloc[0]
    beside = None if training is None else training[training["problem"] == problem]
    ready, more = rows.prepare(kind, part, beside), {}
    if beside is not None and len(beside):
        more["training"] = rows.of_the_same_runs(rows.prepare("train", beside, part), ready)
        if more["training"].empty:
            raise InputError(
                f"the train tables have none of the runs of the ics tables ({rows.title(ready)}); leave them out, or "
                "measure ics again if the runs have got more steps since then"
            )
    if theirs is not None and len(of_problem := theirs[theirs["problem"] == problem]):
        if len(words := style.words_of(ready)) > 1:
            raise InputError(f"--paper: the runs have different settings ({'; '.join(words)}); plot those of one")
        more["paper"] = of_problem
    return ready, more


def _title(wanted: str | None, ready: pd.DataFrame, table: pd.DataFrame) -> str:
    """The title of a problem's panels; of the user's title, its name is a part if there are several problems."""
    if wanted is None:
        return rows.title(ready)
    return f"{wanted}, {ready['problem'].iloc[0]}" if wanted and table["problem"].nunique() > 1 else wanted


def _finite(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with numbers that matplotlib cannot draw as infinity."""
    numbers = table.select_dtypes("float")
    return table.assign(
        **{str(name): column.where(column.abs() < _MAX_DRAWN, column * np.inf) for name, column in numbers.items()}
    )


def _as_far(theirs: pd.DataFrame, shown: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The paper's curves over the drawn steps. Beside the paper's whole curve, a short run would be a sliver."""
    steps = pd.concat([table[["problem", "step"]] for table in shown.values()]).groupby("problem")["step"]
    first, last = theirs["problem"].map(steps.min()), theirs["problem"].map(steps.max())
    return theirs[theirs["step"].between(first, last)]


def _remark_other_settings(theirs: pd.DataFrame, table: pd.DataFrame) -> None:
    """Remark what the table's runs have in place of the preset `paper`; of images, only the name is compared."""
    for problem in theirs["problem"].unique() if "settings" in table else ():
        texts = table.loc[table["problem"] == problem, "settings"].dropna()
        text = "" if texts.empty else str(texts.iloc[0])
        images = read_settings(problem, text).get("data_digest")
        preset = resolve(problem, "paper").changed(data_digest=images).settings_text
        words = differing(problem, [text, preset])
        if text and words[text]:
            said = f"these runs of {problem} have {words[text]} where the preset paper has {words[preset]}"
            remark(f"{said}; the paper's curves are compared with other settings")


def _by_kind(kind: str, table: pd.DataFrame, training: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    """The tables that are drawn: the training curves only of the runs in the ics table."""
    if training is None or kind != "ics":
        return {kind: table}
    return {kind: table, "train": training[training["run"].isin(table["run"])]}


def plot(
    table: pd.DataFrame,
    training: pd.DataFrame | None = None,
    *,
    figure: str | None = None,
    paper: str | None = None,
    layers: Sequence[str | int] | None = None,
    units: Sequence[int] | None = None,
    steps: tuple[int, int] | None = None,
    size: str | None = None,
    width: float | None = None,
    height: float | None = None,
    dpi: int | None = None,
    title: str | None = None,
    style: str = "paper",
) -> Picture:
    """Draw the rows of a table of any kind.

    Args:
        table: Rows from a measurement, `read_table` or `compare`, or several such results concatenated.
        training: For rows of ICS, the train rows of the same runs, whose curves become the first panel (figure 3).
        figure: The figure's name, for kinds with several figures: "bands" or "steps" for a landscape.
        paper: Figures of the paper whose curves are drawn under those of the table, as "4a,4b"; "4" stands for all
            parts of figure 4 that this kind of table shows.
        layers: The layers to draw, by name or number, for kinds with layers.
        units: The units to draw, by number, for kinds with units.
        steps: The first and the last step to draw.
        size: "column" (3.25 inches wide), "page" (6.75) or "slide" (10).
        width: The width in inches, instead of the size's.
        height: The height in inches; by default what the panels take.
        dpi: Pixels per inch.
        title: The title, instead of the one made from the rows; empty for none.
        style: "paper", "talk" or "dark".

    Returns:
        A matplotlib Figure, which shows itself in a notebook. Its `savefig` keeps text as text in SVG and PDF.

    Raises:
        InputError: If no kind of table has these columns, or it cannot be drawn, alone or with the paper's curves, in
            this size or with this selection.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     figure = bns.plot(bns.landscape(bns.load_point(run)), size="column")
    >>> len(figure.axes), float(figure.get_figwidth())
    (2, 3.25)
    """
    form = Format(size=size, width=width, height=height, dpi=dpi, title=title, style=style)
    selection = Selection(layers=layers, units=units, steps=steps)
    return render(tables.kind_of(table), table, training, figure, paper, form, selection)


def plot_tables(
    sources: Sequence[Path],
    output: Path,
    figure: str | None = None,
    paper: str | None = None,
    form: Format | None = None,
    selection: Selection | None = None,
    force: bool = False,
) -> pd.DataFrame:
    """Draw tables into a PNG, SVG or PDF.

    Args:
        sources: Tables of one kind; with ics tables also train tables, whose curves become the first panel.
        output: The file of the figure.
        figure, paper, form, selection: As in `render`.
        force: Whether to replace another file. A file that is this very figure is no other one.

    Returns:
        The distances from the paper's curves, as `paper.matching.distances` returns them; no rows without `paper`.

    Raises:
        InputError: If the tables are of several kinds, one cannot be read or is empty, the suffix is not supported,
            `output` is another file, or `render` refuses.
    """
    suffix = output.suffix.lower()[1:]
    if suffix not in METADATA:
        raise InputError(f"-o {output}: the suffix of the figure has to be one of .{', .'.join(METADATA)}")
    selection = selection or Selection()
    frames = [tables.read_table(path) for path in sources]
    names = [frame.attrs["bnsmooth"]["kind"] for frame in frames]
    kind = "ics" if set(names) == {"ics", "train"} else names[0]
    for path, name, frame in zip(sources, names, frames, strict=True):
        if frame.empty:
            raise InputError(f"{path}: no rows to plot")
        if name != kind and (kind, name) != ("ics", "train"):
            raise InputError(f"{path}: of kind {name} among tables of kind {kind}; plot one kind at a time")
    table = pd.concat([frame for frame, name in zip(frames, names, strict=True) if name == kind])
    rest = [frame for frame, name in zip(frames, names, strict=True) if name != kind]
    training = pd.concat(rest) if rest else None
    try:
        drawn = render(kind, table, training, figure, paper, form, selection)
    except InputError as error:
        raise InputError(f"{sources[0]}{' and others' * (len(sources) > 1)}: {error}") from error
    stream = io.BytesIO()
    drawn.savefig(stream, format=suffix)
    if suffix == "svg":
        _check_xml(stream.getvalue(), sources)
    _write(output, stream.getvalue(), force)
    shown = _by_kind(
        kind, selection.of(kind, table), None if training is None else selection.of_steps("train", training)
    )
    return distances([] if paper is None else select(paper, kind, shown, figure), shown)


def _check_xml(content: bytes, sources: Sequence[Path]) -> None:
    try:
        ParserCreate().Parse(content, True)
    except ExpatError as error:
        raise InputError(
            f"{sources[0]}{' and others' * (len(sources) > 1)}: the name of a norm or a setting has characters that no "
            "SVG can hold; draw a PNG"
        ) from error


def _write(output: Path, content: bytes, force: bool) -> None:
    if output.is_file() and not force:
        if output.read_bytes() == content:
            return
        raise InputError(f"{output}: already exists and differs; replace it with --force, or give -o another name")
    with atomic(output) as temporary:
        temporary.write_bytes(content)
