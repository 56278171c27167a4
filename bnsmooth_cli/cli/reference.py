"""Generate docs/reference.md from the registries: `python -m bnsmooth_cli.cli.reference > docs/reference.md`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from rich.text import Text
from typer.models import CommandInfo
from typer.utils import get_params_from_function

from bnsmooth_cli import norms
from bnsmooth_cli.cli.commands import app
from bnsmooth_cli.data import NAMES, TEXTS
from bnsmooth_cli.data.texts import MAX_BYTES
from bnsmooth_cli.kinds import KINDS, METRICS, RUN, Column
from bnsmooth_cli.presets import PROBLEMS
from bnsmooth_cli.problems.gpt import TEST_WINDOWS
from bnsmooth_cli.settings import flag


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
        info = parameter.default
        flags = list(info.param_decls or [""])
        flags[-1] = f"{flags[-1]} {info.metavar or ''}".strip()
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
        "## Output\n",
        "Results go to stdout; errors, notes and progress to stderr. On a terminal, progress is a bar. Elsewhere, and "
        "in `--log FILE`, it is plain lines: the first and the last one of each run and table, and those of "
        "evaluations and points, at most one a second at first and one a minute later.\n",
        "With `--json`, stdout gets one JSON document when the command has ended. Its keys are `command`; `paths`, the "
        "files that were written; `facts`, texts by label (`show`, `env`); and `tables`, objects with `title`, `note` "
        "and `rows`. A row is an object with the columns as keys, and has all digits. NaN is null, and infinities are "
        "the texts `Infinity` and `-Infinity`. After an error, stdout is empty.\n",
        "## Norms\n",
        *table("`--norm` | description | statistics over",
               [*((f"`{norm.name}`", norm.text, norm.over) for norm in norms.NORMS),
                (f"`{norms.USER_NORM}`", "a class of your own ([my norm](how-to/norm.md))", "")]),
        "## Problems and presets\n",
        "The preset `quick` is the default. The preset `paper` has the learning rate, batch size and number of steps "
        "that the paper states; its other settings, such as VGG-16 and the linear network's matrix, are inferred from "
        "the paper's figures ([paper.md](paper.md)). The transformer `gpt` "
        "is not in the paper. It has the architecture and the initialisation of GPT-2 (Radford et al. 2019) in small, "
        "with the norm before every attention, every perceptron and the output. A norm acts on the tokens "
        "of all windows, (N, C), so that `layer` and `rms` normalise each token, and `batch` each unit over all "
        "tokens. `batch` therefore lets a token see statistics of later ones while it trains; evaluation uses running "
        "statistics. The embedding and the last layer are not tied, so that each layer has parameters of its own.\n",
        *presets(),
        "## Data sets\n",
        f"The `--data` of `gpt` is {', '.join(f'`{name}`' for name in TEXTS)} or a text file in UTF-8, of at most "
        f"{MAX_BYTES:,} bytes. Its characters are the vocabulary, and its last tenth is the test set, of which at most "
        f"{TEST_WINDOWS} evenly spaced windows are evaluated. `shakespeare` is 40,000 lines from Shakespeare's plays, "
        "which are in the public domain; A. Karpathy put them together for char-rnn (2015).\n",
        f"The `--data` of `vgg` is {', '.join(f'`{name}`' for name in NAMES)}, or a folder of images:\n",
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
