"""Write docs/findings.md and its figures from the gathered tables: `python -m reproduction findings`."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bnsmooth_cli.figures import style
from bnsmooth_cli.figures.format import Format
from bnsmooth_cli.figures.page import Band, in_row, page
from bnsmooth_cli.figures.panels import Curves, Series, series, shared
from bnsmooth_cli.figures.scales import Scale
from bnsmooth_cli.report import number
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.files import atomic
from reproduction import findings, markdown, saturation
from reproduction.figures import EARLY, FULL
from reproduction.saturation import paper_lr
from reproduction.scales import NETWORKS, PLAIN

_SMOOTHED: Final = 10  # measured steps of which the figure of the edge shows the mean
_GUIDES: Final = ("#A6192E", "#444444")
_NOISE: Final = ("vgg-noise", "vgg-noise-11")
_WITH_NOISE: Final = ", with the noise"
#: The colours of the networks without the noise, and of the parts of the noise.
_COLOURS: Final = {
    "plain": "#000000", "plain, shift only": "#882255", "plain, shift shared by the samples only": "#CC79A7",
    "plain, shift of each sample only": "#009E73", "plain, scale only": "#D55E00",
    "BatchNorm": "#0072B2", "centre only": "#E69F00", "division only": "#6B3FA0",
}  # fmt: skip


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
    """The contents of the page: its tables in Markdown, and its figures.

    Args:
        folder: The folder of the reproduction, with `reproduction.json` and `tables/`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tables"
        facts = json.loads((folder / "reproduction.json").read_text())
        self._settings = {name: study["settings"] for name, study in facts["studies"].items()}

    def has(self, *names: str) -> bool:
        """Whether these tables are there."""
        return all((self._folder / f"{name}.parquet").is_file() for name in names)

    @functools.cache  # noqa: B019 - lives as long as the page is written
    def _read(self, name: str) -> pd.DataFrame:
        rows = tables.read_table(self._folder / f"{name}.parquet")
        rows.attrs = {}
        return rows

    def figures(self) -> dict[str, Callable[[], Figure]]:
        """The figures whose tables are there, by name."""
        needed: dict[str, tuple[Callable[[], Figure], tuple[str, ...]]] = {
            "beta": (self._draw_beta, ("saturation-vgg", "saturation-dln")),
            "edge": (self._draw_edge, ("vgg.smoothness", "dln.smoothness")),
            "equal-loss": (self._draw_equal_loss, ("vgg.smoothness", "vgg.train")),
            "noise": (self._draw_noise, tuple(f"{name}.train" for name in _NOISE)),
            "width": (self._draw_width, ("vgg.smoothness", "vgg-full.smoothness")),
        }
        return {name: draw for name, (draw, names) in needed.items() if self.has(*names)}

    def _measured(self) -> list[str]:
        """The studies that have measured the smoothness; not the first steps of runs that are there in full."""
        there = [name for name in self._settings if self.has(f"{name}.smoothness", f"{name}.train")]
        return [name for name in there if name != EARLY or FULL not in there]

    def _title(self, name: str) -> str:
        settings = self._settings[name]
        if settings["problem"] == "dln":
            return "the deep linear network"
        width = settings["width"]
        return f"VGG-{settings['depth']}" if width == 1 else f"VGG-{settings['depth']}, widths times {width:g}"

    def seeds(self, study: str) -> int:
        """The number of seeds of the plain network and BatchNorm at the paper's learning rate."""
        runs = self._read(f"{study}.smoothness").query(f"norm in {PLAIN} and lr == {paper_lr(study[:3])}")
        return int(runs.groupby("norm")["seed"].nunique().min())

    def has_rate(self, study: str, lr: float) -> bool:
        """Whether the plain network and BatchNorm were measured at a learning rate."""
        return {*PLAIN} <= {*self._read(f"{study}.smoothness").query(f"lr == {lr}")["norm"]}

    def steps(self, study: str) -> str:
        """The number of steps of the runs of a study."""
        return f"{self._settings[study]['steps']:,}"

    def part(self, runs: pd.DataFrame, column: str) -> str:
        """The median of a column over runs, with its interval, for a sentence."""
        return markdown.spread(*findings.described(runs[column]))

    # What determines beta

    def _draw_beta(self) -> Figure:
        panels: list[Curves] = []
        for problem, study in (("vgg", FULL if FULL in self._settings else EARLY), ("dln", "dln")):
            line = self._read(f"saturation-{problem}")
            line = line[line["step"] > saturation.EARLY * line["step"].max()]
            points = saturation.ratios(line).groupby(["norm", "lr", "seed", "run", "alpha"])
            medians = points[["ratio"]].median().reset_index()
            alphas = pd.Index(sorted(medians["alpha"].unique()), name="alpha").to_series()
            finite = medians["ratio"][medians["ratio"] < float("inf")]
            low, high = finite.min() / 1.5, 2 * finite.max()
            guides = [_guide("gradient lost: lr / η", 1 / alphas, 0), _guide("edge of stability: 2", 0 * alphas + 2, 1)]
            guides = [replace(one, values=one.values[one.values.ge(low) & one.values.le(high)]) for one in guides]
            ylabel = "lr ‖g(θ) − g(θ − ηg)‖ / ‖ηg‖"
            drawn, scale = series(medians, "ratio", "alpha"), Scale("log", low, high)
            panels.append(LogLog(self._title(study), ylabel, drawn, guides, scale=scale))
        return page([("change of the gradient per distance, after the first tenth of the run", [in_row(*panels)])])

    # The edge of stochastic stability

    def edge(self) -> str:
        """Batch sharpness and the largest eigenvalue of every study that has measured them."""
        rows = []
        for name in self._measured():
            found = findings.edge(self._read(f"{name}.smoothness"))
            for _, runs in style.groups(found):
                _, of = findings.described(runs["batch_sharpness"])
                rows.append([f"`{name}`", f"`{runs['norm'].iloc[0]}`", number(float(runs["lr"].iloc[0])),
                             str(len(runs)), self.part(runs, "batch_sharpness"), findings.at_the_edge(of) or "–",
                             self.part(runs, "eigenvalue")])  # fmt: skip
        headings = ("study", "norm", "lr", "seeds", "batch sharpness × lr", "its interval", "largest eigenvalue × lr")
        return markdown.table(headings, rows)

    def edge_of(self, study: str, norm: str, column: str = "batch_sharpness", lr: float | None = None) -> str:
        """A number of that table, at a learning rate or the paper's."""
        found = findings.edge(self._read(f"{study}.smoothness"))
        return self.part(found[(found["norm"] == norm) & (found["lr"] == (lr or paper_lr(study[:3])))], column)

    def _draw_edge(self) -> Figure:
        blocks: list[tuple[str, list[Band]]] = []
        for name in ("vgg", "dln"):
            rows = self._read(f"{name}.smoothness")
            rows = rows[rows["norm"].isin(PLAIN) & (rows["lr"] == paper_lr(name))].sort_values("step")
            rows = rows.assign(curvature=rows["curvature"] * rows["lr"], sharpness=rows["sharpness"].abs() * rows["lr"])
            mean = rows.groupby("run")["curvature"].transform(lambda of_run: of_run.rolling(_SMOOTHED).mean())
            steps = pd.Index(sorted(rows["step"].unique()), name="step").to_series()
            guides = [_guide("2", 2 + 0 * steps, 0)]
            panels = [
                Curves(f"batch sharpness, mean of {_SMOOTHED} measured steps", "lr gᵀHg / gᵀg",
                       series(rows.assign(curvature=mean), "curvature"), guides),
                Curves("largest eigenvalue in size", "lr |λ|", series(rows, "sharpness"), guides),
            ]  # fmt: skip
            blocks.append((f"{self._title(name)}, {style.lr_text(paper_lr(name))}", [in_row(*panels)]))
        return page(blocks)

    # Equal loss

    def equal_loss(self) -> str:
        """BatchNorm's landscape over the plain network's, at equal steps and at equal loss, in the studies of VGG."""
        rows = []
        for name in (name for name in self._measured() if self._settings[name]["problem"] == "vgg"):
            found = findings.with_loss(self._read(f"{name}.smoothness"), self._read(f"{name}.train"))
            for lr in style.lrs_of(found):
                at_lr = found[found["lr"] == lr]
                step, loss = (at(at_lr, "batch", "none") for at in (findings.at_equal_step, findings.at_equal_loss))
                for metric, words in findings.METRICS.items() if len(loss) else ():
                    decides = (name, lr, metric) == (FULL, paper_lr("vgg"), findings.PRIMARY)
                    bins = sorted({int(count) for count in loss["bins"]})
                    rows.append([f"`{name}`", number(lr), words, str(len(loss)), self.part(step, metric),
                                 self.part(loss, metric),
                                 f"{bins[0]} to {bins[-1]}" if bins[1:] else str(bins[0]),
                                 findings.smoother(loss[metric]) if decides else "–"])  # fmt: skip
        headings = ("study", "lr", "batch / none", "seeds", "at equal steps", "at equal loss", "bins", "verdict")
        return markdown.table(headings, rows)

    def equal_of(self, metric: str, loss: bool = True, lr: float | None = None) -> str:
        """A number of that table, of VGG at a learning rate or the paper's."""
        found = findings.with_loss(self._read(f"{FULL}.smoothness"), self._read(f"{FULL}.train"))
        at = findings.at_equal_loss if loss else findings.at_equal_step
        return self.part(at(found[found["lr"] == (lr or paper_lr("vgg"))], "batch", "none"), metric)

    def _draw_equal_loss(self) -> Figure:
        found = findings.with_loss(self._read("vgg.smoothness"), self._read("vgg.train"))
        found = findings.binned(found[found["norm"].isin(PLAIN) & (found["lr"] == paper_lr("vgg"))])
        panels = [
            LogLog(words, "", series(found, metric, "data_loss"), falling=True)
            for metric, words in findings.METRICS.items()
        ]
        return page([(f"{self._title('vgg')}, {style.lr_text(paper_lr('vgg'))}", [in_row(*panels, most=2)])])

    # Noise

    def noise(self) -> str:
        """How many seeds train with parts of the noise, and with parts of BatchNorm."""
        rows = []
        for name in filter(self.has, _NOISE):
            found = self._trained(name)
            for network in filter(found.index.__contains__, NETWORKS.values()):
                row = found.loc[network]
                accuracies = ", ".join(markdown.percent(value) for value in row["accuracies"])
                depth = str(self._settings[name]["depth"])
                rows.append([network, depth, accuracies, f"{row['trained']} of {row['seeds']}"])
        return markdown.table(("network", "depth", "last test accuracy of each seed", "seeds that train"), rows)

    def protection(self) -> str:
        """The outcome of the prediction about the parts of BatchNorm."""
        return findings.protection(self._trained(_NOISE[0]))

    def _trained(self, name: str) -> pd.DataFrame:
        return findings.trained(_named(self._read(name)))

    def _draw_noise(self) -> Figure:
        found: list[list[Series]] = []
        ended: set[str] = set()
        for name in _NOISE:
            runs = self._read(name)
            ended |= {*runs.loc[runs["diverged_at"].notna(), "run"]}
            rows = _named(self._read(f"{name}.train"))
            rows = rows.assign(test_accuracy=100 * rows["test_accuracy"]).dropna(subset=["test_accuracy"])
            found.append([replace(one, look=_look(one.look)) for one in series(rows, "test_accuracy")])
        deep, shallow = found
        drawn = {
            "parts of the noise": [one for one in deep if one.look.label.startswith("plain")],
            "parts of BatchNorm": [one for one in deep if not one.look.label.startswith("plain")],
            f"{self._title(_NOISE[1])}": shallow,
        }
        panels = [
            Curves(title, "test accuracy (%)", of, height=3.2, diverged=frozenset(ended)) for title, of in drawn.items()
        ]
        title = f"the noise without BatchNorm, and with parts of it: {self._title(_NOISE[0])}"
        return page([(title, [in_row(*shared(panels))])])

    # Width

    def width(self) -> str:
        """The landscapes of both widths over the same steps."""
        rows = []
        for row in findings.widths(*self._both_widths()).to_dict("records"):
            median, low, high, wide = (float(row[name]) for name in ("median", "low", "high", "wide"))
            rows.append([f"`{row['norm']}`", findings.METRICS[row["metric"]],
                         f"{number(median)} ({number(low)} to {number(high)})", number(wide),
                         "inside" if low <= wide <= high else "outside"])  # fmt: skip
        headings = ("norm", "metric", "a quarter, median (range)", "full width, one seed", "of the range")
        return markdown.table(headings, rows)

    def _both_widths(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        narrow, wide = self._read("vgg.smoothness"), self._read("vgg-full.smoothness")
        return narrow[(narrow["lr"] == paper_lr("vgg")) & narrow["norm"].isin(wide["norm"])], wide

    def _draw_width(self) -> Figure:
        narrow, wide = (findings.of_line(rows) for rows in self._both_widths())
        last = wide["step"].max()
        panels: list[Curves] = []
        for metric in ("predictiveness", "loss_range", "eigenvalue"):
            theirs = [Series(replace(style.papers(one.look), label=f"a quarter: {one.look.label}"),
                             one.values.median(axis=1).to_frame())
                      for one in series(narrow[narrow["step"] <= last], metric)]  # fmt: skip
            panels.append(Curves(findings.METRICS[metric], "", series(wide, metric), theirs))
        return page([("VGG at full width, and at a quarter of it (thin)", [in_row(*panels)])])


def _guide(label: str, values: pd.Series[float], place: int) -> Series:
    """A line to compare with, over the index of its values."""
    return Series(style.Look(label, _GUIDES[place], (0, (1, 1.5)), ""), values.to_frame())


def _look(look: style.Look) -> style.Look:
    """The look of a network of the experiment: dashed with the noise, in the colour of the same network without it."""
    noisy = look.label.endswith(_WITH_NOISE)
    return replace(look, colour=_COLOURS[look.label.removesuffix(_WITH_NOISE)], dash=(0, (4, 1.5)) if noisy else "-")


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows about the noise with the names of NETWORKS as norms."""
    return rows.assign(norm=rows["norm"].map(NETWORKS))


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
    markdown.remove_others(pictures, drawn)
    for name, draw in drawn.items():
        with matplotlib.rc_context(Format().rc()):
            figure = draw()
        with atomic(pictures / f"{name}.png") as temporary:
            figure.savefig(temporary)
    markdown.write(text(found, drawn, folder.name), target)


def text(found: Findings, drawn: Collection[str], folder: str) -> str:
    """The text of the page.

    Args:
        found: Its contents.
        drawn: The names of the figures that are there.
        folder: The name of the folder of the reproduction beside it.
    """
    page = markdown.templates().get_template("findings.md").render(found=found, drawn=drawn, folder=folder)
    return re.sub("\n{3,}", "\n\n", page)
