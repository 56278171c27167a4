"""How the outcome of a comparison is shown: a table for each group of runs, and the claims with all of their parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.layout import cell
from bnsmooth_cli.cli.outline import Cell, Section
from bnsmooth_cli.presets import in_paper

if TYPE_CHECKING:
    import pandas as pd

    from bnsmooth_cli.studies.outcome import Outcome

#: The colours of `verdicts.tone`.
_COLOURS: Final = {"good": "green", "bad": "red", "open": "yellow", "none": "dim"}


def show(outcome: Outcome) -> None:
    """Print an outcome: a comparison and the verdicts for each group of runs of the same settings, and what is next.

    A JSON document gets the rows of the three tables, and the commands.
    """
    if terminal.is_json():
        import pandas as pd

        from bnsmooth_cli import kinds

        compared = [kind.name for kind in kinds.KINDS if kind.compared]
        for name, table in zip(compared, (outcome.comparison, outcome.summary, outcome.claims), strict=True):
            terminal.summary(name, table, max_rows=None)
        terminal.summary("next", pd.DataFrame({"command": outcome.next}), max_rows=None)
        return
    for title, settings, rows in _groups(outcome.comparison):
        summary = _of(outcome.summary, rows["problem"].iloc[0], settings)
        if rows["seed"].nunique() > 1 and len(summary):
            about = f"medians over seeds [{summary['confidence'].min():.0%} interval]; x: the median ratio to none"
            terminal.summary(f"{title}, {about}", *_statistics(summary))
        else:
            alike = [list(names) for _, names in rows.groupby(["norm", "lr", "seed"])["run"] if len(names) > 1]
            note = f"no statistics and no verdicts: {' and '.join(alike[0])} share norm, lr and seed" if alike else ""
            terminal.summary(f"{title}, best first; in parentheses the ratio to none", *_readable(rows), note)
    for title, settings, rows in _groups(outcome.comparison):
        claims = _of(outcome.claims, rows["problem"].iloc[0], settings)
        if len(claims):
            problem = str(claims["problem"].iloc[0])
            judged = "claims" if in_paper(problem) else f"theory; its other claims are not about {problem}"
            about = f"{title}, the paper's {judged} (rules: docs/claims.md)"
            terminal.outline(about, _COLUMNS, [*_sections(claims)], _note(claims))
    for command in outcome.next:
        terminal.say(f"to measure more: {command}")


def _groups(comparison: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The runs of each problem and settings, with a title that says what differs."""
    from bnsmooth_cli.identity import differing

    for problem, of_problem in comparison.groupby("problem", sort=False):
        words = differing(str(problem), of_problem["settings"])
        for settings, rows in of_problem.groupby("settings", sort=False):
            yield ": ".join(filter(None, [str(problem), words[str(settings)]])), str(settings), rows


def _of(table: pd.DataFrame, problem: str, settings: str) -> pd.DataFrame:
    return table[(table["problem"] == problem) & (table["settings"] == settings)]


