"""Data of custom problems: draws depend on the seed and the step or are refused; batches may have several tensors."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnsmooth_cli as bns
from bnsmooth_cli import InputError
from bnsmooth_cli.networks.parameters import flatten
from bnsmooth_cli.problems.samples import samples
from bnsmooth_cli.randomness import seeded

SETTINGS = {"steps": 4, "save_every": 2, "eval_every": 2, "batch_size": 8, "lr": 0.1}
X = torch.arange(60.0).view(20, 3) / 60
Y = (X[:, 0] > 0.4).long()


class Items(torch.utils.data.Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return self.make(i)


class Noisy(Items):
    """Items with noise that `draw` makes."""

    def __init__(self, draw):
        super().__init__(lambda i: (X[i] + draw(), Y[i]))
        self.draw = draw


DRAWS = {
    "torch": lambda: torch.randn(3),
    "numpy": lambda: torch.from_numpy(np.random.randn(3)),
    "random": lambda: random.gauss(0, 1),
    "numpy's uniform": lambda: np.random.rand(),
    "sequences": lambda: random.sample(range(100), 3)[0],
}


def noisy(draw):
    def build(norm):
        return nn.Linear(3, 2), F.cross_entropy, Noisy(DRAWS[draw]), Noisy(DRAWS[draw])

    build.__module__, build.__qualname__ = __name__, f"_noisy_{list(DRAWS).index(draw)}"
    globals()[build.__qualname__] = build
    return build


def disturb():
    random.random()
    np.random.standard_normal()
    torch.rand(1)


def fail():
    disturb()
    raise ZeroDivisionError


@pytest.mark.parametrize("draw", DRAWS)
def test_every_draw_of_a_data_set_depends_on_the_seed_and_the_step_alone(tmp_path, draw):
    tables = []
    for part in "ab":
        disturb()
        run = bns.train(noisy(draw), "none", output=tmp_path / part, **SETTINGS)
        tables.append(bns.read_table(run.train_path)[["loss", "test_loss"]])
    assert tables[0].equals(tables[1])
    problem = bns.load_point(run).problem
    assert torch.equal(problem.batch(1)[0], problem.batch(1)[0])
    noise = [problem.batch(step)[0] - X[problem.indices(step)] for step in (1, 3)]
    assert not torch.allclose(*noise, atol=1e-3)  # another draw for each step
    other = bns.train(noisy(draw), "none", output=tmp_path / "c", seed=1, **SETTINGS)
    assert not bns.read_table(other.train_path)["loss"].equals(tables[0]["loss"])


@pytest.mark.parametrize("draw", ["torch", "numpy", "random"])
def test_beta_of_noisy_data_is_that_of_fixed_batches(tmp_path, draw):
    """Drawn anew at every evaluation, the noise alone would make beta hundreds of times larger."""
    run = bns.train(noisy(draw), "none", output=tmp_path / "run", **SETTINGS)
    point = bns.load_point(run, 2, objective="train:2")
    batches, eta = [point.problem.batch(step) for step in (0, 1)], 0.01 * SETTINGS["lr"]

    def slope():
        loss = sum(F.cross_entropy(model(x), y) for x, y in batches) / 2
        return flatten(torch.autograd.grad(loss, list(model.parameters())))

    model = copy.deepcopy(point.model)
    before = slope()
    nn.utils.vector_to_parameters(point.theta - eta * before, model.parameters())
    expected = ((slope() - before).norm() / (eta * before.norm())).item()
    assert bns.smoothness(point, [0.01])["beta"][0] == pytest.approx(expected, rel=0.02)


def test_the_generators_of_the_caller_are_left_as_they_were(tmp_path):
    random.seed(4)
    np.random.seed(4)
    torch.manual_seed(4)
    np.random.standard_normal()  # leaves a second normal number in the generator
    before = np.random.get_state(), torch.get_rng_state()
    run = bns.train(noisy("numpy"), "none", output=tmp_path / "run", **SETTINGS)
    bns.landscape(bns.load_point(run), [1.0])
    python = random.getstate()  # only here: the tests' type checker draws from it
    with pytest.raises(ZeroDivisionError), seeded(3):
        fail()
    assert random.getstate() == python
    assert all(np.array_equal(a, b) for a, b in zip(before[0], np.random.get_state(), strict=True))
    assert torch.equal(before[1], torch.get_rng_state())


def test_another_bit_generator_of_numpy_is_restored():
    kept = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        expected = np.random.RandomState(np.random.PCG64(3)).rand()
        with seeded(5):
            np.random.rand()
        assert np.random.rand() == expected
    finally:
        np.random.set_bit_generator(kept)


class Counter(Noisy):
    def __getitem__(self, i):
        self.calls = getattr(self, "calls", 0) + 1
        return X[i], Y[i] + (self.calls // 25)


class Cached(Noisy):
    def __getitem__(self, i):
        known = vars(self).setdefault("known", {})
        if i not in known:
            known[i] = super().__getitem__(i)
        return known[i]


class Labelled(Noisy):
    def __getitem__(self, i):
        return {"ids": X[i], "noise": X[i] + self.draw(), "labels": Y[i]}


local, seeded_local = np.random.default_rng(0), torch.Generator()
REFUSED = {
    "a generator of numpy's own": (Noisy(lambda: local.random()), "another input of sample 3 "),
    "an unseeded generator": (Noisy(lambda: np.random.default_rng().random()), "another input of sample 3 "),
    "a generator of torch's own": (Noisy(lambda: torch.rand(1, generator=seeded_local)), "another input of sample 3 "),
    "a counter in the target": (Counter(None), "another target of sample "),
    "a cache of draws": (Cached(DRAWS["torch"]), "draw random numbers when samples are read for the first time"),
    "one of two inputs": (Labelled(lambda: local.random()), "another input 'noise' of sample 3 "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_change_between_two_readings_are_refused_by_name(case):
    data, why = REFUSED[case]
    with pytest.raises(InputError, match=f"^--problem m:f: its train data (have )?{why}"):
        samples(data, "--problem m:f: its train data").batch(torch.arange(3, 20), seed=1)


def test_data_that_change_late_are_refused_when_training_ends(tmp_path):
    class Late(Noisy):
        def __getitem__(self, i):
            self.calls = getattr(self, "calls", 0) + 1
            return X[i] + (self.calls > 30), Y[i]

    globals()["_late"] = build = lambda norm: (nn.Linear(3, 2), F.cross_entropy, Late(None))
    build.__module__, build.__qualname__ = __name__, "_late"
    with pytest.raises(InputError, match="another input of sample"):
        bns.train(build, "none", output=tmp_path / "run", **SETTINGS)


def test_random_draws_of_the_function_itself_depend_on_the_seed(tmp_path):
    losses = []
    for place, seed in enumerate((0, 0, 1)):
        disturb()
        run = bns.train(_drawing, "none", output=tmp_path / f"{place}", seed=seed, **SETTINGS)
        losses.append(bns.read_table(run.train_path)["loss"].tolist())
    assert losses[0] == losses[1] != losses[2]


def _drawing(norm):
    x = torch.from_numpy(np.random.randn(20, 3)).float() + random.random()
    return nn.Linear(3, 2), F.cross_entropy, (x, Y)


class Two(nn.Module):
    """A network of two inputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, a, b, scale=1.0):
        return self.a(a) * self.b(b) * scale


