"""Options that several commands share, in one place, and how a command takes train's options as one object."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from bnsmooth_cli import norms
from bnsmooth_cli.config import PROBLEMS, Config, check_threads, resolve
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.user_code import allow, is_code

Function = TypeVar("Function", bound=Callable[..., Any])

_SETTINGS = "The run (values come from --preset unless given)"
_MACHINE = "Machine"
_STEPS = "What is measured"


def _choices(*names: str) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def _option(flags: str, help: str, panel: str = _SETTINGS, **more: Any) -> Any:
    return typer.Option(*flags.split(), help=help, rich_help_panel=panel, show_default=False, **more)


@dataclass(frozen=True)
class SettingOptions:
    """The settings that the runs of a study share, as given: None where they are the preset's."""

    problem: Annotated[
        str | None,
        _option(
            "--problem -p",
            "vgg (default), dln, or your own as MODULE:FUNCTION.",
            autocompletion=_choices(*PROBLEMS),
        ),
    ] = None
    preset: Annotated[
        str | None,
        _option(
            "--preset",
            "quick (default) or paper: every setting of the paper.",
            autocompletion=_choices("quick", "paper"),
        ),
    ] = None
    data: Annotated[
        str | None,
        _option(
            "--data",
            "vgg: shapes (built in), cifar10, cifar100, svhn, mnist, fashion-mnist, or a folder. With a RUN: where its "
            "images are now.",
            autocompletion=_choices("shapes", "cifar10", "cifar100", "svhn", "mnist", "fashion-mnist"),
        ),
    ] = None
    steps: Annotated[int | None, _option("--steps", "Length of the training run; more than before continues it.")] = (
        None
    )
    batch_size: Annotated[int | None, _option("--batch-size", "Samples a step; dln: all of them.")] = None
    momentum: Annotated[float | None, _option("--momentum", "Momentum of SGD, 0 in the paper.")] = None
    augment: Annotated[bool | None, _option("--augment/--no-augment", "vgg: random crops and mirror images.")] = None
    depth: Annotated[int | None, _option("--depth", "Layers; vgg: 11, 13, 16 or 19.")] = None
    width: Annotated[float | None, _option("--width", "vgg: the channels' scale, 1 in the paper.")] = None
    dimension: Annotated[int | None, _option("--dimension", "dln: units a layer.")] = None
    samples: Annotated[int | None, _option("--samples", "dln: Gaussian samples.")] = None
    save_every: Annotated[int | None, _option("--save-every", "Steps between checkpoints.")] = None
    eval_every: Annotated[
        int | None, _option("--eval-every", "Steps between test evaluations, where there is a test set.")
    ] = None

    def given(self) -> dict[str, Any]:
        """The settings that were given, by name, a data folder by its full path."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        allow(self.problem, values.get("norm"))
        if self.data is not None:
            from bnsmooth_cli.data.images import canonical

            values["data"] = canonical(self.data)
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class _Which:
    """What tells the runs of a study apart."""

    norm: Annotated[
        str | None,
        _option(
            "--norm -n",
            f"Default: batch. One of {', '.join(norm.name for norm in norms.NORMS)}, or your own as {norms.USER_NORM}.",
            autocompletion=_choices(*norms.examples()),
        ),
    ] = None
    lr: Annotated[float | None, _option("--lr", "Learning rate, constant.")] = None
    seed: Annotated[
        int | None, _option("--seed", "Initialisation, data order, noise and augmentation (default 0).")
    ] = None


@dataclass(frozen=True)
class RunOptions(SettingOptions, _Which):
    """train's settings as given: None where they are the preset's."""

    def config(self) -> Config:
        """The configuration that the options and their preset give."""
        return resolve(**self.given())

    def described(self) -> list[str]:
        """The flags that were given and contradict a RUN: not `--data`, nor code by its name, which lets it run."""
        return [
            f"--{name.replace('_', '-')}"
            for name, value in self.given().items()
            if name != "data" and not (name in ("norm", "problem") and is_code(value))
        ]

    def check_code(self, config: Config, path: Path) -> None:
        """Raise InputError where the code that was named is not that of the run at `path`."""
        for name in ("norm", "problem"):
            given, found = getattr(self, name), getattr(config, name)
            if given is not None and given != found:
                raise InputError(f"--{name} {given}: {path} has the {name} {found}; leave the option out")


@dataclass(frozen=True)
class MachineOptions:
    """Where it runs, and what it may replace."""

    device: Annotated[
        str,
        _option(
            "--device",
            "auto (default), cpu, cuda or mps.",
            _MACHINE,
            autocompletion=_choices("auto", "cpu", "cuda", "mps"),
        ),
    ] = "auto"
    threads: Annotated[
        int | None, _option("--threads", "CPU threads (default: torch's choice; of a study's run, 1).", _MACHINE)
    ] = None
    force: Annotated[bool, _option("--force", "Replace what is there; of a study, the measurements.", _MACHINE)] = False

    def apply(self) -> None:
        """Set the number of threads."""
        if self.threads is None:
            return
        check_threads(self.threads)
        import torch

        torch.set_num_threads(self.threads)


_STUDY = "A study"


@dataclass(frozen=True)
class GridOptions:
    """The grid of a study, as given."""

    norms: Annotated[
        str | None, _option("--norms", "Every norm of the study, as in none,batch,l1.", _STUDY, metavar="A,B,C")
    ] = None
    lrs: Annotated[
        str | None, _option("--lrs", "Its learning rates (default: the preset's).", _STUDY, metavar="A,B")
    ] = None
    seeds: Annotated[
        str | None,
        _option("--seeds", "Its seeds, as in 0-4 (default: 0); a verdict takes five.", _STUDY, metavar="A-B"),
    ] = None
    measure: Annotated[
        str | None,
        _option(
            "--measure", "What is measured: landscape, smoothness, ics, activations, theory.", _STUDY, metavar="A,B"
        ),
    ] = None
    study: Annotated[
        Path | None,
        _option("--study", "The options from a TOML file; those given here win.", _STUDY, metavar="FILE"),
    ] = None

    def given(self) -> dict[str, str]:
        """The lists that were given, as they were."""
        lists = {name: getattr(self, name) for name in ("norms", "lrs", "seeds", "measure")}
        allow(*(name.strip() for name in (self.norms or "").split(",")))
        return {name: value for name, value in lists.items() if value is not None}


@dataclass(frozen=True)
class ExecutionOptions:
    """Where a study executes."""

    jobs: Annotated[
        int | None,
        _option("--jobs -j", "Worker processes on this machine (default: none, runs go one by one).", _STUDY),
    ] = None
    dask: Annotated[
        str | None,
        _option(
            "--dask", "A Dask scheduler's address, or local for a cluster of --jobs workers.", _STUDY, metavar="ADDRESS"
        ),
    ] = None
    dry_run: Annotated[bool, _option("--dry-run", "Print the runs and what they would cost, and end.", _STUDY)] = False

    def check(self) -> None:
        """Raise InputError for a number of jobs that cannot be."""
        if self.jobs is not None and self.jobs < 1:
            raise InputError(f"--jobs {self.jobs}: give a whole number of at least 1")


@dataclass(frozen=True)
class StepOptions:
    """Which points of a run are measured."""

    every: Annotated[
        int | None, _option("--every", "Every so many steps, instead of the run's checkpoints.", _STEPS)
    ] = None
    at: Annotated[str | None, _option("--at", "These steps, as in 0,100,250.", _STEPS, metavar="A,B,C")] = None

    def given(self) -> dict[str, Any]:
        """What was given, as it was."""
        return {name: value for name, value in (("every", self.every), ("at", self.at)) if value is not None}

    def chosen(self) -> dict[str, Any]:
        """The keyword arguments of `measures.measure`."""
        if self.every is not None and self.every < 1:
            raise InputError(f"--every {self.every}: give a whole number of at least 1")
        if self.at is None:
            return {"every": self.every, "at": None}
        if self.every is not None:
            raise InputError("--every and --at: give one of the two")
        return {"every": None, "at": _integers("--at", self.at, "0,100,250")}


def _integers(option: str, text: str, example: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1]
    if min(numbers) < 0:
        raise InputError(f"{option} {text}: give whole numbers separated by commas, as in {example}")
    return numbers


@dataclass(frozen=True)
class LineOptions:
    """The step lengths of the line probe."""

    min_alpha: Annotated[
        float | None,
        _option("--min-alpha", "Shortest step probed, in learning rates (default 0.5, dln 0.01).", _STEPS),
    ] = None
    max_alpha: Annotated[
        float | None,
        _option("--max-alpha", "Longest step probed, in learning rates (default 4, dln 30).", _STEPS),
    ] = None
    points: Annotated[int | None, _option("--points", "Step lengths probed, evenly spaced (default 8).", _STEPS)] = None

    def chosen(self) -> dict[str, Any]:
        """The keyword arguments of `measures.line_alphas`."""
        return {"minimum": self.min_alpha, "maximum": self.max_alpha, "points": self.points}


@dataclass(frozen=True)
class ObjectiveOptions:
    """Whose loss is measured."""

    objective: Annotated[
        str,
        _option(
            "--objective",
            "Whose mean loss: batch (default: the step's own), train:K (K fixed training batches) or test (the test "
            "set, in eval mode).",
            _STEPS,
            autocompletion=_choices("batch", "train:8", "test"),
        ),
    ] = "batch"

    def chosen(self) -> dict[str, Any]:
        """The keyword argument of the measurements' plans."""
        return {"objective": self.objective}


