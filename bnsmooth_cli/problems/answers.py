"""Accuracy: which outputs of a network are answers, and how many of them are right.

Shapes alone do not tell: outputs (N, C) for integer targets (N,) may be quantiles of a regression, and one number for a
target of 0 or 1 may be a logit or a probability. The loss tells what it asks the outputs for. What remains open has no
accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bnsmooth_cli.problems.batches import Values


class Answers:
    """Counts right answers.

    - Classes: outputs (N, C) with targets (N,) or (N, 1), (N, C, ...) with (N, ...), or (N, ..., C) with (N, ...). The
      answer is the class with the largest output. Where the loss does not depend on the outputs, as at the target -100,
      no answer is counted.
    - Yes or no: one output per sample with targets 0 and 1. The answer is yes above `threshold`.

    Args:
        loss: The loss that training minimises, a function of outputs and targets.

    >>> from torch.nn import functional as F
    >>> Answers(F.cross_entropy).count(torch.eye(3), torch.tensor([0, 1, 1]))
    tensor([2., 3.])
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._loss = loss
        self._thresholds: dict[tuple[torch.Size, torch.Size], float] = {}

    def count(self, outputs: object, targets: Values) -> Tensor | None:
        """The numbers of right answers and of all answers (2,); NaN or None if there is no accuracy."""
        readings = self._readings(outputs, targets)
        right = [((reading.answers == reading.labels) & reading.asked).sum() for reading in readings]
        asked = [reading.asked.sum() for reading in readings]
        return _choose(readings, [torch.stack(pair) for pair in zip(right, asked, strict=True)])

    def by_class(self, outputs: object, targets: Values) -> Tensor | None:
        """The numbers of answers for which each class is right (C,), or no and yes (2,); NaN or None as in `count`.

        Only the shape of the outputs matters.

        >>> from torch.nn import functional as F
        >>> Answers(F.cross_entropy).by_class(torch.zeros(4, 3), torch.tensor([0, 1, 1, -100]))
        tensor([1., 2., 0.])
        """
        readings = self._readings(outputs, targets)
        labels = [reading.labels[reading.asked].clamp(0, reading.classes - 1) for reading in readings]
        counts = [of.bincount(minlength=reading.classes) for of, reading in zip(labels, readings, strict=True)]
        return _choose(readings, counts)

    def _readings(self, outputs: object, targets: Values) -> list[_Reading]:
        """The ways to read outputs and targets as answers: none, one, or two if classes may be at two places."""
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or not outputs.is_floating_point():
            return []
        if targets.is_floating_point() or targets.is_complex() or not targets.numel() or not outputs.dim():
            return []
        if outputs.numel() == targets.numel() == len(outputs) == len(targets):
            threshold = self.threshold(outputs.shape, targets.new_empty(targets.shape, device="cpu"))
            answers, labels = (outputs.detach().flatten() > threshold).long(), targets.flatten().long()
            fits = ((labels == 0) | (labels == 1)).all() & math.isfinite(threshold)
            return [_Reading(answers, labels, torch.ones_like(labels, dtype=torch.bool), fits, 2)]
        return self._classes(outputs.detach(), targets)

    def threshold(self, shape: torch.Size, targets: Tensor) -> float:
        """The output (N,) or (N, 1) at which the answer becomes yes; NaN if the loss does not tell.

        It is 0 if the loss rewards a margin on either side of 0 without end, as of logits. It is 0.5 if the loss takes
        only outputs from 0 to 1, as of probabilities, and has the same value at 0.5 for both targets. A squared error
        does not tell.

        >>> from torch.nn import functional as F
        >>> targets = torch.zeros(4)
        >>> Answers(F.binary_cross_entropy_with_logits).threshold(targets.shape, targets)
        0.0
        >>> Answers(F.binary_cross_entropy).threshold(targets.shape, targets)
        0.5
        """
        key = shape, targets.shape
        if key not in self._thresholds:

            def losses(target: int, *outputs: float) -> list[float]:
                """The losses on the CPU, as a GPU does not survive an output that the loss refuses; NaN for those."""
                try:
                    return [float(self._loss(torch.full(shape, o), torch.full_like(targets, target))) for o in outputs]
                except torch.OutOfMemoryError:
                    raise
                except Exception:  # a user's loss may raise anything at outputs that it does not take
                    return [torch.nan] * len(outputs)

            yes, no = losses(1, -8.0, -2.0, 2.0, 8.0), losses(0, -8.0, -2.0, 2.0, 8.0)
            finite = all(map(math.isfinite, (*yes, *no)))
            logits = yes[0] > yes[1] > yes[2] >= yes[3] and no[0] <= no[1] < no[2] < no[3]
            yes, no = losses(1, 0.1, 0.5, 0.9), losses(0, 0.1, 0.5, 0.9)
            probabilities = yes[0] > yes[2] and no[0] < no[2] and math.isclose(yes[1], no[1], rel_tol=1e-4)
            self._thresholds[key] = 0.0 if logits else 0.5 if probabilities and not finite else torch.nan
        return self._thresholds[key]

    def _classes(self, outputs: Tensor, targets: Tensor) -> list[_Reading]:
        labels = targets[:, 0] if outputs.dim() == 2 and targets.shape == (len(outputs), 1) else targets
        places = [
            place
            for place in sorted({1, outputs.dim() - 1})
            if place and outputs.shape[place] > 1 and outputs.shape[:place] + outputs.shape[place + 1 :] == labels.shape
        ]
        slope = self._slope(outputs, targets) if places else None
        if slope is None:
            return []
        return [_read(outputs.movedim(p, -1), labels.long(), slope.movedim(p, -1)) for p in places]

    def _slope(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """The gradient of the loss at outputs that are all equal, which has no preference of its own."""
        equal = torch.full_like(outputs, 0.5).requires_grad_()
        try:
            with torch.enable_grad():
                return torch.autograd.grad(self._loss(equal, targets), equal, materialize_grads=True)[0]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a user's loss may raise anything; then it does not tell what it asks for
            return None


class _Reading(NamedTuple):
    """A way to read outputs and targets as answers.

    Attributes:
        answers: The number of the class that each output answers.
        labels: The number of the class that is right.
        asked: Where the loss asks for an answer.
        fits: Whether the loss asks for the class of the label everywhere, a scalar.
        classes: The number of classes.
    """

    answers: Tensor
    labels: Tensor
    asked: Tensor
    fits: Tensor
    classes: int


def _read(outputs: Tensor, labels: Tensor, slope: Tensor) -> _Reading:
    """The reading of outputs whose last dimension runs over classes, given the slope of the loss at equal outputs."""
    classes = outputs.shape[-1]
    valid = (labels >= 0) & (labels < classes)
    places = torch.where(valid, labels, 0)[..., None]
    own, others = slope.gather(-1, places)[..., 0], slope.scatter(-1, places, torch.inf).amin(-1)
    asked = slope.abs().amax(-1) > 0
    return _Reading(outputs.argmax(-1), labels, asked, (valid & (own < others) | ~asked).all(), classes)


def _choose(readings: list[_Reading], counts: list[Tensor]) -> Tensor | None:
    """The counts of the reading that fits, without waiting for the device.

    NaN if none fits. NaN also if two fit, unless neither has an answer that is asked for. None without readings.
    """
    if not readings:
        return None
    fits = torch.stack([reading.fits for reading in readings])
    asked = torch.stack([reading.asked.any() for reading in readings])
    known = (fits.sum() == 1) | (fits.any() & ~(fits & asked).any())
    return torch.where(known, torch.where(fits[:, None], torch.stack(counts).float(), 0.0).sum(0), torch.nan)
