"""docs/claims.md: the rules that the claims are judged by, and their history.

`python -m bnsmooth_cli.studies.rules` prints the page.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final, NamedTuple

from bnsmooth_cli.studies import claims, error_rates
from bnsmooth_cli.studies.claims import CLAIMS, Part
from bnsmooth_cli.studies.evidence import COVERED, EARLY, published
from bnsmooth_cli.studies.metrics import DEVIATIONS, EVALUATIONS, HEAVY
from bnsmooth_cli.studies.statistics import LEVEL, SEEDS, at_least
from bnsmooth_cli.studies.verdicts import shown


class Edition(NamedTuple):
    """A version of the rules: its date, the digest of its text (`digest`), and why it was written."""

    date: str
    digest: str
    text: str


#: The versions of the rules, the newest one last. Whoever changes a rule adds an entry, with what was known by then.
HISTORY: Final = (
    Edition("2026-11-23", "", "The first rules. No result of a study was known."),
    Edition("2026-11-25", "", "Each measured step is weighted by the training steps nearest to it. Changed **after** a "
            "look at results: a run that was measured densely at its beginning had the verdicts of its first steps. An "
            "earlier version of this page said that all rules stood before any result. They did not."),
    Edition("2026-11-26", "", "The moments of figure 7 beside the movement, points that are not saturated, random "
            "directions, and the statistics of the paper's own figures. The published tables of the linear network "
            "were known."),
    Edition("2026-11-26", "add356f653e7d318", "All rules are written anew, because fabricated tables showed that the "
            "old ones answered wrongly: shares of an advantage that was absent counted as *reproduced*, chance counted "
            "as training, identities counted as evidence, and several tests were not corrected for their number. Known "
            "by then: the paper's figures as numbers, the published tables of the linear network (5 seeds), and the "
            "first 1,000 steps of VGG (1 seed). No run of VGG over 15,000 steps was known."),
    Edition("2026-11-26", "d34a2f284737f9c8", "Claim 15 rests on the table `landscape-random`, which costs a fraction "
            "of `smoothness-random`. Both probe the same line, so that the statistics agree up to rounding. Known by "
            "then: the published verdict of claim 15 on the linear network (5 seeds)."),
    Edition("2026-11-26", "1ba74122200de8a7", "Claim 4 keeps the parts that its sentence is about, which compare two "
            "networks. Its other two parts are about the size of one network's cosine at 1e-7, and are claim 16, with "
            "the rules that they had. Such a part could make claim 4 *not reproduced* while both comparisons were "
            "inconclusive. Claim 4 is now corrected for fewer parts, so that it is refuted by fewer seeds, and takes "
            "fewer parts to be reproduced. Known by then: the published verdicts of all claims on the linear network "
            "(8 and 20 seeds) and on VGG (1 seed). None of them changes."),
    Edition("2026-11-26", "d74e2f85007fe507", "Only runs of the same settings are compared; before, `compare` over "
            "runs of different data, widths or steps judged them together. Runs of a study share their settings, so "
            "that no verdict on a study changes. Known by then: as above."),
    Edition("2026-11-27", "757c03a9c420a25c", "The built-in transformer is new, and of the claims only the theory is "
            "judged on it. Nothing else changes. Known by then: as above."),
    Edition("2026-11-28", "0a083cfa3e97f201", "Wording alone: sentences that a reader had misunderstood. No rule "
            "changes."),
    Edition("2026-11-28", "ce875f64e2f70280", "Wording alone: the names of some statistics, and a sentence about "
            "undefined comparisons. No rule changes."),
)  # fmt: skip

_RULES: Final = """\
## How a claim is judged

- A **value** is one seed's at one learning rate. Ratios and differences compare runs of the same settings, seed
  and learning rate: first at the same step and layer, then by the median over the steps and layers that both measured.
  Each measured step is weighted by the number of training steps nearest to it; the first and the last, by the length of
  the gap beside them. A layer's units are represented by their median. Training curves are averaged over the common
  steps instead.