A, B, TARGET = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 2), torch.randn(20, 4)


def loss_of_dict(outputs, targets):
    return F.mse_loss(outputs, targets["y"])


def own_loss(outputs, targets):
    return outputs["loss"]


class Computes(Two):
    """As Hugging Face's models: the model takes the labels, and puts out its own loss."""

    def forward(self, a, b, labels):
        outputs = super().forward(a, b)
        return {"loss": F.mse_loss(outputs, labels), "outputs": outputs}


class Whole(Two):
    """Takes all inputs as one argument."""

    def forward(self, both):
        return super().forward(*both) if isinstance(both, tuple) else super().forward(both["a"], both["b"])


SEVERAL = {
    "a tuple as one argument": (Whole, F.mse_loss, ((A, B), TARGET)),
    "a dict as one argument": (Whole, F.mse_loss, ({"b": B, "a": A}, TARGET)),
    "tensors in a tuple": (Two, F.mse_loss, ((A, B), TARGET)),
    "tensors by name": (Two, F.mse_loss, ({"b": B, "a": A}, TARGET)),
    "several targets": (Two, lambda o, t: F.mse_loss(o, t[0]) + 0 * t[1].sum(), ((A, B), (TARGET, TARGET))),
    "targets by name": (Two, loss_of_dict, ((A, B), {"y": TARGET})),
    "a dict as a whole": (Computes, own_loss, {"a": A, "b": B, "labels": TARGET}),
    "items of a tuple": (Two, F.mse_loss, Items(lambda i: ((A[i], B[i]), TARGET[i]))),
    "items of a list": (Two, F.mse_loss, Items(lambda i: ([A[i].numpy(), B[i].numpy()], TARGET[i]))),
    "items of a dict": (Two, F.mse_loss, Items(lambda i: ({"a": A[i], "b": B[i]}, TARGET[i]))),
    "items that are dicts": (Computes, own_loss, Items(lambda i: {"a": A[i], "b": B[i], "labels": TARGET[i]})),
    "a list of items": (Two, F.mse_loss, [((A[i], B[i]), TARGET[i]) for i in range(20)]),
}


