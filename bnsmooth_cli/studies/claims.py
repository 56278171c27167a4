"""The paper's claims: the statistics that each rests on, and the rule for each statistic. Reads tables only, no torch.

`verdicts.py` judges them, and `python -m bnsmooth_cli.studies.rules` prints docs/claims.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from bnsmooth_cli import kinds
from bnsmooth_cli.presets import in_paper
from bnsmooth_cli.studies.evidence import Case
from bnsmooth_cli.studies.statistics import mean_over_steps, over_steps

#: The smallest effect that counts, as a ratio: 5%. Smaller ones cannot be seen in the paper's figures.
SMALLER: Final = 0.95
LARGER: Final = 1.05
#: The smallest gain of accuracy that counts: one point.
POINT: Final = 0.01
#: "About as well", in accuracy averaged over the run: half of BatchNorm's advantage in the paper's figure 1a (0.058).
ACCURACY_MARGIN: Final = 0.03
#: The same as a ratio of losses in the linear network: the root of BatchNorm's advantage in figure 13 (3.36).
LOSS_MARGIN: Final = 1.8
#: "Similar": the limits of bioequivalence, 0.8 to 1.25 (Schuirmann 1987).
SIMILAR: Final = 1.25
#: A network trains if its last test accuracy is this much above that of the best constant answer ...
ABOVE_CHANCE: Final = 0.1
#: ... or its last loss is below this share of the best constant answer's.
BELOW_CONSTANT: Final = 0.9
#: The differences of cosines that do not count, the cosine of "almost no" shift, and that of "almost uncorrelated"
#: gradients, which is a medium correlation (Cohen 1988).
COSINE_MARGIN: Final = 0.1
ALIGNED: Final = 0.99
UNCORRELATED: Final = 0.3

#: How a part is judged: by the median over seeds; by every case, where one counterexample refutes; as an identity,
#: which checks our computation and says nothing of a network; as a claim of existence; or not at all.
MEDIAN: Final = "median"
EVERY: Final = "every case"
IDENTITY: Final = "identity"
EXISTS: Final = "exists"
REPORTED: Final = "reported"


@dataclass(frozen=True)
class Part:
    """A part of a claim: a statistic with one value for each seed at a learning rate, and the rule for it.

    Attributes:
        text: The statistic in words.
        value: Computes it for the runs of one seed.
        needs: The norms whose runs it needs; empty for all norms that have the tables.
        tables: The kinds of tables that it needs beside the train table.
        rule: Where its median must lie; None if it is only reported.
        judged: How it is judged.
        only: "accuracy" if it applies to classification only, "loss" to other problems only.
        lrs: The learning rates of the linear network that it is about; empty for all problems and learning rates.
        parted: Where the paper's figure does not show what its sentence says: pairs of a problem and a learning rate.
            There, the part is judged but does not decide.
    """

    text: str
    value: Callable[[Case], float]
    needs: tuple[str, ...]
    tables: tuple[str, ...] = ()
    rule: tuple[str, float] | None = None
    judged: str = MEDIAN
    only: str = ""
    lrs: tuple[float, ...] = ()
    parted: tuple[tuple[str, float], ...] = ()

    @property
    def wanted(self) -> str:
        """The rule in words."""
        if self.rule is None:
            return REPORTED
        return self.judged if self.judged in (EVERY, IDENTITY) else f"{self.rule[0]} {self.rule[1]:.3g}"

    def applies(self, problem: str, classifies: bool) -> bool:
        """Whether the part is about a problem. The theory is about any network, what was observed about the paper's."""
        if not in_paper(problem) and self.tables != ("theory",):
            return False
        if self.only and (self.only == "accuracy") != classifies:
            return False
        return not self.lrs or problem == "dln"

    def at(self, lr: float) -> bool:
        """Whether the part is about a learning rate of such a problem."""
        return not self.lrs or _is_one_of(lr, self.lrs)

    def decides(self, problem: str, lr: float) -> bool:
        """Whether the claim's verdict rests on the part at a learning rate."""
        parted = any(name == problem and _is_one_of(lr, (at,)) for name, at in self.parted)
        return self.rule is not None and not parted


