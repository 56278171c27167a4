"""A study as one page: claims, figures with their readings, the comparison, settings and commands. No torch here."""

from __future__ import annotations

import base64
import io
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
import matplotlib
import pandas as pd

from bnsmooth_cli import figures, kinds
from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.figures import style
from bnsmooth_cli.kinds import Section
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.files import atomic, check_writable
from bnsmooth_cli.storage.runs import Run, open_run
from bnsmooth_cli.studies import claims, outcome
from bnsmooth_cli.studies.comparison import measured_rows
from bnsmooth_cli.studies.grid import Study, command

FORMATS: Final = ("html", "md")


_COLUMNS: Final = ("norm", "lr", "seed", "steps", "diverged_at", "final_loss", "final_test_accuracy", "steps_to_loss",
                   "steps_to_accuracy",
                   *(metric.name for metric in kinds.METRICS if metric.kind != "train"))  # fmt: skip


def write(study: Study, output: Path, form: str) -> None:
    """Write the report of a study: one HTML file, or Markdown with its figures in `<name>_files/` beside it.

    Raises InputError for a folder that is no study or has not been compared yet, and for a damaged or empty table.
    """
    check_writable(output)
    images: dict[str, bytes] = {}
    context = _context(study, images)
    folder = output.with_name(f"{output.stem}_files")
    sizes = {name: int.from_bytes(png[16:20], "big") * 96 // style.SAVE["savefig.dpi"] for name, png in images.items()}
    if form == "html":
        sources = {name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in images.items()}
    else:
        sources = {name: f"{folder.name}/{name}.png" for name in images}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bnsmooth_cli.report", "templates"), autoescape=form == "html",
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "interval": interval}
    page = environment.get_template(f"report.{form}").render(**context, images=sources, widths=sizes)
    if form == "md":
        for name, png in images.items():
            with atomic(folder / f"{name}.png") as temporary:
                temporary.write_bytes(png)
    with atomic(output) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def number(value: Any) -> str:
    """A table's cell: three digits, a dash where there is nothing.

    >>> number(0.12345), number(float("nan")), number(12), number("l1"), number(float("inf"))
    ('0.123', '–', '12', 'l1', 'inf')
    """
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.3g}"


def interval(row: Mapping[str, Any]) -> str:
    """The ends of a row's interval, a dash where it has none.

    >>> interval({"low": 0.5, "high": 2.0}), interval({"low": float("nan"), "high": float("nan")})
    ('0.5 to 2', '–')
    """
    return "–" if math.isnan(row["low"]) else f"{number(row['low'])} to {number(row['high'])}"


def _context(study: Study, images: dict[str, bytes]) -> dict[str, Any]:
    content = study.read()
    if not study.table.is_file():
        raise InputError(f"{study.path}: nothing is compared there yet; {command(content['requests'][-1], study.path)}")
    files = outcome.paths(study.table)
    comparison, summary, judged = (
        tables.read_table(file, kind) for file, kind in zip(files, outcome.KINDS, strict=True)
    )
    if comparison.empty:
        raise InputError(f"{study.table}: no run is in it; {command(content['requests'][-1], study.path)}")
    known = {path.parent.name for path in (study.path / "runs").glob("*/config.json")}
    if strangers := [name for name in comparison["run"] if name not in known]:
        raise DamagedError(f"{study.table}: compares a run that is not there, {strangers[0][:80]}; compare again")
    runs = [open_run(study.path / "runs" / name) for name in comparison["run"]]
    sections = []
    for kind in kinds.KINDS:
        if kind.section is not None and (figure := _figure(kind.name, runs, comparison)) is not None:
            images[kind.name] = figure
            says = list(_says(kind.section, summary, judged))
            sections.append({"kind": kind.name, "section": kind.section, "says": says})
    versions = sorted({run_version for run in runs for run_version in _versions(run)})
    columns = [name for name in _COLUMNS if comparison[name].notna().any()]
    return {
        "name": study.path.resolve().name,
        "claims": [_claim(parts) for _, parts in judged.groupby("claim", sort=True)],
        "missing": judged.attrs["bnsmooth"].get("next", []),
        "sections": sections,
        "summary": _medians(summary),
        "columns": [*columns],
        "rows": comparison[columns].to_dict("records"),
        "runs": len(runs),
        "diverged": int(comparison["diverged_at"].notna().sum()),
        "settings": {**content["settings"], "threads a run": content["threads"]},
        "grid": {name: sorted(comparison[name].unique(), key=style.rank if name == "norm" else None)
                 for name in ("norm", "lr", "seed")},
        "versions": versions,
        "commands": [*(command(request, study.path) for request in content["requests"]),
                     shlex.join(["bnsmooth", "report", str(study.path), "-o", "report.html"])],
        "seeds_needed": claims.SEEDS,
    }  # fmt: skip


