"""What defines a run: the settings that every run has, and those of its problem (`presets`).

This module imports no torch, so that commands that only parse or plot start quickly.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Final

from bnsmooth_cli import norms, optimisers
from bnsmooth_cli.data import canonical
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.presets import CUSTOM, MAX_SAMPLES, MAX_STEPS, PROBLEMS, Settings, find_problem
from bnsmooth_cli.settings import (
    Bounds,
    base_name,
    check_bounds,
    check_choice,
    flag,
    positive,
    same_digest,
    setting,
    tag,
    whole,
)
from bnsmooth_cli.user_code import is_code

# Larger values are mistakes, or come from damaged files.
MAX_LR: Final = 1e30  # still a float32 after a multiplication by any step length of a line probe
MAX_THREADS: Final = 1024
MAX_NAME: Final = 120  # bytes; file systems take 255, and Windows 260 characters of a whole path
#: How the learning rate changes after the warm-up.
SCHEDULES: Final = ("constant", "cosine", "linear", "step")
#: The schedule `step`: from which share of the steps on it multiplies the learning rate by which factor.
DROPS: Final = ((0.75, 0.01), (0.5, 0.1))
#: What a value of a type is called.
_WORDS: Final = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_PENALTY: Final = Bounds("a number from 0 to 1000", 1000, lambda value: 0 <= value <= 1000)
_FRACTION: Final = Bounds("a number from 0 up to, not including, 1", 1, lambda value: 0 <= value < 1)
_LENGTH: Final = Bounds(f"a number from 0 (none) to {MAX_LR:g}", MAX_LR, lambda value: 0 <= value <= MAX_LR)


#: What a configuration has once the data are loaded and the user's optimiser is made. Nobody sets it.
KNOWN_LATER: Final = ("data_digest", "optimizer_digest")
#: The settings that may name the user's code.
CODE: Final = ("problem", "norm", "optimizer")
#: The settings that have columns of their own in tables; `settings_text` has the others.
IDENTIFYING: Final = ("problem", "norm", "lr", "seed")


def _having(setting: str, text: str) -> str:
    """The help of a setting that not every optimiser has."""
    return f"{text} ({', '.join(rule.name for rule in optimisers.RULES if setting in rule.settings)})."


_DECOUPLED: Final = ", ".join(rule.name for rule in optimisers.RULES if rule.decoupled)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of one run: every value that its numbers depend on, and how often it is saved and evaluated.

    `settings` has what is particular to the problem. `optimizer_digest` and `lr` are those of the user's own optimiser,
    known once it is made.
    """

    problem: str = setting(f"{', '.join(PROBLEMS)}, or your own as {CUSTOM.name}.", short="-p", choices=tuple(PROBLEMS))
    norm: str = setting(
        f"One of {', '.join(norm.name for norm in norms.NORMS)}, or your own as {norms.USER_NORM}.",
        short="-n", choices=tuple(norms.examples()),
    )  # fmt: skip
    lr: float = setting("Learning rate: the largest one, if it changes.", positive(MAX_LR))
    steps: int = setting(
        "Length of the training run. A larger number extends the run in a folder that -o names.", whole(MAX_STEPS),
        words="{} steps",
    )  # fmt: skip
    batch_size: int = setting("Samples per step.", whole(MAX_SAMPLES), tag="bs", words="batches of {}")
    optimizer: str = setting(
        f"One of {', '.join(rule.name for rule in optimisers.RULES)}, or your own as {optimisers.USER_RULE}: a "
        "function of the parameters that returns a torch.optim.Optimizer.",
        default="sgd", choices=tuple(rule.name for rule in optimisers.RULES), tag="", words="{}",
    )  # fmt: skip
    optimizer_digest: str | None = None
    momentum: float = setting(_having("momentum", "Momentum; the paper has none"), _FRACTION)
    nesterov: bool = setting(
        _having("nesterov", "Nesterov's form of the momentum"),
        default=False,
        words="Nesterov momentum",
        off="no Nesterov momentum",
    )
    betas: str = setting(_having("betas", "Decay rates of the two averages"), default="0.9,0.999")
    eps: float = setting(_having("eps", "What is added to the divisor"), positive(1000), default=1e-8)
    square_decay: float = setting(
        _having("square_decay", "Decay rate of the average of squares, torch's alpha"), _FRACTION, default=0.99
    )
    schedule: str = setting(
        "How the learning rate changes after the warm-up: constant; cosine or linear, down to 0 over the steps; or "
        "step, to a tenth at half of the steps and a hundredth at three quarters.",
        default="constant", choices=SCHEDULES, tag="", words="{} schedule",
        off="constant learning rate",
    )  # fmt: skip
    warmup: int = setting(
        "Steps in which the learning rate rises linearly to its largest value.", whole(MAX_STEPS, low=0), default=0,
        words="warm-up of {} steps", off="no warm-up",
    )  # fmt: skip
    clip: float = setting(
        "Longest gradient: a longer one is shortened to this norm; 0 shortens none.", _LENGTH, default=0.0,
        words="clip {}", off="no clip",
    )  # fmt: skip
    seed: int = setting("Seed of the initialisation, data order, noise and augmentation.", whole(2**63 - 1, low=0))
    save_every: int = setting("Steps between checkpoints.", whole(MAX_STEPS), defines=False)
    weight_decay: float = setting(
        "c of the L2 penalty c ||W||^2 / 2 of the weights, which is part of the loss. It leaves out biases and the "
        f"parameters of norms. {_DECOUPLED}: the decay of these weights in each step, in learning rates; the loss has "
        "no penalty.",
        _PENALTY, default=0.0, tag="wd",
    )  # fmt: skip
    keep: int = setting(
        "Keep only the last N checkpoints; 0 keeps all. Steps before them cannot be measured later.",
        whole(MAX_STEPS, low=0), default=0, defines=False,
    )  # fmt: skip
    settings: Settings

    def __post_init__(self) -> None:
        check_bounds(self)
        samples = self.settings.full_batch
        if samples is not None and self.batch_size > samples:
            raise InputError(f"--batch-size {self.batch_size}: larger than the {samples} samples (--samples)")
        norm = norms.find(self.norm)
        if self.batch_size < 2 and norm is not None and norm.over == "batch":
            raise InputError(f"--batch-size {self.batch_size}: {self.norm} takes statistics over a batch of at least 2")
        # One spelling for one pair: files and studies compare the text.
        object.__setattr__(self, "betas", ",".join(f"{beta:.17g}" if float(f"{beta:g}") != beta else f"{beta:g}"
                                                   for beta in optimisers.betas(self.betas)))  # fmt: skip
        optimisers.check(self.optimizer, {name: getattr(self, name) for name in optimisers.SETTINGS}, _defaults())
        check_choice("schedule", self.schedule, SCHEDULES)
        if self.warmup > self.steps:
            raise InputError(f"--warmup {self.warmup}: longer than the run; give at most its {self.steps} steps")

    @property
    def penalty(self) -> float:
        """The c of the L2 penalty in the loss: `weight_decay`, unless the optimiser decays the weights itself.

        >>> [resolve("vgg", optimizer=name, weight_decay=0.1).penalty for name in ("adam", "adamw")]
        [0.1, 0.0]
        """
        return 0.0 if _decoupled(self.optimizer) else self.weight_decay

    @property
    def decay(self) -> float:
        """The weight decay that the optimiser applies to the weights itself; 0 where it is a penalty in the loss."""
        return self.weight_decay - self.penalty

    def lr_at(self, step: int) -> float:
        r"""The learning rate of the step from $\theta_t$ to $\theta_{t+1}$.

        With w steps of warm-up and T steps in all, it is the `lr` times min(1, (t + 1) / w) and a factor of the
        schedule. With $u = (t - w) / (T - w)$, that factor is $(1 + \cos \pi u) / 2$ for `cosine` and $1 - u$ for
        `linear`, after the warm-up. As no step follows the last one, the learning rate there is that of the step before
        it, and never 0.

        >>> config = resolve("dln", steps=10, lr=1.0, schedule="linear", warmup=2)
        >>> [config.lr_at(step) for step in (0, 1, 2, 6, 9, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.125, 0.125]
        """
        return self.lr * self.lr_factor(step)

    @property
    def scheduled(self) -> bool:
        """Whether a schedule or a warm-up sets the learning rate of each step."""
        return self.schedule != "constant" or self.warmup > 0

    def lr_factor(self, step: int) -> float:
        """The scheduled learning rate as a multiple of `lr`."""
        at = min(step, self.steps - 1)
        rise = min(1.0, (at + 1) / self.warmup) if self.warmup else 1.0
        passed = max(0, at - self.warmup) / max(1, self.steps - self.warmup)
        match self.schedule:
            case "cosine":
                return rise * (1 + math.cos(math.pi * passed)) / 2
            case "linear":
                return rise * (1 - passed)
            case "step":
                return rise * next((factor for share, factor in DROPS if at >= share * self.steps), 1.0)
        return rise

    @property
    def name(self) -> str:
        """The run's name: `<problem>-<norm>-lr<lr>[-<preset>][-<setting>...]-seed<seed>`.

        It has the settings that are not those of the preset `quick`. If another preset is nearer, it has the name of
        that preset, and the settings that are not its. As the seed comes last, `<name>-seed*` are the seeds of one
        configuration and no others. It is safe as a file name on every system, and has at most MAX_NAME bytes and the
        seed.

        >>> resolve("dln", norm="lp:3").name, resolve("dln", samples=50).name
        ('dln-lp3-lr1e-06-seed0', 'dln-batch-lr1e-06-samples50-seed0')
        >>> resolve("vgg", data="a/folder", width=0.5, steps=3000).name
        'vgg-batch-lr0.1-folder-w0.5-steps3000-seed0'
        >>> resolve("vgg", "paper", norm="mymodule:MyNorm", width=0.25).name
        'vgg-mymodule.MyNorm-lr0.1-paper-w0.25-seed0'
        """
        preset, tags = self.nearest_preset()
        first = next(iter(find_problem(self.problem).presets))
        stem = self.former_name.removesuffix(self._seed)
        if optimisers.find(self.optimizer) is None:  # its learning rate is known once it is made
            stem = stem.rpartition("-lr")[0]
        parts = [stem, *([preset] if preset != first else []), *tags]
        return _bounded("-".join(parts)) + self._seed

    @property
    def former_name(self) -> str:
        """The name that earlier versions gave, in which runs of different settings were called the same."""
        problem, norm = (name.replace(":", "." if is_code(name) else "") for name in (self.problem, self.norm))
        return f"{problem}-{norm}-lr{self.lr:g}{self._seed}"

    @property
    def _seed(self) -> str:
        return f"-seed{self.seed}"

    def nearest_preset(self) -> tuple[str, list[str]]:
        """The preset from which the fewest settings differ, and those that differ, as parts of a name.

        >>> resolve("vgg", "paper", width=0.5).nearest_preset()
        ('paper', ['w0.5'])
        """
        values, fields = self._values(), defining(self.problem)
        full_batch = {"batch_size": self.settings.full_batch}  # where no preset has a number
        defaults = {name: f.default for name, f in fields.items()}
        choices = {}
        for preset, chosen in find_problem(self.problem).presets.items():
            usual = {**defaults, **full_batch, **chosen}
            tags = [(tag(f, values[name]), tag(f, usual[name])) for name, f in fields.items()]
            choices[preset] = [own for own, other in tags if own != other]
        return min(choices.items(), key=lambda choice: len(choice[1]))

    @property
    def eval_every(self) -> int | None:
        """Steps between test evaluations; None for a problem without a test set."""
        return getattr(self.settings, "eval_every", None)

    def _values(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return values | values.pop("settings")

    def as_dict(self) -> dict[str, Any]:
        """All settings as one flat dictionary of plain values, as files hold them; those at their default left out."""
        own = _by_name(Config) | _by_name(type(self.settings))  # two problems may have one setting, of other defaults
        return {name: value for name, value in self._values().items() if value != own[name].default}

    @property
    def settings_text(self) -> str:
        """The column `settings` of the run's rows: a JSON object of what defines the run, in the order of its keys.

        It has `as_dict` without the problem, norm, learning rate and seed, which have columns of their own, and without
        `incidental` settings. A folder of images goes by its base name and its digest.

        >>> resolve("dln", samples=50).settings_text
        '{"batch_size": 50, "depth": 25, "dimension": 10, "momentum": 0.0, "samples": 50, "steps": 1000}'
        """
        left_out = {*IDENTIFYING, *self.incidental()}
        values = {name: value for name, value in self.as_dict().items() if name not in left_out}
        # Files may have a whole number where the setting is none: one spelling for one value.
        values |= {name: float(value) for name, value in values.items() if type_of(name) is float}
        if "data" in values:
            values["data"] = base_name(values["data"])
        return json.dumps(values, sort_keys=True)

    def changed(self, **values: Any) -> Config:
        """The configuration with other values, of this class or of the problem's settings; None changes nothing.

        >>> resolve("vgg").changed(steps=2, width=0.5).settings.width
        0.5
        """
        return _build(self.as_dict() | {name: value for name, value in values.items() if value is not None})

    def incidental(self) -> dict[str, Any]:
        """The settings that do not define the run, by name: how often it is saved and evaluated, and what is kept.

        >>> resolve("dln", save_every=10).incidental()
        {'save_every': 10, 'keep': 0}
        """
        own = _by_name(Config) | _by_name(type(self.settings))
        free = {name for name, f in own.items() if "setting" in f.metadata and not f.metadata["setting"].defines}
        return {name: value for name, value in self._values().items() if name in free}

    def differences(self, other: Config) -> list[str]:
        """The settings that make `other` another trajectory, as `<setting> <value>, now <other's value>`.

        Settings that do not define the run (`incidental`) make no difference. More steps continue the same trajectory
        unless the learning rate depends on their number, and the same images may lie in another folder.
        """
        if self.problem != other.problem:
            return [f"problem {self.problem}, now {other.problem}"]
        values, others = self._values(), other._values()
        immaterial = {*self.incidental()}
        if self.schedule == "constant":
            immaterial.add("steps")
        if None in (self.optimizer_digest, other.optimizer_digest):  # an optimiser that has not been made
            immaterial.add("optimizer_digest")
            if self.optimizer_digest != other.optimizer_digest:
                immaterial.add("lr")
        digests = values.get("data_digest"), others.get("data_digest")
        if same_digest(*digests):  # images that have not been loaded cannot be compared
            immaterial.add("data_digest")
            if None not in digests:
                immaterial.add("data")
        found = _changes({name: value for name, value in values.items() if name not in immaterial}, others)
        why = f", which the schedule {self.schedule} depends on"
        return [text + why if text.startswith("steps ") else text for text in found]

    def knowing(self, other: Config) -> Config:
        """The configuration with the digest of another one's data, if both have data of the same name.

        Data may have moved to another folder. If it has other data, whoever loads them finds another digest.

        >>> there = resolve("vgg", data="/cluster/cifar10").changed(data_digest="1")
        >>> resolve("vgg", data="/home/cifar10").knowing(there).differences(there)
        []
        """
        mine, theirs = (getattr(config.settings, "data", None) for config in (self, other))
        if mine is None or theirs is None or base_name(mine) != base_name(theirs):
            return self
        return self.changed(data_digest=getattr(other.settings, "data_digest", None))

    def changes(self, other: Config) -> list[str]:
        """The settings that differ without defining the run, as `differences` has the others."""
        return _changes(self.incidental(), other.incidental())


def _defaults() -> dict[str, Any]:
    """The defaults of the settings that not every optimiser has. Files always have a momentum."""
    return {name: 0.0 if FIELDS[name].default is MISSING else FIELDS[name].default for name in optimisers.SETTINGS}


def _decoupled(optimizer: str) -> bool:
    rule = optimisers.find(optimizer)
    return rule is not None and rule.decoupled


def _bounded(name: str) -> str:
    """A name of at most MAX_NAME bytes: of a longer one the beginning and a digest of all of it."""
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) <= MAX_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: MAX_NAME - 9].decode(errors='ignore')}-{digest}"


