"""The monitor: it leaves training alone, keeps to its budget, and its tables survive failures, kills and resuming."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ENVIRONMENT
from torch import nn
from torch.nn import functional as F

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, Remark
from bnsmooth_cli.monitoring import monitor as monitoring
from bnsmooth_cli.storage import event_files, tables

KINDS = ["landscape", "smoothness", "smoothness-update", "landscape-random", "smoothness-by-layer", "spectrum",
         "spectrum-by-layer", "spectrum-density", "ics", "activations"]  # fmt: skip


class Net(nn.Module):
    """A network that keeps a count and a running number in its attributes, as metrics do."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.ReLU(), nn.Linear(6, 3))
        self.calls, self.seen, self.sizes = 0, torch.zeros(()), []

    def forward(self, x):
        self.calls += 1
        self.seen += len(x)
        self.sizes.append(len(x))
        return self.head(self.body(x))


class Loop:
    """A training loop with momentum, a schedule and random data; `run` trains it with a monitor or without."""

    def __init__(self, dropout=0.0, schedule=lambda step: 0.9**step):
        torch.manual_seed(0)
        np.random.seed(0)
        self.model = Net(dropout)
        self.model.body[4].eval()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)

    def loss(self, x, y):
        return F.cross_entropy(self.model(x), y)

    def batch(self):
        return torch.randn(16, 4), torch.randint(3, (16,))

    def monitor(self, folder, **options):
        options = {"optimizer": self.optimizer, "budget": None, "every": 2, **options}
        return bns.Monitor(self.model, options.pop("loss", self.loss), folder=folder, **options)

    def run(self, steps, monitor=None, before=lambda *batch: None):
        for _ in range(steps):
            x, y = self.batch()
            if monitor is not None:
                monitor.step(x, y)
            before(x, y)
            self.optimizer.zero_grad()
            self.loss(x, y).backward()
            self.optimizer.step()
            self.schedule.step()

    def state(self):
        model, optimizer = self.model, self.optimizer.state_dict()
        return {
            "state": [*model.state_dict().values()],
            "gradients": [p.grad for p in model.parameters()],
            "optimizer": [v for held in optimizer["state"].values() for v in held.values()],
            "random": [torch.rand(2), torch.tensor(np.random.rand())],  # in tests, beartype draws from `random`
            "attributes": [torch.tensor(model.calls), model.seen, torch.tensor(model.sizes)],
            "modes": [torch.tensor([module.training for module in model.modules()])],
            "hooks": [torch.tensor([len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()])],
        }


def assert_same(one, other):
    for name in one:
        assert all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True)), name


def test_training_does_not_change_by_a_bit(tmp_path):
    finals = []
    for kinds in ([], KINDS):
        loop = Loop()
        if kinds:
            with loop.monitor(tmp_path / "mine", measures=kinds) as monitor:
                loop.run(3, monitor)
        else:
            loop.run(3)
        finals.append(loop.state())
    assert_same(*finals)


def test_rows_are_those_of_the_measurements_at_the_point(tmp_path):
    measures = {
        "landscape": bns.landscape, "smoothness": bns.smoothness, "ics": bns.ics, "spectrum": bns.spectrum,
        "smoothness-by-layer": bns.smoothness_by_layer, "activations": bns.activations,
    }  # fmt: skip
    loop, rows, step = Loop(), {kind: [] for kind in measures}, 0

    def measure(x, y):
        nonlocal step
        if step % 2 == 0:
            names = {"run": "mine", "norm": "batch", "seed": 3}
            point = bns.Point.of(loop.model, lambda: loop.loss(x, y), optimizer=loop.optimizer, step=step, **names)
            for kind, function in measures.items():
                rows[kind].append(function(point))
        step += 1

    with loop.monitor(tmp_path / "mine", measures=[*measures], norm="batch", seed=3) as monitor:
        loop.run(5, monitor, before=measure)
        for kind, parts in rows.items():
            columns = [name for name in parts[0] if name != "quantiles" and "change" not in name]
            if kind == "activations":  # these compare a step with those before it
                columns = [name for name in columns if name != "wasserstein" and "drift" not in name]
            found = monitor.rows(kind)
            assert found["step"].unique().tolist() == [0, 2, 4]
            expected = pd.concat(parts, ignore_index=True)
            for rows_of in (found, expected):
                lists = rows_of.columns.intersection(["eigenvalues", "residuals"])
                rows_of[lists] = rows_of[lists].map(tuple)
            pd.testing.assert_frame_equal(found[columns], expected[columns], check_exact=True, check_dtype=False)
    moved = bns.read_table(tmp_path / "mine/activations.parquet").groupby("step")["mean_change"].count()
    assert moved[0] == 0
    assert moved[2] > 0
    scheduled = bns.read_table(tmp_path / "mine/smoothness.parquet")
    assert {*scheduled["lr"]} == {0.05}
    assert scheduled["step_lr"].tolist() == pytest.approx([0.05, 0.05 * 0.81, 0.05 * 0.6561])