def _claim(parts: pd.DataFrame) -> dict[str, Any]:
    first = parts.iloc[0]
    return {"number": int(first["claim"]), "title": first["title"], "verdict": first["verdict"],
            "parts": parts.to_dict("records")}  # fmt: skip


def _figure(kind: str, runs: Sequence[Run], comparison: pd.DataFrame) -> bytes | None:
    """The PNG of a kind's tables over all runs, None where there are none."""
    if kind == "compare":
        table = comparison
    else:
        table = _rows(kind, runs)
        if table.empty:
            return None
    training = _rows("train", runs) if kind == "ics" else None
    figure = figures.render(kind, table, training)
    buffer = io.BytesIO()
    with matplotlib.rc_context(style.SAVE):
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _rows(kind: str, runs: Sequence[Run]) -> pd.DataFrame:
    found = [rows for run in runs if not (rows := measured_rows(run, kind)).empty]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _says(section: Section, summary: pd.DataFrame, judged: pd.DataFrame) -> Iterator[str]:
    """What a figure's numbers are, a sentence a quoted figure, and the verdicts of the claims that it bears on."""
    for metric in (metric for metric in kinds.METRICS if metric.name in section.metrics):
        rows = summary[summary["figure"] == metric.name]
        if len(rows):
            yield f"{metric.words} (×: of none's): " + "; ".join(_quoted(rows, metric.name)) + "."
    verdicts = judged[judged["claim"].isin(section.claims)].drop_duplicates("claim")
    yield "Claims: " + ", ".join(f"{row.claim} {row.verdict}" for row in verdicts.itertuples()) + "."


def _quoted(rows: pd.DataFrame, figure: str) -> Iterator[str]:
    percent = figure.endswith("accuracy") and not figure.startswith("steps")
    several = rows["lr"].nunique() > 1
    for row in sorted(rows.to_dict("records"), key=lambda row: (row["lr"], style.rank(row["norm"]))):
        middle = row["median"]
        shown = f"{100 * middle:.1f}%" if percent else number(middle)
        if figure.startswith("steps") and math.isinf(middle):
            shown = "never"
        text = f"{row['norm']}{', ' + style.lr_text(row['lr']) if several else ''} {shown}"
        yield text + (f" (×{number(row['ratio'])})" if row["norm"] != "none" and math.isfinite(row["ratio"]) else "")


def _medians(summary: pd.DataFrame) -> dict[str, Any]:
    """Rows a norm and learning rate, of (median, interval) a figure."""
    names = [metric.name for metric in kinds.METRICS if metric.name in set(summary["figure"])]
    rows = []
    for (norm, lr), found in summary.groupby(["norm", "lr"], sort=False):
        cells = {row["figure"]: row for row in found.to_dict("records")}
        rows.append(
            {"norm": norm, "lr": lr, "seeds": int(found["seeds"].max()), "cells": [cells.get(name) for name in names]}
        )
    return {"figures": names, "rows": sorted(rows, key=lambda row: (row["lr"], style.rank(row["norm"])))}


def _versions(run: Run) -> Iterator[str]:
    provenance = tables.read_provenance(run.train_path, "train")
    yield f"bnsmooth {provenance.get('version')}"
    if "torch" in provenance:
        yield f"torch {provenance['torch']}"