@dataclass(frozen=True)
class LayerOptions:
    """What the network's layers are."""

    layers: Annotated[
        str | None,
        _option(
            "--layers",
            "The layers, in order: modules of the network, or layers by name or number (default: all).",
            _STEPS,
            metavar="A,B,C",
        ),
    ] = None

    def chosen(self) -> dict[str, Any]:
        """The keyword argument of the measurements' plans."""
        return {} if self.layers is None else {"layers": _names(self.layers)}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


@dataclass(frozen=True)
class GridPointOptions:
    """The grid of a surface; None stands for its default."""

    directions: Annotated[
        str | None,
        _option(
            "--directions",
            "random (default: filter-normalised) or pca (the principal ones of the run's path).",
            _STEPS,
            autocompletion=_choices("random", "pca"),
        ),
    ] = None
    dimensions: Annotated[int | None, _option("--dimensions", "1 for a line, 2 (default) for a plane.", _STEPS)] = None
    points: Annotated[int | None, _option("--points", "Points an axis (default 21).", _STEPS)] = None
    extent: Annotated[
        float | None,
        _option(
            "--extent",
            "How far it reaches: random: in lengths of the weights; pca: in widths of the path (default 1).",
            _STEPS,
        ),
    ] = None

    def chosen(self) -> dict[str, Any]:
        """The keyword arguments of `surface`."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class ExportOptions:
    """What is written beside the tables."""

    tensorboard: Annotated[
        bool,
        _option(
            "--tensorboard",
            "Write TensorBoard scalars beside each table (pip install 'bnsmooth\\[tensorboard]').",
            _MACHINE,
        ),
    ] = False

    def check(self) -> None:
        """Raise InputError, before the work, where the extra is missing."""
        if self.tensorboard:
            from bnsmooth_cli.storage.exports import check_tensorboard

            check_tensorboard()

    def write(self, table: Path) -> Path | None:
        """What `tensorboard` reads of a table, where it is asked for."""
        if not self.tensorboard:
            return None
        from bnsmooth_cli.storage.exports import tensorboard

        return tensorboard(table)


@dataclass(frozen=True)
class WeightOptions:
    """Already-trained weights in place of a run."""

    weights: Annotated[
        Path | None,
        _option(
            "--weights",
            "Measure these: a file of a state dict that fits the problem's network, in place of training.",
            _SETTINGS,
            metavar="FILE",
        ),
    ] = None


@dataclass(frozen=True)
class UnitOptions:
    """Which layers and units are measured."""

    layers: Annotated[
        str | None, _option("--layers", "These layers, by name or number, as in conv1,fc2.", _STEPS, metavar="A,B,C")
    ] = None
    units: Annotated[
        str | None, _option("--units", "These units of each layer, counted from 0.", _STEPS, metavar="A,B,C")
    ] = None

    def chosen(self) -> dict[str, Any]:
        """The keyword arguments of `measures.selection.select`."""
        layers = None if self.layers is None else _names(self.layers)
        return {"layers": layers, "units": None if self.units is None else _integers("--units", self.units, "0,3,7")}


Sources = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="RUN|CKPT",
        help="Run directories or checkpoints; none: the run of the options below.",
        show_default=False,
    ),
]
TableOutput = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="TABLE",
        help="The table, one for all (default: beside each run).",
        show_default=False,
    ),
]


def grouped(command: Function) -> Function:
    """Let a command take option dataclasses: their fields become its options, and it receives the objects."""
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

    del called.__wrapped__  # or the signature below would be looked for there
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called  # type: ignore[return-value]
