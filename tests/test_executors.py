"""Executors of studies: every one gives the same bytes, through workers that die, interrupts and lost clusters."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import distributed
import pytest
import torch
from complaints import complaints
from helpers import DLN, ENVIRONMENT, files, holder

from bnsmooth_cli import memory
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.stopping import Withdrawn
from bnsmooth_cli.studies import executors
from bnsmooth_cli.studies import run as execution
from bnsmooth_cli.studies.grid import Grid
from bnsmooth_cli.studies.progress import reports

#: Long enough to be met while it trains.
LONG = f"compare --norms none,l1 --seeds 0 {DLN} --lrs 1e-6 --steps 8000 --save-every 1000"

#: One run may finish before it hears of the signal.
STOPPED = re.compile(
    "bnsmooth: stopped; [01] of 2 runs of study are finished and the others are kept; continue with: bnsmooth "
)


def start(line: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bnsmooth_cli", *line.split()], cwd=folder, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


def running(study: Path, checkpoints: int = 1) -> tuple[Path, int]:
    """Wait for a running run with enough checkpoints. Returns the run and its process."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for lock in study.glob("runs/*/.lock"):
            saved = len([*lock.parent.glob("checkpoints/*.pt")])
            if checkpoints <= saved < 9 and (process := holder(lock)):
                return lock.parent, process
        time.sleep(0.02)
    raise AssertionError("no run was at work")


@pytest.fixture
def busy():
    """A socket."""
    with socket.socket() as found:
        yield found


@pytest.mark.parametrize("how", ["", "--jobs 2", pytest.param("--dask local --jobs 2", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_what_is_remarked_in_a_run_is_told_by_the_study(cli, tmp_path, how, busy):
    line = f"compare --norms none,l1 --seeds 0 {DLN} --lrs 1e-6 --steps 20 -o study"
    names = ["dln-none-lr1e-06-seed0", "dln-l1-lr1e-06-seed0"]
    for name in names:  # begun by one thread, and to be resumed by another number
        norm, steps = name.split("-")[1], "--steps 10 --threads 2"
        assert cli(f"train --norm {norm} {DLN} --lr 1e-6 {steps} -o study/runs/{name}")[0] == 0
    torch.set_num_threads(1)
    with suppress(OSError):  # the port of Dask's pages, as by another study
        busy.bind(("127.0.0.1", 8787))
        busy.listen()
    done = subprocess.run(
        [sys.executable, "-m", "bnsmooth_cli", *f"{line} {how}".split()], cwd=tmp_path, env=ENVIRONMENT, text=True,
        capture_output=True,
    )  # fmt: skip
    notes = complaints(done.stderr).splitlines()
    assert done.returncode == 0, done.stderr
    for name, said in zip(sorted(names), sorted(notes), strict=True):
        assert said.startswith("bnsmooth: note: ")
        assert f"study/runs/{name}: resumed at step 10 by another machine or program (2 threads, now 1 thread)" in said
    assert not [*tmp_path.glob("study/.*/*")]


