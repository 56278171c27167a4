"""float32 is float32: nothing is rounded to TF32 or bfloat16 while a network trains or is measured."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
import torch
from helpers import ENVIRONMENT
from torch import nn
from torch.nn import functional as F

import bnsmooth_cli as bns
from bnsmooth_cli.networks.precision import full_precision
from bnsmooth_cli.networks.undisturbed import undisturbed

CUDNN, CUDA = torch.backends.cudnn, torch.backends.cuda


def _settings() -> dict[str, object]:
    """What PyTorch says of its precision, by both of its ways; without what it refuses to say as the two disagree."""
    ways = {"products": torch.get_float32_matmul_precision, "convolutions": lambda: CUDNN.allow_tf32}
    if hasattr(CUDNN, "conv"):
        ways |= {"conv": lambda: CUDNN.conv.fp32_precision, "matmul": lambda: CUDA.matmul.fp32_precision}
    found: dict[str, object] = {}
    for name, read in ways.items():
        with suppress(RuntimeError):
            found[name] = read()
    return found


def _legacy() -> None:
    CUDNN.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")


def _newer() -> None:
    for library in (CUDNN, CUDA, torch.backends.mkldnn):
        for name in {"conv", "rnn", "matmul"} & {*dir(library)}:
            getattr(library, name).fp32_precision = "tf32"


@pytest.fixture(params=[_legacy, _newer], ids=["legacy", "newer"])
def reduced(request):
    if request.param is _newer and not hasattr(CUDNN, "conv"):
        pytest.skip("PyTorch 2.9 and newer")
    before = _settings()
    request.param()
    yield _settings()
    torch.set_float32_matmul_precision(before["products"])
    if hasattr(CUDNN, "conv"):
        for name in ("conv", "rnn"):
            getattr(CUDNN, name).fp32_precision = before["conv"]
    CUDNN.allow_tf32 = before["convolutions"]


def _is_full(settings: dict[str, object]) -> bool:
    newer = {settings.get("conv", "ieee"), settings.get("matmul", "ieee")}
    return (settings.get("products"), settings.get("convolutions"), newer) == ("highest", False, {"ieee"})


def test_a_measurement_is_in_full_precision_and_leaves_the_settings_of_the_user(reduced):
    torch.manual_seed(0)
    model, seen = nn.Linear(4, 3), []
    x, y = torch.randn(8, 4), torch.randint(3, (8,))

    def loss() -> torch.Tensor:
        seen.append(_settings())
        return F.cross_entropy(model(x), y)

    point = bns.Point.of(model, loss, lr=0.1)
    seen.clear()
    bns.smoothness(point)
    assert seen
    assert all(map(_is_full, seen)), seen[0]
    assert _settings().items() >= reduced.items()


def test_training_and_evaluation_are_in_full_precision(reduced, tmp_path, monkeypatch):
    seen = []
    call = nn.Conv2d.forward

    def forward(module, *args):
        if len(args[0]) > 3:  # the memory of a step is estimated from two and three samples
            seen.append((module.training, _is_full(_settings())))
        return call(module, *args)

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    bns.train(preset="quick", problem="vgg", norm="batch", steps=2, eval_every=1, output=tmp_path / "run")
    assert {*seen} == {(True, True), (False, True)}
    assert _settings().items() >= reduced.items()


def test_settings_come_back_after_an_error(reduced):
    def refuse() -> None:
        with full_precision():
            raise KeyError(_settings())

    with pytest.raises(KeyError) as error:
        refuse()
    assert _is_full(error.value.args[0])
    assert _settings().items() >= reduced.items()


def test_threads_that_measure_at_the_same_time_leave_torch_as_it_was():
    entered, leave = threading.Event(), threading.Event()

    def measure():
        with undisturbed(nn.Linear(2, 1)):
            entered.set()
            leave.wait(10)

    before = torch.autocast.__enter__, nn.SyncBatchNorm.forward, torch.backends.cudnn.deterministic
    thread = threading.Thread(target=measure)
    with undisturbed(nn.Linear(2, 1)):
        thread.start()
        entered.wait(0.2)
    leave.set()
    thread.join()
    assert before == (torch.autocast.__enter__, nn.SyncBatchNorm.forward, torch.backends.cudnn.deterministic)


LOOP = """
import torch
import bnsmooth_cli as bns
from torch import nn
from torch.nn import functional as F
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).bfloat16()
x, y = torch.randn(16, 4).bfloat16(), torch.randint(2, (16,))
for step in range(3):
    point = bns.Point.of(model, lambda: F.cross_entropy(model(x).float(), y), lr=0.1, step=step, run="mine")
    bns.landscape(point)
"""


def test_a_remark_about_a_network_is_made_once_and_at_the_users_line(tmp_path):
    (tmp_path / "loop.py").write_text(LOOP)
    shown = subprocess.run(
        [sys.executable, "loop.py"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stderr
    first, line = shown.splitlines()
    assert re.search(r"loop\.py:9: Remark: parameters of bfloat16 are measured in float32$", first)
    assert line.strip().startswith("point = bns.Point.of(")
