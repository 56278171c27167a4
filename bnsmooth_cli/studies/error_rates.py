"""How often the rules answer wrongly, and how often they answer at all. No torch here.

`python -m bnsmooth_cli.studies.error_rates` prints the section of docs/claims.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Final, NamedTuple

from bnsmooth_cli.studies.claims import CLAIMS, EXISTS, MEDIAN, Claim, Part
from bnsmooth_cli.studies.statistics import LEVEL, at_least, critical, power

#: The numbers of seeds of the table.
SEEDS: Final = (5, 8, 20)
#: The learning rate of each problem: the paper's; for claim 2, where its figure 3 shows the plain network to fail.
LRS: Final = {"vgg": 0.1, "dln": 1e-6}
EFFECT: Final = 1.0  # in standard deviations over seeds
_TEXT: Final = """\
## How often the rules are wrong

Every verdict on seeds rests on counts: how many seeds lie beyond a bound. So these probabilities are binomial and
exact, and a test confirms them by drawing values and judging them. They assume one learning rate (VGG's 0.1, or 0.5 for
claim 2; the linear network's 1e-6), seeds whose values are normal and never undefined, and independent parts. **sd** is
the standard deviation over seeds. Cases and identities, which do not vary, are taken to hold. The cells have the
probabilities with {seeds} seeds.

- **False *reproduced***: the median of one part is exactly at its bound, and all others obey by far. No worse case
  exists, so this is the largest probability of that error, whatever the distributions.
- **False *not reproduced***: the medians of all parts are exactly at their bounds. {LEVEL} limits this too, whatever
  the dependence of parts.
- ***reproduced* if true**: every part obeys its rule by 1 sd.
- ***not reproduced* if false**: one part breaks its rule by 1 sd, and all others obey by as much.

The number of seeds must be fixed beforehand. If you test after every seed from {first} to {most} and stop at
*reproduced*, the probability of an error rises from {once:.2f} to as much as {looking:.2f}. Each claim has its own
errors: nothing is corrected for the number of claims.

With several learning rates there are as many more parts: the two errors keep their limits, and the last two
probabilities fall. Parts of one claim come from the same runs and usually agree more than independent ones, which
raises the probability of *reproduced*. The linear network's claim 2 has no learning rate that could refute it. Its
claim 8 has two rules for the same ratio of l1, which are counted as two parts. Claims 12 to 14 are identities, which no
seed decides.

| claim | | parts | false *reproduced* | false *not reproduced* | *reproduced* if true | *not reproduced* if false |
| --- | --- | --- | --- | --- | --- | --- |
"""


class Rates(NamedTuple):
    """The probabilities of the verdicts on a claim that `section` explains."""

    false_reproduced: float
    false_refuted: float
    reproduced: float
    refuted: float


def decided(claim: Claim, problem: str) -> list[Part]:
    """The parts of a claim that tests over seeds decide, at the problem's learning rate.

    >>> len(decided(CLAIMS[0], "vgg")), len(decided(CLAIMS[11], "vgg"))
    (1, 0)
    """
    lr = LRS[problem]
    return [
        part
        for part in claim.parts
        if part.judged in (MEDIAN, EXISTS)
        and part.applies(problem, problem == "vgg")
        and part.at(lr)
        and part.decides(problem, lr)
    ]


def rates(claim: Claim, problem: str, seeds: int) -> Rates:
    """The rates of a claim that has parts which tests decide.

    Holm's correction finds a significant part if and only if the smallest p-value is at most LEVEL / m.

    >>> rates(CLAIMS[0], "vgg", 5)
    Rates(false_reproduced=0.03125, false_refuted=0.03125, reproduced=0.42..., refuted=0.42...)
    """
    parts = decided(claim, problem)
    m = len(parts)
    refutable = problem == "vgg" or parts[0].judged != EXISTS
    corrected = critical(seeds, LEVEL / m)
    at_bound = at_least(seeds, corrected)
    wrong, right = (at_least(seeds, corrected, NormalDist().cdf(effect)) for effect in (EFFECT, -EFFECT))
    return Rates(
        at_least(seeds, critical(seeds, LEVEL)),
        1 - (1 - at_bound) ** m if refutable else 0.0,
        power(seeds, EFFECT) ** m,
        1 - (1 - wrong) * (1 - right) ** (m - 1) if refutable else 0.0,
    )


def looking(most: int) -> float:
    """The probability that a median at its bound is found to obey the rule if one tests after every seed.

    Args:
        most: The largest number of seeds; the smallest one is that of SEEDS.

    >>> round(looking(5), 3), round(looking(20), 3)
    (0.031, 0.099)
    """
    found, going = 0.0, {0: 1.0}  # the probability of so many agreeing seeds without a verdict so far
    for seeds in range(1, most + 1):
        going = {
            agreeing: (going.get(agreeing, 0.0) + going.get(agreeing - 1, 0.0)) / 2 for agreeing in range(seeds + 1)
        }
        enough = critical(seeds, LEVEL) if seeds >= SEEDS[0] else seeds + 1
        found += math.fsum(going.pop(agreeing) for agreeing in range(enough, seeds + 1) if agreeing in going)
    return found


def section() -> str:
    """The section of docs/claims.md."""
    first, most = SEEDS[0], SEEDS[-1]
    text = _TEXT.format(LEVEL=LEVEL, seeds=f"{', '.join(map(str, SEEDS[:-1]))} and {most}", first=first, most=most,
                        looking=looking(most), once=looking(first))  # fmt: skip
    return text + "".join(f"{row}\n" for row in _rows())


def _rows() -> Iterator[str]:
    for claim in CLAIMS:
        for problem in LRS:
            parts = decided(claim, problem)
            if parts:
                of_seeds = zip(*(rates(claim, problem, seeds) for seeds in SEEDS), strict=True)
                cells = [", ".join(map(_number, of_rate)) for of_rate in of_seeds]
                yield f"| {claim.number} | {problem} | {len(parts)} | {' | '.join(cells)} |"


def _number(probability: float) -> str:
    """Three decimals, but not a rounded 0 or 1."""
    if 0 < probability < 0.0005:
        return "<0.001"
    return f"{math.floor(1000 * probability) / 1000:.3f}" if 0.9995 <= probability < 1 else f"{probability:.3f}"


if __name__ == "__main__":
    print(section(), end="")
