"""The form of figures: sizes and styles in which nothing is cut or overlaps, text that stays text, and notebooks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_tables import (
    ROWS,
    activations,
    compared,
    dln_training,
    landscape,
    make,
    smoothness,
    surface_line,
    theory,
    vgg_training,
)
from helpers import legend
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

import bnsmooth_cli as bns
from bnsmooth_cli import kinds
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.figures import render
from bnsmooth_cli.figures.format import Format, Picture

Cli = Callable[[str], tuple[int, str, str]]
#: Every figure: a kind of table and the name of its figure.
FIGURES = [(kind.name, drawing.name) for kind in kinds.KINDS for drawing in kind.figures]


def drawn_texts(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[float, ...], str]:
    """The texts that a reader sees by their boxes in pixels; those beside three-dimensional axes are left out."""
    seen: dict[
        Text, tuple[tuple[float, ...], str]
    ] = {}  # a text may be drawn several times until the layout is settled
    draw = Text.draw

    def record(self: Text, renderer: Any, *more: Any, **named: Any) -> None:
        draw(self, renderer, *more, **named)
        if self.get_visible() and self.get_text().strip() and getattr(self.axes, "name", "") != "3d":
            seen[self] = tuple(map(float, self.get_window_extent(renderer).extents)), self.get_text()

    monkeypatch.setattr(Text, "draw", record)
    figure.savefig(BytesIO(), format="png")
    monkeypatch.undo()
    return dict(seen.values())


def assert_readable(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that every text is inside the figure, and that no two texts overlap by more than their margins."""
    width, height = figure.bbox.extents[2:]
    texts = drawn_texts(figure, monkeypatch)
    slack = 0.02 * figure.dpi
    for (x0, y0, x1, y1), text in texts.items():
        assert -slack <= x0 < x1 <= width + slack, f"{text!r} is cut at the side"
        assert -slack <= y0 < y1 <= height + slack, f"{text!r} is cut above or below"
    for (one, a), (two, b) in itertools.combinations(texts.items(), 2):
        across, along = (min(one[end + 2], two[end + 2]) - max(one[end], two[end]) for end in (0, 1))
        assert across <= slack or along <= slack, f"{a!r} and {b!r} overlap"


def table_of(kind: str, figure: str) -> pd.DataFrame:
    problem = "dln" if kind == "ics" else "vgg"
    table = make(ROWS[kind], problem, norms=("none", "batch", "l1"), seeds=(0, 1))
    if figure == "moments":
        steps = table.groupby(["run", "layer", "unit"]).cumcount()
        table = table.assign(**dict.fromkeys(("mean_change", "var_change", "mean_drift", "var_drift"), 1.0 + steps))
    return table


