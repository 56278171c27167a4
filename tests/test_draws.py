"""Losses that draw random numbers: refused where a draw has an effect, however rare, and measured where none has."""

from __future__ import annotations

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from helpers import classifier
from torch import nn
from torch.nn import functional as F

import bnsmooth_cli as bns
from bnsmooth_cli import InputError
from bnsmooth_cli.problems.draws import extreme


def point_of(model, loss):
    return bns.Point.of(model, loss, lr=0.1)


def test_a_loss_that_draws_leaves_all_generators_as_they_were(data):
    x, _ = data
    model = nn.Linear(3, 2).double()
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.get_rng_state(), np.random.get_state()[1].tolist()
    for draw in (lambda: torch.rand(1).double(), lambda: np.random.rand(), lambda: random.random()):
        with pytest.raises(InputError, match="another output each time"):
            point_of(model, lambda: (model(x) * draw()).square().mean())  # noqa: B023
        assert torch.equal(torch.get_rng_state(), expected[0])
        assert np.random.get_state()[1].tolist() == expected[1]


class Dropping(nn.Module):
    """A layer that is left out with a probability p, drawn as in LayerDrop or by other generators."""

    def __init__(self, p, draw):
        super().__init__()
        self.p, self.draw, self.inner = p, draw, nn.Linear(3, 3)

    def forward(self, x):
        return x if self.draw() < self.p else x + self.inner(x)


DRAWS = {
    "torch": lambda: torch.rand(()),
    "uniform": lambda: torch.empty(()).uniform_(0, 1),
    "bernoulli": lambda: 1 - torch.bernoulli(torch.tensor(1e-3)),
    "numpy": lambda: np.random.rand(),
    "random": lambda: random.random(),
    "kept": lambda: 1 - torch.rand(()),
    "randint": lambda: torch.randint(10_000, ()).double() / 10_000,
    "randint from": lambda: torch.randint(low=1, high=10_001, size=()).double() / 10_001,
    "random_": lambda: torch.empty((), dtype=torch.long).random_(10_000).double() / 10_000,
    "randperm": lambda: torch.randperm(10_000)[0].double() / 10_000,
    "multinomial": lambda: torch.multinomial(torch.tensor([1e-4, 1.0, 0.0]), 1).double() / 2,
    "categorical": lambda: torch.distributions.Categorical(torch.tensor([1e-4, 1.0])).sample().double(),
    "randn": lambda: (torch.randn(()) + 5.9).clamp_min(0).double(),
    "normal": lambda: (torch.normal(0.0, 2.0, (1,)) + 11.9).clamp_min(0).double(),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_a_layer_that_is_dropped_once_in_a_thousand_times_is_refused_and_one_never_dropped_is_measured(data, draw):
    x, y = data
    rare, never = (classifier(lambda p=p: Dropping(p, DRAWS[draw]), lambda: nn.Linear(3, 2)) for p in (1e-3, 0.0))
    with pytest.raises(InputError, match=r"the module '0' \(Dropping\) gives another output each time"):
        point_of(rare, lambda: F.cross_entropy(rare(x), y))
    point = point_of(never, lambda: F.cross_entropy(never(x), y))
    for measure in (bns.landscape, bns.smoothness, bns.ics, bns.spectrum, bns.activations):
        before = torch.get_rng_state(), np.random.get_state()[2], random.getstate()
        measure(point)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[2], random.getstate()) == before[1:]


@pytest.mark.parametrize("kind", [nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_dropout_that_rarely_drops_is_refused_and_dropout_that_is_off_is_not(data, kind):
    x, y = data
    for p, mode, refused in ((1e-4, True, True), (0.0, True, False), (1e-4, False, False)):
        model = classifier(lambda: nn.Linear(3, 4), lambda p=p: kind(p), lambda: nn.Linear(4, 2)).train(mode)
        with pytest.raises(InputError, match=r"module '1'") if refused else nullcontext():
            point_of(model, lambda: F.cross_entropy(model(x), y))  # noqa: B023


def test_extreme_draws_are_those_that_each_function_may_make():
    for largest in (False, True):
        with extreme(largest):
            assert torch.randint(3, 7, (2,)).tolist() == ([6, 6] if largest else [3, 3])
            assert torch.randint_like(torch.zeros(2), 5).tolist() == ([4.0, 4.0] if largest else [0.0, 0.0])
            assert torch.empty(2).random_(2, 9).tolist() == ([8.0, 8.0] if largest else [2.0, 2.0])
            assert torch.randperm(3).tolist() == ([2, 1, 0] if largest else [0, 1, 2])
            weights = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3])
            assert torch.multinomial(weights, 2).tolist() == ([4, 3] if largest else [1, 3])
            assert torch.multinomial(weights, 2, replacement=True).tolist() == ([4, 4] if largest else [1, 1])
            assert torch.multinomial(torch.stack([weights, weights.flip(0)]), 1).tolist() == (
                [[4], [3]] if largest else [[1], [0]]
            )
            assert torch.normal(torch.tensor([1.0, 2.0]), 0.5).tolist() == ([4.0, 5.0] if largest else [-2.0, -1.0])
            assert torch.zeros(1).normal_(1, 2).item() == (13.0 if largest else -11.0)
