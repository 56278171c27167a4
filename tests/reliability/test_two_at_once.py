"""Two processes on one run: one works, the other is refused. The lock of a dead process is free."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attempts import DEFAULT_DLN as DLN
from attempts import contents, done, run, start, wait_for
from complaints import complaints
from helpers import holder

from bnsmooth_cli.storage.files import atomic

TRAIN = f"train {DLN} --norm l1 --steps 20000 --save-every 500 -o run"


@pytest.fixture
def trained(tmp_path):
    done(f"train {DLN} --norm l1 --steps 300 --save-every 100 -o run", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_second_training_of_a_run_is_refused(tmp_path):
    first = start(TRAIN, tmp_path)
    wait_for((tmp_path / "run/checkpoints/000500.pt").exists)
    second = run(TRAIN, tmp_path)
    assert (second.code, second.err.count("\n")) == (2, 1)
    assert "bnsmooth: run: another process is writing this run; wait for it" in second.err
    first.kill()
    first.communicate()
    third = start(TRAIN, tmp_path)
    wait_for(lambda: holder(tmp_path / "run/.lock") == third.pid)
    third.kill()
    third.communicate()


#: Kind -> a measurement of it that takes a second or more.
LONG = {
    "smoothness": "smoothness run --every 1",
    "surface": "surface run --points 151",
    "smoothness-by-layer": "smoothness run --by-layer --every 2",
}


def begun(line: str, kind: str, folder: Path) -> subprocess.Popen[str]:
    """Start a measurement and stop it once it holds its table's lock."""
    process = start(line, folder)
    wait_for(lambda: holder(folder / f"run/.{kind}.lock"))
    process.send_signal(signal.SIGSTOP)
    assert not (folder / f"run/{kind}.parquet").exists(), "it was too fast"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["smoothness", "surface"])
def test_the_second_measurement_of_a_table_is_refused(trained, kind):
    first = begun(LONG[kind], kind, trained)
    second = run(LONG[kind], trained)
    done("ics run", trained)  # another table of the run
    assert (second.code, second.err.count("\n")) == (2, 1)
    assert f"another process is writing this {kind} table" in second.err
    first.kill()
    first.communicate()
    done(LONG[kind], trained)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["surface", "smoothness-by-layer"])
def test_an_interrupted_measurement_leaves_no_partial_table_and_can_be_repeated(trained, kind):
    process = begun(LONG[kind], kind, trained)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    err = complaints(process.communicate(timeout=60)[1])
    assert (process.returncode, err.count("\n"), "bnsmooth: stopped; " in err) == (130, 1, True), err
    assert not [path.name for path in trained.glob("run/*") if kind in path.name and path.name[0] != "."]
    shutil.copytree(trained, trained / "alone")
    for folder in (trained, trained / "alone"):
        done(LONG[kind], folder)
    table = f"run/{kind}.parquet"
    assert (trained / table).read_bytes() == (trained / "alone" / table).read_bytes()


@pytest.mark.slow
def test_two_processes_that_write_one_table_leave_a_whole_one(trained):
    line = "surface run --points 21 -o one.parquet"
    two = [start(line, trained) for _ in range(2)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in two]
    assert 0 in [code for _, code in ends]
    assert all(code == 0 or (code == 2 and "is writing this surface table" in err) for err, code in ends), ends
    done(line.replace("one", "alone"), trained)
    assert (trained / "one.parquet").read_bytes() == (trained / "alone.parquet").read_bytes()
    assert not [*trained.glob(".*.tmp.*")]


@pytest.mark.slow
def test_three_processes_that_train_one_run_leave_the_files_of_one(tmp_path):
    line = f"train {DLN} --norm batch --steps 3000 --save-every 500 -o run"
    (tmp_path / "alone").mkdir()
    done(line, tmp_path / "alone")
    three = [start(line, tmp_path) for _ in range(3)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in three]
    assert 0 in [code for _, code in ends]
    assert all(code == 0 or (code == 2 and "is writing this run" in err) for err, code in ends), ends
    assert {n: v for n, v in contents(tmp_path).items() if n.startswith("run/")} == contents(tmp_path / "alone")


def test_temporary_files_of_a_running_process_are_kept(tmp_path):
    target = tmp_path / "table.parquet"
    abandoned = tmp_path / ".table.12345678.tmp.parquet"
    abandoned.write_bytes(b"half")
    with atomic(target) as mine:
        mine.write_bytes(b"mine")
        code = """if True:
            import pathlib, sys
            from bnsmooth_cli.storage.files import atomic
            with atomic(pathlib.Path(sys.argv[1])) as theirs:
                theirs.write_bytes(b"theirs")
        """
        subprocess.run([sys.executable, "-c", code, target], check=True)
        assert target.read_bytes() == b"theirs"
        assert mine.exists()
        assert not abandoned.exists()
    assert target.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]
