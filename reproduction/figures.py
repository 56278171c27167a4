"""The paper's figures: what the paper states, the pictures that stand for each here, and the numbers beside them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from reproduction.scales import LP, NORMS, PLAIN

NOISY: Final = ("none", "batch", "noisy-batch", "noisy-none")
EARLY: Final = "vgg-early"


def source(study: str, there: Container[str]) -> str:
    """The study of a scale that a figure is taken from: `vgg-early` has every norm, and where it is not, `vgg` does.

    >>> source("vgg-early", ["dln", "vgg"]), source("vgg-early", ["dln", "vgg-early", "vgg"])
    ('vgg', 'vgg-early')
    """
    return "vgg" if study == EARLY and EARLY not in there else study


@dataclass(frozen=True)
class Picture:
    """A figure that `bnsmooth plot` draws of `tables/<name>.parquet`: some of a study's rows of one kind.

    Of the learning rates, those at which all of its norms have run."""

    name: str
    kind: str
    study: str
    norms: tuple[str, ...]
    #: One run a norm: the smallest learning rate and seed. Distributions are shown of one, and their tables are large.
    single: bool = False
    #: The picture whose train table gives this one (of ics) the training curves.
    beside: str = ""


@dataclass(frozen=True)
class Numbers:
    """Medians over a study's seeds: columns of `figures` (of its summary, and their headings), a row a norm and lr."""

    study: str
    norms: tuple[str, ...]
    figures: dict[str, str]


@dataclass(frozen=True)
class Section:
    """What a figure of the paper becomes: `paper` is what it states, `claims` the ones that say whether it is so."""

    title: str
    paper: str
    pictures: tuple[Picture, ...] = ()
    numbers: tuple[Numbers, ...] = ()
    claims: tuple[int, ...] = ()
    #: The pictures (of activations) whose sigma^2 is quoted, at the first and the last measured step.
    sigma: tuple[str, ...] = ()
    #: Whether the pictures' lines (of landscapes) are quoted step by step.
    by_step: bool = False
    floors: bool = False  # whether the linear network's last losses stand beside those of the best maps of each rank
    theory: bool = False  # whether the statements' cases are counted
    note: str = ""

    def studies(self) -> list[str]:
        """What its pictures and numbers are of."""
        return [*(one.study for one in self.pictures), *(one.study for one in self.numbers)]


#: Test accuracies (%) that the paper states, by study and norm.
ACCURACIES: Final = {"vgg": {"none": 80, "batch": 83}, "vgg-augmented": {"none": 88, "batch": 92}}
#: Whose claims tables are judged, in this order.
JUDGED: Final = ("dln", "dln-slow", EARLY, "vgg")
#: Studies of the first steps, `vgg-` before their names; the first has every norm.
_FIRST: Final = ("early", "he", "default", "shallow")
_ACCURACY: Final = {"final_test_accuracy": "last test accuracy", "best_test_accuracy": "best test accuracy",
                    "steps_to_accuracy": "steps to none's last accuracy"}  # fmt: skip
_LOSS: Final = {"final_loss": "last training loss", "steps_to_loss": "steps to none's last loss"}
_LINE: Final = {"loss_range": "range of the loss", "predictiveness": "change of the gradient", "beta": "effective beta"}
_INPUTS: Final = {"movement": "movement between measured steps, in deviations", "kurtosis": "size of excess kurtosis"}