- The **statistic** is the median over seeds. Its interval lies between two order statistics, and its coverage is exact:
  at least 95% from six seeds on. With fewer seeds the interval is the range of the values, and its coverage is stated:
  {five:.1%} with five.
- A **part** of a claim is one statistic and its rule. Two one-sided sign tests (exact for any distribution) ask whether
  the median obeys the rule and whether it breaks it, each at level {LEVEL}. A value at the bound lies on neither side.
- **reproduced**: every part that decides obeys its rule, at every learning rate. This is an intersection-union test
  (Berger 1982): as all tests must reject, none is corrected. It takes at least {SEEDS} seeds, which all agree by chance
  with probability 1/{chance}. The power is printed with the verdict: the probability of *reproduced* if each effect is
  one standard deviation over seeds.
- **not reproduced**: some part breaks its rule, significantly after Holm's correction (1979) for the number of parts
  and learning rates. With m of them, this takes at least log2(m / {LEVEL}) seeds.
- **inconclusive**: neither. `bnsmooth compare --plan` says how many seeds a claim needs.
- **not measured**: a norm or a table that the claim needs is missing; the command that would make it is named.
- A seed whose value is **undefined** counts for neither side. It widens the interval at both ends, as its value could
  be anything. A comparison of two runs is undefined if the steps that both have measured end before {COVERED:.0%} of
  the run, or, for a claim about a part of the run, of that part.
- A learning rate at which neither the plain network nor BatchNorm trains, in any seed, is **not applicable**. Claims
  {together} are about the landscape or the shift of two networks that learn. They do not apply where one of the
  two never learns, because its loss is then flat rather than smooth.
- Of the built-in transformer, `gpt`, only the **theory** is judged (claims 10 to 14), which is about any network. The
  other claims are about what the paper's networks showed. A problem of your own is judged by all of them.
- Parts from different learning rates are not combined: at least one learning rate must have every part that decides.
- Where a claim compares with BatchNorm's advantage, this advantage is a part of the claim: "as well as BatchNorm" means
  nothing where BatchNorm is no better than the plain network.
- Claim 2 says that something happens at **some learning rate**. It is reproduced if it is at one of them, after Holm's
  correction for their number. It is not reproduced only where the paper shows it, for VGG at 0.5: at any other learning
  rate, even an absurd one, its absence proves nothing.

## What the words mean

- A rule that two networks differ has a **smallest effect**: a ratio below {SMALLER} or above {LARGER}, or {POINT} of
  accuracy. Smaller ones cannot be seen in the paper's figures. A consistent effect below that refutes such a claim.
- A network **trains** if its last test accuracy is more than {ABOVE_CHANCE} above that of the best constant answer;
  without accuracies, if its last training loss is below {BELOW_CONSTANT} of the loss of the best constant answer. The
  last test accuracy is the mean of the last {EVALUATIONS} evaluations, of those in the last third of the run. A run
  that diverges is as good as the best constant answer from then on.
- **As well as** is a test of non-inferiority (Schuirmann 1987; Lakens 2017). The margin in accuracy is
  {ACCURACY_MARGIN}, half of BatchNorm's advantage in the paper's figure 1a. In the linear network it is a factor of
  {LOSS_MARGIN}, the square root of BatchNorm's advantage in figure 13. **Similar** allows a factor of {SIMILAR}.
- **Early** is in steps, whatever the length of the run: the first {vgg:,} of VGG and the first {dln:,} of the linear
  network.
- A probe of beta is **saturated** where beta is 1 / (the shortest step) and 90% of the gradient is lost there: the
  probe sets beta, not the network. In the paper's figures only the first can be seen.
- A unit is **not Gaussian** if its excess kurtosis is larger in size than {HEAVY} and more than {DEVIATIONS} standard
  deviations from that of a Gaussian sample of the same size. The units are a sample, drawn by the run's seed
  (`activations --units`).