def parent(process: int) -> int:
    """The parent of a process, on Linux."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def cluster(workers: int = 2, nanny: bool = False):
    """A scheduler in a process of its own, and workers in theirs, as on a cluster: its address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    options = ["--host", "127.0.0.1", "--port", address.rsplit(":")[-1], "--no-dashboard"]
    dask = [sys.executable, "-m", "distributed.cli"]
    begun = [subprocess.Popen([*dask[:2], "distributed.cli.dask_scheduler", *options], stderr=subprocess.DEVNULL)]
    worker = [*dask[:2], "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
    worker += [] if nanny else ["--no-nanny"]
    begun += [subprocess.Popen(worker, stderr=subprocess.DEVNULL, env=ENVIRONMENT) for _ in range(workers)]
    try:
        for _ in range(600):  # until the scheduler listens
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(address.rsplit(":")[-1]))):
                break
            time.sleep(0.1)
        yield address, begun[0]
    finally:
        for process in reversed(begun):
            process.terminate() if nanny else process.kill()  # a nanny ends its worker
            process.wait()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The study of LONG and what it holds, made in one process without any mishap."""
    folder = tmp_path_factory.mktemp("made")
    _, err = (process := start(f"{LONG} -o study", folder)).communicate(timeout=300)
    assert process.returncode == 0, err
    return files(folder / "study")


@pytest.mark.slow
def test_every_executor_gives_the_same_bytes(made, tmp_path):
    for name, options in (("processes", "--jobs 2"), ("dask", "--dask local --jobs 2")):
        _, err = (process := start(f"{LONG} {options} -o study", tmp_path)).communicate(timeout=300)
        assert process.returncode == 0, err
        assert files(tmp_path / "study") == made, name
        (tmp_path / "study").rename(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_process_is_replaced_and_its_run_resumes(made, tmp_path, how):
    process = start(f"{LONG} --jobs 2 -o study", tmp_path)
    run, worker = running(tmp_path / "study", checkpoints=3)
    os.kill(worker, how)
    if how == signal.SIGTERM:
        wait_for(lambda: [*run.glob("checkpoints/stopped-*.pt")])
    _, err = process.communicate(timeout=300)
    assert (process.returncode, complaints(err)) == (0, "")
    assert files(tmp_path / "study") == made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "nanny"), [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGTERM, True), ("retired", True)]
)
def test_a_run_whose_dask_worker_ends_resumes_on_another_worker(made, tmp_path, how, nanny):
    with cluster(nanny=nanny) as (address, _):
        process = start(f"{LONG} --dask {address} -o study", tmp_path)
        run, worker = running(tmp_path / "study", checkpoints=3)
        if how == "retired":
            with distributed.Client(address) as client:
                client.retire_workers([name for name, pid in client.run(os.getpid).items() if pid == worker])
        else:
            os.kill(parent(worker) if nanny else worker, how)
        if how != signal.SIGKILL:
            wait_for(lambda: [*run.glob("checkpoints/stopped-*.pt")])
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert files(tmp_path / "study") == made


@pytest.mark.slow
def test_a_lost_scheduler_ends_the_study_by_name_and_it_resumes(made, tmp_path):
    with cluster() as (address, scheduler):
        process = start(f"{LONG} --dask {address} -o study", tmp_path)
        running(tmp_path / "study", checkpoints=2)
        scheduler.kill()
        _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    *lines, last = complaints(err).splitlines()
    assert len(lines) == 2
    assert all("the cluster that it was given to is gone; the same command resumes it" in line for line in lines)
    assert last == "bnsmooth: study: none of its 2 runs has finished"
    _, err = (process := start(f"{LONG} -o study", tmp_path)).communicate(timeout=300)
    assert process.returncode == 0, err
    assert files(tmp_path / "study") == made


@pytest.mark.slow
def test_a_cluster_without_a_worker_is_waited_for(tmp_path):
    with cluster(workers=0) as (address, _):
        process = start(f"{LONG} --dask {address} -o study", tmp_path)
        assert process.stderr is not None
        assert "no worker has joined yet" in process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert STOPPED.match(err.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("where", ["", "--jobs 2"])
def test_an_interrupted_study_ends_at_once_and_resumes(made, tmp_path, where):
    process = start(f"{LONG} {where} -o study", tmp_path)
    running(tmp_path / "study", checkpoints=2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to every process of the command
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert [*tmp_path.glob("study/runs/*/checkpoints/stopped-*.pt")]
    assert STOPPED.match(err.splitlines()[-1])
    assert complaints(err).count("\n") == 1
    assert not [*(tmp_path / "study").rglob("*.tmp*")]
    _, err = (process := start(f"{LONG} {where} -o study", tmp_path)).communicate(timeout=300)
    assert process.returncode == 0, err
    assert files(tmp_path / "study") == made


@pytest.mark.slow
def test_a_killed_study_leaves_no_worker_behind(tmp_path):
    process = start(f"{LONG} --jobs 2 -o study", tmp_path)
    _, worker = running(tmp_path / "study")
    process.kill()
    process.communicate(timeout=300)
    end = time.monotonic() + 20
    while time.monotonic() < end and Path(f"/proc/{worker}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.0, 0.3, 1.0])
def test_an_interrupt_while_workers_start_stops_them_too(tmp_path, after):
    process = start(f"{LONG} --jobs 2 -o study", tmp_path)
    end = time.monotonic() + 60
    while time.monotonic() < end and not [*tmp_path.glob("study/.progress/*")]:
        time.sleep(0.01)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert STOPPED.match(err.splitlines()[-1])
    assert complaints(err).count("\n") == 1
    steps = [path.stem for path in tmp_path.glob("study/runs/*/checkpoints/[0-9]*.pt")]
    assert "008000" not in steps


def test_a_run_of_a_stopped_study_does_not_begin(tmp_path):
    study = tmp_path / "study"
    (task, _) = execution.plan(small_grid(), study).todo
    assert isinstance(execution.work(task, study / ".progress"), Withdrawn)
    with reports(study) as folder:
        pass
    assert isinstance(execution.work(task, folder), Withdrawn)
    assert not [*study.glob("runs/*")]


def test_a_study_that_is_removed_as_a_run_begins_does_not_return(tmp_path, monkeypatch):
    study = tmp_path / "study"
    (task, _) = execution.plan(small_grid(), study).todo
    (study / "runs").mkdir(parents=True)
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: study.rename(tmp_path / "moved"))
    with reports(study) as folder, pytest.raises(InputError, match=re.escape(f"{study}/runs: was removed or moved")):
        execution.work(task, folder)
    assert not study.exists()


def _never_begins(pipe, gpu):
    os._exit(1)


@pytest.mark.slow
def test_workers_that_cannot_start_fail_their_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "_serve", _never_begins)
    with executors.local(2) as executor:
        results = dict(execution.execute(executor, execution.plan(small_grid(seeds=(0, 1)), tmp_path).todo, tmp_path))
    assert len(results) == 4
    assert all("died 3 times" in str(reason) for reason in results.values())


def _dies(task, folder):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_run_that_kills_every_worker_fails(tmp_path, monkeypatch):
    todo = execution.plan(small_grid(), tmp_path).todo
    monkeypatch.setattr(execution, "work", _dies)
    with executors.local(2) as executor:
        results = dict(execution.execute(executor, todo, tmp_path))
    assert len(results) == 2
    assert all("died 3 times" in str(reason) for reason in results.values())


def small_grid(**more) -> Grid:
    settings = {"problem": "dln", "depth": 5, "dimension": 4, "samples": 30, "steps": 10, "save_every": 5}
    return Grid(**{"norms": ("none", "batch"), "settings": settings, **more})


def test_a_worker_of_another_version_is_named(tmp_path, monkeypatch):
    (task, _) = execution.plan(small_grid(), tmp_path).todo
    monkeypatch.setattr(executors, "__version__", "9.9")
    with pytest.raises(InputError, match=r"the worker .* has bnsmooth .*, this is 9\.9"):
        executors.check_version(task.version, "node7")
    with pytest.raises(InputError, match="node7 has no bnsmooth"):
        executors.check_version(None, "node7")


@pytest.mark.slow
def test_every_worker_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert executors.gpus(3) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert executors.gpus(2) == ["4", "6"]
    with executors.Processes(2, executors.gpus(2)) as workers:
        seen = [future.result() for future in [workers.submit(_gpu_slowly) for _ in range(4)]]
    assert set(seen) == {"4", "6"}


def _gpu_slowly() -> str:
    time.sleep(0.3)
    return os.environ["CUDA_VISIBLE_DEVICES"]


class OwnError(Exception):
    """An exception of the user's: its pickle cannot be read, as its constructor takes more than the message."""

    def __init__(self, layer: str, units: int) -> None:
        super().__init__(f"{layer} has {units} units")


def fail() -> None:
    raise OwnError("conv1", 3)


@pytest.mark.slow
def test_an_exception_that_cannot_leave_its_worker_keeps_its_message():
    with executors.local(2) as workers, pytest.raises(RuntimeError, match="OwnError: conv1 has 3 units"):
        workers.submit(fail).result()


class WordlessError(Exception):
    """An exception of the user's that cannot be written down."""

    def __str__(self) -> str:
        raise ValueError("no words")

    def __reduce__(self) -> str:
        raise TypeError("and no pickle")


def fail_wordlessly() -> None:
    raise WordlessError


@pytest.mark.slow
def test_an_exception_without_a_text_does_not_end_its_worker():
    with executors.local(2) as workers:
        with pytest.raises(RuntimeError, match=r"WordlessError: its text cannot be made \(ValueError\)"):
            workers.submit(fail_wordlessly).result()
        assert workers.submit(os.getpid).result() != os.getpid()