@pytest.mark.parametrize("case", SEVERAL)
@pytest.mark.fast(4)
def test_a_batch_of_several_tensors_gives_the_numbers_of_plain_torch(tmp_path, case):
    model, loss, data = SEVERAL[case]

    def build(norm):
        torch.manual_seed(3)
        return model(), loss, data, data

    build.__module__, build.__qualname__ = __name__, f"_several_{list(SEVERAL).index(case)}"
    globals()[build.__qualname__] = build
    run = bns.train(build, "none", output=tmp_path / "run", **SETTINGS)
    table = bns.read_table(run.train_path)
    torch.manual_seed(3)
    plain, problem = Two(), bns.load_point(run).problem
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(4):
        chosen = problem.indices(step)
        value = F.mse_loss(plain(A[chosen].float(), B[chosen]), TARGET[chosen])
        assert table["loss"][step] == pytest.approx(value.item(), rel=1e-5)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    tested = F.mse_loss(plain(A.float(), B), TARGET).item()
    assert table["test_loss"][4] == pytest.approx(tested, rel=1e-5)
    assert bns.landscape(bns.load_point(run, 4), [1.0], objective="test")["loss"][0] == pytest.approx(tested, rel=1e-5)
    assert np.isfinite(bns.smoothness(bns.load_point(run, 2))["sharpness"][0])
    assert table["accuracy"].isna().all()


WRONG = {
    "three of them": (Items(lambda i: (A[i], B[i], TARGET[i])), "an item is a tuple of 3; several inputs belong"),
    "a text": (Items(lambda i: ({"a": A[i], "b": "text"}, TARGET[i])), "the input 'b' of the kind str"),
    "a text further down": (Items(lambda i: ((A[i], {"b": "text"}), TARGET[i])), "the input 2 'b' of the kind str"),
    "nothing": (Items(lambda i: (A[i], None)), "the target of the kind NoneType"),
    "numbers": (Items(lambda i: ([1.0, 2.0], 3)), "a input that is a list of numbers"),
    "unequal lengths": (((A, B[:4]), TARGET), "20 of input 1, 4 of input 2, 20 of target"),
    "no samples": (((A[:0], B[:0]), TARGET[:0]), "at least one: 0 of input 1"),
    "arrays": (((A.numpy(), B), TARGET), "hold a ndarray; convert them"),
    "different sizes": (Items(lambda i: (A[i, : i % 3 + 1], TARGET[i])), "do not give pairs .* stack"),
}


@pytest.mark.parametrize("case", WRONG)
def test_data_of_another_structure_are_refused_by_name(case):
    data, why = WRONG[case]
    with pytest.raises(InputError, match=f"^origin .*{why}"):
        samples(data, "origin").batch(torch.arange(4), seed=1)
