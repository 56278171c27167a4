"""Being told to stop: the results so far are kept, one line says how to continue, and a second signal ends at once."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from attempts import DLN, TRAINED, contents, done, run, wait_for
from complaints import complaints
from helpers import ENVIRONMENT, files
from told import session, working, wrong_end

import bnsmooth_cli as bns
from bnsmooth_cli import stopping
from bnsmooth_cli.measures import measuring
from bnsmooth_cli.storage.runs import open_run
from bnsmooth_cli.training import run as training

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def start(line: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bnsmooth_cli", *shlex.split(line)], cwd=folder, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**ENVIRONMENT, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The status of a process, and the two parts of its only line: what is kept, and the command that continues."""
    _, err = process.communicate(timeout=60)
    line = re.fullmatch(r"bnsmooth: stopped; (.*); continue with: bnsmooth (.*)\n", complaints(err))
    assert line, err
    return process.returncode, line[1], line[2]


def slow(folder: Path, what: str) -> dict[str, str]:
    """The environment of a command that waits for ever where it calls `what`, once the file `waiting` is there."""
    module, _, name = what.partition(":")
    (folder / "sitecustomize.py").write_text(
        f"import pathlib, time, {module}\n"
        "def wait(*_):\n"
        "    pathlib.Path('waiting').touch()\n"
        "    while True: time.sleep(60)\n"
        f"{module}.{name} = wait\n"
    )
    return {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}", "PYTHONDONTWRITEBYTECODE": "1"}


@BOTH
@pytest.mark.slow
def test_training_keeps_its_step_and_continues_with_the_command_that_it_names(tmp_path, number):
    line = f"train {DLN} --norm l1 --steps 4000 --save-every 1000"
    process = start(f"{line} --force -o 'the run'", tmp_path)
    wait_for((tmp_path / "the run/checkpoints/001000.pt").exists)
    process.send_signal(number)
    status, kept, command = end(process)
    assert status == STATUS[number]
    step = int(re.fullmatch("the run keeps step (.*) of 4000", kept)[1])
    assert 1000 < step < 4000
    assert len(bns.read_table(tmp_path / "the run/train.parquet")) == step
    assert command == f"{line} -o 'the run'"
    ended = run(command, tmp_path)
    assert (ended.code, ended.err) == (0, "")
    whole = tmp_path / "whole"
    whole.mkdir()
    done(f"{line} -o 'the run'", whole)
    assert contents(tmp_path / "the run") == contents(whole / "the run")


@BOTH
@pytest.mark.fast(1)
def test_a_signal_during_start_up_ends_the_command(tmp_path, number):
    (tmp_path / "mine.py").write_text(
        "import pathlib, time\ntry:\n    pathlib.Path('waiting').touch(); time.sleep(60)\n"
        "except BaseException:\n    pass\nclass Norm: pass\n"
    )
    line = f"train {DLN} --norm mine:Norm --force"
    process = start(line, tmp_path)
    wait_for((tmp_path / "waiting").exists)
    process.send_signal(number)
    # Nothing has begun: without --force, the command would keep the run that was to be replaced.
    assert end(process) == (STATUS[number], "no file is half written", line)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("moment", [0.15, 0.3, 0.6, 1.2])
def test_a_signal_during_imports_ends_the_command(tmp_path, number, moment):
    process = start(f"train {DLN} --norm l1 --steps 100000", tmp_path)
    time.sleep(moment)
    process.send_signal(number)
    assert end(process)[0] == STATUS[number]


@BOTH
@pytest.mark.fast(1)
def test_a_second_signal_ends_a_slow_step(tmp_path, number):
    (tmp_path / "mine.py").write_text(
        "import pathlib, time, torch\n"
        "def loss(outputs, targets):\n"
        "    if pathlib.Path('run/checkpoints').exists():\n"
        "        pathlib.Path('waiting').touch(); time.sleep(60)\n"
        "    return torch.nn.functional.mse_loss(outputs, targets)\n"
        "def build(norm):\n"
        "    return torch.nn.Linear(3, 1), loss, (torch.randn(9, 3), torch.randn(9, 1))\n"
    )
    process = start("train --problem mine:build --norm none --batch-size 9 --steps 3 -o run", tmp_path)
    wait_for((tmp_path / "waiting").exists)
    process.send_signal(number)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(number)
    begun = time.monotonic()
    status, kept, _ = end(process)
    assert (status, kept) == (STATUS[number], "no file is half written")
    assert time.monotonic() - begun < 2
    assert open_run(tmp_path / "run").checkpoints().keys() <= {0}


