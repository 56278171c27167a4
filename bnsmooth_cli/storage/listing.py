"""The runs below a folder: their settings, how far they are, and their tables. Imports no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pandas as pd

from bnsmooth_cli import kinds
from bnsmooth_cli.config import IDENTIFYING
from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.cards import Card, shortened
from bnsmooth_cli.storage.files import first_line, read_text, unicode
from bnsmooth_cli.storage.journal import Journal
from bnsmooth_cli.storage.runs import Run, open_run

#: The columns of `list_runs` and their types.
COLUMNS: Final = {
    "path": "str", "run": "str", "problem": "str", "norm": "str", "lr": "float64", "seed": "Int64", "settings": "str",
    "state": "str", "step": "Int64", "steps": "Int64", "step_lr": "float64", "diverged_at": "Int64", "tables": "object",
    "kept": "object", "study": "str",
}  # fmt: skip
#: The first word of the state of a run that cannot be read.
DAMAGED: Final = "damaged"
_MEASURED: Final = "|".join(kinds.measured())
#: The tables of a run that measurements have made, and the journals of those that are unfinished.
_TABLE: Final = re.compile(
    rf"(?P<table>(?P<kind>{_MEASURED})(\.\w+)?)\.parquet|\.(?P<unfinished>({_MEASURED})(\.\w+)?)\.points"
)


class RunList(pd.DataFrame):
    """A table of runs, which a notebook shows by their paths, states and tables. Tables made of it are plain."""

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    def _repr_html_(self) -> str:
        rows = [(str(row["path"]), str(row["state"]), points_in_words(row)) for row in self.to_dict("records")]
        return Card("Runs:", str(len(rows)), {}, ("path", "state", "tables"), shortened(rows)).html()


def list_runs(folder: Path | str = ".") -> pd.DataFrame:
    """The runs in a folder and in the folders below it, one row each, in the order of their paths.

    Hidden folders are left out, a run behind a symbolic link is listed once, and a run's own folder is not searched for
    others. Only the metadata of tables is read, so a thousand runs take about a second.

    Args:
        folder: The folder.

    Returns:
        A table with these columns:

        - `path` and `run`: the run's folder, and its name.
        - `problem`, `norm`, `lr`, `seed`: what is trained; null if the run is damaged.
        - `settings`: its other settings, as in the tables' column of this name.
        - `state`: `finished`, `diverged at step 12`, `step 137 of 300`, or `damaged: ` and the reason.
        - `step`, `steps`: the step that training can resume from, or has ended at, and the length of the run.
        - `step_lr`: the learning rate at this step, which is not `lr` after a schedule or during a warm-up;
          null with an optimiser of your own that has no `schedule`, since it may change its learning rate itself.
        - `diverged_at`: the step whose loss is not finite.
        - `tables`: the number of measured steps of each table, by the table's name; without `train`.
        - `kept`: the number of measured steps of each table that is unfinished.
        - `study`: the folder of the study that the run belongs to; empty if there is none.

    Raises:
        InputError: If there is no such folder.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "l1", steps=10, samples=20, measure=["ics"], output=f"{folder}/run")
    ...     list_runs(folder).loc[0, ["run", "norm", "state", "tables"]].tolist()
    ['run', 'l1', 'finished', {'ics': 2}]
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    try:
        os.scandir(folder).close()
    except OSError as error:  # which a walk would take for a folder without runs
        raise InputError(f"{folder}: cannot be read ({error.strerror}); give a folder that you may read") from error
    rows = [row_of(path) for path in _run_folders(folder)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    typed = table.astype(COLUMNS)
    texts = [name for name, type_ in COLUMNS.items() if type_ == "str"]
    typed[texts] = typed[texts].where(table[texts].notna())  # pandas 2 makes the text "None" of a null
    return RunList(typed)


def _run_folders(folder: Path) -> Iterator[Path]:
    """The folders of runs, in the order of their paths; also those that symbolic links lead to, each once."""
    seen = set[str]()
    for place, folders, files in os.walk(folder, onerror=_remark_unread, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # links may lead in a circle
            folders.clear()
            continue
        seen.add(real)
        if "config.json" in files and _is_run(Path(place)):
            folders.clear()
            yield Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _remark_unread(error: OSError) -> None:
    remark(f"{error.filename}: cannot be read ({error.strerror}); runs in it are missing")


def _is_run(folder: Path) -> bool:
    """Whether a folder with a config.json is a run's: other programs write files of this name too."""
    if (folder / "train.parquet").is_file() or (folder / "checkpoints").is_dir():
        return True
    with suppress(InputError, OSError, ValueError, RecursionError):
        content = json.loads(read_text(folder / "config.json"))
        return isinstance(content, dict) and {"format", "config"} <= content.keys()
    return False


def row_of(path: Path) -> dict[str, Any]:
    """The row of the run in a folder. Columns that it lacks are null."""
    row: dict[str, Any] = {"path": unicode(str(path)), "run": unicode(path.resolve().name), "tables": {}, "kept": {}}
    row["study"] = unicode(str(path.parents[1])) if _in_study(path) else ""
    try:
        run = open_run(path)
        config = run.config
        row |= {name: getattr(config, name) for name in (*IDENTIFYING, "steps")} | {"settings": config.settings_text}
        row["tables"], row["kept"] = _points(run)
        progress = _progress(run)
        known = config.scheduled or config.optimizer_digest is None  # the user's own optimiser may change it itself
        return row | progress | ({"step_lr": config.lr_at(progress["step"])} if known else {})
    except (InputError, OSError) as error:
        reason = InputError(str(error).removeprefix(f"{path}").lstrip("/: "))  # before a long path has it cut
        return {**row, "state": f"{DAMAGED}: {first_line(reason)}"}


def _in_study(path: Path) -> bool:
    return path.parent.name == "runs" and (path.parent.parent / "study.json").is_file()


def _progress(run: Run) -> dict[str, Any]:
    """How far the training of a run is."""
    outcome, steps = run.outcome(), run.config.steps
    if outcome is None:
        step = next(iter(run.resumable()), 0)
        return {"state": f"step {step} of {steps}", "step": step}
    diverged_at = outcome.get("diverged_at")
    if diverged_at is None:
        return {"state": "finished", "step": steps}
    return {"state": f"diverged at step {diverged_at}", "step": diverged_at, "diverged_at": diverged_at}


def _points(run: Run) -> tuple[dict[str, int], dict[str, int]]:
    """The measured steps of the tables of a run, and of those that are unfinished, by the tables' names."""
    written: dict[str, int] = {}
    kept: dict[str, int] = {}
    for path in sorted(run.path.iterdir()):
        if not (name := _TABLE.fullmatch(path.name)):
            continue
        if name["unfinished"]:
            kept[name["unfinished"]] = len(Journal.keys(path))
        else:
            provenance = run.check_table(path, name["kind"])
            (recorded,) = provenance["runs"]  # another name than the folder's, if that was renamed
            written[name["table"]] = len(tables.steps_in(provenance, recorded))
    return written, kept


def points_in_words(row: Mapping[Any, Any]) -> str:
    """The tables of a run, given its row.

    >>> points_in_words({"tables": {"ics": 5, "theory": 1}, "kept": {"landscape": 3}})
    'ics (5 points), theory (1 point), landscape (unfinished, 3 points so far)'
    """
    written = [f"{name} ({_count(points)})" for name, points in row["tables"].items()]
    return ", ".join([*written, *(f"{name} (unfinished, {_count(n)} so far)" for name, n in row["kept"].items())])


def _count(points: int) -> str:
    return f"{points} point" if points == 1 else f"{points} points"
