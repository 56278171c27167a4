"""The page: figures drawn from the gathered tables, and beside what the paper states the numbers and verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
import pandas as pd

from bnsmooth_cli import tables
from bnsmooth_cli.figures import plot_tables, style
from bnsmooth_cli.files import atomic
from bnsmooth_cli.report import interval, number
from reproduction.figures import EARLY, Numbers, Section, pictures, shown, source

#: Test accuracies (%) that the paper states, with and without augmentation, of norms.
ACCURACIES: Final = {"vgg": {"batch": 83, "none": 80}, "vgg-augmented": {"batch": 92, "none": 88}}


def draw(folder: Path) -> None:
    """Draw every picture into `folder/figures` from its table in `folder/tables`, and leave no other there."""
    found = pictures(json.loads((folder / "reproduction.json").read_text())["studies"])
    for picture in found:
        sources = [folder / "tables" / f"{name}.parquet" for name in (picture.name, picture.beside) if name]
        plot_tables(sources, folder / "figures" / f"{picture.name}.png")
    for path in (folder / "figures").glob("*.png"):
        if path.stem not in {picture.name for picture in found}:
            path.unlink()


def write(folder: Path) -> None:
    """Write `folder/README.md` from `folder/tables` and `folder/reproduction.json`."""
    with atomic(folder / "README.md") as temporary:
        temporary.write_text(page(folder), encoding="utf-8")


def page(folder: Path) -> str:
    """The text of the page."""
    results = Results(folder)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters |= {"number": number, "duration": _duration, "percent": _percent}
    environment.globals["sections"] = shown(results.facts["studies"])
    return environment.get_template("page.md").render(results=results, **results.facts)


@dataclass(frozen=True)
class Effect:
    """Of one claim: the verdicts on both problems, and what they rest on."""

    number: int
    title: str
    cells: list[str]


class Results:
    """What the gathered tables say, in Markdown; a study that the scale does not have is another's matter."""

    def __init__(self, folder: Path) -> None:
        self.facts: dict[str, Any] = json.loads((folder / "reproduction.json").read_text())
        self._tables = folder / "tables"
        self._summaries = {name: self._read(f"{name}.summary") for name in self.facts["studies"]}
        self._claims = {name: self._read(f"{name}.claims") for name in self.facts["studies"]}

    def _read(self, name: str) -> pd.DataFrame:
        return tables.read_table(self._tables / f"{name}.parquet")

    def study(self, name: str) -> str:
        """The study that a figure is taken from."""
        return source(name, self._summaries)

    def pictures(self, section: Section) -> Iterator[dict[str, str]]:
        """Every picture that there is, and the command that draws it."""
        for one in section.pictures:
            sources = " ".join(f"tables/{name}.parquet" for name in (one.name, one.beside) if name)
            command = f"bnsmooth plot {sources} -o figures/{one.name}.png"
            yield {"name": one.name, "file": f"figures/{one.name}.png", "command": command,
                   "study": self.study(one.study)}  # fmt: skip

    def numbers(self, section: Section) -> Iterator[str]:
        """The tables of a section, of each study once."""
        seen = set()
        for wanted in section.numbers:
            key = (study := self.study(wanted.study), *wanted.figures)
            if key not in seen:
                seen.add(key)
                yield self._medians(study, wanted)
        if section.sigma:
            yield self._sigma(section.sigma)
        if section.by_step:
            yield self._by_step(section)

    def _medians(self, study: str, wanted: Numbers) -> str:
        summary = self._summaries[study]
        rows = summary[summary["norm"].isin(wanted.norms)]
        rows = rows[rows.groupby("lr")["norm"].transform("nunique") == rows["norm"].nunique()]
        lines = [f"| `{study}` | lr | seeds | {' | '.join(wanted.figures.values())} |",
                 f"| {' | '.join(['---'] * (3 + len(wanted.figures)))} |"]  # fmt: skip
        groups = {(str(norm), float(str(lr))): found for (norm, lr), found in rows.groupby(["norm", "lr"])}
        for norm, lr in sorted(groups, key=lambda key: (key[1], style.rank(key[0]))):
            found = groups[norm, lr].set_index("figure")
            cells = [_cell(name, found.loc[name]) if name in found.index else "–" for name in wanted.figures]
            diverged = int(found["diverged"].max())
            name = f"`{norm}`" + (f" ({diverged} diverged)" if diverged else "")
            lines.append(f"| {name} | {number(lr)} | {int(found['seeds'].max())} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def _sigma(self, names: tuple[str, ...]) -> str:
        lines = [
            "| median variance over layers and units | picture | first step | last step |",
            "| --- | --- | --- | --- |",
        ]
        for name in names:
            table = self._read(name)
            variance = table.assign(variance=table["sigma"] ** 2).groupby(["norm", "step"])["variance"].median()
            for norm in sorted(table["norm"].unique(), key=style.rank):
                ends = variance[norm].iloc[[0, -1]]
                cells = [f"{number(float(value))} (step {step:,})" for step, value in ends.items()]
                lines.append(f"| `{norm}` | {name.replace('-', ' ')} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def _by_step(self, section: Section) -> str:
        lines = ["| study | seeds | step | loss | range of the loss | change of the gradient | effective beta |",
                 "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
        for picture in section.pictures:
            table = self._read(picture.name)
            line = table[table["alpha"] > 0]
            line = line.assign(beta=line["grad_distance"] / line["distance"])
            found = line.groupby(["norm", "step", "seed"]).agg(
                low=("loss", "min"), high=("loss", "max"), change=("grad_distance", "max"), beta=("beta", "max")
            )
            start = table[table["alpha"] == 0].set_index(["norm", "step", "seed"])["loss"]
            medians = found.assign(range=found["high"] - found["low"], loss=start).groupby(["norm", "step"]).median()
            for step in sorted(table["step"].unique()):
                cells = [
                    " / ".join(number(float(medians.loc[(norm, step), name])) for norm in picture.norms)
                    for name in ("loss", "range", "change", "beta")
                ]
                lines.append(f"| `{picture.study}` | {table['seed'].nunique()} | {step} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def accuracies(self) -> Iterator[dict[str, Any]]:
        """Last and best test accuracy beside the paper's, a row a study, learning rate and norm."""
        for study, stated in ACCURACIES.items():
            summary = self._summaries[study]
            for (lr, norm), found in summary[summary["norm"].isin(stated)].groupby(["lr", "norm"]):
                cells = found.set_index("figure")
                yield {"study": study, "lr": lr, "norm": norm, "paper": stated[str(norm)] if lr == 0.1 else None,
                       "last": _cell("final_test_accuracy", cells.loc["final_test_accuracy"]),
                       "best": _cell("best_test_accuracy", cells.loc["best_test_accuracy"])}  # fmt: skip

    def effects(self) -> Iterator[Effect]:
        """Every claim with its verdicts, the linear network's first."""
        studies = ["dln", self.study(EARLY)]
        for number_, parts in self._claims["dln"].groupby("claim"):
            cells = [self._verdict(study, int(str(number_))) for study in studies]
            yield Effect(int(str(number_)), str(parts["title"].iloc[0]), cells)

    def _verdict(self, study: str, claim: int) -> str:
        parts = self._parts(study, claim)
        verdict = str(parts["verdict"].iloc[0])
        known = parts.dropna(subset=["median"])
        if known.empty:
            return verdict
        first = known[known["part"] == known["part"].iloc[0]]
        values = [f"{number(row['median'])} at {style.lr_text(row['lr'])}" for row in _records(first)]
        return f"**{verdict}**; {', '.join(values)}"

    def _parts(self, study: str, claim: int) -> pd.DataFrame:
        claims = self._claims[study]
        return claims[claims["claim"] == claim]

    def verdicts(self, section: Section) -> Iterator[dict[str, Any]]:
        """What the claims that a section bears on came to, part by part; none twice."""
        for study, claim in dict.fromkeys((self.study(study), claim) for study, claim in section.claims):
            for row in _records(self._parts(study, claim)):
                yield {**row, "study": study, "interval": interval(row)}


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict("records")  # type: ignore[return-value]


def _cell(figure: str, row: pd.Series[Any]) -> str:
    percent = figure.endswith("test_accuracy")
    scale = 100 if percent else 1
    ends = {name: scale * float(row[name]) for name in ("median", "low", "high")}
    middle = f"{ends['median']:.1f}%" if percent else number(ends["median"])
    if ends["low"] != ends["low"]:
        return "never" if figure.startswith("steps") and ends["median"] == float("inf") else middle
    low, high = (f"{ends[end]:.1f}" if percent else number(ends[end]) for end in ("low", "high"))
    return f"{middle} [{low}, {high}]"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
