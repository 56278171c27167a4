"""What defines a run: every value that its numbers depend on, and the presets that fill them in.

No torch here, so that commands which only parse or plot start quickly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bnsmooth_cli import norms
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.user_code import is_code

_VGG: Final = {"depth": 11, "augment": False, "lr": 0.1, "momentum": 0.0, "batch_size": 128}
_DLN: Final = {
    "depth": 25, "dimension": 10, "samples": 1_000, "lr": 1e-6, "momentum": 0.0, "batch_size": 1_000,
}  # fmt: skip
#: Problem -> preset -> settings. The paper's are those of Santurkar et al. 2018, appendix A ("Experimental setup"): a
#: VGG on CIFAR-10, SGD with lr 0.1, 15,000 steps of 128; 25 layers of 10 x 10, 1,000 Gaussian samples in one batch,
#: lr 1e-6, 10,000 steps. A quarter-width VGG on the built-in images trains in half a minute on a laptop.
PRESETS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "vgg": {
        "quick": {**_VGG, "data": "shapes", "width": 0.25, "steps": 300, "save_every": 50, "eval_every": 25},
        "paper": {**_VGG, "data": "cifar10", "width": 1.0, "steps": 15_000, "save_every": 500, "eval_every": 500},
    },
    "dln": {
        "quick": {**_DLN, "steps": 1_000, "save_every": 50},
        "paper": {**_DLN, "steps": 10_000, "save_every": 200},
    },
}

#: The settings of a problem of the user's own, as far as theirs are not other ones.
_OF_A_USER: Final[dict[str, dict[str, Any]]] = {
    "quick": {"lr": 0.1, "momentum": 0.0, "batch_size": 128, "steps": 300, "save_every": 50, "eval_every": 50}
}


def presets(problem: str) -> dict[str, dict[str, Any]]:
    """The presets of a problem by name; InputError for one that does not exist."""
    if is_code(problem):
        return _OF_A_USER
    if problem not in PRESETS:
        raise unknown("problem", problem, (*PRESETS, "MODULE:FUNCTION"))
    return PRESETS[problem]


#: Step lengths of the line probe, in multiples of the learning rate (appendix A: [1/2, 4] and [1/100, 30]); a user's
#: problem has VGG's.
LINE_RANGES: Final[dict[str, tuple[float, float]]] = {"vgg": (0.5, 4.0), "dln": (0.01, 30.0)}


#: What is asked for by mistake, or by a damaged file, ends in a line and never in all of the memory.
MOST: Final = {
    "steps": 10**9, "batch_size": 10**7, "depth": 1000, "save_every": 10**9, "eval_every": 10**9, "dimension": 10**7,
    "samples": 10**7,
}  # fmt: skip
#: Settings that not every problem has.
_PARTICULAR: Final = ("depth", "eval_every", "data", "width", "augment", "dimension", "samples")
STEEPEST: Final = 1e30  # a learning rate; times any number of a line probe's range it is still a float32
WIDEST: Final = 4.0  # VGG with four times the paper's channels
LARGEST: Final = 2**26  # numbers in the deep linear network, or in its samples
THREADS: Final = 1024


@dataclass(frozen=True)
class Config:
    """The configuration of one run. Fields that the problem does not have are None.

    `problem` and `norm` are built-in ones, or the user's own as `module:name`.
    `data` is a data set's name or the absolute path of a folder, `data_digest` the fingerprint of its training
    images; `width` scales VGG's channels; `dimension` and `samples` are the deep linear network's.
    """

    problem: str
    norm: str
    lr: float
    steps: int
    batch_size: int
    momentum: float
    seed: int
    save_every: int
    depth: int | None = None
    eval_every: int | None = None
    data: str | None = None
    data_digest: str | None = None
    width: float | None = None
    augment: bool | None = None
    dimension: int | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        settings = presets(self.problem)["quick"]
        for field in _PARTICULAR:
            if (getattr(self, field) is None) == (field in settings):
                has = "has no such setting" if getattr(self, field) is not None else "needs this setting"
                raise InputError(f"--{field.replace('_', '-')}: the problem {self.problem} {has}")
        for field, most in MOST.items():
            value = getattr(self, field)
            if value is not None and not (isinstance(value, int) and 1 <= value <= most):
                raise InputError(f"--{field.replace('_', '-')} {value}: give a whole number from 1 to {most}")
        for field, largest in (("lr", STEEPEST), ("width", WIDEST)):
            value = getattr(self, field)
            if value is not None and not 0 < value <= largest:
                raise InputError(f"--{field} {value}: give a number above 0, at most {largest:g}")
        if self.depth is not None and self.dimension is not None and self.samples is not None:
            numbers = max(self.samples * self.dimension, self.depth * self.dimension**2)
            if numbers > LARGEST:
                raise InputError(
                    f"--dimension {self.dimension}: with {self.samples} samples and depth {self.depth} that is "
                    f"{numbers} numbers, at most {LARGEST}"
                )
        if not 0 <= self.momentum < 1:
            raise InputError(f"--momentum {self.momentum}: give a number from 0 up to, not including, 1")
        if self.samples is not None and self.batch_size > self.samples:
            raise InputError(f"--batch-size {self.batch_size}: larger than the {self.samples} samples (--samples)")
        norm = norms.find(self.norm)
        if self.batch_size < 2 and norm is not None and norm.over == "batch":
            raise InputError(f"--batch-size {self.batch_size}: {self.norm} takes statistics over a batch of at least 2")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed}: give a whole number from 0 to 2^63 - 1")

    @property
    def name(self) -> str:
        """The run's name: `<problem>-<norm>-lr<lr>-seed<seed>`, safe as a file name on every system.

        >>> resolve("dln", norm="lp:3").name
        'dln-lp3-lr1e-06-seed0'
        >>> resolve("vgg", norm="mymodule:MyNorm").name
        'vgg-mymodule.MyNorm-lr0.1-seed0'
        """
        problem, norm = (name.replace(":", "." if is_code(name) else "") for name in (self.problem, self.norm))
        return f"{problem}-{norm}-lr{self.lr:g}-seed{self.seed}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, the fields that the problem does not have left out."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}

    def differences(self, other: Config) -> list[str]:
        """The fields in which `other` would be another trajectory.

        A longer run of the same trajectory is none, nor are the same images in another folder.
        """
        if self.problem != other.problem:
            return [f"problem {self.problem}, now {other.problem}"]
        immaterial = {"steps"}
        if None in (self.data_digest, other.data_digest):
            immaterial.add("data_digest")  # of images that were not looked at nothing can be said
        elif self.data_digest == other.data_digest:
            immaterial.add("data")
        return [
            f"{field.name} {getattr(self, field.name)}, now {getattr(other, field.name)}"
            for field in dataclasses.fields(self)
            if field.name not in immaterial and getattr(self, field.name) != getattr(other, field.name)
        ]


def resolve(problem: str = "vgg", preset: str = "quick", norm: str = "batch", seed: int = 0, **given: Any) -> Config:
    """The configuration of a preset with the given values in place of its own; None stands for "not given".

    >>> resolve("vgg", "paper", norm="l1", lr=0.5).steps
    15000
    """
    known = presets(problem)
    if preset not in known:
        raise unknown("preset", preset, known)
    values = dict(known[preset])
    for key, value in given.items():
        if value is None:
            continue
        if key not in values:
            raise InputError(f"--{key.replace('_', '-')}: the problem {problem} has no such setting")
        values[key] = value
    if problem == "dln" and given.get("batch_size") is None:
        values["batch_size"] = values["samples"]  # full batch: the paper's deterministic gradient descent
    return Config(problem=problem, norm=norm, seed=seed, **values)


def from_dict(values: object, source: str) -> Config:
    """The configuration that a file holds; `source` names the file in the error.

    >>> from_dict(resolve("dln").as_dict(), "config.json") == resolve("dln")
    True
    """
    if not isinstance(values, dict):
        raise InputError(f"{source}: holds no configuration of a bnsmooth run")
    check_types(values, source)
    try:
        return Config(**values)
    except TypeError as error:
        raise InputError(f"{source}: the configuration is incomplete ({error})") from error
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def check_threads(threads: int) -> None:
    """Raise InputError for a number of CPU threads that no machine has."""
    if not 1 <= threads <= THREADS:
        raise InputError(f"--threads {threads}: give a whole number from 1 to {THREADS}")


def check_types(values: Mapping[str, object], source: str) -> None:
    """Raise InputError, naming `source`, for a value that no field of `Config` has or of another type than its own."""
    fields = {field.name: field.type for field in dataclasses.fields(Config)}
    kinds = {"str": str, "int": int, "float": (int, float), "bool": bool}
    for key, value in values.items():
        if key not in fields:
            raise InputError(f"{source}: unknown setting '{key}'; was it written by a newer bnsmooth?")
        kind = kinds[str(fields[key]).split(" ")[0]]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):  # type: ignore[arg-type]
            raise InputError(f"{source}: the setting '{key}' has the wrong type ({type(value).__name__})")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise InputError(f"{source}: the setting '{key}' has more digits than a whole number of 64 bits")
