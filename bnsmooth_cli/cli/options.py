"""The options that several commands share, as dataclasses: a command takes a group of options as one object."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, get_args, get_type_hints

import typer

import bnsmooth_cli
from bnsmooth_cli import kinds
from bnsmooth_cli.cli import log, terminal
from bnsmooth_cli.config import CODE, FIELDS, Config, check_threads, choices_of, help_of, resolve, type_of
from bnsmooth_cli.errors import IncompleteError, InputError
from bnsmooth_cli.measures import DIRECTIONS, LINE_DIRECTIONS, check_direction
from bnsmooth_cli.norms import examples
from bnsmooth_cli.presets import CUSTOM, PROBLEMS
from bnsmooth_cli.settings import flag
from bnsmooth_cli.user_code import allow, is_code

if TYPE_CHECKING:
    from bnsmooth_cli.storage.live import Live

Function = TypeVar("Function", bound=Callable[..., Any])
Group = TypeVar("Group")

_SETTINGS = "The run (values come from --preset unless given)"
_MACHINE = "Machine"
_OUTPUT = "Output"
_MEASURED = "What is measured"
_STUDY = "A study"


def option(
    help: str, panel: str | None = _MEASURED, *, default: Any = None, choices: tuple[str, ...] = (), **more: Any
) -> Any:
    """Declare a field of a group as an option of the command line.

    Args:
        help: Its help text.
        panel: Its panel in the help.
        default: The field's value if the option is left out.
        choices: Values that the shell completes. A comma in the metavar means a list, whose last element it completes.
        **more: Arguments of `typer.Option`. `flags`, separated by spaces, replaces the flag made from the field's name.
    """
    if choices:
        more["autocompletion"] = completion(choices, listed="," in more.get("metavar", ""))
    return dataclasses.field(default=default, metadata={"help": help, "rich_help_panel": panel, **more})


def completion(choices: Sequence[str], listed: bool = False) -> Callable[[str], list[str]]:
    """What the shell completes: one of the choices, or with `listed` the last element of a list of them.

    >>> completion(["ics", "theory"])("i"), completion(["ics", "theory"], listed=True)("ics,")
    (['ics'], ['ics,theory'])
    """

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if listed else ("", "", incomplete)
        return [before + comma + name for name in choices if name.startswith(last) and name not in before.split(",")]

    return complete


class Options:
    """A group of options: a dataclass whose fields are made by `option`."""

    def given(self) -> dict[str, Any]:
        """The options that the user gave, by name."""
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))  # type: ignore[arg-type]
        return {name: value for name, value in values if value is not None}


class _Settings(Options):
    """The settings of runs, as options. None means that the preset decides."""

    def given(self) -> dict[str, Any]:
        """The settings that were given, by name."""
        values = super().given()
        allow(*map(values.get, CODE))
        return values


_PRESETS = tuple(dict.fromkeys(name for problem in PROBLEMS.values() for name in problem.presets))


def _defaults(name: str) -> str:
    """The defaults of a setting as an ending of its help, from the registry of problems; those of presets by name.

    >>> _defaults("depth"), _defaults("preset"), _defaults("augment")
    (' \\\\[vgg: 11, paper 16; dln: 25; gpt: 4]', ' \\\\[quick]', ' \\\\[no]')
    """
    usual = inspect.signature(resolve).parameters
    if name in usual and usual[name].default is not None:
        return f" \\[{_value(usual[name].default)}]"
    texts: dict[str, str] = {}
    for problem, entry in {**PROBLEMS, CUSTOM.name: CUSTOM}.items():
        names = {field.name for kind in (Config, entry.settings) for field in dataclasses.fields(kind)}
        if name not in names or (entry is CUSTOM and texts):  # most of its defaults are those of a built-in problem
            continue
        default = FIELDS[name].default
        own = {field.name: field.default for field in dataclasses.fields(entry.settings)}
        values = {preset: _value(chosen.get(name, own.get(name, default))) for preset, chosen in entry.presets.items()}
        first, *others = values.items()
        differing = [f"{preset} {value}" for preset, value in others if value != first[1]]
        texts[problem] = ", ".join([first[1], *differing])
    if len(texts) > 1 and len({*texts.values()}) > 1:
        shown = "; ".join(f"{problem}: {text}" for problem, text in texts.items())
    else:
        shown = next(iter(texts.values()))
    return f" \\[{shown}]"


def _value(value: object) -> str:
    """A default in words."""
    if value is dataclasses.MISSING:
        return "all samples"  # the batch of a problem that trains on all of them
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _with_settings(*omitted: str) -> Callable[[type[Group]], type[Group]]:
    """Add options to a group: one for the preset, and one for each setting in `config.FIELDS` that is not omitted."""

    def decorate(group: type[Group]) -> type[Group]:
        fields: dict[str, tuple[type, Any]] = {}
        for name, field in FIELDS.items():
            setting = field.metadata.get("setting")
            if setting is not None and name not in omitted:
                flags = (
                    f"{flag(name)}/--no-{flag(name)[2:]}" if type_of(name) is bool else f"{flag(name)} {setting.short}"
                )
                about = option(help_of(name) + _defaults(name), _SETTINGS, flags=flags, choices=choices_of(name))
                fields[name] = type_of(name), about
        text = (
            "quick: a small network on built-in data. paper (vgg, dln): the paper's settings, and what its figures "
            f"suggest (docs/paper.md).{_defaults('preset')}"
        )
        fields["preset"] = str, option(text, _SETTINGS, choices=_PRESETS)
        group.__annotations__ = {name: kind | None for name, (kind, _) in fields.items()}
        for name, (_, about) in fields.items():
            setattr(group, name, about)
        return dataclass(frozen=True)(group)

    return decorate


@_with_settings("norm", "lr", "seed")
class SettingOptions(_Settings):
    """The settings that the runs of a study share."""


@_with_settings()
class RunOptions(_Settings):
    """The settings of one run."""

    def config(self, problem: str | None = None) -> Config:
        """The configuration that the options and their preset define; `problem` replaces the default problem."""
        default: dict[str, Any] = {"problem": problem} if problem else {}
        return resolve(**(default | self.given()))

    def described(self) -> list[str]:
        """The given flags that contradict a RUN. `--data` and the names of the user's code do not contradict it."""
        return [
            flag(name)
            for name, value in self.given().items()
            if name != "data" and not (name in CODE and is_code(value))
        ]

    def check_code(self, config: Config, path: Path) -> None:
        """Raise InputError if the options name other code than the run at `path` uses."""
        for name in CODE:
            named, actual = getattr(self, name), getattr(config, name)
            if named is not None and named != actual:
                raise InputError(f"--{name} {named}: {path} has the {name} {actual}; leave the option out")


