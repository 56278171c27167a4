"""Write the page: figures from the gathered tables, and numbers and verdicts beside the paper's statements."""

from __future__ import annotations

import json
import math
import os
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bnsmooth_cli.errors import InputError, Remark
from bnsmooth_cli.figures import plot_tables, style
from bnsmooth_cli.paper import find, read
from bnsmooth_cli.paper.matching import distances, select
from bnsmooth_cli.report import number, part_verdict
from bnsmooth_cli.storage import tables
from bnsmooth_cli.studies.claims import CLAIMS
from bnsmooth_cli.studies.verdicts import NOT_APPLICABLE, NOT_MEASURED, deciding
from reproduction import markdown, saturation
from reproduction.figures import ACCURACIES, FULL, JUDGED, Numbers, Picture, Section, pictures, shown, source
from reproduction.saturation import paper_lr


def draw(folder: Path) -> None:
    """Draw every picture into `folder/figures` from its table in `folder/tables`, and remove other pictures."""
    drawn = pictures(_available(_facts(folder)))
    for picture in drawn:
        sources = [folder / "tables" / f"{name}.parquet" for name in picture.sources]
        output, options = folder / "figures" / f"{picture.name}.png", picture.options
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Remark)  # the page says which settings are not the paper's
            plot_tables(sources, output, options.get("figure"), options.get("paper"), force=True)
    markdown.remove_others(folder / "figures", {picture.name for picture in drawn})


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / "reproduction.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not readable ({error}); make paper writes it again") from error
    return facts


def _available(facts: Mapping[str, Any]) -> dict[str, set[str]]:
    """The norms that have finished runs, by study."""
    return {name: {run["norm"] for run in study["runs"].values()} for name, study in facts["studies"].items()}


def write(folder: Path) -> None:
    """Write `folder/README.md` from `folder/tables` and `folder/reproduction.json`."""
    markdown.write(page(folder), folder / "README.md")


def page(folder: Path) -> str:
    """The text of the page."""
    results = Results(folder)
    environment = markdown.templates()
    environment.filters |= {"number": _known, "duration": _duration, "settings": _settings}
    environment.globals["sections"] = shown(_available(results.facts))
    claims = Path(__file__).parents[1] / "docs/claims.md"
    near = claims.parent in folder.resolve().parents
    rules = f"[claims.md]({os.path.relpath(claims, folder.resolve())})" if near else "docs/claims.md"
    differences = (folder / "differences.md").is_file()
    gpus: dict[str, list[str]] = {}
    for study in results.facts["studies"].values():
        for name, run in study["runs"].items():
            for gpu in run.get("gpus", ()):  # pages of earlier versions do not say
                gpus.setdefault(gpu, []).append(name)
    more = {"gpus": gpus, "command": _command(results.facts), "differences": differences, "rules": rules}
    return environment.get_template("page.md").render(results=results, **results.facts, **more)


def _command(facts: Mapping[str, Any]) -> str:
    options = {"SCALE": facts["scale"], "ONLY": facts.get("only"), "STEPS": facts["steps"],
               "DATA": facts["data"] and "path/to/cifar10", "NOTE": facts["note"], "JOBS": facts["jobs"]}  # fmt: skip
    return " ".join(["make paper", *(f"{name}={shlex.quote(str(value))}" for name, value in options.items() if value)])


