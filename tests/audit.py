"""The numbers of a page of the reproduction, computed again from the tables beside it: `Page.audit`.

Nothing of the code that wrote the page is used here; `audited_claims` judges the claims again. A table or a column that
is not known here fails, so that nothing unaudited can be added.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from audited_claims import (
    CLAIMS,
    HEADINGS,
    NORMS,
    PAPER,
    Curve,
    Study,
    figure,
    interval,
    judged,
    median,
    share,
    tail,
)

import bnsmooth_cli as bns

JUDGED = ("dln", "dln-slow", "dln-fresh", "dln-stated", "vgg-early", "vgg")
STATED = {"vgg": {"none": 80, "batch": 83}, "vgg-augmented": {"none": 88, "batch": 92}}


# Cells are regular expressions: a number is rounded to three digits, and one near a tie may be rounded either way.


def rounded(value: float) -> str:
    """A number to three significant digits, a whole one below a million in full, and a dash for none."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.3g}"


def cell(value: float, text: Any = rounded) -> str:
    value = float(value)
    return "(?:" + "|".join({re.escape(text(value * tie)) for tie in (1, 1 - 1e-9, 1 + 1e-9)}) + ")"


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def spread(middle: float, low: float, high: float, text: Any = rounded) -> str:
    """A median with its interval, if it has one."""
    if math.isnan(low):
        return cell(middle, text)
    return rf"{cell(middle, text)} \[{cell(low, text)}, {cell(high, text)}\]"