@dataclass(frozen=True)
class MachineOptions(Options):
    """Where a command computes, and whether it may replace files."""

    device: str = option(
        "auto (default), cpu, cuda or mps.", _MACHINE, default="auto", choices=("auto", "cpu", "cuda", "mps")
    )
    threads: int | None = option("CPU threads (default: torch's choice; 1 for each run of a study).", _MACHINE)
    force: bool = option("Replace existing results; in a study, only the measurements.", _MACHINE, default=False)

    def apply(self) -> None:
        """Set the number of threads."""
        if self.threads is not None:
            check_threads(self.threads)
            import torch

            torch.set_num_threads(self.threads)


_STUDIED = tuple(kinds.measured(studied=True))


@dataclass(frozen=True)
class GridOptions(Options):
    """The grid of a study, as text."""

    norms: str | None = option(
        "Norms of the study, as in none,batch,l1.", _STUDY, metavar="A,B,C", choices=tuple(examples())
    )
    lrs: str | None = option("Learning rates (default: the preset's).", _STUDY, metavar="A,B")
    seeds: str | None = option("Seeds, as in 0-4 (default: 0). A verdict needs five.", _STUDY, metavar="A-B")
    study: Path | None = option("Read options from a TOML file; the command line overrides it.", _STUDY, metavar="FILE")

    def given(self) -> dict[str, str]:
        """The options that were given, with lists as text."""
        allow(*(name.strip() for name in (self.norms or "").split(",")))
        return {name: value for name, value in super().given().items() if name != "study"}


