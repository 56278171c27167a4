"""What the user sees: lines on stderr during the work, and its results on stdout, as a summary or as JSON."""

from __future__ import annotations

import io
import json
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from bnsmooth_cli.cli import log
from bnsmooth_cli.cli.layout import arrange, cell, plain
from bnsmooth_cli.cli.outline import Section
from bnsmooth_cli.cli.outline import outline as outlined
from bnsmooth_cli.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


class _Console(Console):
    """A console that ignores what a closed pipe no longer takes, as after `| head`: the work goes on to its end."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as `Console.print` does. What stderr cannot take is lost: a full disk must not end the work."""
        try:
            super().print(*objects, **options)
        except OSError:
            if not self.stderr:
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def _console(stderr: bool) -> Console:
    # Without markup, because the names of runs and folders may look like it.
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False)


out = _console(stderr=False)
err = _console(stderr=True)
MAX_ROWS: Final = 18  # of a summary, so that it fits on one screen


@dataclass
class _Chosen:
    """What the user chose to see.

    Attributes:
        quiet: Nothing but errors.
        verbose: Also what explains the work.
        document: The JSON document that stdout gets at the end of the command; None for text.
    """

    quiet: bool = False
    verbose: bool = False
    document: dict[str, Any] | None = None


_chosen = _Chosen()


def reset() -> None:
    """Print as usual, to the present stdout and stderr."""
    global _chosen, out, err
    _chosen, out, err = _Chosen(), _console(stderr=False), _console(stderr=True)
    log.end()


def choose(quiet: bool = False, verbose: bool = False, as_json: bool = False, file: Path | None = None) -> None:
    """Choose what is printed, besides what was chosen before: options may stand before the command and after it.

    Args:
        quiet: Print nothing but errors.
        verbose: Print more.
        as_json: Print one JSON document on stdout instead of text.
        file: Log to this file.

    Raises:
        InputError: If the file cannot be written, or the options contradict each other.
    """
    _chosen.quiet |= quiet
    _chosen.verbose |= verbose
    if _chosen.quiet and _chosen.verbose:
        raise InputError("--quiet and --verbose: give only one of them")
    if as_json and _chosen.document is None:
        _chosen.document = {"command": "", "facts": {}, "paths": [], "tables": []}
    if file is not None:
        log.begin(file)


def is_quiet() -> bool:
    """Whether the user wants to see nothing but errors."""
    return _chosen.quiet


def is_json() -> bool:
    """Whether stdout gets a JSON document."""
    return _chosen.document is not None


def insist() -> None:
    """Print the result even with `--quiet`: the command writes no file, so what it prints is all that it does."""
    _chosen.quiet = False


def finish(command: str) -> None:
    """Print the JSON document of a command that has ended, if the user asked for one."""
    if _chosen.document is not None:
        text = json.dumps({**_chosen.document, "command": command}, indent=2, allow_nan=False)
        _chosen.document = None
        out.print(text, soft_wrap=True)


def say(line: object) -> None:
    """Print a line on stdout: a part of the result that is no file and no table."""
    text = plain(str(line))
    log.write(text)
    if not _chosen.quiet and _chosen.document is None:
        out.print(text, soft_wrap=True)


def wrote(path: Path | str) -> None:
    """Print the path of a file that is a result."""
    if _chosen.document is not None:
        _chosen.document["paths"].append(plain(str(path)))
    say(path)


def complain(message: str) -> None:
    """Print an error on stderr, without ending the command."""
    text = plain(f"bnsmooth: {message}")
    log.write(text)
    err.print(text, soft_wrap=True)


def inform(message: str) -> None:
    """Print a line about the work on stderr, unless the user wants errors alone."""
    text = plain(message)
    log.write(text)
    if not _chosen.quiet:
        err.print(text, soft_wrap=True)