class Page:
    """A page and the tables beside it. `audit` compares every table of the page with what is computed here."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.text = (folder / "README.md").read_text(encoding="utf-8")
        self.facts = json.loads((folder / "reproduction.json").read_text())
        self.studies = {name: Study(folder, name, about) for name, about in self.facts["studies"].items()}
        self.verdicts = {name: {number: judged(number, self.studies[name]) for number in CLAIMS}
                         for name in JUDGED if name in self.studies}  # fmt: skip

    @functools.cache  # noqa: B019
    def table(self, name: str) -> pd.DataFrame:
        rows = bns.read_table(self.folder / "tables" / f"{name}.parquet")
        rows.attrs["kind"] = rows.attrs["bnsmooth"]["kind"]
        return rows

    def audit(self, text: str | None = None) -> list[str]:
        """What is wrong with the page, a line each. `text` takes its place."""
        self.wrong: list[str] = []
        self.parts_seen: list[tuple[int, str]] = []
        seen = []
        for section, body in sections(self.text if text is None else text).items():
            self.section, self.body = section, body
            for headings, rows in markdown_tables(body):
                self.where = f"{section}: | {' | '.join(headings)} |"
                kind = next(
                    (name for name, pattern in KNOWN.items() if re.fullmatch(pattern, "|".join(headings))), None
                )
                if kind is None:
                    self.wrong.append(f"{self.where}: a table that no test knows")
                    continue
                seen.append(kind)
                getattr(self, f"_{kind}")(headings, rows)
            self._captions()
            self._prose()
        for kind in ("studies", "claims", "medians", "distances", "parts"):
            if kind not in seen:
                self.wrong.append(f"no table of {kind}")
        expected = {(number, name) for name, claims in self.verdicts.items() for number, (*_, rows) in claims.items()
                    if any(len(row["values"]) for row in rows)}  # fmt: skip
        if sorted(expected) != sorted(self.parts_seen):
            self.wrong.append(f"parts: {sorted(expected ^ set(self.parts_seen))} are missing or there twice")
        return self.wrong

    def _compare(self, rows: list[list[str]], expected: list[list[str]]) -> None:
        if len(rows) != len(expected):
            self.wrong.append(f"{self.where}: {len(rows)} rows, not {len(expected)}")
        for row, wanted in zip(rows, expected, strict=False):
            if len(row) != len(wanted):
                self.wrong.append(f"{self.where}: {row}: {len(row)} cells, not {len(wanted)}")
            for text, pattern in zip(row, wanted, strict=False):
                if not re.fullmatch(pattern, text):
                    self.wrong.append(f"{self.where}: {row[0]}: {text!r} is not {pattern!r}")

    def _studies(self, headings: list[str], rows: list[list[str]]) -> None:
        expected = []
        for name, study in self.studies.items():
            planned = len(set(itertools.chain.from_iterable(map(planned_runs, study.about["commands"]))))
            runs = f"{len(study.runs)}" + (f" of {planned}" if len(study.runs) < planned else "")
            seconds = sum(entry["seconds"] for entry in study.about["log"])
            time = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
            time = f"{seconds / 3600:.1f} h" if seconds >= 6000 else time if seconds else "–"
            expected.append([f"`{name}`", re.escape(study.about["purpose"]), runs, f"{study.steps:,}", time])
        self._compare(rows, expected)

    def _claims(self, headings: list[str], rows: list[list[str]]) -> None:
        expected = []
        for number, (title, _) in CLAIMS.items():
            said = re.escape(f"{number}. {title}")
            for name in self.verdicts:
                verdict, strength, parts = self.verdicts[name][number]
                if verdict in ("not measured", "not applicable"):
                    continue
                usual = {"vgg": 0.1, "dln": 1e-6}[self.studies[name].problem]
                parts = sorted(parts, key=lambda row, usual=usual: row.get("lr") != usual)
                row = next((row for row in parts if row["verdict"] == verdict and row["decides"]), None) or parts[0]
                part, values = row["part"], row["values"]
                undefined = int(np.isnan(values).sum())
                here = f"{spread(median(values), *interval(values))}, {len(values)} seed{'s' * (len(values) != 1)}"
                likely = "" if math.isnan(strength) else f"; power {cell(strength)}"
                expected.append([said, f"`{name}`", re.escape(part.text), cell(row["lr"]),
                                 re.escape(part.rule or "reported"), cell(row["paper"]),
                                 here + f", {undefined} undefined" * (undefined > 0),
                                 rf"\*\*{verdict}\*\*{likely}"])  # fmt: skip
                said = ""
            if said:
                expected.append([said, *"––––––", "not measured"])
        self._compare(rows, expected)

    def _parts(self, headings: list[str], rows: list[list[str]]) -> None:
        there = dict.fromkeys(tuple(row[0].split(", ")) for row in rows)
        expected = []
        for number, name in there:
            study = name.strip("`")
            if study not in self.verdicts or int(number) not in CLAIMS:
                self.wrong.append(f"{self.where}: {number}, {name}: an unknown claim or study")
                continue
            self.parts_seen.append((int(number), study))
            for row in self.verdicts[study][int(number)][2]:
                if not len(row["values"]):
                    continue
                part, values = row["part"], row["values"]
                aside = not row["decides"] and row["verdict"] not in ("reported", "not applicable")
                expected.append([f"{number}, {name}", re.escape(part.text), cell(row["lr"]), self._seeds_of(values),
                                 spread(median(values), *interval(values)), re.escape(part.rule or "reported"),
                                 cell(row["p"]), cell(row["against"]),
                                 re.escape(f"({row['verdict']})" if aside else row["verdict"]),
                                 cell(row["paper"])])  # fmt: skip
        self._compare(rows, expected)

    @staticmethod
    def _seeds_of(values: np.ndarray) -> str:
        undefined = int(np.isnan(values).sum())
        return str(len(values)) + (rf", {undefined} undefined" if undefined else "")

    def _accuracies(self, headings: list[str], rows: list[list[str]]) -> None:
        expected = []
        for name, stated in STATED.items():
            if name not in self.studies:
                continue
            study = self.studies[name]
            for lr, norm in self._groups(study, tuple(stated)):
                values = [study.medians(norm, lr, metric) for metric in ("final_test_accuracy", "best_test_accuracy")]
                cells = [spread(median(of), *interval(of), text=percent) for of in values]
                theirs = f"{stated[norm]}%" if lr == 0.1 else "–"
                if name == "vgg" and lr == 0.5:
                    theirs = rf"{percent(last_of('1b', 'test_accuracy', lr)[norm])} \(figure 1b\)"
                expected.append([f"`{name}`", cell(lr), self._norm(study, norm, lr), str(max(map(len, values))),
                                 theirs, *cells])  # fmt: skip
        self._compare(rows, expected)

    @staticmethod
    def _groups(study: Study, norms: tuple[str, ...]) -> list[tuple[float, str]]:
        """The learning rates at which all of these norms have run, in ascending order, and the norms."""
        ran = {lr: {norm for case in cases for norm in case.runs if norm in norms} for lr, cases in study.cases.items()}
        every = set().union(*ran.values())
        lrs = sorted(lr for lr, of_lr in ran.items() if of_lr == every)
        return [(lr, norm) for lr in lrs for norm in NORMS if norm in every]

    @staticmethod
    def _norm(study: Study, norm: str, lr: float) -> str:
        diverged = sum(norm in case.runs and case.runs[norm].diverged for case in study.cases[lr])
        return f"`{norm}`" + (rf" \({diverged} diverged\)" if diverged else "")

    def _medians(self, headings: list[str], rows: list[list[str]]) -> None:
        name, metrics = headings[0].strip("`"), [HEADINGS[heading] for heading in headings[3:]]
        if self.section.startswith("Section 3.2"):
            metrics = [f"random_{metric}" for metric in metrics]
        if name not in self.studies:
            self.wrong.append(f"{self.where}: an unknown study")
            return
        study, expected = self.studies[name], []
        shown = tuple(re.findall("`(.+?)`", " ".join(row[0] for row in rows)))
        for lr, norm in self._groups(study, shown):
            values = [study.medians(norm, lr, metric) for metric in metrics]
            texts = [TEXTS.get(metric, rounded) for metric in metrics]
            most = max(map(len, values))
            cells = [spread(median(of), *interval(of), text=text) for of, text in zip(values, texts, strict=True)]
            fewer = ["" if len(of) in (0, most) else rf" \({len(of)} seeds?\)" for of in values]
            cells = [a + b for a, b in zip(cells, fewer, strict=True)]
            expected.append([self._norm(study, norm, lr), cell(lr), str(most), *cells])
        self._compare(rows, expected)

    def _commands(self) -> list[tuple[list[str], dict[str, str]]]:
        """The tables and the options of the pictures of a section."""
        found = []
        for line in re.findall(r"`bnsmooth plot (.+?)`", self.body):
            words = shlex.split(line)
            names = [Path(word).stem for word in words if word.endswith(".parquet")]
            found.append((names, dict(zip(words[len(names) :: 2], words[len(names) + 1 :: 2], strict=True))))
        return found

    def _distances(self, headings: list[str], rows: list[list[str]]) -> None:
        norms = [heading.strip("`") for heading in headings[4:-1]]
        expected: dict[tuple[str, str], dict[str, Any]] = {}
        for names, options in self._commands():
            if "--paper" not in options:
                continue
            wanted = options["--paper"]
            figures = [name for name in PAPER if name == wanted] or [
                name for name in PAPER if re.match(rf"{wanted}(?!\d)", name)]  # fmt: skip
            for table, name in itertools.product(map(self.table, names), figures):
                for axis in PAPER[name]:
                    if axis.table == table.attrs["kind"]:
                        for label, lr, norm, found in apart(name, axis, table):
                            expected.setdefault((label, lr), {"unit": axis.unit})[norm] = found
        if sorted(norms, key=NORMS.index) != norms or set(norms) != {
            norm for row in expected.values() for norm in row if norm != "unit"
        }:
            self.wrong.append(f"{self.where}: other norms")
        if sorted(expected) != sorted((row[0], row[1]) for row in rows):
            self.wrong.append(f"{self.where}: other rows: {set(expected) ^ {(row[0], row[1]) for row in rows}}")
        for row in rows:
            if wanted_row := expected.get((row[0], row[1])):
                found = {norm: wanted_row.get(norm, (math.nan, 0, 0)) for norm in norms}
                counts = [{values[i] for norm, values in found.items() if norm in wanted_row} for i in (1, 2)]
                seeds, steps = (" to ".join(map(str, sorted({min(of), max(of)}))) for of in counts)
                cells = [cell(found[norm][0]) for norm in norms]
                label = [re.escape(row[0]), cell(float(row[1])), seeds, steps]
                self._compare([row], [[*label, *cells, wanted_row["unit"]]])

    def _saturation(self, headings: list[str], rows: list[list[str]]) -> None:
        shortest = [float(heading.rsplit(" ", 1)[1]) for heading in headings if heading.startswith("shortest")]
        expected = []
        for name, beside in (("saturation-vgg", "figure-4c"), ("saturation-dln", "figure-9c")):
            if (self.folder / f"tables/{name}.parquet").is_file():
                expected += saturation(self.table(name), self.table(beside), shortest)
        self._compare(rows, expected)

    def _sigma(self, headings: list[str], rows: list[list[str]]) -> None:
        expected = []
        for name in ("figure-8", "figure-1c"):
            if not (self.folder / f"tables/{name}.parquet").is_file():
                continue
            table = self.table(name)
            for norm in (norm for norm in NORMS if norm in set(table["norm"])):
                of_norm = table[table["norm"] == norm]
                ends = [int(of_norm["step"].min()), int(of_norm["step"].max())]
                middles = [median(of_norm["sigma"][of_norm["step"] == step] ** 2) for step in ends]
                units = len(set(zip(of_norm["run"], of_norm["layer"], of_norm["unit"], strict=True)))
                expected.append([f"`{norm}`", name.replace("-", " "), str(of_norm["run"].nunique()), str(units),
                                 *(rf"{cell(middle)} \(step {step:,}\)"
                                   for middle, step in zip(middles, ends, strict=True))])  # fmt: skip
        self._compare(rows, expected)

    def _theory(self, headings: list[str], rows: list[list[str]]) -> None:
        table = self.table("dln.theory")
        table = table[table["lhs"].notna()]
        expected = []
        for statement in sorted(table["statement"].unique()):
            cases = table[table["statement"] == statement]
            held = [bool(flag) for flag in cases["holds"].dropna()]
            expected.append([re.escape(statement), str(cases["run"].nunique()), f"{len(held):,}",
                             f"{held.count(False):,}", cell(np.nanmax(abs(cases["residual"]))),
                             cell(share(cases["condition"])),
                             cell(median(cases["mean_fraction"] + cases["output_fraction"]))])  # fmt: skip
        self._compare(rows, expected)

    def _floors(self, headings: list[str], rows: list[list[str]]) -> None:
        study = self.studies["dln"]
        ranks = [int(rank) for rank in re.findall(r"best of rank (\d+)", " ".join(headings))]
        norms = [heading.strip("`") for heading in headings[1 + len(ranks) :]]
        if set(norms) != {run.norm for run in study.runs} or len(study.cases) > 1:
            self.wrong.append(f"{self.where}: other norms or learning rates")
        expected = []
        for seed in sorted({run.seed for run in study.runs}):
            ends = {run.norm: run.training["final_loss"] for run in study.runs if run.seed == seed and not run.diverged}
            found = least_losses(study.about["settings"], seed)
            text = "{:,.0f}".format
            expected.append([str(seed), *(cell(found[rank - 1], text) for rank in ranks),
                             *(cell(ends[norm], text) if norm in ends else "–" for norm in norms)])  # fmt: skip
        self._compare(rows, expected)

    def _captions(self) -> None:
        """The learning rates, seeds, layers and steps in the line under each picture."""
        for caption, line in re.findall(r"^\*(`.+?)\.\* `(bnsmooth plot .+?)`$", self.body, re.MULTILINE):
            name = Path(shlex.split(line)[2]).stem
            table, study = self.table(name), caption.split("`")[1]
            seeds = {rounded(lr): tuple(sorted(set(rows["seed"]))) for lr, rows in table.groupby("lr")}
            if len(set(seeds.values())) == 1:
                seeds = {", ".join(seeds): next(iter(seeds.values()))}
            parts = [f"`{study}`"]
            for lr, of_lr in seeds.items():
                assert of_lr == tuple(range(of_lr[0], of_lr[-1] + 1))
                several = f"seeds {of_lr[0]} to {of_lr[-1]}"
                parts += [f"lr {lr}", f"seed {of_lr[0]}" if len(of_lr) == 1 else several]
            kind, steps = table.attrs["kind"], table["step"].nunique()
            if kind == "theory":
                parts.append(f"layers {', '.join(dict.fromkeys(table['layer_name']))}")
            if kind != "train":
                measured = measured_steps(self.studies[study].about["commands"], kind, self.studies[study].steps)
                parts.append(
                    f"{steps} of the {measured} measured steps"
                    if steps < measured
                    else f"{steps} step{'s' * (steps > 1)}"
                )
            if caption != ", ".join(parts):
                self.wrong.append(f"{self.section}: {caption!r} is not {', '.join(parts)!r}")

    def _prose(self) -> None:
        """Every number outside of tables, pictures and code is a reference, or is computed here."""
        lines = [line for line in self.body.split("\n") if not re.match(r"\||!\[|\*`|    ", line)]
        text = " ".join(line for line in lines[self.section != "" :] if not line.startswith("#"))
        phrases = [*STATEMENTS.get(self.section, lambda: [])(), *self._facts()]
        if self.section.startswith("Figure 8"):
            phrases.append(f"an activation in layers {listed(self.table('figure-8')['layer'])} of")
        if self.section.startswith("Figure 14"):
            phrases.append(f"an activation in layer {listed(self.table('figure-14')['layer'])} of")
        if self.section.startswith("Section 4"):
            cases = self.table("dln.theory")
            layers, steps = (cases[key].nunique() for key in ("layer", "step"))
            phrases.append(f"Cases are the units of {layers} layers at {steps} measured steps of the runs")
        for phrase in phrases:
            if phrase not in text:
                self.wrong.append(f"{self.section}: it does not say {phrase!r}")
            text = text.replace(phrase, "")
        for number in re.findall(r"\S*\d\S*", REFERENCES.sub("", re.sub("`.*?`", "", text))):
            self.wrong.append(f"{self.section}: a number that no test knows: {number}")

    def _facts(self) -> list[str]:
        """Sentences about the machine and the studies' settings, from reproduction.json."""
        if self.section == "":
            kept, cover = 1 - 2 * tail(5, 5), 1 - 2 * tail(6, 6)
            assert cover >= 0.95 > kept
            facts = self.facts
            shorter = [f"no run longer than {facts['steps']} steps"] if facts["steps"] else []
            runs = [run for study in facts["studies"].values() for run in study["runs"].values()]
            gpus = {gpu for run in runs for gpu in run.get("gpus", ())}  # the longest first: one may begin another
            return [*shorter, *sorted(gpus, key=len, reverse=True),
                    facts["machine"], facts["data"] or "the built-in images",
                    f"{facts['versions']}; {facts['jobs']} worker process{'es' * (facts['jobs'] > 1)} with",
                    f"the median with a probability of {kept:.1%}; from six seeds on it is at least 95%."]  # fmt: skip
        if self.section == "The claims":
            described = []
            for name, claims in self.verdicts.items():
                seeds = max(len(row["values"]) for *_, parts in claims.values() for row in parts)
                described.append(f"`{name}` ({self.studies[name].steps:,} steps, {seeds} seed{'s' * (seeds != 1)})")
            return [f"The studies: {', '.join(described)}."]
        if self.section == "The accuracies":
            return [f"the data are {self.facts['data'] or 'the built-in images'}"] if self.facts["note"] else []
        if self.section != "The studies":
            return []
        lines = [f"    {line}" for study in self.studies.values() for line in study.about["commands"]]
        if re.findall("^    .+", self.body, re.MULTILINE) != lines:
            self.wrong.append("The studies: other commands than in reproduction.json")
        said = []
        for name, study in self.studies.items():
            values = {key: {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
                      for key, value in study.about["settings"].items()}  # fmt: skip
            said.append(
                f"**{name}**: {', '.join(f'{key} {value}'.replace('_', ' ') for key, value in values.items())}."
            )
        return said


def listed(numbers: Any) -> str:
    *first, last = map(str, sorted(set(numbers)))
    return f"{', '.join(first)} and {last}" if first else last


# What the page's prose says of the paper's figures


def last_of(name: str, value: str, lr: float) -> pd.Series:
    rows = figure(name)
    rows = rows[rows["lr"] == lr].sort_values("step")
    return rows.groupby("norm")[value].last()


def of_figure_1() -> list[str]:
    usual, high = last_of("1b", "test_accuracy", 0.1), last_of("1b", "test_accuracy", 0.5)
    stuck = figure("1b").query("norm == 'none' and lr == 0.5 and step > 0")["test_accuracy"]
    assert stuck.nunique() == 1
    stated = STATED["vgg"]
    return [f"the test accuracy is {stated['batch']}% with it and {stated['none']}% without",
            f"{percent(usual['batch'])} and {percent(usual['none'])} at learning rate 0.1; at 0.5, "
            f"{percent(high['batch'])} with BatchNorm, and without it {percent(stuck.iloc[0])} at every evaluation "
            "after step 0."]  # fmt: skip


def of_figure_3() -> list[str]:
    cosines = figure("3b-ics").groupby(["lr", "norm", "layer"])["cosine"].agg(["median", "min", "max"])
    slow, usual = cosines.loc[1e-7], cosines.loc[1e-6]
    assert slow.loc["none", "min"].min() > 0.99
    assert slow.loc["batch", "min"].max() < -0.9
    assert slow.loc["batch", "max"].min() > 0.9
    near = usual["median"].groupby("layer").agg(["min", "max"])
    assert abs(near.loc[9] - 0.9).max() < 0.1
    assert abs(near.loc[17] + 0.9).max() < 0.1
    return ["at learning rate 1e-07 the plain network's cosine is 1 for the whole run, and BatchNorm's scatters "
            "between -1 and 1; at 1e-06 both networks' median cosines are near 0.9 in layer 9 and near -0.9 in layer "
            "17.",
            f"It shows VGG's layers {listed(figure('3a-ics')['layer'])}, at the learning rates "
            f"{listed(figure('3a-ics')['lr'])}."]  # fmt: skip


def of_figure_3_slow() -> list[str]:
    assert set(figure("3b-ics")["lr"]) == {1e-6, 1e-7}
    assert all(set(figure(name)["lr"]) == {1e-6} for name in ("9a", "9b", "9c", "13b"))
    return ["shows this learning rate beside 1e-06. Figures 9 and 13 are at 1e-06 only"]


def of_figure_4() -> list[str]:
    loss, change = (figure(name).set_index(["step", "norm"]) for name in ("4a", "4b"))
    wide = (loss["loss_max"] - loss["loss_min"]).unstack()
    more = wide["none"] > wide["batch"]
    first = int(more.idxmax())
    assert more.loc[first:].mean() > 0.7
    assert list(more.index[:3]) == [0, 100, first]
    largest = change["predictiveness_max"].unstack()
    times = [part["none"].median() / part["batch"].median()
             for part in (largest.loc[:999], largest.loc[1000:5000], largest.loc[5001:])]  # fmt: skip
    at_step = largest["none"] / largest["batch"]
    assert at_step.idxmax() == at_step.index[-1]
    return [f"at steps 0 and 100 the plain network varies less than BatchNorm, from step {first} on mostly more; the "
            f"gradient's median change is {times[0]:.1f} times BatchNorm's before step 1,000, {times[1]:.1f} times up "
            f"to 5,000 and {times[2]:.1f} times after, and {at_step.max():.0f} times at the last step, the most "
            "extreme",
            *of_figure_4c()]  # fmt: skip


def of_figure_4c() -> list[str]:
    rows = figure("4c")
    near = abs(rows["beta"] / 20 - 1).le(0.02).groupby(rows["norm"]).mean()
    return [f"beta is within 2% of 20 = 1 / (0.5 lr) at {near['none']:.0%} of the plain network's steps and at "
            f"{near['batch']:.0%} of BatchNorm's."]  # fmt: skip


def of_saturation() -> list[str]:
    return [
        *of_figure_4c(),
        "It is 1 / (shortest step) if the probe is saturated, and 2, for every shortest step up to 1/2, at the edge of "
        "stability.",
    ]


def of_figure_7() -> list[str]:
    rows = figure("7a")
    middles = rows.groupby(["layer", "norm"])["mean_change"].median()
    layers = sorted(set(rows["layer"]))
    assert all(middles[layer].idxmax() == "noisy-batch" for layer in layers)

    def digits(value: float) -> str:
        return np.format_float_positional(value, precision=2, unique=False, fractional=False, trim="-")

    each = ", ".join(
        f"layer {layer} {' / '.join(digits(middles[layer, norm]) for norm in ('none', 'batch', 'noisy-batch'))}"
        for layer in layers
    )
    apart_ = int(rows["step"].sort_values().drop_duplicates().diff().median())
    return [f"move between measured steps, {apart_} apart, and from step 0, in layers {listed(layers)};",
            f"none / batch / noisy-batch: {each}."]  # fmt: skip


def of_figure_13() -> list[str]:
    ends = last_of("13b", "loss", 1e-6)
    return [", ".join(f"{norm} {ends[norm]:,.0f}" for norm in NORMS[:5]) + "."]


STATEMENTS = {
    "": lambda: ["(2018)"],
    "Figure 1: training with and without BatchNorm": of_figure_1,
    "Figure 3: internal covariate shift": of_figure_3,
    "Figure 3 at learning rate 1e-07: the deep linear network": of_figure_3_slow,
    "Figure 4: the landscape along the gradient": of_figure_4,
    "Beside figure 4c: what sets effective beta": of_saturation,
    "Figure 7: how far the moments of layer inputs move": of_figure_7,
    "Figure 13: training with l_p norms": of_figure_13,
}  # fmt: skip
#: Numbers that name something: figures, theorems and norms.
REFERENCES = re.compile(r"\b(([Ff]igure|[Tt]heorem|[Oo]bservation|[Ll]emma)s? \d+(\.\d+)?[a-d]?(, \d+(\.\d+)?)*"
                        r"( and \d+(\.\d+)?)?|l_[12]|(sigma|gamma)\^2|attain 4\.4)")  # fmt: skip

TEXTS = {
    "final_test_accuracy": percent,
    "best_test_accuracy": percent,
    "steps_to_accuracy": lambda value: "never" if value == math.inf else rounded(value),
}
_NORM = "`(?:" + "|".join(NORMS) + ")`"
#: A kind of table -> its headings. Every one has a column with the number of seeds, runs, units, points or cases.
KNOWN = {
    "studies": r"study\|content\|runs\|steps\|recorded time",
    "claims": r"the paper's claim\|study\|statistic\|lr\|rule\|the paper's figure\|here\|verdict",
    "accuracies": r"study\|lr\|norm\|seeds\|the paper\|here, last\|here, best",
    "medians": rf"`[\w-]+`\|lr\|seeds(\|({'|'.join(map(re.escape, HEADINGS))}))+",
    "distances": rf"the paper's figure\|lr\|seeds\|steps(\|{_NORM})+\|unit",
    "parts": r"claim, study\|statistic\|lr\|seeds\|median\|rule\|p\|p against\|verdict\|the paper's figure",
    "saturation": r"problem\|norm\|part of the run\|runs\|points(\|shortest step [\d.]+)+\|curvature × lr"
                  r"\|sharpness × lr\|verdict",
    "sigma": r"variance before the norm, median over layers and units\|picture\|runs\|units\|first\|last",
    "theory": r"statement\|runs\|cases\|failures\|largest residual\|share whose conditions hold"
              r"\|reduction of the squared gradient, median",
    "floors": rf"seed(\|best of rank \d+)+(\|{_NORM})+",  # a row is a seed, a cell a run
}  # fmt: skip


def sections(text: str) -> dict[str, str]:
    first, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    return {"": first} | {part.partition("\n")[0]: part for part in rest}


def markdown_tables(text: str) -> list[tuple[list[str], list[list[str]]]]:
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", re.sub(r"(^\|[ -|]*--- \|\n)\n", r"\1", text, flags=re.MULTILINE),
                            re.MULTILINE):  # fmt: skip
        lines = [[cell.strip() for cell in line.strip()[1:-1].split(" | ")] for line in block.strip().splitlines()]
        found.append((lines[0], lines[2:]))
    return found