@dataclass(frozen=True)
class WantedOptions(Options):
    """Which tables are measured while runs train."""

    measure: str | None = option(f"Measure while training: {', '.join(_STUDIED)}.", choices=_STUDIED, metavar="A,B")
    probe: bool | None = option(
        "Let activations measure the batch of step 0 at every step too, and the floor.", flags="--probe/--no-probe"
    )
    batches: int | None = option("Let smoothness measure batch sharpness too, on K random batches.", metavar="K")


@dataclass(frozen=True)
class ExecutionOptions(Options):
    """Where a study executes."""

    jobs: int | None = option(
        "Worker processes on this machine (default: none; runs execute one by one).", _STUDY, flags="--jobs -j"
    )
    dask: str | None = option(
        "Address of a Dask scheduler, or local for a cluster of --jobs workers.",
        _STUDY,
        metavar="ADDRESS",
        choices=("local",),
    )
    dry_run: bool = option(
        "List the runs and estimate their time, memory and disk. Nothing is written.", _STUDY, default=False
    )


@dataclass(frozen=True)
class StepOptions(Options):
    """Which points of a run are measured."""

    every: int | None = option("Measure every N steps instead of the run's checkpoints.")
    at: str | None = option("Measure these steps, as in 0,100,250.", metavar="A,B,C")

    def chosen(self) -> dict[str, Any]:
        """The arguments `every` and `at` of `measures.measuring.plan`."""
        if self.every is not None and self.every < 1:
            raise InputError(f"--every {self.every}: give a whole number of at least 1")
        if self.every is not None and self.at is not None:
            raise InputError("--every and --at: give only one of them")
        return {"every": self.every, "at": None if self.at is None else integers("--at", self.at, "0,100,250")}


def integers(flag: str, text: str, example: str) -> list[int]:
    """The whole numbers of a list such as "0,3,7"."""
    return [_element(flag, part, str.isdecimal, int, f"whole numbers separated by commas, as in {example}")
            for part in text.split(",")]  # fmt: skip


def _numbers(flag: str, text: str, example: str) -> list[float]:
    return [_element(flag, part, bool, float, f"numbers separated by commas, as in {example}")
            for part in text.split(",")]  # fmt: skip


def _element(flag: str, part: str, accepts: Callable[[str], bool], convert: Callable[[str], Any], needed: str) -> Any:
    """An element of a list. InputError quotes a value that does not fit."""
    try:
        if not accepts(part.strip()):
            raise ValueError
        return convert(part)
    except ValueError:
        raise InputError(f"{flag} '{part[:40]}': give {needed}") from None


class MeasureOptions(Options):
    """Options of a measurement. The fields are keyword arguments of its `plan`.

    If `given` returns a key `variant`, the table is of the kind `<command>-<variant>`.
    """

    def given(self) -> dict[str, Any]:
        """The keyword arguments of the measurement's `plan`: the options that were given, with lists parsed."""
        values = super().given()
        if "layers" in values:
            values["layers"] = [name.strip() for name in values["layers"].split(",")]
        if "units" in values:
            values["units"] = integers("--units", values["units"], "0,3,7")
        if "alphas" in values:
            values["alphas"] = _numbers("--alphas", values["alphas"], "0.5,1,2,4")
        return values


_ALPHAS = "; ".join(f"{','.join(f'{alpha:g}' for alpha in p.alphas)} for {name}" for name, p in PROBLEMS.items())


@dataclass(frozen=True)
class LineOptions(MeasureOptions):
    """The step lengths of the line probe."""

    alphas: str | None = option(
        f"Step lengths to probe, in learning rates (default: the paper's; {_ALPHAS}).", metavar="A,B,C"
    )
    min_alpha: float | None = option("Shortest of evenly spaced step lengths, instead of --alphas.")
    max_alpha: float | None = option("Longest of evenly spaced step lengths.")
    points: int | None = option("Number of evenly spaced step lengths (8 if only their range is given).")


@dataclass(frozen=True)
class DirectionOptions(MeasureOptions):
    """The direction of the line probe."""

    direction: str = option(
        "Direction of the line: gradient (default), update (the optimiser's own step), or random (a seeded Gaussian "
        "vector as long as the gradient).",
        default="gradient",
        choices=LINE_DIRECTIONS,
    )

    def given(self) -> dict[str, Any]:
        """The keyword arguments of the measurement's `plan`, and the kind's `variant`."""
        values = super().given()
        check_direction(values.pop("direction"))
        return values if self.direction == "gradient" else {**values, "variant": self.direction}


