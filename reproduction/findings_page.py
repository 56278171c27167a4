"""Write docs/findings.md and its figures from the gathered tables: `python -m reproduction findings`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import jinja2
import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bnsmooth_cli.figures import style
from bnsmooth_cli.figures.panels import Curves, Panel, Series, page, series
from bnsmooth_cli.report import number
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.files import atomic
from bnsmooth_cli.studies.statistics import Interval
from reproduction import findings, saturation
from reproduction.saturation import paper_lr
from reproduction.scales import PLAIN

_TITLES: Final = {"vgg": "VGG, a quarter of its widths", "dln": "the deep linear network"}
_SMOOTHED: Final = 10  # measured steps of which the figure of the edge shows the mean
_GUIDES: Final = ("#A6192E", "#444444")


@dataclass(frozen=True, eq=False)
class LogLog(Curves):
    """Curves on logarithmic axes; `falling` puts large values of x on the left, as losses fall in training."""

    falling: bool = False

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        entries = super().draw(axes)
        axes.set_xscale("log")
        if self.falling:
            axes.invert_xaxis()
        return entries


class Findings:
    """The contents of the page: its tables in Markdown, its numbers, and its figures.

    Args:
        folder: The folder of the reproduction, with `tables/`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tables"

    def has(self, *names: str) -> bool:
        """Whether these tables are there."""
        return all((self._folder / f"{name}.parquet").is_file() for name in names)

    @functools.cache  # noqa: B019 - lives as long as the page is written
    def read(self, name: str) -> pd.DataFrame:
        """The rows of a gathered table."""
        rows = tables.read_table(self._folder / f"{name}.parquet")
        rows.attrs = {}
        return rows

    def figures(self) -> dict[str, Callable[[], Figure]]:
        """The figures whose tables are there, by name."""
        wanted: dict[str, tuple[Callable[[], Figure], tuple[str, ...]]] = {
            "beta": (self._draw_beta, ("saturation-vgg", "saturation-dln")),
            "edge": (self._draw_edge, ("vgg.smoothness", "dln.smoothness")),
            "equal-loss": (self._draw_equal_loss, ("vgg.smoothness", "vgg.train")),
            "noise": (self._draw_noise, ("vgg-noise.train", "vgg-noise-11.train")),
            "width": (self._draw_width, ("vgg.smoothness", "vgg-full.smoothness")),
        }
        return {name: draw for name, (draw, needed) in wanted.items() if self.has(*needed)}

    # What sets beta

    def beta(self) -> str:
        """The experiment on effective beta."""
        rows = [row for name, beside in (("saturation-vgg", "vgg.smoothness"), ("saturation-dln", "dln.smoothness"))
                for row in saturation.rows(self.read(name), self.read(beside))]  # fmt: skip
        return table(saturation.HEADINGS, rows)

    def _draw_beta(self) -> Figure:
        panels: list[Panel] = []
        for problem, title in _TITLES.items():
            line = self.read(f"saturation-{problem}").query("alpha > 0")
            line = line[line["step"] > saturation.EARLY * line["step"].max()]
            ratio = line.assign(ratio=line["grad_distance"] / line["distance"] * line["lr"])
            medians = ratio.groupby(["norm", "lr", "seed", "run", "alpha"], as_index=False)["ratio"].median()
            alphas = pd.Index(sorted(medians["alpha"].unique()), name="alpha").to_series()
            guides = [_guide("gradient lost: lr / η", 1 / alphas, 0), _guide("edge of stability: 2", 0 * alphas + 2, 1)]
            low, high = medians["ratio"].min() / 1.5, 2 * medians["ratio"].max()
            guides = [replace(one, values=one.values[one.values.ge(low) & one.values.le(high)]) for one in guides]
            scale = style.Scale("log", low, high)
            ylabel = "" if panels else "lr ‖g(θ) − g(θ − ηg)‖ / ‖ηg‖"
            panels.append(LogLog(title, ylabel, series(medians, "ratio", "alpha"), guides, scale=scale))
        return page([("change of the gradient per distance, after the first tenth of the run", [panels])])

    # The edge of stochastic stability

    def edge(self) -> str:
        """Batch sharpness and sharpness of every study that has measured them."""
        rows = []
        for name in ("vgg", "vgg-full", "dln", "dln-slow", "dln-fresh"):
            if not self.has(f"{name}.smoothness"):
                continue
            found = findings.edge(self.read(f"{name}.smoothness"))
            for _, runs in style.groups(found):
                values = findings.described(runs["batch_sharpness"])
                rows.append([f"`{name}`", f"`{runs['norm'].iloc[0]}`", number(float(runs["lr"].iloc[0])),
                             str(len(runs)), _spread(*values), _spread(*findings.described(runs["sharpness"])),
                             findings.at_the_edge(values[1], len(runs))])  # fmt: skip
        return table(("study", "norm", "lr", "seeds", "batch sharpness × lr", "sharpness × lr", "verdict"), rows)

    def _draw_edge(self) -> Figure:
        blocks: list[tuple[str, list[list[Panel]]]] = []
        for problem, title in _TITLES.items():
            rows = self.read(f"{problem}.smoothness")
            rows = rows[rows["norm"].isin(PLAIN)].sort_values("step")
            rows = rows.assign(curvature=rows["curvature"] * rows["lr"], sharpness=rows["sharpness"].abs() * rows["lr"])
            mean = rows.groupby("run")["curvature"].transform(lambda of_run: of_run.rolling(_SMOOTHED).mean())
            steps = pd.Index(sorted(rows["step"].unique()), name="step").to_series()
            guides = [_guide("2", 2 + 0 * steps, 0)]
            panels: list[Panel] = [
                Curves(f"batch sharpness, mean of {_SMOOTHED} measured steps", "lr gᵀHg / gᵀg",
                       series(rows.assign(curvature=mean), "curvature"), guides),
                Curves("sharpness", "lr |λ|, largest of the Hessian", series(rows, "sharpness"), guides),
            ]  # fmt: skip
            blocks.append((title, [panels]))
        return page(blocks)

    # Equal loss

    def equal_loss(self) -> str:
        """BatchNorm's landscape over the plain network's, at equal steps and at equal loss."""
        rows = []
        for name in ("vgg", "dln", "dln-slow"):
            if not self.has(f"{name}.smoothness", f"{name}.train"):
                continue
            found = findings.with_loss(self.read(f"{name}.smoothness"), self.read(f"{name}.train"))
            for lr in style.lrs_of(found):
                at_lr = found[found["lr"] == lr]
                step, loss = (at(at_lr, "batch", "none") for at in (findings.at_equal_step, findings.at_equal_loss))
                for metric, words in findings.METRICS.items():
                    values = findings.described(loss[metric])
                    seeds = int(loss[metric].notna().sum())
                    rows.append([f"`{name}`", number(lr), words, str(seeds), _spread(*findings.described(step[metric])),
                                 _spread(*values), findings.smoother(values[1], seeds)])  # fmt: skip
        headings = (
            "study",
            "lr",
            "metric, batch / none",
            "seeds",
            "at equal steps",
            "at equal loss",
            "at equal loss it is",
        )
        return table(headings, rows)

    def _draw_equal_loss(self) -> Figure:
        found = findings.with_loss(self.read("vgg.smoothness"), self.read("vgg.train"))
        found = findings.binned(found[found["norm"].isin(PLAIN) & (found["lr"] == paper_lr("vgg"))])
        panels: list[Panel] = [
            LogLog(words, "", series(found, metric, "data_loss"), falling=True)
            for metric, words in findings.METRICS.items()
        ]
        return page([(f"{_TITLES['vgg']}, lr {paper_lr('vgg'):g}", [panels[:3], panels[3:]])])

    # Noise

    def noise(self) -> str:
        """The test accuracies with parts of the noise."""
        rows = []
        for name, depth in (("vgg-noise", 16), ("vgg-noise-11", 11)):
            runs = self.read(name)
            for look, of_norm in style.groups(_named(runs)):
                accuracies = of_norm["final_test_accuracy"]
                values = findings.described(accuracies)
                rows.append([look.label, str(depth), str(len(of_norm)), _spread(*values, text=_percent),
                             findings.trains(accuracies, float(of_norm["baseline_accuracy"].iloc[0]))])  # fmt: skip
        return table(("noise", "depth", "seeds", "last test accuracy", "verdict"), rows)

    def _draw_noise(self) -> Figure:
        panels: list[Panel] = []
        for name, depth in (("vgg-noise", 16), ("vgg-noise-11", 11)):
            rows = _named(self.read(f"{name}.train"))
            rows = rows.assign(test_accuracy=100 * rows["test_accuracy"]).dropna(subset=["test_accuracy"])
            panels.append(Curves(f"VGG-{depth}", "test accuracy (%)", series(rows, "test_accuracy")))
        return page([(_TITLES["vgg"], [panels])])

    # Width

    def width(self) -> str:
        """The landscapes of both widths at the same steps."""
        narrow, wide = self._both_widths()
        rows = []
        for norm, metric, first, second in findings.widths(narrow, wide):
            agree = "agree" if max(first, second) < findings.ALIKE * min(first, second) else "differ"
            rows.append([f"`{norm}`", findings.METRICS[metric], number(first), number(second), number(second / first),
                         agree])  # fmt: skip
        return table(("norm", "metric", "a quarter", "full width", "full / a quarter", "they"), rows)

    def _both_widths(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        wide = self.read("vgg-full.smoothness")
        narrow = self.read("vgg.smoothness")
        return narrow[(narrow["lr"] == paper_lr("vgg")) & narrow["norm"].isin(PLAIN)], wide

    def _draw_width(self) -> Figure:
        narrow, wide = self._both_widths()
        last = wide["step"].max()
        panels: list[Panel] = []
        for metric in ("loss_range", "predictiveness", "sharpness"):
            curves = series(findings.of_line(wide), metric)
            theirs = [Series(replace(style.papers(one.look), label=f"a quarter: {one.look.label}"),
                             one.values.median(axis=1).to_frame())
                      for one in series(findings.of_line(narrow[narrow["step"] <= last]), metric)]  # fmt: skip
            panels.append(Curves(findings.METRICS[metric], "", curves, theirs))
        return page([("VGG at full width, and a quarter of it (thin)", [panels])])


def _guide(label: str, values: pd.Series[float], place: int) -> Series:
    """A line to compare with, over the index of its values."""
    look = style.Look(label, _GUIDES[place], (0, (1, 1.5)), "")
    return Series(look, values.to_frame())


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose norms are called by the part of the noise that they add."""
    words = {"none": "none", "noisy-none": "noisy-none"}
    return rows.assign(norm=[words.get(norm, str(norm).rpartition(":")[2]) for norm in rows["norm"]])


def _spread(middle: float, of: Interval, text: Callable[[float], str] = number) -> str:
    return text(middle) if pd.isna(of.low) else f"{text(middle)} [{text(of.low)}, {text(of.high)}]"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows))


def write(folder: Path, target: Path) -> None:
    """Write the page and its figures.

    Args:
        folder: The folder of the reproduction.
        target: The page, such as docs/findings.md; its figures go into a folder of that name beside it.
    """
    found = Findings(folder)
    pictures = target.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    drawn = found.figures()
    for path in pictures.glob("*.png"):
        if path.stem not in drawn:  # its tables are no longer there
            path.unlink()
    for name, draw in drawn.items():
        with matplotlib.rc_context(style.RC):
            figure = draw()
        with atomic(pictures / f"{name}.png") as temporary, matplotlib.rc_context(style.SAVE):
            figure.savefig(temporary, metadata={})
    with atomic(target) as temporary:
        temporary.write_text(text(found, drawn), encoding="utf-8")


def text(found: Findings, drawn: Iterable[str]) -> str:
    """The text of the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    return environment.get_template("findings.md").render(found=found, drawn=[*drawn])