SECTIONS: Final = (
    Section(
        "Figure 1: training with and without BatchNorm",
        "BatchNorm trains faster at both learning rates, 0.1 and 0.5, and ends at a test accuracy of 83% against 80%; "
        "how stable the inputs of the layers are hardly differs.",
        (Picture("figure-1", "train", "vgg", PLAIN), Picture("figure-1c", "activations", "vgg", PLAIN, single=True)),
        (Numbers("vgg", PLAIN, _ACCURACY), Numbers("vgg", PLAIN, _INPUTS)),
        (1, 2),
    ),
    Section(
        "Figure 2: noisy BatchNorm",
        "With noise after each BatchNorm, of a new distribution at each step, the inputs of the layers are less stable "
        "than the plain network's, and yet it trains about as well as with BatchNorm, and far better than the plain "
        "network. The same noise without BatchNorm stops training.",
        (Picture("figure-2", "train", EARLY, NOISY),),
        (Numbers(EARLY, NOISY, {**_ACCURACY, **_INPUTS}),),
        (3,),
    ),
    Section(
        "Figure 3: internal covariate shift",
        "The shift is not smaller with BatchNorm. In the deep linear network the plain gradients before and after the "
        "step of the layers below have a cosine near 1 for the whole run, those with BatchNorm one near 0.",
        (Picture("figure-3-vgg", "ics", "vgg", PLAIN, beside="figure-1"),
         Picture("figure-3-dln", "ics", "dln", PLAIN, beside="figure-13-dln")),
        (Numbers("vgg", PLAIN, {"ics": "distance of the gradients", "cosine": "their cosine"}),
         Numbers("dln", PLAIN, {"ics": "distance of the gradients", "cosine": "their cosine"})),
        (4,),
    ),
    Section(
        "Beside figures 3, 9 and 13: the deep linear network at a tenth of the learning rate",
        "Sums squared distances over the samples. Were they averages over the ten outputs, they would be those sums at "
        "a tenth of the learning rate.",
        (Picture("figure-3-slow", "ics", "dln-slow", PLAIN, beside="figure-13-slow"),
         Picture("figure-13-slow", "train", "dln-slow", LP)),
        (Numbers("dln-slow", PLAIN, {"ics": "distance of the gradients", "cosine": "their cosine"}),
         Numbers("dln-slow", LP, {**_LINE, **_LOSS})),
    ),
    Section(
        "Figure 4: the landscape along the gradient",
        "With BatchNorm the loss varies less along the gradient (a), most of all early; the gradient is more "
        "predictive (b), early by about two orders of magnitude; effective beta-smoothness is lower (c).",
        (Picture("figure-4", "landscape", "vgg", PLAIN), Picture("figure-4c", "smoothness", "vgg", PLAIN)),
        (Numbers("vgg", PLAIN, _LINE), Numbers(EARLY, PLAIN, _LINE)),
        (5, 6, 7),
    ),
    Section(
        "Beside figure 4: the first 300 steps of other networks",
        "Nothing on them. Here the plain network's first steps are flat, and what could make them so is varied: "
        "the initialisation and the depth.",
        tuple(Picture(f"figure-4-{name}", "landscape", f"vgg-{name}", PLAIN) for name in _FIRST),
        by_step=True,
    ),
    Section(
        "Figure 7: distributions with BatchNorm and with noise",
        "Histograms of the inputs to the layers over training, noisy BatchNorm's the least stable.",
        (Picture("figure-7", "activations", EARLY, ("none", "batch", "noisy-batch"), single=True),),
    ),
    Section(
        "Figure 8: the deviation that BatchNorm divides by",
        "The variance of a unit before BatchNorm is large, so the factor gamma^2 / sigma^2 of theorem 4.1 is small.",
        sigma=("figure-1c", "figure-7"),
        note="The second row from below in the pictures of figures 1c and 7 shows it over training.",
    ),
    Section(
        "Figure 9: the landscape of the deep linear network",
        "BatchNorm smooths this landscape too.",
        (Picture("figure-9", "landscape", "dln", PLAIN), Picture("figure-9c", "smoothness", "dln", PLAIN)),
        (Numbers("dln", PLAIN, _LINE),),
    ),
    Section(
        "Figure 11: VGG with l_p norms",
        "l_1, l_2 and l_inf norms smooth the landscape as BatchNorm does.",
        (Picture("figure-11", "landscape", EARLY, LP), Picture("figure-11d", "smoothness", EARLY, LP)),
        (Numbers(EARLY, LP, _LINE),),
    ),
    Section(
        "Figure 12: the deep linear network with l_p norms",
        "They smooth this landscape too.",
        (Picture("figure-12", "landscape", "dln", LP), Picture("figure-12d", "smoothness", "dln", LP)),
        (Numbers("dln", LP, _LINE),),
    ),
    Section(
        "Figure 13: training with l_p norms",
        "All of them train about as well as BatchNorm; in the deep linear network l_1 is clearly better.",
        (Picture("figure-13-vgg", "train", EARLY, LP), Picture("figure-13-dln", "train", "dln", LP)),
        (Numbers(EARLY, LP, _ACCURACY), Numbers("dln", NORMS, _LOSS)),
        (8,),
        floors=True,
    ),
    Section(
        "Figure 14: distributions with l_p norms",
        "l_p norms leave layer inputs that are no Gaussians, and that move more than the plain network's.",
        (Picture("figure-14", "activations", EARLY, LP, single=True),),
        (Numbers(EARLY, LP, _INPUTS), Numbers("dln", LP, _INPUTS)),
        (9,),
    ),
    Section(
        "Section 4: the theorems, both sides",
        "Theorems 4.1, 4.2 and 4.4 bound what BatchNorm leaves of gradient, curvature and worst-case gradient; 4.3 "
        "says that minima are preserved, 4.5 that the nearest one is closer (figure 5 has the two networks).",
        (Picture("theory", "theory", "dln", PLAIN, single=True),),
        claims=tuple(range(10, 15)),
        theory=True,
    ),
)  # fmt: skip


def shown(studies: Container[str]) -> list[Section]:
    """The sections that a scale has all the studies for.

    >>> len(SECTIONS) - len(shown(["dln", "vgg", "vgg-augmented"]))
    2
    """
    return [section for section in SECTIONS if all(source(name, studies) in studies for name in section.studies())]


def pictures(studies: Container[str]) -> list[Picture]:
    """Those of the sections that are shown."""
    return [picture for section in shown(studies) for picture in section.pictures]
