"""Checkpoints are written beside training: whole, in order, one at a time, and no error of a write is lost."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from helpers import ENVIRONMENT, SMALL

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, problems, stopping
from bnsmooth_cli.config import resolve
from bnsmooth_cli.storage import runs, tables
from bnsmooth_cli.storage.runs import open_run, read_checkpoint
from bnsmooth_cli.training.run import Observer, train_config
from bnsmooth_cli.training.saving import Saver, _Copy
from bnsmooth_cli.training.trajectory import Trajectory

CONFIG = resolve("dln", norm="batch", **SMALL["dln"])


def train(path, observer=None, **settings):
    @contextmanager
    def observe(run, problem):
        yield observer or Observer()

    return train_config(CONFIG.changed(**settings), path, device="cpu", observe=observe)


def saved(state):
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


@pytest.mark.parametrize(("problem", "momentum"), [("vgg", 0.9), ("dln", 0.9), ("dln", 0.0)])
def test_the_copy_of_a_state_has_its_bytes_and_memory_of_its_own(problem, momentum):
    trajectory = Trajectory(problems.build(resolve(problem, norm="batch", momentum=momentum, **SMALL[problem])))
    copy, state = _Copy(), trajectory.state()
    first, bytes_before = copy.of(state), saved(state)
    assert saved(first) == bytes_before
    trajectory.advance()
    assert saved(first) == bytes_before
    places = {name: tensor.data_ptr() for name, tensor in first["model"].items()}
    second = copy.of(trajectory.state())
    assert saved(second) == saved(trajectory.state()) != bytes_before
    assert {name: tensor.data_ptr() for name, tensor in second["model"].items()} == places  # the same memory again


def test_the_copy_of_a_state_keeps_whatever_a_users_network_has():
    whole = torch.arange(12.0)
    state = {
        "model": {
            "views": whole[::2], "same": whole[::2], "other": whole[3:], "scalar": torch.tensor(3),
            "empty": torch.zeros(0), "empty too": torch.zeros(0),
            "half": torch.ones(2, dtype=torch.bfloat16), "expanded": torch.ones(1).expand(4),
            "sparse": torch.eye(3).to_sparse(), "extra": {"names": ["a"], "deep": [torch.ones(2), (torch.zeros(1),)]},
        },
        "velocity": [],
    }  # fmt: skip
    copy = _Copy()
    for _ in range(2):
        assert saved(copy.of(state)) == saved(state)
        state["model"]["extra"]["deep"].insert(0, torch.ones(5))  # sizes change, and the number of tensors


def test_training_continues_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    moved_on, write = threading.Event(), runs.write_checkpoint

    class Watching(Observer):
        def look(self, trajectory):
            moved_on.set()

    def slow(run, step, state, **more):
        assert step != 2 or moved_on.wait(20), "training waited for the checkpoint"
        write(run, step, state, **more)

    monkeypatch.setattr(runs, "write_checkpoint", slow)
    run = train(tmp_path / "run", Watching([3]))
    whole = train(tmp_path / "whole")
    for step, path in whole.checkpoints().items():
        mine, theirs = read_checkpoint(run.checkpoint_path(step))[1], read_checkpoint(path)[1]
        assert all(torch.equal(mine["model"][name], value) for name, value in theirs["model"].items())


def test_a_save_is_observed_then_the_table_then_the_checkpoint_and_one_at_a_time(tmp_path, monkeypatch):
    calls, write_table, write = [], tables.write_table, runs.write_checkpoint

    class Watching(Observer):
        def keep(self):
            calls.append("keep")

    def table(*args, **more):
        calls.append("table")
        write_table(*args, **more)
        time.sleep(0.02)

    def checkpoint(*args, **more):
        calls.append("checkpoint")
        time.sleep(0.02)
        write(*args, **more)
        calls.append("written")

    monkeypatch.setattr(tables, "write_table", table)
    monkeypatch.setattr(runs, "write_checkpoint", checkpoint)
    train(tmp_path / "run", Watching())
    saves = [call for call in calls if call != "keep"]
    assert saves == ["table", "checkpoint", "written"] * 4 + ["table"]
    kept = [i for i, call in enumerate(calls) if call == "keep"]
    tables_begun = [i for i, call in enumerate(calls) if call == "table"]
    assert all(keep < begun for keep, begun in zip(kept, tables_begun, strict=False))


@pytest.mark.parametrize("step", [0, 2, 6])
def test_an_error_of_a_write_ends_the_training_and_the_run_is_not_finished(tmp_path, monkeypatch, step):
    write = runs.write_checkpoint

    def full(run, at, state, **more):
        if at == step:
            raise InputError("no space")
        write(run, at, state, **more)

    monkeypatch.setattr(runs, "write_checkpoint", full)
    with pytest.raises(InputError, match="no space"):
        train(tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.outcome() is None
    assert [*run.checkpoints()] == [*range(0, step, 2)]
    monkeypatch.undo()
    train(tmp_path / "run")
    assert files(tmp_path / "run") == files(train(tmp_path / "other/run").path)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.p*") if path.is_file()}


def test_an_error_of_a_write_is_told_when_training_is_told_to_stop(tmp_path, monkeypatch):
    def full(run, at, state, **more):
        raise InputError("no space")

    monkeypatch.setattr(runs, "write_checkpoint", full)
    with stopping.heeding(lambda: True), pytest.raises(InputError, match="no space"):
        train(tmp_path / "run", save_every=100)


def test_a_folder_that_is_removed_while_a_checkpoint_is_written_is_named_and_does_not_return(tmp_path, monkeypatch):
    write = runs.write_checkpoint

    def removed(run, at, state, **more):
        shutil.rmtree(run.path)
        write(run, at, state, **more)

    monkeypatch.setattr(runs, "write_checkpoint", removed)
    with pytest.raises(InputError, match="run"):
        train(tmp_path / "run", save_every=3)
    assert not (tmp_path / "run").exists()


def test_when_training_fails_the_checkpoint_that_is_being_written_is_finished(tmp_path, monkeypatch):
    write = runs.write_checkpoint

    class Failing(Observer):
        def look(self, trajectory):
            raise ZeroDivisionError

    def slow(*args, **more):
        time.sleep(0.2)
        write(*args, **more)

    monkeypatch.setattr(runs, "write_checkpoint", slow)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", Failing([1]))
    assert [*open_run(tmp_path / "run").checkpoints()] == [0]
    assert not [*tmp_path.glob("run/checkpoints/.*")]


SLOW = """
import sys, time
from bnsmooth_cli.storage import runs, files
from bnsmooth_cli.cli import main
save = runs.save_tensors
def slow(path, content, **more):
    with files.atomic(path, False) as temporary:
        temporary.write_bytes(b"half")
        time.sleep(60)