def planned_runs(command: str) -> list[tuple[str, ...]]:
    """The runs of a line of `bnsmooth compare`."""
    options = dict(zip(words := shlex.split(command)[2:], words[1:], strict=False))
    ranges = [part.partition("-")[::2] for part in options["--seeds"].split(",")]
    seeds = [str(seed) for first, last in ranges for seed in range(int(first), int(last or first) + 1)]
    lrs = options.get("--lrs", "").split(",")
    return [*itertools.product(options["--norms"].split(","), lrs, seeds)]


def measured_steps(commands: list[str], kind: str, steps: int) -> int:
    """How many steps of a run the first command measures that has this kind."""
    for command in commands:
        options = dict(zip(words := shlex.split(command)[2:], words[1:], strict=False))
        if kind in options.get("--measure", "").split(","):
            return len(options["--at"].split(",")) if "--at" in options else steps // int(options["--every"]) + 1
    raise AssertionError(f"{kind} is not measured")


def apart(name: str, axis: Curve, table: pd.DataFrame) -> list[tuple[str, str, str, tuple[float, int, int]]]:
    """Distances from a figure of the paper: the row's label and learning rate, the norm, and distance, seeds, steps."""
    theirs, found = figure(name), []
    versions = {"": "grad_distance"}
    if axis.columns[0] in ("predictiveness_min", "grad_distance") and table["grad_distance_summed"].notna().any():
        versions[", summed"] = "grad_distance_summed"
    curve = [key for key in ("norm", "lr", "layer") if key in theirs and key in table]
    for (version, lengths), (key, of_paper) in itertools.product(versions.items(), theirs.groupby(curve, sort=False)):
        norm, lr, *layer = key
        ours = table[(table["norm"] == norm) & np.isclose(table["lr"], lr, rtol=1e-6, atol=0)]
        ours = ours[(ours["layer"] == layer[0]) if layer else slice(None)]
        if ours.empty or ours["problem"].iloc[0] != of_paper["problem"].iloc[0]:
            continue
        columns = list(axis.columns)
        if axis.table == "landscape" and columns != ["grad_distance"]:
            of_line = {"loss": "loss", "predictiveness": lengths}[columns[0].removesuffix("_min")]
            line = ours[ours["alpha"] > 0]
            line = line.assign(value=line[of_line].fillna(np.inf)).groupby(["seed", "step"])["value"]
            ours = pd.DataFrame({columns[0]: line.min(), columns[1]: line.max()}).reset_index()
        elif columns == ["grad_distance"]:
            ours = ours.assign(grad_distance=ours[lengths])
        keys = ["step", *(["alpha"] if "alpha" in of_paper else [])]
        middles = ours.groupby(keys)[columns].median().dropna()
        both = of_paper.merge(middles.reset_index(), on=keys, suffixes=("", "_ours"))
        a, b = both[columns].to_numpy(float), both[[f"{name}_ours" for name in columns]].to_numpy(float)
        with np.errstate(all="ignore"):
            gaps = abs(np.log10(a) - np.log10(b)) if axis.unit == "decades" else abs(a - b)
        gaps = np.where(np.isnan(gaps), np.inf, gaps) * (100 if axis.unit == "points" else 1)
        quantity = columns[0].removesuffix("_min") if len(columns) == 2 else columns[0]
        label = ", ".join([name, quantity + version, *(f"layer {number:.0f}" for number in layer)])
        distance = float(np.median(gaps)) if len(both) else math.nan
        found.append((label, rounded(float(lr)), str(norm), (distance, ours["seed"].nunique(), both["step"].nunique())))
    return found


