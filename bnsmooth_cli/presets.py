"""The registry of problems: the settings of each, and its presets. It imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bnsmooth_cli import data as data_sets
from bnsmooth_cli.errors import InputError, unknown
from bnsmooth_cli.settings import check_bounds, check_choice, positive, setting, whole
from bnsmooth_cli.user_code import is_code

# Larger values are mistakes, or come from damaged files. They must end in an error, not in all of the memory.
MAX_STEPS: Final = 10**9
MAX_SAMPLES: Final = 10**7
MAX_DEPTH: Final = 1000
MAX_WIDTH: Final = 4.0
MAX_NUMBERS: Final = 2**26  # in the deep linear network or its samples, and in the transformer
MAX_EMBEDDING: Final = 2048
MAX_CONTEXT: Final = 4096
#: How the pixels of images are scaled.
INPUTS: Final = ("standard", "centred")
#: How the matrix A that the deep linear network learns is drawn.
MATRICES: Final = ("normal", "uniform")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a problem adds to the configuration of a run. Each class checks its own values."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def full_batch(self) -> int | None:
        """The number of samples of a problem that trains on all of them unless told otherwise; None for the others."""
        return None


@dataclass(frozen=True, kw_only=True)
class VggSettings(Settings):
    """The settings of `vgg`. `data_digest` is that of the images, known once they are loaded (`Images.digest`)."""

    depth: int = setting("11, 13, 16 or 19 weight layers", whole(MAX_DEPTH))
    eval_every: int = setting("steps between evaluations on the test set", whole(MAX_STEPS), defines=False)
    data: str = setting(
        f"one of {', '.join(data_sets.NAMES)}, or a folder; {data_sets.BUILT_IN} is built in. With a RUN: the present "
        "folder of its images",
        choices=data_sets.NAMES, tag="", words="{}",
    )  # fmt: skip
    data_digest: str | None = None
    width: float = setting(
        "scale of the number of channels and of the classifier's widths", positive(MAX_WIDTH), tag="w"
    )
    augment: bool = setting("random crops and horizontal flips", words="augmentation")
    classifier: str = setting(
        "widths of the hidden linear layers, as in 4096,4096, or none", default="512,512",
        choices=("512,512", "4096,4096", "none"), tag="fc",
    )  # fmt: skip
    inputs: str = setting(
        "how pixels are scaled: standard (mean 0 and deviation 1 in each channel) or centred (0 to 255, less each "
        "channel's mean)", default="standard", choices=INPUTS, tag="", words="{} inputs",
    )  # fmt: skip
    last_norm: bool = setting("whether the norm also follows the last layer", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("inputs", self.inputs, INPUTS)
        # One spelling for one network: files and studies compare the text.
        object.__setattr__(self, "classifier", ",".join(map(str, self.classifier_widths)) or "none")

    @property
    def classifier_widths(self) -> tuple[int, ...]:
        """The widths of the hidden linear layers, before `width` scales them.

        Raises:
            InputError: If `classifier` is no list of widths.

        >>> from bnsmooth_cli.config import resolve
        >>> resolve("vgg", classifier="4096,10").settings.classifier_widths
        (4096, 10)
        """
        names = [] if self.classifier == "none" else self.classifier.split(",")
        if len(names) > MAX_DEPTH or not all(re.fullmatch(r"\s*0*[1-9][0-9]{0,3}\s*", name) for name in names):
            raise InputError(
                f"--classifier {self.classifier[:60]}: give the widths of the hidden linear layers, from 1 to 9999, "
                "as in 4096,4096, or none"
            )
        return tuple(map(int, names))


@dataclass(frozen=True, kw_only=True)
class LinearSettings(Settings):
    """The settings of `dln`, the deep linear network."""

    depth: int = setting("number of layers", whole(MAX_DEPTH))
    dimension: int = setting("units per layer", whole(MAX_SAMPLES), tag="dim", words="{} units")
    samples: int = setting("number of Gaussian samples", whole(MAX_SAMPLES), words="{} samples")
    matrix: str = setting(
        "how the entries of A are drawn: normal (N(0, 1), as the paper states) or uniform (U(0, 1), as its figures "
        "suggest)", default="normal", choices=MATRICES, tag="", words="{} matrix",
    )  # fmt: skip
    last_norm: bool = setting("whether the norm also follows the last layer", default=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("matrix", self.matrix, MATRICES)
        numbers = max(self.samples * self.dimension, self.depth * self.dimension**2)
        if numbers > MAX_NUMBERS:
            raise InputError(
                f"--dimension {self.dimension}: with {self.samples} samples and depth {self.depth} that is "
                f"{numbers} numbers, at most {MAX_NUMBERS}"
            )

    @property
    def full_batch(self) -> int:
        """All samples, as in the paper."""
        return self.samples


@dataclass(frozen=True, kw_only=True)
class GptSettings(Settings):
    """The settings of `gpt`, the transformer. `data_digest` is the fingerprint of the text, known once it is loaded."""

    depth: int = setting("number of blocks, each with four layers", whole(MAX_DEPTH))
    embedding: int = setting("units of each token, a multiple of --heads", whole(MAX_EMBEDDING), tag="emb",
                             words="{} units")  # fmt: skip
    heads: int = setting("attention heads, which share the units", whole(MAX_EMBEDDING), words="{} heads")
    context: int = setting(
        "characters of a window, whose next ones are predicted", whole(MAX_CONTEXT), words="windows of {}"
    )
    eval_every: int = setting("steps between evaluations on the test set", whole(MAX_STEPS), defines=False)
    data: str = setting(
        f"{', '.join(data_sets.TEXTS)} (built in), or a text file in UTF-8. With a RUN: the present file of its text",
        choices=data_sets.TEXTS, tag="", words="{}",
    )  # fmt: skip
    data_digest: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding % self.heads:
            raise InputError(
                f"--heads {self.heads}: the {self.embedding} units of --embedding do not divide into as many heads"
            )
        numbers = self.embedding * (12 * self.embedding * self.depth + self.context)
        if numbers > MAX_NUMBERS:
            raise InputError(
                f"--embedding {self.embedding}: with depth {self.depth} and a context of {self.context} that is "
                f"{numbers:,} numbers, at most {MAX_NUMBERS:,}"
            )


@dataclass(frozen=True, kw_only=True)
class CustomSettings(Settings):
    """The settings of a custom problem."""

    eval_every: int = setting("steps between evaluations on the test set", whole(MAX_STEPS), defines=False)
    swap_norm: bool = setting(
        "put --norm in the place of the model's own norm modules; none removes them", default=False, tag="swapnorm",
        words="swapped norms",
    )  # fmt: skip


@dataclass(frozen=True)
class ProblemEntry:
    """A problem that `--problem` accepts.

    Attributes:
        name: What the user types.
        implementation: "module:class" within `bnsmooth_cli.problems`, imported on use.
        settings: The class of its settings.
        presets: The values of each preset.
        alphas: The step lengths of the line probe, in learning rates.
        layers: The layers whose activations are measured by default, by number: those that the paper shows. Of `gpt`,
            those that feed the non-linearities of the preset's blocks.
    """

    name: str
    implementation: str
    settings: type[Settings]
    presets: Mapping[str, Mapping[str, Any]]
    alphas: tuple[float, ...]
    layers: tuple[int, ...] = ()


_SGD: Final = {"norm": "batch", "lr": 0.1, "momentum": 0.0, "batch_size": 128}
_ADAMW: Final = {
    "optimizer": "adamw",
    "momentum": 0.0,
    "betas": "0.9,0.99",
    "weight_decay": 0.1,
    "schedule": "cosine",
    "clip": 1.0,
}
_DLN: Final = {"norm": "batch", "depth": 25, "dimension": 10, "samples": 1_000, "lr": 1e-6, "momentum": 0.0}
#: The built-in problems. The preset `paper` has what Santurkar et al. 2018, appendix A, states: for `vgg` CIFAR-10
#: without augmentation, SGD with lr 0.1 and 15,000 steps of 128 images; for `dln` 25 layers of 10 x 10, 1,000 Gaussian
#: samples in one batch, lr 1e-6 and 10,000 steps. The step lengths of the line are those that its figures show. The
#: paper gives neither the depth of its "VGG-like" network nor its classifier, inputs, last norm or penalty, and the
#: losses of its linear network are not those of the matrix that it states. docs/paper.md has the experiments that the
#: preset's values are inferred from. The preset `quick` trains a quarter-width VGG-11 on the built-in images in half a
#: minute on a laptop, and a transformer of four blocks in as much. Of the learning rates 0.001, 0.003, 0.01, 0.03 and
#: 0.1, that of `gpt` is the one at which `layer` ends with the lowest training loss (docs/norms.md).
PROBLEMS: Final = {
    entry.name: entry
    for entry in (
        ProblemEntry("vgg", "vgg:Vgg", VggSettings, {
            "quick": {
                **_SGD, "data": "shapes", "augment": False, "depth": 11, "width": 0.25,
                "steps": 300, "save_every": 50, "eval_every": 25,
            },
            "paper": {
                **_SGD, "data": "cifar10", "augment": False, "depth": 16, "width": 1.0, "classifier": "4096,4096",
                "inputs": "centred", "last_norm": True, "weight_decay": 4.5e-4,
                "steps": 15_000, "save_every": 500, "eval_every": 500,
            },
        }, (0.5, 1.0, 2.0, 4.0), layers=(2, 3, 9, 11, 13)),
        ProblemEntry("dln", "linear:DeepLinear", LinearSettings, {
            "quick": {**_DLN, "steps": 1_000, "save_every": 50},
            "paper": {**_DLN, "matrix": "uniform", "last_norm": False, "steps": 10_000, "save_every": 200},
        }, (0.01, 0.1, 1.0, 10.0, 30.0), layers=(1, 11, 24)),
        ProblemEntry("gpt", "gpt:Gpt", GptSettings, {
            "quick": {
                **_ADAMW, "norm": "layer", "lr": 1e-2, "batch_size": 32, "data": "shakespeare",
                "depth": 4, "embedding": 64, "heads": 4, "context": 64,
                "steps": 600, "warmup": 60, "save_every": 100, "eval_every": 50,
            },
        }, (0.5, 1.0, 2.0, 4.0), layers=(5, 9, 13, 17)),
    )
}  # fmt: skip
#: Any custom problem; its name says how users name theirs.
CUSTOM: Final = ProblemEntry("MODULE:FUNCTION", "custom:CustomProblem", CustomSettings, {
    "quick": {**_SGD, "steps": 300, "save_every": 50, "eval_every": 50},
}, PROBLEMS["vgg"].alphas)  # fmt: skip


def find_problem(name: str) -> ProblemEntry:
    """The entry of a problem.

    Raises:
        InputError: For an unknown name.

    >>> find_problem("dln").alphas, find_problem("mymodule:myproblem").name
    ((0.01, 0.1, 1.0, 10.0, 30.0), 'MODULE:FUNCTION')
    """
    if is_code(name):
        return CUSTOM
    if name not in PROBLEMS:
        raise unknown("problem", name, (*PROBLEMS, CUSTOM.name))
    return PROBLEMS[name]


def in_paper(problem: str) -> bool:
    """Whether the paper's claims are about a problem. A custom problem counts, as the claims are tried on it.

    >>> in_paper("vgg"), in_paper("gpt"), in_paper("mymodule:myproblem")
    (True, False, True)
    """
    return problem not in PROBLEMS or "paper" in PROBLEMS[problem].presets