def test_autocast_a_scaler_and_accumulation_make_no_difference(tmp_path):
    def train(monitored):
        loop, scaler = Loop(), torch.amp.GradScaler("cpu")
        monitor = loop.monitor(tmp_path / "mine", measures=["smoothness"], every=1) if monitored else None
        for _ in range(3):
            for part in range(2):
                x, y = loop.batch()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = loop.loss(x, y) / 2
                    if monitor is not None and part == 1:
                        monitor.step(x, y)  # with one gradient accumulated, and the graph of the next one alive
                scaler.scale(loss).backward()
            scaler.step(loop.optimizer)
            scaler.update()
            loop.optimizer.zero_grad(set_to_none=False)
        return loop.state(), monitor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Remark)  # autocast is off in measurements
        (plain, _), (monitored, monitor) = train(False), train(True)
    assert_same(plain, monitored)
    rows = monitor.rows("smoothness")
    assert rows["step"].tolist() == [0, 1, 2]
    loop = Loop()
    _, (x, y) = loop.batch(), loop.batch()
    expected = bns.smoothness(bns.Point.of(loop.model, lambda: loop.loss(x, y), optimizer=loop.optimizer))
    assert rows["beta"][0] == expected["beta"][0]


def test_options_of_a_measure_are_those_of_its_command(tmp_path):
    loop = Loop()
    with loop.monitor(tmp_path / "mine", measures={"landscape": {"alphas": [1.0]}, "spectrum": {"top": 2}}) as monitor:
        loop.run(1, monitor)
    assert monitor.rows("landscape")["alpha"].tolist() == [0.0, 1.0]
    assert len(monitor.rows("spectrum")["eigenvalues"][0]) == 2


def test_numbers_may_be_numpys(tmp_path):
    loop = Loop()
    with loop.monitor(tmp_path / "mine", optimizer=None, lr=np.float32(0.25), every=np.int64(1)) as monitor:
        loop.run(1, monitor)
    assert bns.read_table(tmp_path / "mine/smoothness.parquet")["lr"].tolist() == [0.25]


def test_a_model_with_dropout_is_measured_in_eval_mode(tmp_path):
    loop = Loop(dropout=0.5)
    with pytest.raises(InputError, match="Dropout"), loop.monitor(tmp_path / "mine") as monitor:
        loop.run(1, monitor)
    loop = Loop(dropout=0.5)
    with loop.monitor(tmp_path / "mine", objective="eval") as monitor:
        loop.run(1, monitor)
    assert sorted(path.name for path in tmp_path.glob("mine/*.parquet")) == [
        "landscape.eval.parquet",
        "smoothness.eval.parquet",
    ]
    x, y = Loop(dropout=0.5).batch()
    other = Loop(dropout=0.5).model.eval()
    assert monitor.rows("smoothness")["loss"][0] == pytest.approx(F.cross_entropy(other(x), y).item())