def _readable(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A comparison reduced to fit a terminal: the settings that differ between runs, and the main metrics."""
    varying = [name for name in ("lr", "seed") if frame[name].nunique() > 1]
    table = frame[["norm", *varying]].astype(str)
    table.loc[frame["diverged_at"].notna(), "norm"] += " (diverged)"
    target = "loss" if frame["final_test_accuracy"].isna().all() else "accuracy"
    steps = f"steps_to_{target}"
    for name in ("final_loss", "final_test_accuracy", steps, "predictiveness", "beta"):
        if frame[name].notna().any():
            table[name] = [_with_ratio(v, r) for v, r in zip(frame[name], frame[f"ratio_{name}"], strict=True)]
    if steps in table:
        table.loc[frame[f"target_{target}"].notna() & frame[steps].isna(), steps] = "never"
    if table[["norm", *varying]].duplicated().any():  # the runs differ in something else, so show their names
        table.insert(0, "run", frame["run"])
    return table, list(table)


def _with_ratio(value: float, ratio: float) -> str:
    if value != value:
        return "-"
    shown = cell(float(value))
    return shown if ratio != ratio else f"{shown} ({ratio:.2g})"


def _statistics(summary: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row per norm and learning rate: medians and intervals of beta, and of accuracy or (without it) loss."""
    import pandas as pd

    accuracy = "final_test_accuracy" in set(summary["figure"])
    wanted = ["final_test_accuracy", "steps_to_accuracy"] if accuracy else ["final_loss", "steps_to_loss"]
    rows = []
    for (norm, lr), of_norm in summary.groupby(["norm", "lr"], sort=False):
        by_metric, seeds = of_norm.set_index("figure"), int(of_norm["seeds"].max())
        diverged = int(of_norm["diverged"].max())
        said = f"{seeds}, {diverged} diverged" if diverged else str(seeds)
        row: dict[str, object] = {"norm": norm, "lr": f"{lr:g}", "seeds": said}
        for metric in (*wanted, "beta"):
            if metric in by_metric.index:
                row[metric] = _with_interval(by_metric.loc[metric])
        rows.append(row)
    table = pd.DataFrame(rows).fillna("-")
    if table["lr"].nunique() == 1:
        del table["lr"]
    return table, list(table)


def _with_interval(row: pd.Series[float]) -> str:
    never = "never" if str(row.name).startswith("steps_to") else "inf"
    median, low, high = (never if math.isinf(row[name]) else f"{row[name]:.3g}" for name in ("median", "low", "high"))
    text = f"{median} [{low}, {high}]" if row["low"] == row["low"] else median
    text += f" x{row['ratio']:.2g}" if math.isfinite(row["ratio"]) and row["ratio"] != 1 else ""
    return text + (f"; {row['never']:.0f} of {row['seeds']:.0f} never" if row["never"] > 0 else "")


# The claims.

#: The columns of a part of a claim, and whether they are aligned right.
_COLUMNS: Final = {"part": False, "lr": True, "here": True, "rule": False, "paper": True, "verdict": False}


def _note(claims: pd.DataFrame) -> str:
    from bnsmooth_cli.studies.statistics import SEEDS

    if claims["seeds"].max() < SEEDS:
        return f"a verdict needs {SEEDS} seeds or more; --plan says how many"
    return (f"here: the median over seeds [{claims['confidence'].min():.0%} interval]; paper: the same statistic of "
            "the paper's own figure; power: for effects of 1 sd; a verdict in parentheses does not decide")  # fmt: skip


def _sections(claims: pd.DataFrame) -> Iterator[Section]:
    """The claims of a group of runs, with a row for each part that is measured.

    A claim of which nothing is measured is a heading alone: its verdict says all that is known.
    """
    from bnsmooth_cli.studies.verdicts import NOT_MEASURED, headline, tone

    several = claims["lr"].nunique(dropna=False) > 1
    for number, parts in claims.groupby("claim", sort=False):
        seeds = int(parts["seeds"].max())
        about = [f"{seeds} seed{'s' * (seeds != 1)}"] if seeds else []
        if parts["power"].iloc[0] > 0 and parts["verdict"].iloc[0] != NOT_MEASURED:
            about.append(f"power {parts['power'].iloc[0]:.2g}")
        verdict = headline(parts) + (f" ({', '.join(about)})" if about else "")
        lines = (Cell(f"{number:>2} {parts['title'].iloc[0]}", "bold"),
                 Cell(f"   {verdict}", _COLOURS[tone(parts["verdict"].iloc[0])]))  # fmt: skip
        measured = [part for _, part in parts.iterrows()] if seeds else []
        yield Section(lines, tuple(_part(part, seeds, several) for part in measured))


def _part(part: pd.Series[Any], seeds: int, several: bool) -> tuple[Cell, ...]:
    from bnsmooth_cli.studies.verdicts import REPORTED, is_aside, tone

    said, verdict = [part["part"]], part["part_verdict"]
    if 0 < part["seeds"] != seeds:
        said.append(f"{part['seeds']} seeds")
    if part["undefined"] > 0:
        said.append(f"{part['undefined']:.0f} undefined")
    here = _number(part["median"])
    if part["low"] == part["low"]:
        here += f" [{_number(part['low'])}, {_number(part['high'])}]"
    aside = is_aside(part)
    return (
        Cell("; ".join(said)),
        Cell("" if not several else f"{part['lr']:g}" if part["lr"] == part["lr"] else "another"),
        Cell(here),
        Cell("" if part["rule"] == REPORTED else part["rule"]),
        Cell(_number(part["paper"])),
        Cell(f"({verdict})" if aside else verdict, _COLOURS["none" if aside else tone(verdict)]),
    )


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.2g}"
