"""The options that several commands share, as dataclasses: a command takes a group of options as one object."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from bnsmooth_cli import kinds
from bnsmooth_cli.config import FIELDS, PROBLEMS, Config, check_threads, flag, help_of, resolve, type_of
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.measures import DIRECTIONS
from bnsmooth_cli.user_code import allow, is_code

Function = TypeVar("Function", bound=Callable[..., Any])
Group = TypeVar("Group")

_SETTINGS = "The run (values come from --preset unless given)"
_MACHINE = "Machine"
_MEASURED = "What is measured"
_STUDY = "A study"


def _listed(*names: str) -> str:
    return ", ".join(names)


def option(flags: str, help: str, panel: str = _MEASURED, choices: tuple[str, ...] = (), **more: Any) -> Any:
    """An option of a group: its flags, its help text, its panel in the help and the values that a shell completes."""
    if choices:
        more["autocompletion"] = lambda incomplete: [name for name in choices if name.startswith(incomplete)]
    return typer.Option(*flags.split(), help=help, rich_help_panel=panel, show_default=False, **more)


def _given(options: Any) -> dict[str, Any]:
    """The options of a group that were given, by name."""
    values = ((field.name, getattr(options, field.name)) for field in dataclasses.fields(options))
    return {name: value for name, value in values if value is not None}


class _Settings:
    """The settings of runs, as options. None means that the preset decides."""

    def given(self) -> dict[str, Any]:
        """The settings that were given, by name; a data folder by its full path."""
        values = _given(self)
        allow(values.get("problem"), values.get("norm"))
        if "data" in values:
            from bnsmooth_cli.data.images import canonical

            values["data"] = canonical(values["data"])
        return values


_PRESETS = tuple(dict.fromkeys(name for problem in PROBLEMS.values() for name in problem.presets))


def _with_settings(*omitted: str) -> Callable[[type[Group]], type[Group]]:
    """Give a group an option for the preset, and one for each setting in `config.FIELDS` but the omitted ones."""

    def decorate(group: type[Group]) -> type[Group]:
        options = {}
        for name, field in FIELDS.items():
            setting = field.metadata.get("setting")
            if setting is not None and name not in omitted:
                flags = f"{flag(name)}/--no-{name}" if type_of(name) is bool else f"{flag(name)} {setting.short}"
                options[name] = type_of(name), option(flags, help_of(name), _SETTINGS, setting.choices)
        text = "quick (default), or paper: what the paper states, and our choice of the rest."
        options["preset"] = str, option("--preset", text, _SETTINGS, _PRESETS)
        group.__annotations__ = {name: Annotated[kind | None, about] for name, (kind, about) in options.items()}
        for name in options:
            setattr(group, name, None)
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
        """The flags that contradict a RUN. `--data` does not, nor does naming the user's code, which permits it."""
        return [
            flag(name)
            for name, value in self.given().items()
            if name != "data" and not (name in ("norm", "problem") and is_code(value))
        ]

    def check_code(self, config: Config, path: Path) -> None:
        """Raise InputError if the code that was named is not that of the run at `path`."""
        for name in ("norm", "problem"):
            named, actual = getattr(self, name), getattr(config, name)
            if named is not None and named != actual:
                raise InputError(f"--{name} {named}: {path} has the {name} {actual}; leave the option out")


@dataclass(frozen=True)
class MachineOptions:
    """Where a command computes, and whether it may replace files."""

    device: Annotated[
        str,
        option("--device", "auto (default), cpu, cuda or mps.", _MACHINE, ("auto", "cpu", "cuda", "mps")),
    ] = "auto"
    threads: Annotated[
        int | None,
        option("--threads", "CPU threads (default: torch's choice; 1 for each run of a study).", _MACHINE),
    ] = None
    force: Annotated[
        bool, option("--force", "Replace existing results; in a study, only its measurements.", _MACHINE)
    ] = False

    def apply(self) -> None:
        """Set the number of threads."""
        if self.threads is None:
            return
        check_threads(self.threads)
        import torch

        torch.set_num_threads(self.threads)