class Results:
    """The contents of the gathered tables in Markdown."""

    def __init__(self, folder: Path) -> None:
        self.facts = _facts(folder)
        self._tables = folder / "tables"
        self._summaries = {name: self._read(f"{name}.summary") for name in self.facts["studies"]}
        self._claims = {name: self._read(f"{name}.claims") for name in JUDGED if name in self._summaries}

    def _has(self, name: str) -> bool:
        """Whether the studies of the page gave this table."""
        return (self._tables / f"{name}.parquet").is_file()

    def _read(self, name: str) -> pd.DataFrame:
        return tables.read_table(self._tables / f"{name}.parquet")

    def judged(self) -> list[str]:
        """The studies that have verdicts, each with its steps and seeds."""
        described = []
        for name, claims in self._claims.items():
            steps = self.facts["studies"][name]["settings"]["steps"]
            described.append(f"`{name}` ({steps:,} steps, {_count(int(claims['seeds'].max()), 'seed')})")
        return described

    def verdicts(self) -> Iterator[list[str]]:
        """One row per claim and study that judges it; one row for a claim that no study judges."""
        for claim in CLAIMS:
            title, judged = f"{claim.number}. {claim.title}", False
            for study, claims in self._claims.items():
                of_claim = claims[claims["claim"] == claim.number]
                others = ~np.isclose(of_claim["lr"], paper_lr(str(of_claim["problem"].iloc[0])))
                row = deciding(of_claim.iloc[np.argsort(others, kind="stable")])  # the paper's learning rate first
                if row["verdict"] not in (NOT_MEASURED, NOT_APPLICABLE):
                    yield [title, f"`{study}`", *_verdict(row)]
                    title, judged = "", True
            if not judged:
                yield [title, "–", "–", "–", "–", "–", "–", NOT_MEASURED]

    def accuracies(self) -> Iterator[list[str]]:
        """One row per study, learning rate and norm: the paper's test accuracy, and the last and the best here.

        The paper's is that of its text, or the last one in figure 1b at a learning rate that only the figure has.
        """
        figure = read("1b").sort_values("step").groupby(["norm", "lr"])["test_accuracy"].last()
        for study, stated in ACCURACIES.items():
            if study not in self._summaries:
                continue
            summary = self._summaries[study]
            for norm, lr, metrics in _groups(summary, tuple(stated)):
                paper = f"{stated[norm]}%" if lr == paper_lr("vgg") else "–"
                if study == FULL and lr != paper_lr("vgg") and (norm, lr) in figure:
                    paper = f"{markdown.percent(float(figure[norm, lr]))} (figure 1b)"
                seeds, *cells = _cells(metrics, ("final_test_accuracy", "best_test_accuracy"))
                yield [f"`{study}`", number(lr), _norm(norm, metrics), seeds, paper, *cells]

    def pictures(self, section: Section) -> Iterator[dict[str, str]]:
        """Every picture with its caption and the command that draws it."""
        for picture in section.pictures:
            sources = " ".join(f"tables/{name}.parquet" for name in picture.sources)
            options = "".join(f"--{name} {value} " for name, value in picture.options.items())
            file = f"figures/{picture.name}.png"
            yield {"name": picture.name.replace("-", " "), "file": file, "caption": self._caption(picture),
                   "command": f"bnsmooth plot {sources} {options}-o {file}"}  # fmt: skip

    def _caption(self, picture: Picture) -> str:
        table = self._read(picture.sources[0])
        seeds = {number(float(lr)): sorted(table.loc[table["lr"] == lr, "seed"].unique()) for lr in style.lrs_of(table)}
        same = len({*map(tuple, seeds.values())}) == 1
        of_lrs = {", ".join(seeds): next(iter(seeds.values()))} if same else seeds
        parts = [f"`{source(picture.study, picture.norms, _available(self.facts))}`",
                *(f"lr {lrs}, {_of_seeds(of_lr)}" for lrs, of_lr in of_lrs.items())]  # fmt: skip
        if picture.kind == "theory":
            parts.append(f"layers {', '.join(table['layer_name'].unique())}")
        if picture.kind != "train":
            steps, measured = table["step"].nunique(), self.facts["measured"][picture.sources[0]]
            parts.append(_count(steps, "step") if steps == measured else f"{steps} of the {measured} measured steps")
        return ", ".join(parts)

    def numbers(self, section: Section) -> Iterator[str]:
        """The tables of a section, each table of a study once."""
        seen = set()
        for wanted in section.numbers:
            study = str(source(wanted.study, wanted.norms, _available(self.facts)))
            key = (study, *wanted.metrics)
            if key not in seen:
                seen.add(key)
                yield self._medians(study, wanted)
        if section.sigma:
            yield self._sigma(section.sigma)
        if section.saturation:
            yield self._saturation(section.saturation)
        if section.floors:
            yield self._floors()

    def distances(self, section: Section) -> str:
        """How far our curves are from the paper's: one row per quantity, layer and learning rate; empty without any."""
        found = []
        for picture in section.pictures:
            if picture.paper:
                shown = {table["kind"]: table["rows"] for table in map(self._of_kind, picture.sources)}
                chosen = select(picture.paper, picture.kind, shown, picture.figure or None)
                found.append(distances(chosen, shown))
        if not found:
            return ""
        table = pd.concat(found, ignore_index=True).drop_duplicates()
        norms = sorted(table["norm"].unique(), key=style.rank)
        rows = []
        for (figure, quantity, lr, layer, unit), group in table.groupby(
            ["figure", "quantity", "lr", "layer", "unit"], sort=False, dropna=False
        ):
            cells = group.set_index("norm")["distance"]
            where = [f"layer {layer:.0f}"] if layer == layer else []
            rows.append([", ".join([str(figure), str(quantity), *where]), number(float(lr)),
                         self._seeds(section, str(figure), float(lr)), _range(group["steps"]),
                         *(number(float(cells.get(norm, math.nan))) for norm in norms), str(unit)])  # fmt: skip
        return markdown.table(
            ["the paper's figure", "lr", "seeds", "steps", *(f"`{norm}`" for norm in norms), "unit"], rows
        )

    def _seeds(self, section: Section, figure: str, lr: float) -> str:
        """The number of seeds of each norm in the table that is compared with a figure of the paper."""
        drawn = [picture for picture in section.pictures if picture.paper and figure.startswith(picture.paper)]
        longest = max(len(picture.paper) for picture in drawn)
        names = (name for picture in drawn if len(picture.paper) == longest for name in picture.sources)
        sources = map(self._of_kind, names)
        rows = next(source["rows"] for source in sources if source["kind"] == find(figure)[0].table)
        return _range(rows[rows["lr"] == lr].groupby("norm")["seed"].nunique())

    def _of_kind(self, name: str) -> dict[str, Any]:
        rows = self._read(name)
        return {"kind": rows.attrs["bnsmooth"]["kind"], "rows": rows}

    def _saturation(self, probes: tuple[tuple[str, str], ...]) -> str:
        rows = [row for probe, picture in probes if self._has(probe)
                for row in saturation.rows(self._read(probe), self._read(picture))]  # fmt: skip
        return markdown.table([*saturation.HEADINGS], rows)

    def _medians(self, study: str, wanted: Numbers) -> str:
        rows = []
        for norm, lr, metrics in _groups(self._summaries[study], wanted.norms):
            rows.append([_norm(norm, metrics), number(lr), *_cells(metrics, wanted.metrics)])
        return markdown.table([f"`{study}`", "lr", "seeds", *wanted.metrics.values()], rows)

    def _sigma(self, names: tuple[str, ...]) -> str:
        rows = []
        for name in filter(self._has, names):
            table = self._read(name)
            variance = table.assign(variance=table["sigma"] ** 2).groupby(["norm", "step"])["variance"].median()
            for norm in sorted(table["norm"].unique(), key=style.rank):
                ends = variance[norm].iloc[[0, -1]]
                cells = [f"{number(float(value))} (step {step:,})" for step, value in ends.items()]
                of_norm = table[table["norm"] == norm]
                units = len(of_norm[["run", "layer", "unit"]].drop_duplicates())
                rows.append([f"`{norm}`", name.replace("-", " "), str(of_norm["run"].nunique()), str(units), *cells])
        headings = (
            "variance before the norm, median over layers and units",
            "picture",
            "runs",
            "units",
            "first",
            "last",
        )
        return markdown.table(headings, rows)

    def theory_cases(self) -> str:
        """The numbers of layers and steps of the theory's rows."""
        rows = self._read("dln.theory")
        return f"{rows['layer'].nunique()} layers at {rows['step'].nunique()}"

    def theory(self) -> str:
        """The results for each statement over all rows with a value."""
        rows = self._read("dln.theory").dropna(subset=["lhs"])
        lines = []
        for statement, cases in rows.groupby("statement"):
            decided = cases[cases["holds"].notna()]
            reduction = (cases["mean_fraction"] + cases["output_fraction"]).median()
            condition = cases["condition"].astype("float64").mean()
            lines.append([str(statement), str(cases["run"].nunique()), f"{len(decided):,}",
                          f"{int(decided['holds'].eq(False).sum()):,}", number(float(cases["residual"].abs().max())),
                          number(float(condition)), number(float(reduction))])  # fmt: skip
        headings = ("statement", "runs", "cases", "failures", "largest residual", "share whose conditions hold",
                    "reduction of the squared gradient, median")  # fmt: skip
        return markdown.table(headings, lines)

    def _floors(self) -> str:
        """The last losses of the runs of each seed, beside the least losses of maps of the ranks near them."""
        runs = self._read("dln").pivot(index="seed", columns="norm", values="final_loss")
        most = len(self.facts["floors"]["0"])
        ranks = range(max(1, 2 * most // 5), min(most, 2 * most // 5 + 3) + 1)
        norms = sorted(runs.columns, key=style.rank)
        rows = []
        for seed, floors in self.facts["floors"].items():
            ends = [f"{value:,.0f}" if math.isfinite(value) else "–" for value in runs.loc[int(seed), norms]]
            rows.append([seed, *(f"{floors[rank - 1]:,.0f}" for rank in ranks), *ends])
        headings = ["seed", *(f"best of rank {rank}" for rank in ranks), *(f"`{norm}`" for norm in norms)]
        return markdown.table(headings, rows)

    def parts(self, section: Section) -> Iterator[list[str]]:
        """One row per study and part, for the claims of a section."""
        for claim in section.claims:
            for study, claims in self._claims.items():
                for row in claims[claims["claim"] == claim].to_dict("records"):
                    if row["seeds"]:
                        yield [f"{claim}, `{study}`", row["part"], number(row["lr"]), _seeds(row),
                               _cell("", row), row["rule"], number(row["p_value"]), number(row["p_against"]),
                               part_verdict(row), number(row["paper"])]  # fmt: skip


def _of_seeds(seeds: Sequence[int]) -> str:
    """The seeds of a picture in words.

    >>> _of_seeds([0]), _of_seeds([0, 1, 2]), _of_seeds([0, 2])
    ('seed 0', 'seeds 0 to 2', 'seeds 0, 2')
    """
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    whole = len(seeds) == seeds[-1] - seeds[0] + 1
    return f"seeds {seeds[0]} to {seeds[-1]}" if whole else f"seeds {', '.join(map(str, seeds))}"


def _verdict(row: Mapping[str, Any] | pd.Series[Any]) -> list[str]:
    """The cells of a verdict: its statistic, learning rate and rule, the paper's value and ours, and the verdict."""
    count, *undefined = _seeds(row).split(", ")
    here = ", ".join([_cell("", row), _count(int(count), "seed"), *undefined])
    power = "" if math.isnan(row["power"]) else f"; power {number(row['power'])}"
    return [row["part"], number(row["lr"]), row["rule"], number(row["paper"]), here, f"**{row['verdict']}**{power}"]


def _groups(summary: pd.DataFrame, norms: tuple[str, ...]) -> Iterator[tuple[str, float, pd.DataFrame]]:
    """Norm, learning rate and metrics by name, at the learning rates at which all of the norms have run."""
    rows = summary[summary["norm"].isin(norms)]
    rows = rows[rows.groupby("lr")["norm"].transform("nunique") == rows["norm"].nunique()]
    for lr in style.lrs_of(rows):
        for norm in sorted(rows["norm"].unique(), key=style.rank):
            yield norm, lr, rows[(rows["norm"] == norm) & (rows["lr"] == lr)].set_index("figure")


def _cells(metrics: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """The number of seeds, and the median of each metric over them. A cell of fewer seeds says so."""
    known = metrics["seeds"].to_dict()
    seeds = {name: int(known.get(name, 0)) for name in names}
    most, cells = max(seeds.values()), []
    for name, of_metric in seeds.items():
        fewer = f" ({_count(of_metric, 'seed')})" if of_metric < most else ""
        cells.append(f"{_cell(name, metrics.loc[name])}{fewer}" if of_metric else "–")
    return [str(most), *cells]


def _seeds(row: Mapping[str, Any] | pd.Series[Any]) -> str:
    """The number of seeds of a part of a claim, and of those whose value is undefined."""
    return f"{row['seeds']}" + (f", {row['undefined']:.0f} undefined" if row["undefined"] > 0 else "")


def _range(counts: pd.Series[int]) -> str:
    """The least and the largest of some numbers; one number if they are equal."""
    return " to ".join(map(str, sorted({int(counts.min()), int(counts.max())})))


def _norm(norm: str, metrics: pd.DataFrame) -> str:
    diverged = int(metrics["diverged"].max())
    return f"`{norm}`" + (f" ({diverged} diverged)" if diverged else "")


def _cell(metric: str, row: Mapping[str, Any] | pd.Series[Any]) -> str:
    """A median with its interval, if it has one; accuracies in percent."""
    of_finite = markdown.percent if metric.endswith("test_accuracy") else number

    def text(value: float) -> str:
        return "never" if metric.startswith("steps") and value == math.inf else of_finite(value)

    middle, low, high = (text(float(row[name])) for name in ("median", "low", "high"))
    return middle if math.isnan(row["low"]) else f"{middle} [{low}, {high}]"


def _known(value: float | None) -> str:
    return "–" if value is None else number(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _settings(settings: Mapping[str, Any]) -> str:
    """The settings that the runs of a study share, in a line.

    >>> _settings({"problem": "vgg", "batch_size": 128, "augment": False})
    'problem vgg, batch size 128, augment no'
    """
    words = {True: "yes", False: "no"}
    shown = {name: words[value] if isinstance(value, bool) else value for name, value in settings.items()}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
