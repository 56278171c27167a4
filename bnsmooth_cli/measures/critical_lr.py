"""The critical learning rate: the smallest step along a direction after which the loss is higher."""

from __future__ import annotations

import math
from typing import Final

import torch

from bnsmooth_cli.measures.landscape import Line

#: The relative accuracy of the critical learning rate.
ACCURACY: Final = 0.01
#: How often the longest probed step is doubled, and the shortest one halved, in search of a bracket. At the end of a
#: schedule, a learning rate may be millions of times shorter than the critical one.
MAX_DOUBLINGS: Final = 30
MAX_HALVINGS: Final = 20
_DOUBLE: Final = 2 * (1 + 1e-9)  # to rounding
#: A slope that is shorter than so many roundings of its factors has no sign.
_ROUNDINGS: Final = 10
#: The steps that confirm the slope: the first one, as a share of the critical learning rate, and how many there are;
#: and the largest relative difference from the slope.
_FIRST: Final = 1 / 32
_TRIES: Final = 10
_AGREEMENT: Final = 1 / 3


def critical_lr(line: Line) -> float:
    r"""Measure the critical learning rate: Kalra et al. (2026, arXiv 2601.16979).

    It is the smallest step length after which the loss is higher than before,
    $$\eta_c = \min \{\eta > 0 : L(\theta - \eta d) > L(\theta)\}.$$
    For a quadratic loss and d = g it is $2 / (g^T H g / g^T g)$, so training raises the loss of its own batch if
    its learning rate is above $\eta_c$.

    The probed steps bracket it: it is between the first one that raises the loss and the one before. Where they more
    than double, steps between them are tried as well. If all of them raise the loss, the shortest one is halved, at
    most MAX_HALVINGS times; if none does, the longest one is doubled, at most MAX_DOUBLINGS times. Then the bracket is
    bisected on a logarithmic scale. The result raises the loss, and a step that is shorter by the factor 1 + ACCURACY
    does not. Each trial is a forward pass: between probed steps that double from one to the next, there are 7 trials.
    A loss that rises and falls again while the step doubles goes unnoticed.

    Rounding could raise the loss as well. One more pass therefore confirms that the loss resolves the line: a step of
    $\eta_c / 32$ changes the loss by $-\eta_c g^T d / 32$, to a third. Then rounding moves $\eta_c$ by a hundredth at
    most. On a line that bends on this scale, shorter steps confirm it.

    Args:
        line: The line probe at a point.

    Returns:
        The critical learning rate. 0 if d is no descent direction ($g^T d < 0$): then the shortest steps raise the
        loss. NaN if no step of the range raises it, if the loss or the gradient is not finite, if the gradient is 0 or
        at right angles to d, and if rounding hides the line.

    >>> import bnsmooth_cli as bns
    >>> from bnsmooth_cli.measures.landscape import probe
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> own = bns.Point.of(model, lambda: 25 * model.weight.square().sum(), lr=0.01)
    >>> round(critical_lr(probe(own, [0.5, 1.0, 2.0])), 2)
    0.04
    """
    point, at, after = line.point, line.rows.iloc[0], line.rows.iloc[1:].sort_values("step_size")
    start, sizes = float(at["loss"]), float(at["grad_norm"]) * line.length
    eps = torch.finfo(line.vector.dtype).eps
    if not (math.isfinite(start) and math.isfinite(line.slope) and abs(line.slope) > _ROUNDINGS * eps * sizes):
        return math.nan
    if line.slope < 0:
        return 0.0
    theta = point.theta

    def loss(eta: float) -> float:
        return float(point.losses_at([torch.add(theta, line.vector, alpha=-eta)]))

    def rises(eta: float) -> bool:
        return not loss(eta) <= start  # an overflow rises

    falling, rising = 0.0, math.inf
    for probed, there in zip(map(float, after["step_size"]), after["loss"], strict=True):
        while falling and rising == math.inf and probed > _DOUBLE * falling:
            falling, rising = (falling, 2 * falling) if rises(2 * falling) else (2 * falling, rising)
        if rising == math.inf:
            falling, rising = (probed, rising) if there <= start else (falling, probed)
    for _ in range(MAX_DOUBLINGS):
        if rising < math.inf:
            break
        eta = 2 * falling or point.lr
        falling, rising = (falling, eta) if rises(eta) else (eta, rising)
    for _ in range(MAX_HALVINGS):
        if falling > 0:
            break
        eta = rising / 2
        falling, rising = (falling, eta) if rises(eta) else (eta, rising)
    if falling == 0 or rising == math.inf:
        return math.nan
    while rising > (1 + ACCURACY) * falling:
        eta = math.sqrt(falling) * math.sqrt(rising)
        falling, rising = (falling, eta) if rises(eta) else (eta, rising)
    for eta in (rising * _FIRST / 4**k for k in range(_TRIES)):
        change = eta * line.slope
        if change <= eps * abs(start):
            break
        if abs(start - loss(eta) - change) <= _AGREEMENT * change:
            return rising
    return math.nan