@pytest.mark.parametrize(
    "form",
    [
        Format(size="column", dpi=60),
        pytest.param(Format(size="page", dpi=60), marks=pytest.mark.slow),
        pytest.param(Format(style="talk", dpi=60), marks=pytest.mark.slow),
        pytest.param(Format(size="slide", style="dark", dpi=60), marks=pytest.mark.slow),
    ],
    ids=["column", "page", "talk", "dark slide"],
)
@pytest.mark.parametrize(("kind", "figure"), FIGURES)
@pytest.mark.fast(2)
def test_nothing_is_cut_or_overlaps(kind: str, figure: str, form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = render(kind, table_of(kind, figure), figure=figure, form=form)
    assert_readable(drawn, monkeypatch)
    assert form.inches is None or drawn.get_figwidth() == form.inches


def test_a_long_title_and_a_long_legend_fit_into_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = ("none", "batch", "layer", "group:4", "instance", "noisy-batch", "my_module:MyNormWithALongName")
    table = make(smoothness, norms=norms, lrs=(0.1, 0.5))
    figure = render("smoothness", table, form=Format(size="column", dpi=60, title="A title of many words, " * 5))
    assert_readable(figure, monkeypatch)
    assert len(legend(figure)) == 14


def test_a_width_replaces_that_of_the_size_and_a_height_that_of_the_panels() -> None:
    table = make(smoothness)
    assert render("smoothness", table, form=Format(size="column", width=5)).get_figwidth() == 5
    figure = bns.plot(table, width=5, height=4, dpi=77)
    assert (*figure.get_size_inches(), figure.dpi) == (5, 4, 77)


def test_panels_continue_in_the_next_row_of_a_narrow_figure() -> None:
    def rows(form: Format) -> list[int]:
        figure = render("smoothness", make(smoothness), form=form)
        figure.draw_without_rendering()
        places = [round(axes.get_position().y0, 3) for axes in figure.axes]
        return [places.count(place) for place in sorted(set(places), reverse=True)]

    assert rows(Format()) == [2, 2]
    assert rows(Format(size="column")) == [1, 1, 1, 1]


def test_a_narrow_figure_has_the_text_of_a_paper_and_a_talk_has_larger_text_and_lines() -> None:
    table = make(smoothness, norms=("batch",))

    def sizes(form: Format) -> tuple[float, float]:
        axes = render("smoothness", table, form=form).axes[0]
        return axes.title.get_fontsize(), axes.lines[0].get_linewidth()

    usual, column, talk = (sizes(form) for form in (Format(), Format(size="column"), Format(style="talk")))
    assert 6 < column[0] < usual[0] < talk[0]
    assert column[1] < usual[1] < talk[1]


def contrast(one: str, two: str) -> float:
    """The contrast of two colours by WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_norm_and_text_stands_out_from_a_dark_background() -> None:
    from bnsmooth_cli import norms

    table = make(landscape, norms=[*norms.examples(), "my:Norm"])
    figure = render("landscape", table, form=Format(style="dark"))
    background = to_hex(figure.get_facecolor())
    colours = {to_hex(line.get_color()) for axes in figure.axes for line in axes.lines}
    texts = {to_hex(text.get_color()) for text in figure.findobj(Text) if text.get_text()}
    assert len(colours) >= 12
    assert min(contrast(colour, background) for colour in colours) > 3
    assert min(contrast(colour, background) for colour in texts) > 4.5


def test_text_stays_text_in_svg_and_pdf_however_the_figure_is_saved(tmp_path: Path) -> None:
    figure = bns.plot(make(vgg_training), title="Training curves")
    figure.savefig(tmp_path / "f.svg")
    svg = (tmp_path / "f.svg").read_text()
    assert re.search(r"<text [^>]*>Training curves</text>", svg)
    assert "<dc:date>" not in svg
    figure.savefig(tmp_path / "f.pdf")
    pdf = (tmp_path / "f.pdf").read_bytes()
    assert b"/FontFile2" in pdf  # TrueType: editors change the text
    assert b"CreationDate" not in pdf


def test_a_figure_shows_itself_in_a_notebook_without_pyplot() -> None:
    figure = bns.plot(make(vgg_training), width=4, dpi=50)
    assert isinstance(figure, Picture)
    png, about = figure._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") == 4 * 50
    assert about["width"] == 4 * 96  # its size in inches, at any resolution


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--width 0", "--width 0: give inches from 2 to 40"),
        ("--width nan", "--width nan: give inches from 2 to 40"),
        ("--height 1", "--height 1: these panels take at least"),
        ("--dpi 9", "--dpi 9: give pixels per inch from 20 to 2400"),
        ("--dpi 2400 --width 40", "--dpi 2400: a figure of 40 by"),
        ("--title '$\\frac$'", "--title $\\frac$: its formula cannot be read; write \\$ for a dollar sign"),
        ("--style drak", "unknown style of figures 'drak': did you mean 'dark'?"),
        ("--size colunm", "unknown size of a figure 'colunm': did you mean 'column'?"),
        ("--layers 1", "--layers: train tables have no layers; those that have them: "),
        ("--units 1", "--units: train tables have no units; those that have them: activations, theory"),
        ("--steps 500-900", "--steps 500-900: the train table has no such step, but steps 0 to 199"),
        ("--steps 9-3", "--steps 9-3: give the first and the last step, as in 0-100"),
        ("--steps x", "--steps x: give the first and the last step, as in 0-100"),
    ],
)
def test_a_form_or_rows_that_cannot_be_drawn_are_refused_in_one_line(
    options: str, said: str, cli: Cli, tmp_path: Path
) -> None:
    bns.save_table(make(dln_training, "dln"), tmp_path / "t.parquet")
    status, out, complaint = cli(f"plot t.parquet {options} -o f.png")
    assert (status, out, complaint.count("\n")) == (2, "", 1)
    assert said in complaint
    assert not (tmp_path / "f.png").exists()


def test_every_option_of_the_form_works_on_the_command_line(cli: Cli, tmp_path: Path) -> None:
    bns.save_table(make(vgg_training), tmp_path / "t.parquet")
    options = "--size page --width 5 --height 3 --dpi 40 --style dark --steps 0-100 --title 'Two words'"
    assert cli(f"plot t.parquet {options} -o f.png")[:2] == (0, "f.png\n")
    png = (tmp_path / "f.png").read_bytes()
    assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == (200, 120)


def test_a_figure_is_replaced_only_by_force_unless_it_is_the_same(cli: Cli, tmp_path: Path) -> None:
    bns.save_table(make(vgg_training), tmp_path / "t.parquet")
    assert cli("plot t.parquet -o f.png")[0] == 0
    first = (tmp_path / "f.png").read_bytes()
    assert cli("plot t.parquet -o f.png")[:2] == (0, "f.png\n")  # as a measuring command keeps its own table
    status, out, complaint = cli("plot t.parquet --style dark -o f.png")
    assert (status, out) == (2, "")
    assert complaint.endswith("f.png: already exists and differs; replace it with --force, or give -o another name\n")
    assert (tmp_path / "f.png").read_bytes() == first
    assert cli("plot t.parquet --style dark -o f.png --force")[0] == 0
    assert (tmp_path / "f.png").read_bytes() != first


def test_names_with_dollar_signs_are_names_and_formulas_in_titles_are_formulas() -> None:
    settings = '{"data": "a$b$", "steps": 9}', '{"data": "$\\\\frac$", "steps": 9}'
    table = pd.concat([make(compared, norms=("batch",)).assign(settings=text) for text in settings])
    for kind, rows in (("compare", table), ("smoothness", make(smoothness, norms=("batch",)).assign(settings="{}"))):
        figure = render(kind, rows, form=Format(title=r"$\eta$ is 0.1"))
        figure.savefig(BytesIO(), format="png", dpi=40)
    assert figure.subfigs[0].get_suptitle() == r"$\eta$ is 0.1"


def test_a_title_replaces_the_one_of_the_rows_or_removes_it() -> None:
    table = make(vgg_training)
    assert bns.plot(table).subfigs[0].get_suptitle() == "vgg, lr 0.1"
    assert bns.plot(table, title="Mine").subfigs[0].get_suptitle() == "Mine"
    assert bns.plot(table, title="").subfigs[0].get_suptitle() == ""
    both = pd.concat([table, make(dln_training, "dln")])
    assert [part.get_suptitle() for part in bns.plot(both, title="Mine").subfigs] == ["Mine, vgg", "Mine, dln"]


@pytest.mark.parametrize(("rows", "kind"), [(theory, "theory"), (activations, "activations")])
def test_panels_of_one_quantity_in_a_row_have_one_scale_and_one_label(rows: Any, kind: str) -> None:
    figure = render(kind, make(rows, norms=("none", "batch")))
    label = "σ² before the norm" if kind == "activations" else "theorem 4.1, gradient\nleft side"
    (first,) = (place for place, axes in enumerate(figure.axes) if axes.get_ylabel() == label)
    row = figure.axes[first : first + 3]
    assert len({(axes.get_ylim(), axes.get_yscale()) for axes in row}) == 1
    assert [axes.get_ylabel() for axes in row[1:]] == ["", ""]


def test_training_and_test_accuracy_have_one_scale() -> None:
    training, test = render("train", make(vgg_training)).axes
    assert training.get_ylim() == test.get_ylim()


def test_few_points_are_marked_and_many_are_not() -> None:
    few = make(lambda r, n: smoothness(r, n).head(12), norms=("none", "batch"))
    assert {line.get_marker() for line in render("smoothness", few).axes[1].lines} == {"o"}
    many = make(smoothness, norms=("none", "batch"))
    assert {line.get_marker() for line in render("smoothness", many).axes[1].lines} <= {"", "None"}


def test_two_learning_rates_with_few_points_have_different_marks() -> None:
    few = make(lambda r, n: smoothness(r, n).head(12), norms=("batch",), lrs=(0.1, 0.5))
    assert {line.get_marker() for line in render("smoothness", few).axes[1].lines} == {"o", "s"}


def test_bands_show_where_points_lie_or_how_many_there_are() -> None:
    axes = render("landscape", make(landscape, norms=("batch",))).axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "."]
    assert [list(line.get_xdata()) for line in dots] == [list(range(0, 310, 10))] * 2
    assert axes.get_xlabel() == "training step"
    many = render("landscape", make(lambda r, n: landscape(r, n, range(100)), norms=("batch",))).axes[0]
    assert {line.get_marker() for line in many.lines} == {""}
    assert many.get_xlabel() == "training step (100 measured)"


def test_names_of_rows_and_counts_beside_them_fit_into_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    table = make(compared, norms=("none", "my_module:MyNormWithALongName"), seeds=range(5))
    table.loc[table["seed"] > 2, ["steps_to_accuracy", "final_test_accuracy"]] = np.nan
    table.loc[table["seed"] > 2, "diverged_at"] = 7.0
    figure = render("compare", table, form=Format(size="column", dpi=60))
    assert_readable(figure, monkeypatch)
    assert "2 of 5" in [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_line_of_a_surface_fits_into_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_readable(render("surface", make(surface_line), form=Format(size="column", dpi=60)), monkeypatch)


@pytest.mark.parametrize("title", ["a\x1b[31mb", "\0", "\u202eabc", "\udcff", "$" + "{" * 500 + "}" * 500 + "$"])
def test_a_title_that_cannot_be_drawn_is_refused(title):
    with pytest.raises(InputError, match="--title"):
        Format(title=title)
    assert Format(title="two lines\nwith\xa0a space, $x^2$ and \u65e5").title