def _changes(values: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    return [f"{name} {value}, now {others[name]}" for name, value in values.items() if value != others[name]]


def _by_name(kind: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    return {f.name: f for f in dataclasses.fields(kind) if f.name != "settings"}


_ENTRIES: Final = (*PROBLEMS.values(), CUSTOM)
#: Every setting of any run by name, in the order of files.
FIELDS: Final[dict[str, dataclasses.Field[Any]]] = {
    **_by_name(Config),
    **{name: f for entry in _ENTRIES for name, f in _by_name(entry.settings).items()},
}


def defining(problem: str) -> dict[str, dataclasses.Field[Any]]:
    """The settings that define a run of a problem, its own before the common ones, without those of `IDENTIFYING`.

    >>> list(defining("dln"))[:4]
    ['depth', 'dimension', 'samples', 'matrix']
    """
    own = _by_name(PROBLEMS.get(problem, CUSTOM).settings)
    fields = own | {name: f for name, f in _by_name(Config).items() if name not in (*own, *IDENTIFYING)}
    return {name: f for name, f in fields.items() if "setting" in f.metadata and f.metadata["setting"].defines}


def type_of(name: str) -> type:
    """The type of a setting.

    >>> type_of("width")
    <class 'float'>
    """
    return {"str": str, "int": int, "float": float, "bool": bool}[str(FIELDS[name].type).split(" ")[0]]


def choices_of(name: str) -> tuple[str, ...]:
    """The values of a setting that the shell completes, of all problems that have it.

    >>> choices_of("data")[-2:]
    ('fashion-mnist', 'shakespeare')
    """
    fields = [_by_name(Config), *(_by_name(entry.settings) for entry in _ENTRIES)]
    return tuple(dict.fromkeys(c for own in fields if name in own for c in own[name].metadata["setting"].choices))


def help_of(name: str) -> str:
    """The help of a setting; the help of a problem's setting names the problem.

    >>> help_of("depth")
    'vgg: 11, 13, 16 or 19 weight layers; dln: number of layers; gpt: number of blocks, each with four layers.'
    """
    if name in _by_name(Config):
        return str(FIELDS[name].metadata["setting"].help)
    problems: dict[str, list[str]] = {}
    for entry in _ENTRIES:
        if name in (fields := _by_name(entry.settings)):
            problems.setdefault(fields[name].metadata["setting"].help, []).append(entry.name)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in problems.items()) + "."


def _build(values: Mapping[str, Any]) -> Config:
    """The configuration of a flat dictionary; InputError for a setting that is missing, unknown or does not fit."""
    problem = values.get("problem", "")
    entry = find_problem(problem)
    common, particular = _by_name(Config), _by_name(entry.settings)
    for name in values:
        if name not in FIELDS:
            raise unknown("setting", name, FIELDS)
        if name not in common and name not in particular:
            raise InputError(f"{flag(name)}: the problem {problem} has no such setting")
    for name, f in {**common, **particular}.items():
        if name not in values and f.default is MISSING:
            raise InputError(f"{flag(name)}: the problem {problem} needs this setting")
    settings = entry.settings(**{name: value for name, value in values.items() if name in particular})
    return Config(**{name: value for name, value in values.items() if name in common}, settings=settings)


def resolve(
    problem: str = "vgg", preset: str = "quick", norm: str | None = None, seed: int = 0, **given: Any
) -> Config:
    """The configuration of a preset with some values replaced.

    Args:
        problem: A name of `PROBLEMS`, or a custom problem.
        preset: `quick`, or `paper` for `vgg` and `dln`.
        norm: The norm; None keeps the preset's.
        seed: The seed of everything random.
        **given: Values that replace the preset's; None keeps the preset's.

    Raises:
        InputError: For an unknown name, and for a setting that the problem does not have or that does not fit.

    >>> resolve("vgg", "paper", norm="l1", lr=0.5).steps
    15000
    """
    entry = find_problem(problem)
    if preset not in entry.presets:
        raise unknown("preset", preset, entry.presets)
    values = {"problem": problem, **entry.presets[preset]}
    chosen = {name: plain(value) for name, value in {"norm": norm, "seed": seed, **given}.items() if value is not None}
    if isinstance(data := chosen.get("data"), str | Path):
        chosen["data"] = canonical(data)
    if isinstance(optimizer := chosen.get("optimizer"), str):
        values |= _of_optimizer(optimizer, values)
        if optimisers.find(optimizer) is None and "lr" in chosen:
            raise InputError(f"--lr {chosen['lr']}: the optimizer {optimizer} has its own; set it in your function")
    values |= chosen
    norms.check(values["norm"])
    for name, value in values.items():
        if name in FIELDS:
            check_types({name: value}, flag(name))
    values.setdefault("batch_size", values.get("samples"))  # all of them, where no preset has a number
    return _build(values)


def _of_optimizer(optimizer: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What replaces the values of a preset if another optimiser replaces the preset's.

    The settings of one optimiser are not those of the other, and the same number is too much or too little where weight
    decay acts in the other way.
    """
    usual = values.get("optimizer", FIELDS["optimizer"].default)
    if optimizer == usual:
        return {}
    replaced = {name: value for name, value in _defaults().items() if name in values}
    if "weight_decay" in values and _decoupled(optimizer) != _decoupled(usual):
        replaced["weight_decay"] = FIELDS["weight_decay"].default
    return replaced


def from_dict(values: object, source: str) -> Config:
    """The configuration that a file holds; `source` names the file in an error.

    Raises:
        InputError: For values that are no configuration.

    >>> from_dict(resolve("dln").as_dict(), "config.json") == resolve("dln")
    True
    """
    if not isinstance(values, dict):
        raise InputError(f"{source}: holds no configuration of a bnsmooth run")
    check_types(values, source)
    try:
        return _build(values)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def plain(value: Any) -> Any:
    """A number of numpy or torch as Python's, which files can hold; other values as they are.

    >>> import numpy as np
    >>> type(plain(np.int64(3))), plain("text")
    (<class 'int'>, 'text')
    """
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def check_types(values: Mapping[str, object], source: str) -> None:
    """Raise InputError, naming `source`, for an unknown setting or a value of the wrong type."""
    for name, value in values.items():
        if name not in FIELDS:
            raise InputError(f"{source}: unknown setting '{name}'; was it written by a newer bnsmooth?")
        kind = type_of(name)
        if not isinstance(value, (int, float) if kind is float else kind) or (
            isinstance(value, bool) and kind is not bool
        ):
            raise InputError(
                f"{source}: the setting '{name}' has the wrong type ({type(value).__name__}); give {_WORDS[kind]}"
            )
        if isinstance(value, int) and abs(value) >= 2**63:
            raise InputError(f"{source}: the setting '{name}' has more digits than a whole number of 64 bits")


def check_threads(threads: int) -> None:
    """Raise InputError for a number of CPU threads that no machine has."""
    if not 1 <= threads <= MAX_THREADS:
        raise InputError(f"--threads {threads}: give a whole number from 1 to {MAX_THREADS}")