runs.save_tensors = slow
main()
"""


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_a_checkpoint(tmp_path):
    words = ["train", "-p", "dln", "--steps", "100000", "--save-every", "90000", "--threads", "1", "-o", "run"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    folder, deadline = tmp_path / "run/checkpoints", time.monotonic() + 60
    while not [*folder.glob(".*.tmp.pt")] and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, "the first signal waits for the checkpoint"
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert (process.returncode != 0, time.monotonic() - begun < 5) == (True, True)
    bns.train("dln", "batch", steps=10, output=tmp_path / "run", force=True)
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.parametrize(("keep", "left"), [(0, [0, 2, 4, 6]), (1, [6]), (2, [4, 6]), (9, [0, 2, 4, 6])])
def test_the_last_checkpoints_are_kept(tmp_path, keep, left):
    run = train(tmp_path / "run", keep=keep)
    assert [*run.checkpoints()] == left
    assert ("keep" in run.config.as_dict()) == (keep > 0)  # files keep their bytes
    whole = train(tmp_path / "other/run")
    assert bns.read_table(run.train_path).equals(bns.read_table(whole.train_path))


def test_no_checkpoint_is_removed_before_the_new_one_is_durable(tmp_path, monkeypatch):
    def full(path, *args, **more):
        if path.name == "000004.pt":
            raise InputError("no space")
        save(path, *args, **more)

    save = runs.save_tensors
    monkeypatch.setattr(runs, "save_tensors", full)
    with pytest.raises(InputError, match="no space"):
        train(tmp_path / "run", keep=1)
    assert [*open_run(tmp_path / "run").checkpoints()] == [2]
    monkeypatch.undo()
    assert [*train(tmp_path / "run", keep=1).checkpoints()] == [6]


def test_checkpoints_of_later_steps_do_not_count_when_training_is_repeated(tmp_path):
    run = train(tmp_path / "run")
    run.train_path.unlink()  # without its rows, training begins again

    class Failing(Observer):
        def look(self, trajectory):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run", Failing([3]), keep=2)
    assert [*run.checkpoints()] == [0, 2, 4, 6]
    assert [*train(tmp_path / "run", keep=2).checkpoints()] == [4, 6]


def test_a_step_before_the_kept_checkpoints_is_refused_with_the_reason(tmp_path):
    run = train(tmp_path / "run", keep=2)
    assert bns.load_point(run, step=5).step == 5
    why = (
        "step 3 is out of reach, because the checkpoints before 4 were removed .--keep.; give steps from 4 to 6, or del"
    )
    with pytest.raises(InputError, match=why):
        bns.load_point(run, step=3)
    with pytest.raises(InputError, match=r"step 7 is out of reach; give steps from 4 to 6$"):
        bns.load_point(run, step=7)
    with pytest.raises(InputError, match=r"step 3 is out of reach; give steps from 4 to 6$"):
        bns.load_point(run.checkpoint_path(4), step=3)


def test_a_saver_without_work_ends_at_once(tmp_path):
    with Saver(runs.prepare(tmp_path / "run", CONFIG)) as saver:
        saver.wait()
