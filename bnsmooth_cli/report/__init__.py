"""The report of a study as one page: claims, figures, comparison, settings and commands. No torch here."""

from __future__ import annotations

import base64
import io
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import jinja2
import pandas as pd

from bnsmooth_cli import figures, kinds
from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.figures import style
from bnsmooth_cli.kinds import Section
from bnsmooth_cli.presets import in_paper
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.files import atomic, check_writable
from bnsmooth_cli.storage.runs import Run, open_run
from bnsmooth_cli.storage.stretches import history, recorded
from bnsmooth_cli.studies import verdicts
from bnsmooth_cli.studies.folder import Study
from bnsmooth_cli.studies.grid import command
from bnsmooth_cli.studies.metrics import measured_rows
from bnsmooth_cli.studies.outcome import Outcome
from bnsmooth_cli.studies.progress import duration
from bnsmooth_cli.studies.statistics import CONFIDENCE, SEEDS

FORMATS: Final = ("html", "md")
#: The columns of the table of runs.
_COLUMNS: Final = ("norm", "lr", "seed", "steps", "diverged_at", "final_loss", "final_test_accuracy", "steps_to_loss",
                   "steps_to_accuracy",
                   *(metric.name for metric in kinds.METRICS if metric.kind != "train"))  # fmt: skip


def write(study: Study, output: Path, form: str) -> None:
    """Write the report of a study: one HTML file, or Markdown with its figures in `<name>_files/` beside it.

    Args:
        study: The study.
        output: The page.
        form: A member of `FORMATS`.

    Raises:
        InputError: If the folder is not a study or has not been compared yet, or a table is damaged.
    """
    check_writable(output)
    outcome = _read(study)
    runs = [open_run(study.path / "runs" / name) for name in outcome.comparison["run"]]
    sections = list(_sections(runs, outcome))
    folder = output.with_name(f"{output.stem}_files")
    for section in sections:
        encoded = f"data:image/png;base64,{base64.b64encode(section['png']).decode()}"
        section["image"] = encoded if form == "html" else f"{folder.name}/{section['kind']}.png"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bnsmooth_cli.report", "templates"), autoescape=form == "html",
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {function.__name__: function for function in _FILTERS}
    page = environment.get_template(f"report.{form}").render(**_content(study, runs, outcome), sections=sections)
    if form == "md":
        for section in sections:
            with atomic(folder / f"{section['kind']}.png") as temporary:
                temporary.write_bytes(section["png"])
    with atomic(output) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def number(value: Any) -> str:
    """A value in a table: a number to three digits, a dash for a missing one.

    >>> number(0.12345), number(float("nan")), number(12), number("l1"), number(float("inf"))
    ('0.123', '–', '12', 'l1', 'inf')
    """
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.3g}"


def interval(row: Mapping[str, Any]) -> str:
    """The ends of the interval of a row, with its coverage if that is below 95%; a dash if it has none.

    >>> interval({"low": 0.5, "high": 2.0, "confidence": 0.9375}), interval({"low": float("nan"), "high": float("nan")})
    ('0.5 to 2 (93.8%)', '–')
    """
    if math.isnan(row["low"]):
        return "–"
    coverage = f" ({row['confidence']:.1%})" if row["confidence"] < CONFIDENCE else ""
    low, high = (_of_metric(str(row.get("figure")), row[end]) for end in ("low", "high"))
    return f"{low} to {high}{coverage}"


def middle(cell: Mapping[str, Any]) -> str:
    """The median in a cell of the summary.

    >>> middle({"figure": "steps_to_loss", "median": float("inf")}), middle({"figure": "beta", "median": 2.0})
    ('never', '2')
    """
    return _of_metric(cell["figure"], cell["median"])


def run_cell(row: Mapping[str, Any], column: str) -> str:
    """A cell of the table of runs."""
    return _of_metric(column, row[column])


def _of_metric(metric: str, value: Any) -> str:
    return "never" if metric.startswith("steps_to") and value == math.inf else number(value)


def never(cell: Mapping[str, Any]) -> str:
    """How many seeds of a cell of the summary never reached the target.

    >>> never({"never": 2.0, "seeds": 5})
    '2 of 5 never reached'
    """
    return f"{cell['never']:.0f} of {cell['seeds']} never reached"


def seeds(part: Mapping[str, Any]) -> str:
    """The seeds of a part of a claim, with those that have no value.

    >>> seeds({"seeds": 5, "undefined": 2.0}), seeds({"seeds": 0, "undefined": float("nan")})
    ('5, 2 undefined', '–')
    """
    undefined = f", {part['undefined']:.0f} undefined" if part["undefined"] > 0 else ""
    return f"{part['seeds']}{undefined}" if part["seeds"] else "–"