@BOTH
@pytest.mark.slow
def test_a_second_signal_ends_a_write_and_leaves_no_part_of_a_file(tmp_path, number):
    process = start(f"train {DLN} --norm l1 -o run", tmp_path, **slow(tmp_path, "os:fsync"))
    wait_for(lambda: (tmp_path / "waiting").exists() and [*tmp_path.rglob(".*.tmp*")])
    process.send_signal(number)
    if process.poll() is None and (tmp_path / "run/config.json").exists():
        process.send_signal(number)
    assert end(process)[0] == STATUS[number]
    assert not [*tmp_path.rglob("*.tmp*")]


@pytest.mark.parametrize(
    "line",
    [
        "plot run/train.parquet -o figure.png",
        "show run/train.parquet --csv table.csv",
        "compare run other",
        pytest.param("report study -o page.html", marks=pytest.mark.slow),
    ],
)
@pytest.mark.fast(1)
def test_a_command_without_a_loop_ends_at_once(tmp_path, line):
    for norm, name in (("batch", "run"), ("none", "other")):
        done(f"train {DLN} --norm {norm} --steps 2 -o {name}", tmp_path)
    if "study" in line:
        done("compare --norms none,batch --problem dln --depth 4 --dimension 4 --samples 30 --steps 2", tmp_path)
    before = contents(tmp_path)
    process = start(line, tmp_path, **slow(tmp_path, "os:fsync"))
    wait_for((tmp_path / "waiting").exists)
    process.send_signal(signal.SIGTERM)
    status, kept, command = end(process)
    assert (status, kept, command) == (143, "no file is half written", line)
    (tmp_path / "waiting").unlink()
    (tmp_path / "sitecustomize.py").unlink()
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_ignored_signals_stay_ignored(tmp_path):
    line = [sys.executable, "-m", "bnsmooth_cli", *TRAINED.split()]
    ignoring = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731 - as in a shell's background job
    process = subprocess.Popen(line, cwd=tmp_path, env=ENVIRONMENT, preexec_fn=ignoring, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert process.returncode == 0


def test_a_second_signal_that_comes_as_the_command_stops_leaves_one_line():
    script = """
import os, signal, threading, time
from bnsmooth_cli import stopping

ending = threading.Event()

def end(number):
    os.write(2, b"ended at once")
    ending.set()
    time.sleep(0.3)

stopping.obey(end)
try:
    with stopping.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        while not stopping.told():
            time.sleep(0.001)
        stopping.stop("kept")
except stopping.Terminated:
    os.kill(os.getpid(), signal.SIGINT)
    ending.wait()
    stopping.over()
    os.write(2, b", and says so again")
"""
    ended = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "ended at once")


# The library, in scripts and notebooks.