@dataclass(frozen=True)
class BatchOptions(MeasureOptions):
    """The batches of batch sharpness."""

    batches: int | None = option(
        "Measure batch sharpness too, on K random batches of the training set (default: off).", metavar="K"
    )


@dataclass(frozen=True)
class ObjectiveOptions(MeasureOptions):
    """Which loss is measured."""

    objective: str = option(
        "Which mean loss to measure: batch (default: the step's own batch), train:K (K fixed training batches), eval "
        "(the step's own batch, in eval mode) or test (the test set, in eval mode).",
        default="batch",
        choices=("batch", "train:8", "eval", "test"),
    )


@dataclass(frozen=True)
class LayerOptions(MeasureOptions):
    """Which parts of the network count as layers."""

    layers: str | None = option(
        "The layers, in order: modules of the network, or layers by name, else by number (default: all layers).",
        metavar="A,B,C",
    )


@dataclass(frozen=True)
class UnitOptions(MeasureOptions):
    """Which layers and units are measured."""

    layers: str | None = option("Measure these layers, by name or else by number, as in conv1,fc2.", metavar="A,B,C")
    units: str | None = option("Measure these units of each layer, counted from 0.", metavar="A,B,C")


@dataclass(frozen=True)
class ProbeOptions(MeasureOptions):
    """Whether more batches than the step's own are measured."""

    probe: bool = option(
        "Measure the batch of step 0 at every step too, and the floor: how much the moments change from one batch to "
        "the next at fixed weights.",
        default=False,
    )


@dataclass(frozen=True)
class SurfaceOptions(MeasureOptions):
    """The grid of a surface."""

    directions: str | None = option(
        "random (default: filter-normalised), pca (the principal directions of the run's path), or top (the "
        "eigenvectors of the Hessian's largest eigenvalues).",
        choices=DIRECTIONS,
    )
    dimensions: int | None = option("1 for a line, 2 (default) for a plane.")
    points: int | None = option("Points per axis (default: 21).")
    extent: float | None = option(
        "Reach of the grid (default: 1), in norms of the weights (random), in 1.2 widths of the path (pca), or in "
        "lengths in which a quadratic loss rises by 1 (top)."
    )


@dataclass(frozen=True)
class FileOptions(Options):
    """The weights that a measuring command reads, and the table that it writes."""

    weights: Path | None = option(
        "Measure these weights instead of training: a file with a state dict that fits the problem's network, from "
        "torch.save or safetensors.",
        _SETTINGS,
        metavar="FILE",
    )
    output: Path | None = option(
        "One table for all sources (default: a table beside each source).", None, flags="--output -o", metavar="TABLE"
    )


@dataclass(frozen=True)
class ExportOptions(Options):
    """The programs that get the numbers of tables while these are computed."""

    tensorboard: bool = option(
        "Write TensorBoard scalars beside each table, live (pip install 'bnsmooth\\[tensorboard]').",
        _MACHINE,
        default=False,
    )
    wandb: str | None = option(
        "Log to this project at Weights & Biases, live (pip install 'bnsmooth\\[wandb]').",
        _MACHINE,
        metavar="PROJECT",
    )

    def live(self) -> Live:
        """The programs, checked before any work.

        Raises:
            InputError: If an extra is not installed, or nobody is logged in.
        """
        from bnsmooth_cli.storage.live import Exports, Live

        exports = Exports(self.tensorboard, self.wandb)
        exports.check()
        return Live(exports)


def say_exported(live: Live, table: Path) -> None:
    """Print the event file of a table, if it has one."""
    if table in live.files:
        terminal.wrote(live.files[table])


def say_places(live: Live) -> None:
    """Print where the runs are at Weights & Biases."""
    for name, place in live.places.items():
        terminal.say(f"{name} at Weights & Biases: {place}")


