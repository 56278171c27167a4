"""Accuracy: the right figure where the shapes and the loss tell which outputs are answers, otherwise none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnsmooth_cli as bns
from bnsmooth_cli.problems.answers import Answers

N, C, T = 12, 5, 3


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def classes(*shape, most=C):
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(8))


def bce(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs.flatten(), targets.flatten().float())


def last(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def some_ignored(*shape, value=-100):
    labels = classes(*shape)
    labels.view(-1)[::3] = value
    return labels


#: The loss, the outputs, the targets, and the answers; None where there is no accuracy.
CASES = {
    "classes": (F.cross_entropy, draw(N, C), classes(N), lambda o: o.argmax(1)),
    "targets (N, 1)": (lambda o, t: F.cross_entropy(o, t[:, 0]), draw(N, C), classes(N, 1), lambda o: o.argmax(1)),
    "label smoothing": (
        lambda o, t: F.cross_entropy(o, t, label_smoothing=0.3), draw(N, C), classes(N), lambda o: o.argmax(1)),
    "class weights": (
        lambda o, t: F.cross_entropy(o, t, weight=torch.arange(1.0, C + 1)), draw(N, C), classes(N),
        lambda o: o.argmax(1)),
    "margin": (F.multi_margin_loss, draw(N, C), classes(N), lambda o: o.argmax(1)),
    "one-hot squared error": (
        lambda o, t: F.mse_loss(o, F.one_hot(t, C).float()), draw(N, C), classes(N), lambda o: o.argmax(1)),
    "probabilities": (
        lambda o, t: F.nll_loss(o.log(), t), draw(N, C).softmax(1), classes(N), lambda o: o.argmax(1)),
    "pixels": (F.cross_entropy, draw(N, C, 4, 4), classes(N, 4, 4), lambda o: o.argmax(1)),
    "tokens": (last, draw(N, T, C), classes(N, T), lambda o: o.argmax(-1)),
    "tokens, square": (last, draw(N, C, C), classes(N, C), lambda o: o.argmax(-1)),
    "positions, square": (F.cross_entropy, draw(N, C, C), classes(N, C), lambda o: o.argmax(1)),
    "half precision": (F.cross_entropy, draw(N, C).bfloat16(), classes(N), lambda o: o.argmax(1)),
    "two logits": (F.cross_entropy, draw(N, 2), classes(N, most=2), lambda o: o.argmax(1)),
    "one logit (N, 1)": (bce, draw(N, 1), classes(N, most=2), lambda o: o[:, 0] > 0),
    "one logit (N,)": (bce, draw(N), classes(N, most=2), lambda o: o > 0),
    "one logit, booleans": (bce, draw(N, 1), classes(N, most=2).bool(), lambda o: o[:, 0] > 0),
    "one logit, targets (N, 1)": (bce, draw(N, 1), classes(N, 1, most=2), lambda o: o > 0),
    "positive logits": (bce, draw(N, 1).abs() + 0.1, classes(N, most=2), lambda o: o[:, 0] > 0),
    "one logit, hinge": (
        lambda o, t: (1 - o * (2 * t - 1)).relu().mean(), draw(N), classes(N, most=2), lambda o: o > 0),
    "weighted logit": (
        lambda o, t: F.binary_cross_entropy_with_logits(o, t.float(), pos_weight=torch.tensor(4.0)), draw(N),
        classes(N, most=2), lambda o: o > 0),
    "one probability": (
        lambda o, t: F.binary_cross_entropy(o, t.float()), draw(N).sigmoid(), classes(N, most=2), lambda o: o > 0.5),
    "squared error": (lambda o, t: F.mse_loss(o, t.float()), draw(N), classes(N, most=2), None),
    "counts": (lambda o, t: F.poisson_nll_loss(o, t), draw(N), classes(N), None),
    "counts (N, 1)": (lambda o, t: F.mse_loss(o[:, 0], t.float()), draw(N, 1), classes(N), None),
    "one logit, targets 1 and 2": (bce, draw(N), classes(N, most=2) + 1, None),
    "quantiles": (lambda o, t: (t[:, None] - o).abs().mean(), draw(N, C), classes(N), None),
    "a mean": (lambda o, t: F.mse_loss(o.mean(1), t.float()), draw(N, C), classes(N), None),
    "several labels": (
        lambda o, t: F.binary_cross_entropy_with_logits(o, t.float()), draw(N, C), classes(N, C, most=2), None),
    "probability targets": (F.cross_entropy, draw(N, C), draw(N, C).softmax(1), None),
    "floating targets": (bce, draw(N), classes(N, most=2).float(), None),
    "regression": (F.mse_loss, draw(N, C), draw(N, C), None),
    "a tuple": (F.cross_entropy, (draw(N, C), draw(N, C)), classes(N), None),
    "two targets": (F.cross_entropy, draw(N, C), (classes(N), classes(N)), None),
    "other shapes": (last, draw(N * T, C), classes(N, T), None),
    "a loss that refuses": (lambda o, t: 1 / 0, draw(N, C), classes(N), None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_accuracy_is_the_share_of_right_answers_or_missing(case):
    loss, outputs, targets, answer = CASES[case]
    found = Answers(loss).count(outputs, targets)
    if answer is None:
        assert found is None or found.isnan().all()
        by_class = Answers(loss).by_class(outputs, targets)
        assert by_class is None or by_class.isnan().all()
        return
    expected = (answer(outputs).long() == targets.view(answer(outputs).shape)).sum().item()
    assert found.tolist() == [expected, targets.numel()]
    assert 0 < expected < targets.numel()
    constant = Answers(loss).by_class(outputs, targets)
    assert constant.tolist() == [(targets == label).sum().item() for label in range(len(constant))]


@pytest.mark.parametrize("ignored", [-100, 1, 255])
@pytest.mark.parametrize("shape", [(N,), (N, T)])
def test_answers_that_the_loss_leaves_out_are_not_counted(ignored, shape):
    def loss(outputs, targets):
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=ignored)

    outputs, targets = draw(*shape, C), some_ignored(*shape, value=ignored)
    asked = targets != ignored
    right = ((outputs.argmax(-1) == targets) & asked).sum().item()
    assert Answers(loss).count(outputs, targets).tolist() == [right, asked.sum().item()]
    assert Answers(loss).count(outputs, torch.full(shape, ignored)).tolist() == [0, 0]
    expected = [((targets == label) & asked).sum().item() for label in range(C)]
    assert Answers(loss).by_class(outputs, targets).tolist() == expected
    assert Answers(loss).by_class(outputs, torch.full(shape, ignored)).tolist() == [0] * C


def test_a_label_that_is_no_class_has_no_accuracy_unless_the_loss_leaves_it_out():
    def loss(outputs, targets):
        return -outputs.log_softmax(1).gather(1, targets.clamp(0, C - 1)[:, None]).mean()

    assert Answers(loss).count(draw(N, C), classes(N)).isfinite().all()
    assert Answers(loss).count(draw(N, C), classes(N) + 1).isnan().all()


class Tokens(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, width), nn.Linear(width, 6)

    def forward(self, ids):
        return self.head(torch.tanh(self.embed(ids)))


def _tokens(norm):
    ids = torch.randint(6, (32, 6))
    targets = ids.roll(1, 1)
    targets[:10, 3:] = -100
    return Tokens(), last, (ids, targets), (ids[:19], targets[:19])


def _binary(norm):
    x = torch.randn(40, 3)
    y = (x[:, 0] > 0).long()
    return nn.Linear(3, 1), bce, (x, y), (x[:19], y[:19])


SETTINGS = {"steps": 4, "save_every": 2, "eval_every": 2, "batch_size": 8, "lr": 0.5}


@pytest.mark.parametrize("problem", [_tokens, _binary])
def test_training_and_evaluation_record_the_accuracy_by_hand(tmp_path, problem):
    """The last test batch is incomplete, and batches have different numbers of answers."""
    run = bns.train(problem, "none", output=tmp_path / "run", **SETTINGS)
    table = bns.read_table(run.train_path).set_index("step")
    for step in (0, 2, 4):
        point = bns.load_point(run, step)
        right, asked = _by_hand(point.model(point.inputs), point.targets)
        assert table["accuracy"][step] == pytest.approx(right / asked)
        tests = [_by_hand(point.model(x), y) for x, y in point.problem.test_batches()]
        right, asked = map(sum, zip(*tests, strict=True))
        assert table["test_accuracy"][step] == pytest.approx(right / asked)


def _by_hand(outputs, targets):
    answers = outputs.argmax(-1) if outputs.dim() == 3 else (outputs[:, 0] > 0).long()
    asked = targets != -100
    return ((answers == targets) & asked).sum().item(), asked.sum().item()


def _regression(norm):
    x = torch.randn(24, 3)
    return nn.Linear(3, 1), lambda o, t: F.mse_loss(o[:, 0], t.float()), (x, (3 * x[:, 0]).long()), (x, x[:, 0].long())


def test_a_problem_without_answers_has_no_accuracy(tmp_path):
    table = bns.read_table(bns.train(_regression, "none", output=tmp_path / "run", **SETTINGS).train_path)
    assert table["accuracy"].isna().all()
    assert table["test_accuracy"].isna().all()
    assert math.isfinite(table["test_loss"].iloc[-1])


@pytest.mark.parametrize(("outputs", "targets"), [(draw(N), classes(N, most=2)), (draw(N, C), classes(N))])
def test_a_lack_of_memory_is_not_taken_for_a_loss_without_answers(outputs, targets):
    def loss(outputs, targets):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        Answers(loss).count(outputs, targets)