def part_verdict(part: Mapping[str, Any]) -> str:
    """The verdict on a part of a claim, in parentheses if the part is judged and does not decide."""
    return f"({part['part_verdict']})" if verdicts.is_aside(part) else str(part["part_verdict"])


def part_tone(part: Mapping[str, Any]) -> str:
    """The tone of the verdict on a part of a claim; none if the part does not decide."""
    return "none" if verdicts.is_aside(part) else verdicts.tone(part["part_verdict"])


#: What the templates call.
_FILTERS: Final = (number, interval, middle, run_cell, never, seeds, part_verdict, part_tone, verdicts.tone)


def _read(study: Study) -> Outcome:
    """The outcome of a study, checked against the runs that it compares."""
    request = study.read()["requests"][-1]
    if not study.table.is_file():
        raise InputError(f"{study.path}: nothing is compared there yet; {command(request, study.path)}")
    outcome = Outcome.read(study.table)
    known = {path.parent.name for path in (study.path / "runs").glob("*/config.json")}
    if strangers := [name for name in outcome.comparison["run"] if name not in known]:
        raise DamagedError(f"{study.table}: compares a run that does not exist, {strangers[0][:80]}; compare again")
    return outcome


def _content(study: Study, runs: Sequence[Run], outcome: Outcome) -> dict[str, Any]:
    """The content of the templates, except the figures."""
    content, comparison = study.read(), outcome.comparison
    requests = [*content["requests"][:-1], content["requests"][-1] | outcome.targets]
    columns = [name for name in _COLUMNS if comparison[name].notna().any()]
    rows = comparison[columns].astype(object)
    for target in ("loss", "accuracy"):
        if (name := f"steps_to_{target}") in columns:
            rows.loc[comparison[f"target_{target}"].notna() & comparison[name].isna(), name] = math.inf
    return {
        "name": study.path.resolve().name,
        "claims": (judged := [_claim(parts) for _, parts in outcome.claims.groupby("claim", sort=True)]),
        "theory_only": not in_paper(str(comparison["problem"].iloc[0])),
        "tally": {verdict: count for verdict in verdicts.ORDER
                  if (count := sum(claim["verdict"] == verdict for claim in judged))},
        "when": _when(study, runs),
        "missing": outcome.next,
        "summary": _medians(outcome.summary),
        "columns": columns,
        "rows": rows.to_dict("records"),
        "runs": len(runs),
        "diverged": int(comparison["diverged_at"].notna().sum()),
        "settings": {**content["settings"], "threads a run": content["threads"]},
        "grid": {name: sorted(comparison[name].unique(), key=style.rank if name == "norm" else None)
                 for name in ("norm", "lr", "seed")},
        "makers": _makers(runs),
        "commands": [*(command(request, study.path) for request in requests),
                     shlex.join(["bnsmooth", "report", str(study.path), "-o", "report.html"])],
        "seeds_needed": SEEDS,
    }  # fmt: skip


def _claim(parts: pd.DataFrame) -> dict[str, Any]:
    first, several = parts.iloc[0], int(parts["seeds"].max())
    why = [verdicts.headline(parts).partition(": ")[2], f"{several} seed{'s' * (several != 1)}" * bool(several)]
    if first["power"] > 0 and first["verdict"] != verdicts.NOT_MEASURED:
        why.append(f"power {number(first['power'])}")
    return {"number": int(first["claim"]), "title": first["title"], "verdict": first["verdict"],
            "why": "; ".join(filter(None, why)),
            "parts": parts[parts["part"] != verdicts.ELSEWHERE].to_dict("records")}  # fmt: skip


def _when(study: Study, runs: Sequence[Run]) -> str:
    """When the study was made, and how long it took.

    Studies of earlier versions do not tell. The dates of their tables do, as far as they were not copied.
    """
    log = study.log()
    if not log:
        times = sorted(run.train_path.stat().st_mtime for run in runs)
        dates = [datetime.fromtimestamp(time, timezone.utc).date().isoformat() for time in (times[0], times[-1])]
        return f"Files of {' to '.join(dict.fromkeys(dates))}."
    dates = [str(entry["began"])[:10] for entry in (log[0], log[-1])]
    took = duration(sum(entry["seconds"] for entry in log))
    return f"Trained and measured on {' to '.join(dict.fromkeys(dates))}, in {took}."