def _is_one_of(lr: float, lrs: Sequence[float]) -> bool:
    return any(math.isclose(lr, other, rel_tol=1e-6) for other in lrs)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: its number in docs/claims.md, a short title for the terminal, the title, and its parts.

    `norms` are the norms of which at least one must train at a learning rate for the claim to be about it; if
    `together`, all of them must learn (`learns`): the loss of a network that never does is flat, and not smooth.
    """

    number: int
    short: str
    title: str
    parts: tuple[Part, ...]
    norms: tuple[str, ...] = ()
    together: bool = False

    @property
    def needs(self) -> set[str]:
        """The norms that its verdict rests on."""
        return {norm for part in self.parts if part.rule is not None for norm in part.needs}


_PLAIN: Final = ("none", "batch")
_LP: Final = ("l1", "l2", "linf")
_KIND_OF: Final = {metric.name: metric.kind for metric in kinds.METRICS}


#: Pairs of a problem and a learning rate, as in `Part.parted`.
_Parted = tuple[tuple[str, float], ...]


def _ratio(metric: str, words: str, norm: str, to: str, rule: tuple[str, float] | None = None, *, window: str = "",
           parted: _Parted = (), only: str = "") -> Part:  # fmt: skip
    """A metric of a measurement, compared at common steps and layers."""
    kind = _KIND_OF[metric]
    return Part(f"{words}, {norm} / {to}", lambda of: of.ratio(kind, metric, norm, to, window), (to, norm), (kind,),
                rule, MEDIAN if rule else REPORTED, only, parted=parted)  # fmt: skip


def _batch(metric: str, words: str, rule: tuple[str, float] | None = None, window: str = "",
           parted: _Parted = ()) -> Part:  # fmt: skip
    return _ratio(metric, words, "batch", "none", rule, window=window, parted=parted)


def _gain(norm: str, to: str, bound: float) -> Part:
    return Part(f"training accuracy averaged over the run, {norm} less {to}",
                lambda of: of.accuracy_gain(norm, to), (to, norm), rule=(">", bound), only="accuracy")  # fmt: skip


def _loss(norm: str, to: str, bound: float, parted: _Parted = ()) -> Part:
    return Part(f"training loss, geometric mean over the run, {norm} / {to}", lambda of: of.loss_ratio(norm, to),
                (to, norm), rule=("<", bound), only="loss", parted=parted)  # fmt: skip


#: How far layer inputs move between measured steps: what figure 7 shows.
_MOMENTS: Final = {
    "mean_change": "change of the layer inputs' mean between measured steps",
    "var_change": "change of the layer inputs' variance between measured steps",
}


def _moves(norm: str, to: str) -> tuple[Part, ...]:
    return tuple(_ratio(metric, words, norm, to, (">", LARGER), only="accuracy") for metric, words in _MOMENTS.items())


def _moves_besides(norm: str) -> tuple[Part, ...]:
    """What is reported beside `_moves`: the same on a fixed batch, and the part that sampling alone accounts for."""
    words = _MOMENTS["mean_change"]
    return (
        _ratio("probe_mean_change", f"{words}, on the probe batch", norm, "none", only="accuracy"),
        Part(f"{words}: share that remains with frozen weights, {norm}", lambda of: _share_frozen(of, norm), (norm,),
             ("activations",), judged=REPORTED, only="accuracy"),
    )  # fmt: skip


def _share_frozen(of: Case, norm: str) -> float:
    layers = of[norm].layers("activations").reset_index()
    return over_steps(layers["step"], layers["floor_mean_change"] / layers["mean_change"])


def _margin(accuracy: float, loss: float, classifies: bool) -> float:
    """How far scores are on the training side of the bar: positive if the network trains.

    Args:
        accuracy: Test accuracy above the best constant answer's.
        loss: Training loss as a share of the best constant answer's.
        classifies: Which of the two counts.
    """
    if classifies:
        return accuracy - ABOVE_CHANCE
    with np.errstate(divide="ignore", invalid="ignore"):
        return math.log(BELOW_CONSTANT) - float(np.log(loss))


def _trains(of: Case, norm: str) -> float:
    return _margin(of.above_chance(norm), of.of_constant(norm), of[norm].classifies)


def _answer(margin: float) -> bool | None:
    return None if math.isnan(margin) else bool(margin > 0)


def trains(of: Case, norm: str) -> bool | None:
    """Whether a network trains; None if its scores or the best constant answer's are unknown, or it has not run."""
    return _answer(_trains(of, norm)) if norm in of.records else None