@dataclass(frozen=True)
class GridOptions:
    """The grid of a study, as text."""

    norms: Annotated[
        str | None, option("--norms", "Norms of the study, as in none,batch,l1.", _STUDY, metavar="A,B,C")
    ] = None
    lrs: Annotated[str | None, option("--lrs", "Learning rates (default: the preset's).", _STUDY, metavar="A,B")] = None
    seeds: Annotated[
        str | None,
        option("--seeds", "Seeds, as in 0-4 (default: 0). A verdict needs five.", _STUDY, metavar="A-B"),
    ] = None
    measure: Annotated[
        str | None,
        option(
            "--measure",
            f"Measurements to take: {_listed(*kinds.measured(studied=True))}.",
            _STUDY,
            tuple(kinds.measured(studied=True)),
            metavar="A,B",
        ),
    ] = None
    study: Annotated[
        Path | None,
        option("--study", "Read the options from a TOML file. The command line wins.", _STUDY, metavar="FILE"),
    ] = None

    def given(self) -> dict[str, str]:
        """The lists that were given, as text."""
        allow(*(name.strip() for name in (self.norms or "").split(",")))
        return {name: value for name, value in _given(self).items() if name != "study"}


@dataclass(frozen=True)
class ExecutionOptions:
    """Where a study executes."""

    jobs: Annotated[
        int | None,
        option("--jobs -j", "Worker processes on this machine (default: none; runs execute one by one).", _STUDY),
    ] = None
    dask: Annotated[
        str | None,
        option(
            "--dask",
            "Address of a Dask scheduler, or local for a cluster of --jobs workers.",
            _STUDY,
            metavar="ADDRESS",
        ),
    ] = None
    dry_run: Annotated[bool, option("--dry-run", "Print the runs and their cost, and stop.", _STUDY)] = False


@dataclass(frozen=True)
class StepOptions:
    """Which points of a run are measured."""

    every: Annotated[int | None, option("--every", "Measure every N steps instead of the run's checkpoints.")] = None
    at: Annotated[str | None, option("--at", "Measure these steps, as in 0,100,250.", metavar="A,B,C")] = None

    def given(self) -> dict[str, Any]:
        """The options that were given, by name."""
        return _given(self)

    def chosen(self) -> dict[str, Any]:
        """The arguments `every` and `at` of `measures.measuring.plan`."""
        if self.every is not None and self.every < 1:
            raise InputError(f"--every {self.every}: give a whole number of at least 1")
        if self.at is None:
            return {"every": self.every, "at": None}
        if self.every is not None:
            raise InputError("--every and --at: give one of the two")
        return {"every": None, "at": _integers("--at", self.at, "0,100,250")}


def _integers(flag: str, text: str, example: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1]
    if min(numbers) < 0:
        raise InputError(f"{flag} {text}: give whole numbers separated by commas, as in {example}")
    return numbers


class MeasureOptions:
    """A group of options of some measurements, a dataclass whose fields are arguments of their `plan`."""

    @property
    def kind(self) -> str | None:
        """The kind of table that the options select; None for the kind that the command is named after."""
        return None

    def chosen(self) -> dict[str, Any]:
        """The keyword arguments of the measurement's `plan`: the options that were given, with lists parsed."""
        values = _given(self)
        if "layers" in values:
            values["layers"] = [name.strip() for name in values["layers"].split(",")]
        if "units" in values:
            values["units"] = _integers("--units", values["units"], "0,3,7")
        return values


_RANGES = {name: problem.line_range for name, problem in PROBLEMS.items()}


@dataclass(frozen=True)
class LineOptions(MeasureOptions):
    """The step lengths of the line probe."""

    min_alpha: Annotated[
        float | None,
        option(
            "--min-alpha",
            "Shortest step to probe, in learning rates (default: "
            f"{_listed(*(f'{low:g} for {problem}' for problem, (low, _) in _RANGES.items()))}).",
        ),
    ] = None
    max_alpha: Annotated[
        float | None,
        option(
            "--max-alpha",
            "Longest step to probe, in learning rates (default: "
            f"{_listed(*(f'{high:g} for {problem}' for problem, (_, high) in _RANGES.items()))}).",
        ),
    ] = None
    points: Annotated[int | None, option("--points", "Number of step lengths, evenly spaced (default: 8).")] = None


