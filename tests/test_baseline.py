"""The level of chance: what the best constant answer attains, which training records in the provenance."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from helpers import SMALL
from PIL import Image
from torch import nn
from torch.nn import functional as F

import bnsmooth_cli as bns
from bnsmooth_cli import problems
from bnsmooth_cli.config import resolve
from bnsmooth_cli.data import images
from bnsmooth_cli.storage.tables import read_provenance

SETTINGS = {"steps": 4, "save_every": 2, "eval_every": 2, "batch_size": 8, "lr": 1e-3}


#: What the problem `given` consists of.
GIVEN = {}


def given(norm):
    return copy.deepcopy(GIVEN["model"]), *(GIVEN[name] for name in ("loss", "train", "test") if name in GIVEN)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train a custom problem that consists of these parts."""

    def make(settings=SETTINGS, folder="run", progress=None, **parts):
        monkeypatch.setattr(f"{__name__}.GIVEN", parts)
        return bns.train(given, "none", output=tmp_path / folder, device="cpu", progress=progress, **settings)

    return make


def built(problem, **settings):
    return problems.build(resolve(problem, norm="none", **settings))


def recorded(run):
    return read_provenance(run.train_path, "train").get("baseline", {})


def least_constant_loss(problem):
    """The minimum over constants c of the loss of x -> c, averaged over the batches of an epoch, by Newton's method."""
    batches = [problem.batch(step)[1].double() for step in range(problem.num_samples // problem.config.batch_size)]
    c = torch.randn(batches[0].shape[1:], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([c], line_search_fn="strong_wolfe", tolerance_grad=1e-12, max_iter=200)

    def loss():
        optimiser.zero_grad()
        value = torch.stack([problem.objective(c.expand(targets.shape), targets) for targets in batches]).mean()
        value.backward()
        return value

    optimiser.step(loss)
    return loss().item()


@pytest.mark.parametrize("settings", [{}, {"batch_size": 10}, {"matrix": "uniform", "weight_decay": 0.1}])
def test_the_linear_networks_baseline_is_the_least_loss_of_a_constant_map(settings):
    problem = built("dln", **{**SMALL["dln"], **settings})
    assert problem.baseline() == {"loss": pytest.approx(least_constant_loss(problem), rel=1e-6)}


def test_the_built_in_images_have_ten_equally_frequent_classes():
    assert built("vgg", **SMALL["vgg"]).baseline() == {"accuracy": 0.1}


def test_the_baseline_of_a_folder_is_the_most_frequent_class_of_its_test_images(tmp_path):
    for split, counts in {"train": (9, 1, 1), "test": (1, 2, 5)}.items():
        for name, count in zip("abc", counts, strict=True):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((32, 32, 3), 10 * i, np.uint8)).save(tmp_path / split / name / f"{i}.png")
    images._of_folder.cache_clear()
    assert built("vgg", **SMALL["vgg"] | {"data": str(tmp_path), "batch_size": 8}).baseline() == {"accuracy": 5 / 8}


LABELS = torch.tensor([2, 2, 0, 1, 2, 0, 2, 2, 1, 2])
IGNORED = torch.tensor([[2, -100], [0, 0], [-100, -100], [1, 0], [2, -100], [-100, 2], [0, 1], [-100, 0], [1, 2]])
YES = torch.tensor([1, 1, 0, 1, 0, 1, 1, 0, 1])


def logit(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs.flatten(), targets.flatten().float())


def tokens(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


class Positions(nn.Module):
    """Three classes at each of two positions, in the last dimension."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x):
        return self.layer(x).unflatten(1, (2, 3))


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x), self.layer(-x)


#: The model, the loss, the test targets, and the accuracy of the best constant answer (None: it is not known).
CLASSES = {
    "classes": (nn.Linear(4, 3), F.cross_entropy, LABELS, 6 / 10),
    "a class that the test set lacks": (nn.Linear(4, 5), F.cross_entropy, LABELS, 6 / 10),
    "labels (N, 1)": (nn.Linear(4, 3), lambda o, t: F.cross_entropy(o, t[:, 0]), LABELS[:, None], 6 / 10),
    "tokens, some ignored": (Positions(), tokens, IGNORED, 5 / 12),
    "one logit": (nn.Linear(4, 1), logit, YES, 6 / 9),
    "one logit, mostly no": (nn.Linear(4, 1), logit, 1 - YES, 6 / 9),
    "one logit, booleans": (nn.Linear(4, 1), logit, YES.bool(), 6 / 9),
    "counts": (nn.Linear(4, 1), lambda o, t: F.mse_loss(o[:, 0], t.float()), YES, None),
    "several labels": (
        nn.Linear(4, 3), lambda o, t: F.binary_cross_entropy_with_logits(o, t.float()), torch.eye(4, 3).long(), None),
    "several outputs": (Several(), lambda o, t: F.cross_entropy(o[0] + o[1], t), LABELS, None),
    "several targets": (
        nn.Linear(4, 3), lambda o, t: F.cross_entropy(o, t["a"]) + F.cross_entropy(o, t["b"]),
        {"a": LABELS, "b": LABELS}, None),
}  # fmt: skip


class Items(torch.utils.data.Dataset):
    """A map-style data set that counts its readings."""

    def __init__(self, inputs, targets):
        self.pairs, self.read = list(zip(inputs, targets, strict=True)), 0

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        self.read += 1
        return self.pairs[i]


@pytest.mark.parametrize("split", ["test", "train", "test items"])
@pytest.mark.parametrize("case", CLASSES)
@pytest.mark.fast(6)
def test_the_baseline_of_a_custom_problem_is_its_most_frequent_class(train, case, split):
    model, loss, targets, expected = CLASSES[case]
    if split == "test items" and isinstance(targets, dict):
        pytest.skip("a dict of tensors is no data set of items")
    size = len(targets["a"] if isinstance(targets, dict) else targets)
    parts = {"train": (torch.randn(size, 4), targets)}
    if split != "train":  # the training set has fewer answers, of another distribution
        few = {name: value[:4] for name, value in targets.items()} if isinstance(targets, dict) else targets[:4]
        data = parts["train"]
        parts = {"train": (torch.randn(4, 4), few), "test": Items(*data) if split == "test items" else data}
    settings = {**SETTINGS, "batch_size": min(4, size)}
    found = recorded(train(settings, model=model, loss=loss, **parts))
    assert found == ({} if expected is None else {"accuracy": pytest.approx(expected)})


def test_a_data_set_is_not_read_for_its_training_targets(train):
    data = Items(torch.randn(100, 4), LABELS.repeat(10))
    run = train({**SETTINGS, "steps": 1}, model=nn.Linear(4, 3), loss=F.cross_entropy, train=data)
    assert recorded(run) == {}
    assert data.read < 100


MEAN, SUM = nn.MSELoss(), nn.MSELoss(reduction="sum")


@pytest.mark.parametrize(
    ("loss", "outputs", "shape", "known"),
    [
        (F.mse_loss, 3, (16, 3), True),
        (MEAN, 1, (16, 1), True),
        (SUM, 3, (16, 3), True),
        (F.l1_loss, 3, (16, 3), False),
        (lambda o, t: F.mse_loss(o, t), 3, (16, 3), False),
        (lambda o, t: F.mse_loss(o[:, 0], t), 1, (16,), False),
    ],
)
def test_the_baseline_of_a_regression_is_known_for_torchs_squared_error(train, loss, outputs, shape, known):
    run = train(model=nn.Linear(4, outputs), loss=loss, train=(torch.randn(16, 4), 5 + torch.randn(shape)))
    problem = bns.load_point(run).problem
    expected = {"loss": pytest.approx(least_constant_loss(problem), rel=1e-6)} if known else {}
    assert problem.baseline() == recorded(run) == expected


def test_targets_that_are_not_finite_have_no_baseline(train):
    data = torch.randn(16, 4), torch.full((16, 3), torch.inf)
    run = train(model=nn.Linear(4, 3), loss=F.mse_loss, train=data)
    assert run.outcome()["diverged_at"] == 0
    assert recorded(run) == {}


def test_a_resumed_run_records_the_baseline_and_the_random_state_stays(train):
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    parts = {"model": network, "loss": F.cross_entropy, "train": (torch.randn(20, 4), LABELS.repeat(2))}

    class Stop(Exception):
        pass

    def stop(step, loss):
        if step >= 2:
            raise Stop

    whole = train(folder="whole", **parts)
    with pytest.raises(Stop):
        train(folder="part", progress=stop, **parts)
    part = train(folder="part", **parts)
    assert recorded(whole) == recorded(part) == {"accuracy": 0.6}
    rows, resumed = (bns.read_table(run.train_path).drop(columns="run") for run in (whole, part))
    assert rows.equals(resumed)
    problem = problems.build(whole.config)
    before = {name: value.clone() for name, value in problem.initial.state_dict().items()}
    states = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    problem.baseline()
    assert states == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert all(torch.equal(value, before[name]) for name, value in problem.initial.state_dict().items())
    assert problem.initial.training


def test_a_table_of_an_earlier_version_has_no_baseline(small_run, tmp_path):
    """It is read as before, and its run counts as finished."""
    run = small_run("dln", "none")
    rows = bns.read_table(run.train_path)
    assert rows.attrs["bnsmooth"].pop("baseline").keys() == {"loss"}
    (tmp_path / "run").mkdir()
    old = dataclasses.replace(run, path=tmp_path / "run")
    said = {key: value for key, value in rows.attrs["bnsmooth"].items() if key not in ("kind", "format")}
    bns.storage.tables.write_table(old.train_path, "train", [rows], said)
    assert old.outcome()["last_step"] == run.config.steps
    assert "baseline" not in bns.read_table(old.train_path).attrs["bnsmooth"]