def tell(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _handlers():
    """Handlers as in a script, whatever the tests before have left."""
    before = {number: signal.getsignal(number) for number in STATUS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_script_that_trains_is_told_what_is_kept(tmp_path, number, raised):
    settings = {"steps": 60, "depth": 3, "samples": 20, "output": tmp_path / "run", "device": "cpu"}
    with pytest.raises(raised, match=f"{tmp_path}/run keeps step 26 of 60"):
        bns.train("dln", "l1", **settings, progress=lambda step, loss: tell(number) if step == 25 else None)
    resumed = []
    run = bns.train("dln", "l1", **settings, progress=lambda step, loss: resumed.append(step))
    assert min(resumed) == resumed[0] == 26
    assert run.outcome() is not None
    assert not run.stopped()
    with pytest.raises(KeyboardInterrupt):
        tell(signal.SIGINT)


def test_a_second_ctrl_c_interrupts_a_script_at_once(tmp_path):
    def progress(step, loss):
        tell(signal.SIGINT)
        tell(signal.SIGINT)
        raise AssertionError("not interrupted")

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        bns.train("dln", "l1", steps=60, samples=20, output=tmp_path / "run", progress=progress)


def test_a_users_own_handler_is_left_alone(tmp_path):
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    progress = lambda step, loss: tell(signal.SIGTERM)  # noqa: E731
    run = bns.train("dln", "l1", steps=60, depth=3, samples=20, output=tmp_path / "run", progress=progress)
    assert run.outcome() is not None
    assert len(heard) >= 3


def test_a_run_that_a_check_withdraws_is_kept_in_any_thread(tmp_path):
    polls, raised = iter(range(100)), []

    def work():
        with stopping.heeding(lambda: next(polls) == 6), pytest.raises(stopping.Withdrawn) as stop:
            bns.train("dln", "l1", steps=60, depth=3, samples=20, output=tmp_path / "run")
        raised.append(str(stop.value))
        assert not stopping.told()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == [f"{tmp_path}/run keeps step 7 of 60"]
    assert open_run(tmp_path / "run").stopped().keys() == {7}


def test_a_signal_that_comes_after_the_last_step_acts_when_the_block_ends():
    with pytest.raises(stopping.Interrupted, match="all files are complete"):  # noqa: PT012, SIM117
        with stopping.deferred(), stopping.deferred():
            tell(signal.SIGINT)
            assert stopping.told()
    assert not stopping.told()
    with pytest.raises(ValueError, match="another"):  # noqa: PT012, SIM117
        with stopping.deferred():
            tell(signal.SIGTERM)
            raise ValueError("another error")


def test_a_forked_process_ends_at_its_own_signal():
    ready, begin = os.pipe()
    with stopping.deferred():
        child = os.fork()
        if child == 0:
            os.write(begin, b".")
            time.sleep(60)
            os._exit(1)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert not stopping.told()


def test_a_diverging_run_keeps_its_last_checkpoint(tmp_path, monkeypatch):
    steps = 0
    advance = training.Trajectory.advance

    def told_at_overflow(self):
        nonlocal steps
        steps += 1
        record = advance(self)
        if steps == 20:
            tell(signal.SIGINT)
        return record * float("nan") if steps >= 15 else record

    monkeypatch.setattr(training.Trajectory, "advance", told_at_overflow)
    with pytest.raises(KeyboardInterrupt, match="keeps the last checkpoint"):
        bns.train("dln", "l1", steps=60, depth=3, samples=20, save_every=10, output=tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert (run.checkpoints().keys(), run.stopped()) == ({0, 10}, {})


def test_measuring_anew_continues_without_what_was_there_before(tmp_path):
    done(TRAINED, tmp_path)
    (tmp_path / "other").mkdir()
    for line in (TRAINED, "smoothness run --points 3"):
        done(line, tmp_path / "other")
    done("smoothness run --points 4 --at 0,4,8", tmp_path)
    requests = measuring.plan("smoothness", [open_run(tmp_path / "run").source()], options={"points": 3})
    with pytest.raises(KeyboardInterrupt, match="2 of 6 points"):
        measuring.execute(
            requests, force=True, progress=lambda run, step, count, total: tell(signal.SIGINT) if count == 1 else None
        )
    line = done("smoothness run --points 3", tmp_path)
    assert line.err == ""
    expected = (tmp_path / "other/run/smoothness.parquet").read_bytes()
    assert (tmp_path / "run/smoothness.parquet").read_bytes() == expected


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("where", ["", "--jobs 2", "--dask local --jobs 2"])
def test_a_study_keeps_every_run_and_continues(tmp_path, number, whole, where):
    line = "compare --norms none,l1 --problem dln --depth 4 --dimension 4 --samples 30 --lrs 1e-4 --steps 12000"
    line += f" --save-every 500 --measure smoothness --every 500 {where} -o study"
    signals = [(0.0, number)]  # with most of the steps still to come
    saved = "study/runs/*/checkpoints/000500.pt"
    ended = session(line, tmp_path, signals, whole=whole, begun=lambda: any(tmp_path.glob(saved)))
    assert wrong_end(ended, signals) == ""
    assert ended.code == STATUS[number]
    assert re.search("[01] of 2 runs of study are finished and the others are kept; ", ended.err)
    assert [*tmp_path.glob("study/runs/*/checkpoints/stopped-*.pt")]
    assert not [*tmp_path.glob("study/.progress/*")]
    assert not [*tmp_path.rglob("*.tmp*")]
    ended = session(ended.err.partition("continue with: bnsmooth ")[2], tmp_path)
    assert (ended.code, ended.err) == (0, "")
    whole_study = tmp_path / "alone"
    whole_study.mkdir()
    done(line.replace(where, ""), whole_study)
    assert files(tmp_path / "study") == files(whole_study / "study")


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("where", ["--jobs 2", "--dask local --jobs 2"])
def test_a_second_signal_ends_a_study_and_its_workers(tmp_path, number, where):
    line = f"compare --norms none,l1 --problem dln --steps 100000 {where} -o study"
    signals = [(1.0, number), (1.02, number)]
    ended = session(line, tmp_path, signals, whole=True, begun=working(tmp_path / "study"))
    assert wrong_end(ended, signals) == ""
    assert ended.code == STATUS[number]
    assert ended.seconds < 60
    assert not [*tmp_path.glob("study/.progress/*")]