@dataclass(frozen=True)
class ObjectiveOptions(MeasureOptions):
    """Whose loss is measured."""

    objective: Annotated[
        str,
        option(
            "--objective",
            "Which mean loss to measure: batch (default: the step's own batch), train:K (K fixed training batches) or "
            "test (the test set, in eval mode).",
            choices=("batch", "train:8", "test"),
        ),
    ] = "batch"


@dataclass(frozen=True)
class LayerOptions(MeasureOptions):
    """Which parts of the network count as layers."""

    layers: Annotated[
        str | None,
        option(
            "--layers",
            "The layers, in order: modules of the network, or layers by name or number (default: all layers).",
            metavar="A,B,C",
        ),
    ] = None


@dataclass(frozen=True)
class UnitOptions(MeasureOptions):
    """Which layers and units are measured."""

    layers: Annotated[
        str | None, option("--layers", "Measure these layers, by name or number, as in conv1,fc2.", metavar="A,B,C")
    ] = None
    units: Annotated[
        str | None, option("--units", "Measure these units of each layer, counted from 0.", metavar="A,B,C")
    ] = None


@dataclass(frozen=True)
class SurfaceOptions(MeasureOptions):
    """The grid of a surface."""

    directions: Annotated[
        str | None,
        option(
            "--directions",
            "random (default: filter-normalised), or pca (the principal directions of the run's path).",
            choices=DIRECTIONS,
        ),
    ] = None
    dimensions: Annotated[int | None, option("--dimensions", "1 for a line, 2 (default) for a plane.")] = None
    points: Annotated[int | None, option("--points", "Points per axis (default: 21).")] = None
    extent: Annotated[
        float | None,
        option(
            "--extent",
            "Reach of the grid (default: 1). random: in lengths of the weights; pca: in widths of the path.",
        ),
    ] = None


@dataclass(frozen=True)
class ExportOptions:
    """Files that are written beside the tables."""

    tensorboard: Annotated[
        bool,
        option(
            "--tensorboard",
            "Write TensorBoard scalars beside each table (pip install 'bnsmooth\\[tensorboard]').",
            _MACHINE,
        ),
    ] = False

    def check(self) -> None:
        """Raise InputError, before any work, if the extra is not installed."""
        if self.tensorboard:
            from bnsmooth_cli.storage.exports import check_tensorboard

            check_tensorboard()

    def write(self, table: Path) -> Path | None:
        """Write the TensorBoard files of a table, if they are asked for, and return their path."""
        if not self.tensorboard:
            return None
        from bnsmooth_cli.storage.exports import tensorboard

        return tensorboard(table)


@dataclass(frozen=True)
class WeightOptions:
    """Weights that were trained elsewhere, in place of a run."""

    weights: Annotated[
        Path | None,
        option(
            "--weights",
            "Measure these weights instead of training: a file with a state dict that fits the problem's network.",
            _SETTINGS,
            metavar="FILE",
        ),
    ] = None


Sources = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="RUN|CKPT",
        help="Run directories or checkpoints (default: the run that the options describe).",
        show_default=False,
    ),
]
TableOutput = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="TABLE",
        help="One table for all sources (default: a table beside each source).",
        show_default=False,
    ),
]


def grouped(command: Function) -> Function:
    """Let a command take groups of options: each field of a group becomes an option of the command line."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if dataclasses.is_dataclass(parameter.annotation)
    }
    parameters = []
    for name, parameter in signature.parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
            continue
        fields = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=fields[f.name])
            for f in dataclasses.fields(groups[name])
        ]

    @functools.wraps(command)
    def called(**values: Any) -> Any:
        objects = {
            name: group(**{f.name: values.pop(f.name) for f in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        return command(**values, **objects)

    del called.__wrapped__  # otherwise inspect would follow it, and ignore the signature below
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called  # type: ignore[return-value]