def saturation(line: pd.DataFrame, curved: pd.DataFrame, shortest: list[float]) -> list[list[str]]:
    """The rows of the experiment on beta: medians over the points of a norm, in the first tenth of a run and later."""
    keys, rows = ["norm", "lr", "seed", "step"], []
    probed = line[line["alpha"] > 0]
    change = probed["grad_distance"].fillna(np.inf) / probed["distance"] * probed["lr"]
    points = pd.DataFrame({alpha: change[probed["alpha"] >= alpha].groupby([probed[key] for key in keys]).max()
                           for alpha in shortest}).reset_index()  # fmt: skip
    points = points.merge(curved[[*keys, "curvature", "sharpness"]], on=keys)
    early = points["step"] <= 0.1 * line["step"].max()
    for norm in sorted(points["norm"].unique()):
        runs = line[line["norm"] == norm]["run"].nunique()
        for when, chosen in (("early", early), ("later", ~early)):
            of = points[(points["norm"] == norm) & chosen]
            if of.empty:
                continue
            betas = {alpha: median(of[alpha]) for alpha in shortest}
            saturated = all(abs(betas[alpha] * alpha - 1) <= 0.1 for alpha in (0.25, 0.5, 1.0))
            edge = all(abs(betas[alpha] / 2 - 1) <= 0.1 for alpha in (0.0625, 0.125, 0.25, 0.5))
            verdict = "saturated" if saturated else "edge of stability" if edge else "not decided"
            shape = [median(of[name] * of["lr"]) for name in ("curvature", "sharpness")]
            rows.append([line["problem"].iloc[0], f"`{norm}`", when, str(runs), str(len(of)),
                         *map(cell, [*betas.values(), *shape]), verdict])  # fmt: skip
    return rows


@functools.cache
def _least_losses(seed: int, settings: tuple[tuple[str, Any], ...]) -> list[float]:
    from bnsmooth_cli.config import resolve
    from bnsmooth_cli.problems import build

    inputs, targets = (part.double().numpy() for part in build(resolve(seed=seed, **dict(settings))).batch(0))
    design = np.column_stack([inputs, np.ones(len(inputs))])
    fitted = design @ np.linalg.pinv(design) @ targets
    rest = ((targets - fitted) ** 2).sum()
    # Of a matrix of rank r, the best approximation leaves the singular values from the (r+1)-th on.
    squares = np.linalg.svd(fitted - fitted.mean(0), compute_uv=False) ** 2
    return [float(rest + squares[rank:].sum()) for rank in range(1, len(squares) + 1)]


def least_losses(settings: dict[str, Any], seed: int) -> list[float]:
    """The least losses of affine maps of rank 1, 2, ... on the data of a seed: the losses of the saddles."""
    data = ("problem", "dimension", "samples", "matrix")
    return _least_losses(seed, tuple((name, settings[name]) for name in data if name in settings))
