"""The objective of a measurement: which loss it differentiates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.problems.base import Problem
from bnsmooth_cli.problems.batches import Values, size

MAX_BATCHES: Final = 10**9


class Batch(NamedTuple):
    """A batch of an objective.

    Attributes:
        inputs: The samples.
        targets: The targets of the inputs.
        step: The training step whose noise the norms draw.
        share: The weight of the batch's loss in the objective.
    """

    inputs: Values
    targets: Values
    step: int
    share: float = 1.0


class Objective(str):
    """The loss to measure, as the user writes it.

    - `batch`: the loss of the batch that training uses at the step.
    - `train:K`: the mean loss of the batches of steps 0 to K - 1, each with the noise of its own step.
    - `eval`: the loss of the batch that training uses at the step, in eval mode: norms use their running statistics,
      and noise is replaced by its mean. Without such modules, it is `batch`.
    - `test`: the mean loss over the test set, in eval mode.

    All but the last include the L2 penalty that training minimises (`weight_decay`).

    Attributes:
        kind: "batch", "train", "eval" or "test".
        steps: The K of `train:K`; 0 for the others.

    Raises:
        InputError: For any other text.

    >>> Objective("train:8").steps
    8
    """

    kind: str
    steps: int

    def __new__(cls, text: str) -> Objective:
        kind, _, digits = text.partition(":")
        count = int(digits) if re.fullmatch("[0-9]{1,10}", digits) else 0
        if text not in ("batch", "eval", "test") and not (kind == "train" and 1 <= count <= MAX_BATCHES):
            raise InputError(
                f"--objective {text[:40]}: give batch, eval, test, or train:K with a whole number K, as in train:8"
            )
        objective = super().__new__(cls, text)
        objective.kind, objective.steps = kind, count
        return objective

    @property
    def evaluated(self) -> bool:
        """Whether the network is in eval mode."""
        return self.kind in ("eval", "test")

    @property
    def single(self) -> bool:
        """Whether it is the loss of a single batch, that of the step."""
        return self.kind in ("batch", "eval")

    def check_loop(self) -> Objective:
        """The objective itself. Raises InputError if a training loop of the user's, which has one batch, lacks it."""
        if not self.single:
            raise InputError(
                f"objective {self}: a training loop of your own has the batch of its step; give batch or eval"
            )
        return self

    @property
    def penalised(self) -> bool:
        """Whether it includes the L2 penalty of the weights."""
        return self.kind != "test"

    def batches(self, problem: Problem, batch: Batch) -> Iterator[Batch]:
        """The batches whose weighted losses add up to the objective, given the batch of the step itself."""
        if self.single:
            yield batch
        elif self.kind == "train":
            for step in range(self.steps):
                yield Batch(*problem.batch(step), step, 1 / self.steps)
        else:
            for inputs, targets in problem.test_batches():
                yield Batch(inputs, targets, batch.step, size(inputs) / problem.test_size)
