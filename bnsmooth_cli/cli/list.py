"""`bnsmooth list`: the runs below a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnsmooth_cli.cli import terminal

if TYPE_CHECKING:
    import pandas as pd


def list_(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The folder (default: the present one).", show_default=False)
    ] = Path(),
) -> None:
    """List the runs in a folder and below it: how far they are, their settings that differ, and their tables.

    The number after a table is that of its measured steps. Of an unfinished table, the measuring command continues with
    the steps that are kept. Training continues in the same way: the same command resumes it.

    [bold]Examples[/]

      bnsmooth list

      bnsmooth list study

      bnsmooth list runs --json
    """
    from bnsmooth_cli.storage.listing import list_runs

    terminal.insist()
    runs = list_runs(folder)
    if runs.empty:
        terminal.say(f"no runs in {folder.absolute() if folder == Path() else folder}")
    if runs.empty and not terminal.is_json():
        return
    terminal.summary(_title(runs), _readable(runs, folder), max_rows=None, exact=runs)


def _title(runs: pd.DataFrame) -> str:
    studies = [study for study in runs["study"].unique() if study]
    title = f"{len(runs)} run{'s' * (len(runs) != 1)}"
    if studies:
        title += f", {int((runs['study'] != '').sum())} of them in {len(studies)} stud{'ies' if studies[1:] else 'y'}"
    return title


def _readable(runs: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """What a terminal shows of the runs: a column only for what differs."""
    import pandas as pd

    from bnsmooth_cli.identity import differing
    from bnsmooth_cli.storage.files import unicode

    base = unicode(str(folder))  # as the paths are
    shown = pd.DataFrame({"run": [Path(path).relative_to(base).as_posix() for path in runs["path"]]})
    shown["run"] = shown["run"].where(shown["run"] != ".", runs["run"])  # the folder itself is a run
    shown["state"] = runs["state"]
    for name in ("problem", "norm", "lr", "seed"):
        if runs[name].nunique(dropna=False) > 1:
            shown[name] = [
                "-" if pd.isna(value) else f"{value:g}" if name == "lr" else str(value) for value in runs[name]
            ]
    if (runs["step_lr"].notna() & (runs["step_lr"] != runs["lr"])).any():
        shown["step lr"] = ["-" if pd.isna(lr) else f"{lr:.3g}" for lr in runs["step_lr"]]
    described = {(problem, text): words for problem, of_problem in runs.groupby("problem", sort=False)["settings"]
                 for text, words in differing(str(problem), of_problem.dropna()).items()}  # fmt: skip
    keys = zip(runs["problem"], runs["settings"], strict=True)
    shown["settings"] = [described.get(key, "") or "-" for key in keys]
    if (shown["settings"] == "-").all():
        del shown["settings"]
    if (runs["tables"].astype(bool) | runs["kept"].astype(bool)).any():
        pairs = zip(runs["tables"], runs["kept"], strict=True)
        shown["tables"] = [_tables(written, kept) for written, kept in pairs]
    return shown


def _tables(written: dict[str, int], kept: dict[str, int]) -> str:
    """The tables of a run.

    >>> _tables({"ics": 7}, {"smoothness": 3})
    'ics 7, smoothness unfinished with 3'
    """
    texts = [f"{name} {points}" for name, points in written.items()]
    return ", ".join([*texts, *(f"{name} unfinished with {points}" for name, points in kept.items())]) or "-"