- An **identity** follows from the definition of BatchNorm, whatever the network, so that it is no evidence about
  networks. It is *identity verified* if two independent computations agree in every case. A claim whose parts are all
  identities has that verdict.
- A statement about **every case** is refuted by one counterexample. Cases that do not meet its condition are not
  applicable.
- **Scale**: with BatchNorm, weights and their multiples give the same function, but a different beta, shift and
  gradient (Dinh et al. 2017). Beside each, a figure is reported that depends on the scale less: the distance
  relative to the gradient, and beta times the squared norm of the weights.
  [paper.md](paper.md#the-scale-of-the-weights) measures by how much the scale changes each, and says when they do not
  depend on it.
- Movement between measured steps includes what sampling another minibatch changes. The same on a fixed probe batch, and
  the share that remains with frozen weights, are reported beside it (`activations --probe`).

## Where the paper's sentence and its figure disagree

Beside each rule stands the same statistic of the paper's own figures, computed by the same code from their curves. It
is one run of the paper's. Each rule is written from the paper's sentence. Where the paper's figure does not show what
the sentence says, the two **disagree**: the part is judged and shown, but does not decide, because there is no
consistent result to reproduce. These are marked in the table.
"""


def digest(text: str) -> str:
    """The first 16 digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rules() -> str:
    """The rules and the table of the claims: the part of the page that `HISTORY` has digests of."""
    named = {name: value for name, value in vars(claims).items() if name.isupper()}
    together = ", ".join(str(claim.number) for claim in CLAIMS if claim.together)
    text = _RULES.format(LEVEL=LEVEL, SEEDS=SEEDS, chance=2**SEEDS, COVERED=COVERED, five=1 - 2 * at_least(5, 5),
                         EVALUATIONS=EVALUATIONS, HEAVY=HEAVY, DEVIATIONS=DEVIATIONS, together=together,
                         **EARLY, **named)  # fmt: skip
    lines = [text, "| claim | statistic | rule | needs | the paper's figure |", "| --- | --- | --- | --- | --- |"]
    for claim in CLAIMS:
        for i, part in enumerate(claim.parts):
            title = f"{claim.number}. {claim.title}" if i == 0 else ""
            needs = ", ".join([*part.needs, *(f"`{table}`" for table in part.tables)])
            lines.append(f"| {title} | {part.text}{_about(part)} | {part.wanted} | {needs} | {_of_paper(part)} |")
    return "\n".join(lines) + "\n"


def _about(part: Part) -> str:
    words = {"accuracy": "classification", "loss": "other problems"}.get(part.only, "")
    if part.lrs:
        words = f"linear network at {', '.join(f'{lr:g}' for lr in part.lrs)}"
    return f" ({words})" if words else ""


def _of_paper(part: Part) -> str:
    """The statistic of the paper's figures at each learning rate that they show."""
    cells = []
    for problem in ("vgg", "dln"):
        for lr in sorted({record.lr for record in published(problem)}):
            if (
                part.applies(problem, problem == "vgg")
                and part.at(lr)
                and not math.isnan(value := shown(part, problem, lr))
            ):
                parts = "" if part.rule is None or part.decides(problem, lr) else ", **disagrees**"
                cells.append(f"{problem} at {lr:g}: {value:.3g}{parts}")
    return "; ".join(cells) or "–"


def page() -> str:
    """docs/claims.md."""
    lines = [
        "# The claims, and the rules that they are judged by",
        "",
        "Made by `python -m bnsmooth_cli.studies.rules`. `bnsmooth compare` applies these rules and writes each number",
        "to `compare.claims.parquet`, with the value of each seed. [A table](#how-often-the-rules-are-wrong) says how",
        "often the rules are wrong.",
        "",
        rules(),
        error_rates.section(),
        "## History",
        "",
        "Each version of the rules has the digest of its text, which a test compares with the page.",
        "",
        *(f"- {edition.date}{f', digest `{edition.digest}`' if edition.digest else ''}. {edition.text}"
          for edition in HISTORY),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
