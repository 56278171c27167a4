"""The paper's figures: what the paper states, and our pictures and numbers to compare with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from bnsmooth_cli.paper import find, read
from reproduction.scales import LP, NORMS, PLAIN

NOISY: Final = ("none", "batch", "noisy-batch", "noisy-none")
FULL: Final = "vgg"
EARLY: Final = "vgg-early"


def source(study: str, norms: Collection[str], available: Mapping[str, Collection[str]]) -> str | None:
    """The study that provides the runs of some norms, or None.

    Of `vgg` and `vgg-early`, one takes the place of the other if that has not finished runs of all the norms.

    Args:
        study: The study that is wanted.
        norms: The norms.
        available: The norms that have finished runs, by study.

    >>> source("vgg-early", ["l1"], {"vgg": ["l1"]}), source("vgg", ["l1"], {"vgg": ["none"], "vgg-early": ["l1"]})
    ('vgg', 'vgg-early')
    """
    places = (study, {EARLY: FULL, FULL: EARLY}.get(study, study))
    return next((place for place in places if {*norms} <= {*available.get(place, ())}), None)


@dataclass(frozen=True)
class Picture:
    """A figure that `bnsmooth plot` draws from a table in `tables/`, which has rows of one kind from a study.

    It shows the learning rates at which all of its norms have run, of those that the paper's figure shows.

    Attributes:
        name: The name of its file.
        kind: The kind of table.
        study: The study that the rows are from.
        norms: The norms that it shows.
        single: Whether to show one run per norm, at the paper's learning rate and with the smallest seed.
        layers: The layers that it shows, by number; empty for those of the study's table.
        beside: The table that has the training curves of this picture.
        figure: The figure of the kind, if it is not the usual one.
        paper: The figures of the paper whose curves are drawn under ours.
        table: The table that it is drawn from; its own by default.
    """

    name: str
    kind: str
    study: str
    norms: tuple[str, ...]
    single: bool = False
    layers: tuple[int, ...] = ()
    beside: str = ""
    figure: str = ""
    paper: str = ""
    table: str = ""

    @property
    def sources(self) -> list[str]:
        """The names of the tables that it is drawn from."""
        return [name for name in (self.table or self.name, self.beside) if name]

    def paper_lrs(self) -> set[float]:
        """The learning rates of the paper's curves that are drawn under ours.

        >>> sorted(Picture("figure-3-vgg", "ics", "vgg", PLAIN, paper="3a").paper_lrs())
        [0.01, 0.1]
        """
        return {float(lr) for figure in (find(self.paper) if self.paper else ()) for lr in read(figure.name)["lr"]}

    @property
    def options(self) -> dict[str, str]:
        """The options of `bnsmooth plot` that it needs."""
        return {name: value for name in ("figure", "paper") if (value := str(getattr(self, name)))}


@dataclass(frozen=True)
class Numbers:
    """A table of medians over the seeds of a study: one row per norm and learning rate, one column per metric.

    `metrics` maps the metrics to their headings.
    """

    study: str
    norms: tuple[str, ...]
    metrics: dict[str, str]


@dataclass(frozen=True)
class Section:
    """A section of the page: one figure of the paper.

    `paper` says what the text states or the figure shows. `claims` are the numbers of the claims that judge it.
    """

    title: str
    paper: str
    pictures: tuple[Picture, ...] = ()
    numbers: tuple[Numbers, ...] = ()
    claims: tuple[int, ...] = ()
    #: Pictures of activations whose sigma^2 is quoted at the first and the last measured step.
    sigma: tuple[str, ...] = ()
    #: Tables of the experiment on beta, each with the picture whose table has the curvature at its points.
    saturation: tuple[tuple[str, str], ...] = ()
    floors: bool = False  # whether last losses of the linear network are compared with the best maps of each rank
    theory: bool = False  # whether the statements' cases are counted


#: Test accuracies (%) that the paper states, by study and norm.
ACCURACIES: Final = {"vgg": {"none": 80, "batch": 83}, "vgg-augmented": {"none": 88, "batch": 92}}
#: The studies whose verdicts are shown, in this order.
JUDGED: Final = ("dln", "dln-slow", "dln-fresh", "dln-stated", EARLY, FULL)
_ACCURACY: Final = {"final_test_accuracy": "last test accuracy", "best_test_accuracy": "best test accuracy",
                    "steps_to_accuracy": "steps to none's last accuracy"}  # fmt: skip
_LOSS: Final = {"final_loss": "last training loss", "mean_log_loss": "logarithm of the loss, averaged over the run"}
_LINE: Final = {"loss_range": "range of the loss", "predictiveness": "change of the gradient",
                "relative_predictiveness": "the change relative to the gradient", "beta": "effective beta",
                "scaled_beta": "beta times the squared norm of the weights"}  # fmt: skip
_INPUTS: Final = {"kurtosis": "size of excess kurtosis", "non_gaussian": "share of units that are not Gaussian"}
_MOMENTS: Final = {"mean_change": "change of the mean between measured steps", "var_change": "change of the variance",
                   "probe_mean_change": "change of the mean on the probe batch",
                   "floor_mean_change": "change of the mean with frozen weights"}  # fmt: skip
_SHIFT: Final = {"ics": "distance of the gradients", "relative_ics": "the distance relative to the gradient",
                 "cosine": "their cosine"}  # fmt: skip
_RANDOM: Final = {"random_loss_range": "range of the loss", "random_predictiveness": "change of the gradient"}

SECTIONS: Final = (
    Section(
        "Figure 1: training with and without BatchNorm",
        "The paper's text: BatchNorm trains faster; the test accuracy is 83% with it and 80% without; the "
        "stability of layer inputs hardly differs. Its figure: 82.9% and 80.0% at learning rate 0.1; at 0.5, "
        "80.2% with BatchNorm, and without it 10.0% at every evaluation after step 0.",
        (Picture("figure-1", "train", FULL, PLAIN, paper="1"),
         Picture("figure-1c", "activations", FULL, PLAIN, single=True, layers=(3, 11))),
        (Numbers(FULL, PLAIN, _ACCURACY), Numbers(FULL, PLAIN, _MOMENTS)),
        (1, 2),
    ),
    Section(
        "Figure 2: noisy BatchNorm",
        "The paper's text: With noise after each BatchNorm, drawn from a new distribution at each step, layer inputs "
        "are less stable than the plain network's. The network still trains about as well as with BatchNorm, and "
        "far better than the plain network. The same noise without BatchNorm stops training.",
        (Picture("figure-2", "train", EARLY, NOISY, paper="2"),),
        (Numbers(EARLY, NOISY, _ACCURACY),),
        (3,),
    ),
    Section(
        "Figure 3: internal covariate shift",
        "The paper's text: The shift is not smaller with BatchNorm; the plain deep linear network has almost none. "
        "Its figure for the deep linear network: at learning rate 1e-07 the plain network's cosine is 1 for the "
        "whole run, and BatchNorm's scatters between -1 and 1; at 1e-06 both networks' median cosines are near 0.9 "
        "in layer 9 and near -0.9 in layer 17. It shows VGG's layers 5 and 10, at the learning rates 0.01 and 0.1.",
        (Picture("figure-3-vgg", "ics", FULL, PLAIN, layers=(5, 10), paper="3a"),
         Picture("figure-3-training", "train", FULL, PLAIN, paper="3a"),
         Picture("figure-3-dln", "ics", "dln", PLAIN, layers=(9, 17), beside="dln.train", paper="3b")),
        (Numbers(FULL, PLAIN, _SHIFT), Numbers("dln", PLAIN, _SHIFT)),
        (4,),
    ),
    Section(
        "Figure 3 at learning rate 1e-07: the deep linear network",
        "The paper's figure 3 shows this learning rate beside 1e-06. Figures 9 and 13 are at 1e-06 only; the "
        "similar results below are at a learning rate other than the paper's.",
        (Picture("figure-3-slow", "ics", "dln-slow", PLAIN, layers=(9, 17), beside="dln-slow.train", paper="3b"),
         Picture("figure-13-slow", "train", "dln-slow", LP, table="dln-slow.train")),
        (Numbers("dln-slow", PLAIN, _SHIFT), Numbers("dln-slow", LP, {**_LINE, **_LOSS})),
        (16,),
    ),
    Section(
        "Figure 4: the landscape along the gradient",
        "The paper's text: With BatchNorm the loss varies less along the gradient (a), most of all early; the "
        "gradient is more predictive (b), early by close to two orders of magnitude; effective beta-smoothness "
        "differs consistently (c). Its figure: at steps 0 and 100 the plain network varies less than BatchNorm, "
        "from step 200 on mostly more; the gradient's median change is 1.8 times BatchNorm's before step 1,000, 2.9 "
        "times up to 5,000 and 1.9 times after, and 78 times at the last step, the most extreme; effective beta is "
        "within 2% of 20 = 1 / (0.5 lr) at 51% of the plain network's steps and at 79% of BatchNorm's.",
        (Picture("figure-4", "landscape", FULL, PLAIN, paper="4"),
         Picture("figure-4c", "smoothness", FULL, PLAIN, paper="4c")),
        (Numbers(FULL, PLAIN, _LINE), Numbers(EARLY, PLAIN, _LINE)),
        (5, 6, 7),
    ),
    Section(
        "Beside figure 4c: what sets effective beta",
        "The paper has no such experiment. In its figure 4c, beta is within 2% of 20 = 1 / (0.5 lr) at 51% of the "
        "plain network's steps and at 79% of BatchNorm's. Where the gradient of a minibatch vanishes within the "
        "shortest step, the probe gives this value for any network. At the edge of stability, the sharpness gives it.",
        saturation=(("saturation-vgg", "figure-4c"), ("saturation-dln", "figure-9c")),
    ),
    Section(
        "Figure 7: how far the moments of layer inputs move",
        "The paper's figure: how far the mean and the variance of an activation move between measured steps, 100 "
        "apart, and from step 0, in layers 2, 9 and 13; they move most with noisy BatchNorm. Median change of the "
        "mean, none / batch / noisy-batch: layer 2 0.032 / 0.0017 / 0.27, layer 9 0.064 / 0.00051 / 0.27, layer 13 "
        "0.013 / 0.000027 / 0.35.",
        (Picture("figure-7", "activations", EARLY, ("none", "batch", "noisy-batch"), single=True, layers=(2, 9, 13),
                 figure="moments", paper="7"),),
        (Numbers(EARLY, NORMS, _MOMENTS),),
    ),
    Section(
        "Figure 8: distributions in the deep linear network",
        "The paper's text: sigma tends to be large, so the factor gamma^2 / sigma^2 of theorem 4.1 is small. Its "
        "figure: distributions of an activation in layers 1, 11 and 24 of the deep linear network.",
        (Picture("figure-8", "activations", "dln", PLAIN, single=True, layers=(1, 11, 24)),),
        sigma=("figure-8", "figure-1c"),
    ),
    Section(
        "Figure 9: the landscape of the deep linear network",
        "The paper's text: BatchNorm smooths this landscape too.",
        (Picture("figure-9", "landscape", "dln", PLAIN, paper="9"),
         Picture("figure-9c", "smoothness", "dln", PLAIN, paper="9c")),
        (Numbers("dln", PLAIN, _LINE),),
    ),
    Section(
        "Figure 10: the change of the gradient over the step length",
        "The paper's figure: the difference of the gradients against the step length, a line for each of some measured "
        "steps, from early to late.",
        (Picture("figure-10-vgg", "landscape", FULL, PLAIN, single=True, figure="steps", paper="10a"),
         Picture("figure-10-dln", "landscape", "dln", PLAIN, single=True, figure="steps", paper="10b")),
    ),
    Section(
        "Figure 11: VGG with l_p norms",
        "The paper's text: l_1, l_2 and l_inf norms smooth the landscape as BatchNorm does.",
        (Picture("figure-11", "landscape", EARLY, LP, paper="11"),
         Picture("figure-11d", "smoothness", EARLY, LP, paper="11d")),
        (Numbers(EARLY, LP, _LINE),),
    ),
    Section(
        "Figure 12: the deep linear network with l_p norms",
        "The paper's text: They smooth this landscape too.",
        (Picture("figure-12", "landscape", "dln", LP, paper="12"),
         Picture("figure-12d", "smoothness", "dln", LP, paper="12d")),
        (Numbers("dln", LP, _LINE),),
    ),
    Section(
        "Figure 13: training with l_p norms",
        "The paper's text: All of them train about as well as BatchNorm; in the deep linear network l_1 is clearly "
        "better. Its figure, last losses of the deep linear network: none 1,661, batch 479, l1 97, l2 481, linf "
        "986.",
        (Picture("figure-13-vgg", "train", EARLY, LP, paper="13a"),
         Picture("figure-13-dln", "train", "dln", LP, paper="13b", table="dln.train")),
        (Numbers(EARLY, LP, _ACCURACY), Numbers("dln", LP, _LOSS)),
        (8,),
        floors=True,
    ),
    Section(
        "Figure 14: distributions with l_p norms",
        "The paper's text: l_p norms leave layer inputs that are not Gaussian and, qualitatively, move more than "
        "the plain network's. Its figure: distributions of an activation in layer 11 of VGG.",
        (Picture("figure-14", "activations", EARLY, LP, single=True, layers=(11,)),),
        (Numbers(EARLY, LP, {**_INPUTS, **_MOMENTS}),),
        (9,),
    ),
    Section(
        "Section 3.2: random directions",
        "The paper's text: The loss behaves in a similar way along other, random directions.",
        (Picture("random", "landscape-random", FULL, PLAIN),),
        (Numbers(FULL, PLAIN, _RANDOM), Numbers("dln", PLAIN, _RANDOM)),
        (15,),
    ),
    Section(
        "Section 4: the theorems, both sides",
        "The paper's text: Theorems 4.1, 4.2 and 4.4 bound the gradient, the curvature and the worst-case gradient "
        "with BatchNorm. Observation 4.3 says that minima are preserved, and lemma 4.5 that the nearest minimum is "
        "closer. Figure 5 shows the two networks.",
        (Picture("theory", "theory", "dln", PLAIN, single=True, layers=(1, 13, 24)),),
        claims=(10, 11, 12, 13, 14),
        theory=True,
    ),
)  # fmt: skip


def shown(available: Mapping[str, Collection[str]]) -> list[Section]:
    """The sections, each with the pictures and numbers whose runs are finished; without those that have neither.

    Args:
        available: The norms that have finished runs, by study.

    >>> everything = {"dln": LP, "dln-slow": LP, "vgg": NORMS}
    >>> len(shown(everything)) == len(SECTIONS), len(shown({"dln": LP})) < len(SECTIONS)
    (True, True)
    """
    sections = []
    for section in SECTIONS:
        there = {part: [item for item in getattr(section, part) if source(item.study, item.norms, available)]
                 for part in ("pictures", "numbers")}  # fmt: skip
        if any(there.values()) or (section.saturation and available):
            sections.append(replace(section, pictures=(*there["pictures"],), numbers=(*there["numbers"],)))
    return sections


def pictures(available: Mapping[str, Collection[str]]) -> list[Picture]:
    """The pictures of the sections that are shown."""
    return [picture for section in shown(available) for picture in section.pictures]