def learns(of: Case, norm: str) -> bool | None:
    """Whether a network ever gets as far as one that trains, though it may diverge afterwards; None as in `trains`."""
    if norm not in of.records:
        return None
    record = of[norm]
    best, constant = record.training, record.baseline
    accuracy = best["best_test_accuracy"] - constant.get("accuracy", math.nan)
    return _answer(_margin(accuracy, best["best_loss"] / constant.get("loss", math.nan), record.classifies))


def _survives(of: Case) -> float:
    margins = [_trains(of, "batch"), -_trains(of, "none")]
    return min(margins) if of.as_long("batch", "none") and not any(map(math.isnan, margins)) else math.nan


def _despite_noise(of: Case) -> float:
    """The last test accuracy above chance of noisy-none; NaN where the plain network does not train without noise."""
    return of.above_chance("noisy-none") if of.as_long("noisy-none", "none") and trains(of, "none") else math.nan


def _heavy(norm: str, rule: tuple[str, float] | None) -> Part:
    return Part(f"share of units and steps that are not Gaussian, {norm}",
                lambda of: of.mean("activations", "non_gaussian", norm), (norm,), ("activations",), rule,
                MEDIAN if rule else REPORTED, only="accuracy")  # fmt: skip


def _identity(*statements: str) -> Part:
    return Part(
        f"share of cases where both sides agree: {', '.join(statements)}",
        lambda of: _verified(of, statements),
        (), ("theory",), (">", 0), IDENTITY,
    )  # fmt: skip


def _verified(of: Case, statements: Sequence[str]) -> float:
    """The least share of cases that verify one of the statements; NaN if one has no case and no other is violated."""
    shares = [_least(_mean(rows["holds"]) for rows in of.theory(name)) for name in statements]
    least = _least(shares)
    return least if least < 1 or not any(map(math.isnan, shares)) else math.nan


def _reported(text: str, value: Callable[[Case], float]) -> Part:
    return Part(text, value, (), ("theory",), judged=REPORTED)


def _mean(flags: pd.Series[Any]) -> float:
    return float(flags.astype("float64").mean())


def _least(values: Iterable[float]) -> float:
    return min((value for value in values if not math.isnan(value)), default=math.nan)


