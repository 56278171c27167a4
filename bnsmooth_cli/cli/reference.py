"""Generate docs/reference.md from the registries: `python -m bnsmooth_cli.cli.reference > docs/reference.md`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, get_args

from rich.text import Text
from typer.models import CommandInfo
from typer.utils import get_params_from_function

from bnsmooth_cli import norms
from bnsmooth_cli.cli.commands import app
from bnsmooth_cli.config import PROBLEMS
from bnsmooth_cli.data import NAMES
from bnsmooth_cli.kinds import KINDS, METRICS, RUN, Column
from bnsmooth_cli.settings import flag

#: Type of an option -> the placeholder for its value.
PLACEHOLDERS = {bool: "", int: "N", float: "X", str: "NAME", Path: "FILE", list[Path]: "FILE"}


def table(head: str, rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """A Markdown table; `head` holds the column names, separated by " | "."""
    yield f"| {head} |"
    yield "|" + " --- |" * (head.count("|") + 1)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
    yield ""


def options(command: CommandInfo) -> Iterator[tuple[str, str]]:
    """A command's arguments and options: the flags with a placeholder for the value, and the help."""
    assert command.callback
    for parameter in get_params_from_function(command.callback).values():
        info, types = parameter.default, (parameter.annotation, *get_args(parameter.annotation))
        placeholder = info.metavar or next(name for kind, name in PLACEHOLDERS.items() if kind in types)
        flags = list(info.param_decls or [""])
        flags[-1] = f"{flags[-1]} {placeholder}".strip()
        yield ", ".join(f"`{flag}`" for flag in flags), Text.from_markup(info.help).plain


def commands() -> Iterator[str]:
    """Every command with its help and its own options, and then the options that several commands share."""
    users: dict[tuple[str, str], list[str]] = {}
    for command in app.registered_commands:
        for option in options(command):
            users.setdefault(option, []).append(f"`{command.name}`")
    for command in app.registered_commands:
        text, _, examples = Text.from_markup(command.help or "").plain.partition("\n\nExamples\n\n")
        yield f"### {command.name}\n\n{text}\n"
        yield from (f"    {line.strip()}" for line in examples.splitlines() if line)
        yield ""
        if own := [option for option in options(command) if len(users[option]) == 1]:
            yield from table("option | meaning", own)
    yield "### Options of several commands\n"
    shared = ((*option, ", ".join(names)) for option, names in users.items() if len(names) > 1)
    yield from table("option | meaning | commands", shared)


def presets() -> Iterator[str]:
    """The value of every setting in each preset of each problem."""
    values = {f"`{p.name}`, {name}": p.presets[name] for p in PROBLEMS.values() for name in p.presets}
    names = dict.fromkeys(name for settings in values.values() for name in settings)
    rows = ((f"`{flag(name)}`", *(settings.get(name, "") for settings in values.values())) for name in names)
    yield from table(" | ".join(["setting", *values]), rows)
    for problem in PROBLEMS.values():
        alphas = ", ".join(f"{alpha:g}" for alpha in problem.alphas)
        yield f"The line probe of `{problem.name}` takes steps of {alphas} learning rates.\n"


def tables() -> Iterator[str]:
    """Every kind of table: what a row describes, and the columns. The six shared columns are described once."""
    lead = dict([*KINDS[0].columns.items()][: len(RUN) + 1])
    yield "These columns come first, in every table that has them.\n"
    yield from columns(lead)
    for kind in KINDS:
        yield f"### Table {kind.name}\n\nWritten by `bnsmooth {kind.command}`. Each row describes {kind.row}.\n"
        begin = [f"`{name}`" for name, column in kind.columns.items() if lead.get(name) == column]
        yield f"It begins with {', '.join(begin)}.\n" if begin else ""
        yield from columns({name: column for name, column in kind.columns.items() if lead.get(name) != column})


def columns(of: Mapping[str, Column]) -> Iterator[str]:
    """A table of columns."""
    return table("column | type | meaning", ((f"`{name}`", column.type, column.text) for name, column in of.items()))


#: The folders that `--data` takes.
DATA: Final = (
    (
        "images",
        "`train/CLASS/IMAGE` and `test/CLASS/IMAGE` (or `val/`, `valid/`, `validation/`): PNG, JPEG, BMP, WebP, PPM",
    ),
    ("Hugging Face", "`train-*.parquet` and `test-*.parquet` (or `val-`, `valid-`, `validation-`), at any depth"),
    ("CIFAR", "the published Python files, or the folder that holds `cifar-10-batches-py` or `cifar-100-python`"),
    (
        "MNIST and its like",
        "the four files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and "
        "`t10k-labels-idx1-ubyte`, gzipped or not, or a folder with `raw/` or `MNIST/raw/` that holds them",
    ),
    ("SVHN", "the published `train_32x32.mat` and `test_32x32.mat`"),
)


def page() -> str:
    """The whole page."""
    lines = [
        "# Reference\n",
        "Generated by `python -m bnsmooth_cli.cli.reference > docs/reference.md`.\n",
        "## Commands\n", *commands(),
        "## Norms\n",
        *table("`--norm` | description | statistics over",
               [*((f"`{norm.name}`", norm.text, norm.over) for norm in norms.NORMS),
                (f"`{norms.USER_NORM}`", "a class of your own ([own.md](own.md#a-norm))", "")]),
        "## Problems and presets\n",
        "The preset `quick` is the default. The preset `paper` has the learning rate, batch size and number of steps "
        "that the paper states; VGG-A and the scale of the linear network's loss are our choice.\n",
        *presets(),
        "## Data sets\n",
        f"`--data` takes {', '.join(f'`{name}`' for name in NAMES)}, or a folder:\n",
        *table("folder | contents", DATA),
        "Train numbers the classes. A class folder of the test split that train lacks is refused, and Parquet labels "
        "are mapped by their names where the files list them. Names that begin with a dot are ignored. A file in a "
        "class folder that is neither an image nor text is refused, because it would be left out.\n",
        "Images become 32 x 32 pixels of 8 bits, as a viewer shows them on a white page: turned by their EXIF "
        "orientation, transparent parts white, 16 bits scaled to 8 (grey level v to v / 257), and the first frame of "
        "an animation. Digits of 28 x 28 are padded with their background. Colour profiles are not applied.\n",
        "## Tables\n",
        "A null means \"not measured\". An overflow is recorded as inf or NaN. The metadata of a table (key "
        "`bnsmooth`, JSON) records the version and the configurations that it comes from.\n",
        *tables(),
        "## Metrics\n",
        "`compare` records these numbers for each run, and `compare-summary` summarises them over seeds.\n",
        *table("metric | from | meaning", ((f"`{m.name}`", m.kind, m.text) for m in METRICS)),
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