@dataclass(frozen=True)
class OutputOptions(Options):
    """What is printed. Every command takes these options, and they may stand before it too."""

    quiet: bool = option(
        "Print errors only. `show`, `list` and `env` still print their results.", _OUTPUT, default=False,
        flags="--quiet -q",
    )  # fmt: skip
    verbose: bool = option(
        "Also print what is resumed, where files go, and what computes.", _OUTPUT, default=False, flags="--verbose -v"
    )
    log: Path | None = option("Append what a batch job prints to a file, with the time.", _OUTPUT, metavar="FILE")
    json: bool = option(
        "Print one JSON document on stdout instead of text (docs/reference.md).", _OUTPUT, default=False
    )
    debug: bool = option("Show the traceback of an error.", _OUTPUT, default=False)

    def apply(self) -> None:
        """Print as the options say."""
        terminal.choose(self.quiet, self.verbose, self.json, self.log)


def printing(name: str, command: Function) -> Function:
    """Let a command take `OutputOptions`, and print its JSON document."""

    @functools.wraps(command)
    def called(**values: Any) -> Any:
        output = OutputOptions(**{field.name: values.pop(field.name) for field in dataclasses.fields(OutputOptions)})
        output.apply()
        log.write(f"bnsmooth {bnsmooth_cli.__version__}: {shlex.join(['bnsmooth', *sys.argv[1:]])}")
        # What the user's code prints is no part of the document.
        own = contextlib.redirect_stdout(sys.stderr) if terminal.is_json() else contextlib.nullcontext()
        try:
            with own:
                result = command(**values)
        except IncompleteError:  # what has succeeded is printed
            terminal.finish(name)
            raise
        terminal.finish(name)
        return result

    del called.__wrapped__
    own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [_quoting(parameter.replace(kind=parameter.KEYWORD_ONLY)) for parameter in own]
    called.__signature__ = inspect.Signature([*parameters, *_parameters(OutputOptions)])  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in called.__signature__.parameters.values()}  # type: ignore[attr-defined]
    return called  # type: ignore[return-value]


#: Type of an option -> the placeholder for its value, and what the error calls the expected value.
PLACEHOLDERS: Final = {int: ("N", "whole number"), float: ("X", "number"), str: ("NAME", ""), Path: ("FILE", "")}


def path_flags(command: Any) -> list[str]:
    """The flags of a command's options whose values are paths."""
    annotated = (get_args(parameter.annotation) for parameter in inspect.signature(command).parameters.values())
    options = ((kind, info) for kind, info, *_ in annotated if isinstance(info, typer.models.OptionInfo))
    # In an annotation, typer takes the first flag for a default.
    return [str(name) for kind, info in options if Path in (kind, *get_args(kind))
            for name in (info.default, *(info.param_decls or ()))]  # fmt: skip


def _quoting(parameter: inspect.Parameter) -> inspect.Parameter:
    """Give an option its placeholder, and let the error for what is no number quote it."""
    kind, info = get_args(parameter.annotation)
    if isinstance(info, typer.models.OptionInfo):
        for type_, (placeholder, noun) in PLACEHOLDERS.items():
            if type_ in (kind, *get_args(kind)):
                info.metavar = info.metavar or placeholder
                info.parser = _reader(type_, noun) if noun else info.parser
    return parameter


def _reader(convert: type, noun: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return convert(text)
        except ValueError:
            raise typer.BadParameter(f"'{text[:40]}' is no {noun}") from None

    return read


def grouped(command: Function) -> Function:
    """Let a command take groups of options: each field of a group becomes an option of the command line."""
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if dataclasses.is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            parameters += _parameters(parameter.annotation)
        else:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def called(**values: Any) -> Any:
        objects = {
            name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        return command(**values, **objects)

    del called.__wrapped__  # otherwise inspect would follow it, and ignore the signature below
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called  # type: ignore[return-value]


def _parameters(group: Any) -> Iterator[inspect.Parameter]:
    """The fields of a group as parameters that typer reads."""
    types = get_type_hints(group)
    for field in dataclasses.fields(group):
        about = {"flags": flag(field.name), **field.metadata}
        info = typer.Option(*about.pop("flags").split(), show_default=False, **about)
        annotation: Any = Annotated[types[field.name], info]
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation
        )