class Clock:
    """A clock that only the loop and the loss advance."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(monitoring.time, "perf_counter", lambda: self.now)

    def loss(self, function):
        def timed(*batch):
            self.now += 1.0
            return function(*batch)

        return timed


def budgeted(monkeypatch, folder, steps, seconds, measures, budget=0.1):
    """A loop whose steps and evaluations of the loss take known times. Returns the monitor and its largest share."""
    loop, clock, shares = Loop(), Clock(monkeypatch), []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with loop.monitor(folder, loss=clock.loss(loop.loss), budget=budget, every=1, measures=measures) as monitor:
            for _ in range(steps):
                loop.run(1, monitor)
                shares.append(monitor.share)
                clock.now += seconds
    return monitor, shares, [str(w.message) for w in said if w.category is Remark]


def test_measuring_stays_within_its_share_of_the_time(tmp_path, monkeypatch):
    monitor, shares, said = budgeted(monkeypatch, tmp_path / "mine", 60, 40.0, ["smoothness"])
    measured = monitor.rows("smoothness")["step"].tolist()
    assert measured[0] == 0
    assert 5 < len(measured) < 60
    after = next(step for step, share in enumerate(shares) if share <= 0.1)  # the first measurement is paid off
    assert max(shares[after:]) <= 0.1
    assert shares[-1] > 0.07  # and the budget is used
    assert len(said) == 2
    assert "smoothness is skipped at step 1" in said[0]
    assert "10.0% is the budget" in said[0]
    written = tables.read_provenance(tmp_path / "mine/smoothness.parquet")
    assert (written["every"], written["budget"]) == (1, 0.1)
    assert sorted([*measured, *written["skipped"]]) == [*range(60)]
    assert f"{len(measured)} measured, {60 - len(measured)} skipped" in said[1]
    assert said[1].startswith(f"{tmp_path / 'mine'}: smoothness: ")


def test_a_cheap_measure_runs_where_an_expensive_one_is_skipped_and_does_not_starve_it(tmp_path, monkeypatch):
    measures = {"landscape": {"alphas": [1.0]}, "landscape-random": {"points": 60}}
    monitor, shares, _ = budgeted(monkeypatch, tmp_path / "mine", 80, 60.0, measures)
    cheap, expensive = (monitor.rows(kind)["step"].nunique() for kind in measures)
    assert cheap > 2 * expensive > 4
    after = next(step for step, share in enumerate(shares) if share <= 0.1)
    assert max(shares[after:]) <= 0.1


def test_without_a_budget_nothing_is_skipped(tmp_path, monkeypatch):
    monitor, shares, said = budgeted(monkeypatch, tmp_path / "mine", 4, 1.0, ["landscape"], budget=None)
    assert monitor.rows("landscape")["step"].unique().tolist() == [0, 1, 2, 3]
    assert shares[-1] > 0.5
    assert not said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 0}, "every 0: give a whole number"),
        ({"every": 2.5}, "every 2.5: give a whole number"),
        ({"budget": "much"}, "budget much: give a share"),
        ({"budget": 0.0}, "budget 0.0: give a share"),
        ({"budget": 1.5}, "budget 1.5: give a share"),
        ({"start_step": -1}, "start_step -1: give"),
        ({"measures": []}, "measures: name at least one"),
        ({"measures": ["smothness"]}, "unknown measure 'smothness': did you mean 'smoothness'"),
        ({"measures": ["train"]}, "unknown measure 'train'"),
        ({"measures": ["ics", "ics"]}, "measures: ics is named twice"),
        ({"measures": ["surface"]}, "surface needs the checkpoints of a run"),
        ({"measures": {"ics": {"top": 2}}}, "ics does not have these options"),
        ({"measures": {"spectrum": {"top": 0}}}, "--top 0"),
        ({"measures": {"landscape": {"objective": "eval"}}}, "landscape has the monitor's objective"),
        ({"measures": ["ics"], "objective": "eval"}, "ics does not have these options or the objective"),
        ({"objective": "test"}, "objective test: a training loop"),
        ({"loss": 3.0}, "loss: is a float"),
        ({"optimizer": None, "lr": "fast"}, "lr: is a str; give a number"),
        ({"norm": nn.BatchNorm1d}, "norm: is a type; give the name"),
        ({"run": 3}, "run: is a int; give a name"),
        ({"wandb": True}, "wandb: is a bool; give a project"),
        ({"measures": 3}, "measures: is a int; give names"),
        ({"objective": 3}, "objective: is a int; give batch or eval"),
        ({"optimizer": None}, "lr: give the learning rate of your loop"),
        ({"wandb": "a/b/c"}, "--wandb a/b/c"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, options, said):
    with pytest.raises(InputError) as error:
        Loop().monitor(tmp_path / "mine", **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mine").exists()


def test_wrapped_models_are_measured_as_the_model_inside(tmp_path):
    for name in ("plain", "wrapped"):
        loop = Loop()
        if name == "wrapped":
            loop.model = nn.DataParallel(loop.model)
        with loop.monitor(tmp_path / name, run="mine") as monitor:
            loop.run(3, monitor)
    pd.testing.assert_frame_equal(
        *(bns.read_table(tmp_path / name / "smoothness.parquet") for name in ("plain", "wrapped"))
    )


def test_a_mistake_of_the_set_up_is_raised_and_leaves_the_folder_free(tmp_path):
    loop = Loop()
    loop.loss = lambda x, y: F.cross_entropy(F.dropout(loop.model(x)), y)
    monitor = loop.monitor(tmp_path / "mine")
    with pytest.raises(InputError, match="the loss gives another output each time"):
        loop.run(1, monitor)
    with pytest.raises(InputError, match="is closed"):
        monitor.step(*loop.batch())
    loop = Loop()
    monitor = loop.monitor(tmp_path / "mine", measures=["landscape", "spectrum-ggn"])
    with pytest.raises(InputError, match="curvature ggn"):
        loop.run(1, monitor)
    assert not [*tmp_path.glob("mine/*.parquet")]
    loop = Loop()
    with loop.monitor(tmp_path / "mine") as monitor:
        loop.run(1, monitor)
    assert monitor.rows("landscape")["step"].unique().tolist() == [0]


def test_a_later_failure_is_recorded_and_training_continues(tmp_path):
    def train(folder=None):
        loop = Loop()
        monitor = loop.monitor(folder, every=1, loss=lambda x, y: loop.loss(x, y) * (1 // (step not in (2, 3))))
        for step in range(6):  # noqa: B007  which the loss reads
            loop.run(1, monitor)
        monitor.close()
        return loop.state(), monitor

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        state, monitor = train(tmp_path / "mine")
    plain = Loop()
    plain.run(6)
    assert_same(state, plain.state())
    assert monitor.rows("smoothness")["step"].tolist() == [0, 1, 4, 5]
    (reason,) = tables.read_provenance(tmp_path / "mine/smoothness.parquet")["failed"].items()
    assert reason[1] == [2, 3]
    assert "ZeroDivisionError" in reason[0]
    texts = [str(w.message) for w in said]
    assert sum("step 2 is not measured, and training continues" in text for text in texts) == 2  # once for each table
    assert not any("step 3 is" in text for text in texts)
    assert texts[-1].startswith(f"{tmp_path / 'mine'}: landscape: 4 measured, 2 failed; smoothness: 4 measured, 2")


def test_a_learning_rate_of_zero_is_no_mistake(tmp_path):
    loop = Loop(schedule=lambda step: min(1.0, step / 2))
    with pytest.warns(Remark, match="the learning rate, the unit of step lengths, is 0"), \
            loop.monitor(tmp_path / "mine", every=1) as monitor:  # fmt: skip
        loop.run(3, monitor)
    rows = monitor.rows("smoothness")
    assert rows[["step", "lr", "step_lr"]].to_numpy().tolist() == [[1, 0.05, 0.025], [2, 0.05, 0.05]]
    early = Loop(schedule=lambda step: 0.0)
    with pytest.raises(InputError, match="lr: is 0 at this step"):
        bns.Point.of(early.model, lambda: early.loss(*early.batch()), optimizer=early.optimizer)


def test_an_interrupt_passes_and_leaves_the_model_as_it_was(tmp_path):
    loop = Loop()
    calls = 0

    def loss(x, y):
        nonlocal calls
        calls += 1
        if calls == 12:  # on the line, where the parameters are moved
            raise KeyboardInterrupt
        return loop.loss(x, y)

    before = copy.deepcopy(loop.state())
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt), loop.monitor(tmp_path / "mine", loss=loss) as monitor:
        monitor.step(*loop.batch())
    assert_same({name: before[name] for name in ("state", "modes", "attributes")}, loop.state())


def test_a_full_folder_is_not_written_over_and_is_continued(tmp_path):
    loop = Loop()
    with loop.monitor(tmp_path / "mine", every=1, measures=["activations"]) as monitor:
        loop.run(4, monitor)
    before = (tmp_path / "mine/activations.parquet").read_bytes()
    with pytest.raises(InputError, match=r"activations.parquet: is there, with steps up to 3; give another folder, or"):
        loop.monitor(tmp_path / "mine", measures=["activations"])
    with pytest.raises(InputError, match=r"is of other runs \(norm own, not layer\); give another folder"):
        loop.monitor(tmp_path / "mine", measures=["activations"], norm="layer", start_step=4)
    assert (tmp_path / "mine/activations.parquet").read_bytes() == before
    with pytest.warns(Remark, match="keeps its steps up to 3, and is continued after them"), \
            loop.monitor(tmp_path / "mine", every=1, measures=["activations"], start_step=2) as monitor:  # fmt: skip
        loop.run(4, monitor)
    rows = bns.read_table(tmp_path / "mine/activations.parquet")
    assert rows["step"].unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert rows.loc[rows["step"] == 4, "mean_change"].notna().all()  # since step 3, of the run before
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").touch()
    with pytest.raises(InputError, match="is a run of bnsmooth"):
        loop.monitor(tmp_path / "run")


def test_a_step_that_a_resumed_loop_measures_is_not_skipped(tmp_path):
    loop = Loop()
    with pytest.warns(Remark, match="is skipped at step"), \
            loop.monitor(tmp_path / "mine", every=1, measures=["landscape"], budget=1e-9) as monitor:  # fmt: skip
        loop.run(6, monitor)
    before = tables.read_provenance(tmp_path / "mine/landscape.parquet")
    assert len(before["skipped"]) >= 4
    with loop.monitor(tmp_path / "mine", every=1, measures=["landscape"], start_step=4) as monitor:
        loop.run(4, monitor)
    after = tables.read_provenance(tmp_path / "mine/landscape.parquet")
    assert {4, 5, 6, 7} <= {*after["steps"]["mine"]}
    assert after["skipped"] == [step for step in before["skipped"] if step < 4]


def test_a_second_monitor_on_a_folder_is_refused(tmp_path):
    loop = Loop()
    with loop.monitor(tmp_path / "mine"), pytest.raises(InputError, match="close the monitor that does"):
        loop.monitor(tmp_path / "mine")


ENDLESS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_monitor import Loop
loop = Loop()
monitor = loop.monitor(sys.argv[2], every=1, measures=["landscape", "activations"], tensorboard=True)
while True:
    loop.run(1, monitor)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_its_points_and_is_continued(tmp_path):
    folder, tests = tmp_path / "mine", str(Path(__file__).parent)
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, tests, str(folder)], env=ENVIRONMENT)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and len(measured_steps(folder)) < 4:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    steps = measured_steps(folder)
    assert len(steps) >= 4
    assert steps == [*range(len(steps))]
    loop = Loop()
    measures = ["landscape", "activations"]
    with pytest.warns(Remark, match="is continued after them"), \
            loop.monitor(folder, every=1, measures=measures, start_step=2, tensorboard=True) as monitor:  # fmt: skip
        loop.run(len(steps) + 3, monitor)
    for kind in measures:
        found = monitor.rows(kind)["step"].unique().tolist()
        assert found == [*range(len(steps) + 5)]
        grown = (folder / f"{kind}.tfevents").read_bytes()
        event_files.tensorboard(folder / f"{kind}.parquet")
        assert (folder / f"{kind}.tfevents").read_bytes() == grown
    assert not [*folder.glob(".*.points")]


def measured_steps(folder):
    path = folder / "landscape.parquet"
    return bns.read_table(path)["step"].unique().tolist() if path.exists() else []


def test_its_tables_are_shown_and_plotted(cli, tmp_path):
    loop = Loop()
    with loop.monitor(tmp_path / "mine") as monitor:
        loop.run(5, monitor)
    assert repr(monitor).splitlines()[:3] == [
        f"Monitor {tmp_path / 'mine'}",
        "  of          Net, every 2 steps",
        "  landscape   3 measured",
    ]
    code, out, err = cli("show mine/smoothness.parquet")
    assert (code, err) == (0, "")
    assert re.search("settings +problem loop:Net, norm own, lr 0.05, seed 0\n", out)
    assert re.search("measured +3 steps: 0, 2, 4\n", out)
    for kind in ("smoothness", "landscape"):
        code, out, err = cli(f"plot mine/{kind}.parquet -o {kind}.png")
        assert (code, err) == (0, "")
        assert (tmp_path / f"{kind}.png").exists()


DISTRIBUTED = """
import sys, torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
import bnsmooth_cli as bns
rank, monitored = int(sys.argv[2]), sys.argv[4] == "True"
dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}/meet-{monitored}", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
parallel = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
if monitored and rank == 0:
    monitor = bns.Monitor(parallel, lambda x, y: F.cross_entropy(parallel(x), y), optimizer=optimizer, every=2,
                          budget=None, folder=f"{sys.argv[3]}/mine")
torch.manual_seed(rank)
for step in range(5):
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    if monitored and rank == 0:
        monitor.step(x, y)
    optimizer.zero_grad()
    F.cross_entropy(parallel(x), y).backward()
    optimizer.step()
torch.save(model.state_dict(), f"{sys.argv[3]}/{monitored}-{rank}.pt")
"""


@pytest.mark.slow
def test_one_of_several_processes_measures_and_training_does_not_change(tmp_path):
    for monitored in (False, True):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", DISTRIBUTED, "-", str(rank), str(tmp_path), str(monitored)],
                env={**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}, stdout=subprocess.PIPE, text=True,
            )
            for rank in range(2)
        ]  # fmt: skip
        for process in processes:
            process.communicate(timeout=120)
        assert [process.returncode for process in processes] == [0, 0]
    for rank in range(2):
        one, other = (torch.load(tmp_path / f"{monitored}-{rank}.pt") for monitored in (False, True))
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert bns.read_table(tmp_path / "mine/smoothness.parquet")["step"].tolist() == [0, 2, 4]
