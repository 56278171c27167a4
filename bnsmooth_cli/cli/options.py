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

from bnsmooth_cli.config import PRESETS, Config, resolve
from bnsmooth_cli.errors import InputError

Function = TypeVar("Function", bound=Callable[..., Any])

_SETTINGS = "The run (values come from --preset unless given)"
_MACHINE = "Machine"
_STEPS = "What is measured"


def _choices(*names: str) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def _option(flags: str, help: str, panel: str = _SETTINGS, **more: Any) -> Any:
    return typer.Option(*flags.split(), help=help, rich_help_panel=panel, show_default=False, **more)


@dataclass(frozen=True)
class RunOptions:
    """train's settings as given: None where they are the preset's."""

    problem: Annotated[
        str | None, _option("--problem -p", "vgg (default) or dln.", autocompletion=_choices(*PRESETS))
    ] = None
    preset: Annotated[
        str | None,
        _option(
            "--preset",
            "quick (default) or paper: every setting of the paper.",
            autocompletion=_choices("quick", "paper"),
        ),
    ] = None
    norm: Annotated[
        str | None,
        _option(
            "--norm -n",
            "batch (default), none, l1, l2, linf, lp:P, noisy-batch or noisy-none.",
            autocompletion=_choices("none", "batch", "l1", "l2", "linf", "lp:3", "noisy-batch", "noisy-none"),
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
    lr: Annotated[float | None, _option("--lr", "Learning rate, constant.")] = None
    steps: Annotated[int | None, _option("--steps", "Length of the training run; more than before continues it.")] = (
        None
    )
    batch_size: Annotated[int | None, _option("--batch-size", "Samples a step; dln: all of them.")] = None
    momentum: Annotated[float | None, _option("--momentum", "Momentum of SGD, 0 in the paper.")] = None
    seed: Annotated[
        int | None, _option("--seed", "Initialisation, data order, noise and augmentation (default 0).")
    ] = None
    augment: Annotated[bool | None, _option("--augment/--no-augment", "vgg: random crops and mirror images.")] = None
    depth: Annotated[int | None, _option("--depth", "Layers; vgg: 11, 13, 16 or 19.")] = None
    width: Annotated[float | None, _option("--width", "vgg: the channels' scale, 1 in the paper.")] = None
    dimension: Annotated[int | None, _option("--dimension", "dln: units a layer.")] = None
    samples: Annotated[int | None, _option("--samples", "dln: Gaussian samples.")] = None
    save_every: Annotated[int | None, _option("--save-every", "Steps between checkpoints.")] = None
    eval_every: Annotated[int | None, _option("--eval-every", "vgg: steps between test evaluations.")] = None

    def config(self) -> Config:
        """The configuration that the options and their preset give."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        named = {key: given.pop(key) for key in ("problem", "preset", "norm", "seed")}
        if given["data"] is not None:
            from bnsmooth_cli.problems.images import canonical

            given["data"] = canonical(given["data"])
        return resolve(**{key: value for key, value in named.items() if value is not None}, **given)

    def given(self) -> list[str]:
        """The flags that were given, `--data` aside: they contradict a RUN."""
        names = (field.name for field in dataclasses.fields(self))
        return [f"--{n.replace('_', '-')}" for n in names if n != "data" and getattr(self, n) is not None]


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
    threads: Annotated[int | None, _option("--threads", "CPU threads (default: torch's choice).", _MACHINE)] = None
    force: Annotated[bool, _option("--force", "Replace what is there.", _MACHINE)] = False

    def apply(self) -> None:
        """Set the number of threads."""
        if self.threads is None:
            return
        if self.threads < 1:
            raise InputError(f"--threads {self.threads}: give a whole number of at least 1")
        import torch

        torch.set_num_threads(self.threads)


@dataclass(frozen=True)
class StepOptions:
    """Which points of a run are measured."""

    every: Annotated[
        int | None, _option("--every", "Every so many steps, instead of the run's checkpoints.", _STEPS)
    ] = None
    at: Annotated[str | None, _option("--at", "These steps, as in 0,100,250.", _STEPS, metavar="A,B,C")] = None

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
        _option("--min-alpha", "Shortest step probed, in learning rates (vgg 0.5, dln 0.01).", _STEPS),
    ] = None
    max_alpha: Annotated[
        float | None,
        _option("--max-alpha", "Longest step probed, in learning rates (vgg 4, dln 30).", _STEPS),
    ] = None
    points: Annotated[int | None, _option("--points", "Step lengths probed, evenly spaced (default 8).", _STEPS)] = None

    def chosen(self) -> dict[str, Any]:
        """The keyword arguments of `measures.line_alphas`."""
        return {"minimum": self.min_alpha, "maximum": self.max_alpha, "points": self.points}


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
        layers = None if self.layers is None else [name.strip() for name in self.layers.split(",")]
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