def _largest(values: Iterable[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def _gradient_ratios(of: Case) -> Iterator[float]:
    """The medians of ||v||^2 / ||g||^2 with the gradient g of the plain network at y, norm by norm."""
    for rows in of.theory("4.1 at y"):
        yield float((rows["lhs"] / rows["grad_norm"] ** 2).median())


def _form_ratios(of: Case) -> Iterator[float]:
    """The medians of v' H_hat v / g' H g over the units where 4.2's conditions hold, norm by norm.

    With gamma = sigma and beta = mu, both networks are the same function.
    """
    keys = ["step", "layer", "unit"]
    for record in of.records.values():
        of_norm = Case({record.norm: record})
        pair = [*of_norm.theory("4.2", affine="identity"), *of_norm.theory("4.2b", affine="identity")]
        if len(pair) < 2:  # a table of an older version
            continue
        with_batch, plain = pair
        both = with_batch[[*keys, "lhs", "condition"]].merge(plain[[*keys, "curvature", "grad_norm"]], on=keys)
        form = both["curvature"] * both["grad_norm"] ** 2
        yield float((both["lhs"] / form)[both["condition"].eq(True) & (form > 0)].median())


def _early_over_late(of: Case) -> float:
    early, late = (of.ratio("smoothness", "loss_range", "batch", "none", window) for window in ("early", "late"))
    return early / late if late else math.nan


def _share_free(of: Case) -> float:
    every, free = (of.joined("smoothness", metric, "batch", "none") for metric in ("beta", "beta_unsaturated"))
    known, unsaturated = (rows[["a", "b"]].notna().all(axis=1).astype("boolean") for rows in (every, free))
    return mean_over_steps(every["step"], unsaturated.where(known))


CLAIMS: Final = (
    Claim(1, "trains faster", "BatchNorm trains faster than none at each learning rate", (
        _gain("batch", "none", POINT),
        _loss("batch", "none", SMALLER),
    ), _PLAIN),
    Claim(2, "more lrs", "BatchNorm trains at a learning rate where none does not", (
        Part("the smaller of two margins: batch's last test accuracy above the bar, and none's below the bar (which is "
             f"{ABOVE_CHANCE} above the best constant answer)", _survives, _PLAIN, rule=(">", 0.0), judged=EXISTS,
             only="accuracy"),
        Part("the smaller of two margins of the logarithm: batch's last loss below the bar, and none's above it (the "
             f"bar is {BELOW_CONSTANT} of the best constant answer's loss)", _survives, _PLAIN, rule=(">", 0.0),
             judged=EXISTS, only="loss"),
    )),
    Claim(3, "noisy as well",
          "Noisy BatchNorm trains about as well as BatchNorm and much better than none, though its layer inputs are "
          "the least stable; the same noise keeps none from training", (
        _gain("noisy-batch", "batch", -ACCURACY_MARGIN),
        _gain("noisy-batch", "none", POINT),
        _gain("batch", "none", ACCURACY_MARGIN),
        *_moves("noisy-batch", "none"),
        *_moves("noisy-batch", "batch"),
        Part("last test accuracy above the best constant answer's, noisy-none where none trains", _despite_noise,
             ("none", "noisy-none"), rule=("<", ABOVE_CHANCE), only="accuracy"),
        *_moves_besides("noisy-batch"),
    ), _PLAIN),
    Claim(4, "shift not less", "Internal covariate shift is similar or larger with BatchNorm", (
        _batch("ics", "distance of the layers' gradients", (">", 1 / SIMILAR), parted=(("vgg", 0.01),)),
        Part("cosine of the layers' gradients, batch less none",
             lambda of: of.difference("ics", "cosine", "batch", "none"), _PLAIN, ("ics",), ("<", COSINE_MARGIN)),
        _batch("relative_ics", "the distance relative to the gradient"),
    ), _PLAIN, together=True),
    Claim(5, "loss varies less", "The loss varies less along the gradient with BatchNorm, most of all early", (
        _batch("loss_range", "range of the loss on the line", ("<", SMALLER), parted=(("dln", 1e-6),)),
        _batch("loss_range", "range of the loss on the line early", ("<", SMALLER), "early"),
        Part("ratio of the loss's range, batch / none: early over later", _early_over_late,
             _PLAIN, ("smoothness",), ("<", SMALLER), parted=(("vgg", 0.1),)),
    ), _PLAIN, together=True),
    Claim(6, "predictive",
          "Gradients are more predictive with BatchNorm, early by about two orders of magnitude", (
        _batch("predictiveness", "largest change of the gradient on the line", ("<", SMALLER)),
        _batch("predictiveness", "largest change of the gradient on the line early", ("<", SMALLER), "early"),
        _batch("predictiveness", "largest change early, by two orders of magnitude", ("<", 10**-1.5), "early",
               (("vgg", 0.1),)),
        _batch("relative_predictiveness", "the change relative to the gradient"),
    ), _PLAIN, together=True),
    Claim(7, "beta lower", "Effective beta-smoothness is lower with BatchNorm", (
        _batch("beta_unsaturated", "effective beta where neither probe is saturated", ("<", SMALLER)),
        Part("share of the common steps where neither probe is saturated", _share_free, _PLAIN, ("smoothness",),
             judged=REPORTED),
        _batch("beta", "effective beta at all steps"),
        _batch("scaled_beta", "effective beta times the squared norm of the weights"),
    ), _PLAIN, together=True),
    Claim(8, "l_p as well",
          "l_p norms train about as well as BatchNorm and smooth as much; on the linear network l1 trains better", (
        _gain("batch", "none", ACCURACY_MARGIN),
        _loss("batch", "none", 1 / LOSS_MARGIN),
        *(_gain(norm, "batch", -ACCURACY_MARGIN) for norm in _LP),
        *(_loss(norm, "batch", LOSS_MARGIN, (("dln", 1e-6),) if norm == "linf" else ()) for norm in _LP),
        _loss("l1", "batch", SMALLER),
        _batch("predictiveness", "largest change of the gradient on the line", ("<", SMALLER)),
        *(_ratio("predictiveness", "largest change of the gradient on the line", norm, "batch", ("<", SIMILAR))
          for norm in _LP),
        *(_ratio("beta_unsaturated", "effective beta where neither probe is saturated", norm, "batch")
          for norm in _LP),
    ), _PLAIN),
    Claim(9, "l_p inputs move",
          "l_p norms leave non-Gaussian layer inputs, which move more than the plain network's", (
        *(_heavy(norm, (">", 0.5)) for norm in _LP),
        *itertools.chain.from_iterable(_moves(norm, "none") for norm in _LP),
        _heavy("batch", None),
        *itertools.chain.from_iterable(map(_moves_besides, _LP)),
    ), _PLAIN),
    Claim(10, "theorem 4.1", "BatchNorm's gradient is the plain one, rescaled and reduced (4.1)", (
        _identity("fact C.1", "fact C.2", "4.1"),
        Part("squared length of BatchNorm's gradient (gamma = 1) over that of the plain network's at the same layer "
             "output: median over units; of the norms, the largest",
             lambda of: _largest(_gradient_ratios(of)), (), ("theory",), ("<", SMALLER)),
        _reported("share of units where 4.1 holds with the plain network's gradient at the same layer output; of "
                  "the norms, the smallest", lambda of: _least(_mean(rows["holds"]) for rows in of.theory("4.1 at y"))),
        _reported("reduction beside the factor gamma^2 / sigma^2: median over units; of the norms, the smallest",
                  lambda of: _least(float((rows["mean_fraction"] + rows["output_fraction"]).median())
                                    for rows in of.theory("4.1", affine="identity"))),
    )),
    Claim(11, "theorem 4.2", "The gradient's own quadratic form is reduced: more predictive gradients (4.2)", (
        _identity("4.2"),
        Part("share of cases where the second inequality of 4.2 holds, of those where its condition is met; of "
             "the norms, the smallest", lambda of: _least(_mean(rows["holds"][rows["condition"].eq(True)])
                                                      for rows in of.theory("4.2b")),
             (), ("theory",), (">", 0), EVERY),
        Part("quadratic form with BatchNorm over the plain network's, where 4.2's conditions hold: median over units; "
             "of the norms, the largest", lambda of: _largest(_form_ratios(of)), (), ("theory",), ("<", SMALLER)),
        _reported("share of units where 4.2's conditions hold; of the norms, the smallest",
                  lambda of: _least(_mean(rows["condition"]) for rows in of.theory("4.2"))),
    )),
    Claim(12, "observation 4.3", "Minima are preserved: a gamma and beta give identical activations (4.3)", (
        _identity("4.3"),
    )),
    Claim(13, "theorem 4.4", "The worst-case gradient of the weights is reduced (4.4)", (_identity("4.4"),)),
    Claim(14, "lemma 4.5", "The nearest optimum is closer to the initial weights (4.5)", (
        _identity("4.5"),
        _reported("share of units where its condition holds; of the norms, the smallest",
                  lambda of: _least(_mean(rows["condition"]) for rows in of.theory("4.5"))),
        _reported("reduction of the distance where it does: median over units; of the norms, the smallest",
                  lambda of: _least(float(rows["reduction"][rows["condition"].eq(True)].median())
                                    for rows in of.theory("4.5"))),
    )),
    Claim(15, "random alike", "Random directions behave like the gradient's: the loss and its gradient "
          "vary less with BatchNorm", (
        _batch("random_loss_range", "range of the loss along a random direction", ("<", SMALLER)),
        _batch("random_predictiveness", "largest change of the gradient along a random direction", ("<", SMALLER)),
    ), _PLAIN, together=True),
    Claim(16, "none hardly shifts", "The plain linear network has almost no internal covariate shift at 1e-7", (
        Part("cosine of the layers' gradients, averaged over the run, none",
             lambda of: of.mean("ics", "cosine", "none"), ("none",), ("ics",), (">", ALIGNED), lrs=(1e-7,)),
        Part("size of the cosine of the layers' gradients, batch",
             lambda of: of.median("ics", "cosine_size", "batch"), ("batch",), ("ics",), ("<", UNCORRELATED),
             lrs=(1e-7,), parted=(("dln", 1e-7),)),
    ), _PLAIN, together=True),
)  # fmt: skip