def _sections(runs: Sequence[Run], outcome: Outcome) -> Iterator[dict[str, Any]]:
    """The sections with figures, one for each kind of table that the runs have."""
    for kind in kinds.KINDS:
        if kind.section is not None and (png := _figure(kind.name, runs, outcome.comparison)) is not None:
            pixels = int.from_bytes(png[16:20], "big")  # the width in the header of a PNG
            yield {"kind": kind.name, "title": kind.section.title, "reading": kind.section.reading, "png": png,
                   "quotes": " ".join(_quotes(kind.section, outcome)),
                   "width": pixels * 96 // figures.DPI}  # fmt: skip


def _figure(kind: str, runs: Sequence[Run], comparison: pd.DataFrame) -> bytes | None:
    """The figure of a kind over all runs as a PNG; None if no run has rows of it."""
    table = comparison if kind == "compare" else _rows(kind, runs)
    if table.empty:
        return None
    figure = figures.render(kind, table, _rows("train", runs) if kind == "ics" else None)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _rows(kind: str, runs: Sequence[Run]) -> pd.DataFrame:
    tables_with_rows = [rows for run in runs if not (rows := measured_rows(run, kind)).empty]
    return pd.concat(tables_with_rows, ignore_index=True) if tables_with_rows else pd.DataFrame()


def _quotes(section: Section, outcome: Outcome) -> Iterator[str]:
    """The numbers of a figure, one sentence per metric, and the verdicts on its claims."""
    for metric in (metric for metric in kinds.METRICS if metric.name in section.metrics):
        rows = outcome.summary[outcome.summary["figure"] == metric.name]
        if len(rows):
            yield f"{_named(metric, outcome)} (×: ratio to none): " + "; ".join(_by_norm(rows, metric.name)) + "."
    verdicts = outcome.claims[outcome.claims["claim"].isin(section.claims)].drop_duplicates("claim")
    yield "Claims: " + ", ".join(f"{row.claim} {row.verdict}" for row in verdicts.itertuples()) + "."


def _named(metric: kinds.Metric, outcome: Outcome) -> str:
    """The words for a metric; those for the steps to a target name it if the user has chosen it."""
    chosen = outcome.targets.get(metric.name.replace("steps_to", "target"))
    if chosen is None or not metric.target:
        return metric.words
    return f"Steps to {'a loss' if metric.name.endswith('loss') else 'an accuracy'} of {number(chosen)}"


def _by_norm(rows: pd.DataFrame, metric: str) -> Iterator[str]:
    """The medians of a metric, norm by norm, with their ratios to none."""
    steps = metric.startswith("steps")
    several = rows["lr"].nunique() > 1
    records: list[dict[str, Any]] = rows.to_dict("records")  # type: ignore[assignment]
    for row in sorted(records, key=lambda row: (row["lr"], style.rank(row["norm"]))):
        value = row["median"]
        shown = f"{100 * value:.1f}%" if metric.endswith("accuracy") and not steps else middle(row)
        if row["never"] > 0:
            shown += f", {never(row)}"
        if row["diverged"] and metric.startswith("final"):
            shown += f", {row['diverged']} of {row['seeds']} diverged"
        text = f"{row['norm']}{', ' + style.lr_text(row['lr']) if several else ''} {shown}"
        yield text + (f" (×{number(row['ratio'])})" if row["norm"] != "none" and math.isfinite(row["ratio"]) else "")


def _medians(summary: pd.DataFrame) -> dict[str, Any]:
    """The summary with one row per norm and learning rate, and one cell per metric."""
    names = [metric.name for metric in kinds.METRICS if metric.name in set(summary["figure"])]
    rows = []
    for (norm, lr), of_norm in summary.groupby(["norm", "lr"], sort=False):
        cells = {row["figure"]: row for row in of_norm.to_dict("records")}
        rows.append(
            {
                "norm": norm,
                "lr": lr,
                "seeds": int(of_norm["seeds"].max()),
                "diverged": int(of_norm["diverged"].max()),
                "cells": [cells.get(name) for name in names],
            }
        )
    return {"metrics": names, "rows": sorted(rows, key=lambda row: (row["lr"], style.rank(row["norm"])))}


def _makers(runs: Sequence[Run]) -> list[str]:
    """What computed the runs. A run that several machines computed is named, with the steps of each."""
    by_run = {run.name: recorded(tables.read_provenance(run.train_path, "train"), 0) for run in runs}
    whole = {history(stretches) for stretches in by_run.values() if len(stretches) == 1}
    return [*sorted(whole), *(f"{name}: {history(parts)}" for name, parts in by_run.items() if len(parts) > 1)]