def explain(message: str) -> None:
    """Print a line on stderr with `--verbose`."""
    if _chosen.verbose:
        inform(message)


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Print texts with their labels before them, wrapped to the terminal."""
    from rich.cells import cell_len
    from rich.text import Text

    known = [(plain(label), plain(text)) for label, text in pairs]
    if _chosen.document is not None:
        _chosen.document["facts"] |= dict(known)
    labels = [label[:24] for label, _ in known]
    margin = max(map(cell_len, labels)) + 4
    for label, (_, text) in zip(labels, known, strict=True):
        lines = [text]
        if out.is_terminal:
            lines = [line.plain for line in Text(text).wrap(out, max(out.width - margin, 20))]
        for i, line in enumerate(lines):
            say(f"  {'' if i else label:{margin - 2}}{line}".rstrip())


def summary(
    title: str,
    frame: pd.DataFrame,
    columns: Sequence[str] | None = None,
    note: str = "",
    max_rows: int | None = MAX_ROWS,
    exact: pd.DataFrame | None = None,
) -> None:
    """Print a table. If all rows belong to one run, its name goes into the title instead of a column.

    Args:
        title: The line above the table.
        frame: The table.
        columns: The columns to print; None prints all of them.
        note: The line below the table.
        max_rows: The largest number of rows. A longer table is thinned evenly, keeping the first and the last row.
        exact: The rows of the JSON document, if those of `frame` are rounded or in words.
    """
    columns = list(frame.columns) if columns is None else columns
    if _chosen.document is not None:
        rows = frame[[*columns]] if exact is None else exact
        _chosen.document["tables"].append({"title": title, "note": note, "rows": records(rows)})
    if "run" in columns and len(columns) > 1 and frame["run"].nunique() == 1:
        title, columns = f"{frame['run'].iloc[0]}: {title}", [name for name in columns if name != "run"]
    shown = frame
    if max_rows is not None and len(frame) > max_rows:
        shown = frame.iloc[[round(i * (len(frame) - 1) / (max_rows - 1)) for i in range(max_rows)]]
        note = f"{max_rows} of {len(frame)} rows. {note}".strip()
    heads = [plain(str(column)).replace("_", " ") for column in columns]
    cells = [[cell(value) for value in shown[column]] for column in columns]
    right = [frame[column].dtype.kind not in "OU" for column in columns]

    def show(console: Console, width: int | None) -> None:
        console.print(plain(title), style="bold", soft_wrap=True)
        console.print(arrange(heads, cells, right, width), crop=False)

    _print(show)
    if note:
        say(note)


def outline(title: str, columns: Mapping[str, bool], sections: Sequence[Section], note: str = "") -> None:
    """Print an outline whole, however long it is.

    Args:
        title: The line above.
        columns: The names of the columns, and whether they are aligned right.
        sections: The headings with their rows.
        note: The line below.
    """

    def show(console: Console, width: int | None) -> None:
        console.print(plain(title), style="bold", soft_wrap=True)
        for line in outlined(columns, sections, width):
            console.print(line, soft_wrap=True)

    _print(show)
    for line in textwrap.wrap(note, out.width) if out.is_terminal else filter(None, [note]):
        say(line)


def _print(show: Callable[[Console, int | None], None]) -> None:
    """Print something on a console of some width; None is a console without line breaks, as for a pipe or the log."""
    if log.begun():
        text = io.StringIO()
        show(Console(file=text, markup=False, highlight=False, emoji=False), None)
        log.write(text.getvalue())
    if not _chosen.quiet and _chosen.document is None:
        show(out, out.width if out.is_terminal else None)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as JSON has them, with all digits: NaN as null, infinities as "Infinity" and "-Infinity".

    >>> import pandas as pd
    >>> records(pd.DataFrame({"norm": ["l1", None], "beta": [float("nan"), float("inf")]}))
    [{'norm': 'l1', 'beta': None}, {'norm': None, 'beta': 'Infinity'}]
    """
    return [
        dict(zip(map(str, frame.columns), map(_jsonable, row), strict=True)) for row in frame.itertuples(index=False)
    ]


def _jsonable(value: Any) -> Any:
    if hasattr(value, "tolist"):  # of numpy
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): _jsonable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_jsonable, value)]
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return None if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    missing = type(value).__name__ in ("NAType", "NaTType")  # of pandas, which is not imported here
    return None if missing else value if value is None or isinstance(value, bool | int | str) else str(value)
