"""Two processes on one run: one wins, the other says who has it; what a dead process held is free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attempts import contents, done

from bnsmooth_cli.files import atomic

DLN = "--problem dln --depth 5 --dimension 4 --samples 30"
TRAIN = f"train {DLN} --norm l1 --steps 20000 --save-every 500 -o run"
LONG = "smoothness run --every 1"


def start(line: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bnsmooth_cli", *line.split()], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.01)


@pytest.fixture
def trained(tmp_path):
    done(f"train {DLN} --norm l1 --steps 2000 --save-every 500 -o run", tmp_path)
    return tmp_path


def test_the_second_training_of_a_run_names_the_first(tmp_path):
    first = start(TRAIN, tmp_path)
    wait_for(tmp_path / "run/checkpoints/000500.pt")
    second = start(TRAIN, tmp_path)
    _, err = second.communicate(timeout=60)
    assert (second.returncode, err.count("\n")) == (2, 1)
    assert f"bnsmooth: run: process {first.pid} on " in err
    assert "is writing this run; wait for it" in err
    first.kill()
    first.communicate()
    assert (tmp_path / "run/.lock.owner").exists()  # what a killed process leaves holds nobody up
    third = start(TRAIN.replace("20000", "1000"), tmp_path)
    _, err = third.communicate(timeout=60)
    assert "already a run of 20000 steps" in err
    third = start(TRAIN, tmp_path)
    end = time.monotonic() + 60
    while f"process {third.pid} " not in _owner(tmp_path / "run/.lock.owner"):
        assert time.monotonic() < end, "the lock was not taken over"
        time.sleep(0.01)
    third.kill()
    third.communicate()


def _owner(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_the_second_measurement_of_a_table_names_the_first(trained):
    first = start(LONG, trained)
    wait_for(trained / "run/.smoothness.lock.owner")
    second = start(LONG, trained)
    other = start("ics run", trained)  # another table of the run
    _, err = second.communicate(timeout=60)
    assert (second.returncode, err.count("\n")) == (2, 1)
    assert f"process {first.pid} on " in err
    assert "is writing this smoothness table" in err
    assert other.wait(60) == 0
    first.send_signal(signal.SIGKILL)
    first.communicate()
    third = start(LONG, trained)
    _, err = third.communicate(timeout=120)
    assert (third.returncode, err) == (0, "")


def test_of_five_that_train_one_run_at_once_the_files_are_those_of_one(tmp_path):
    line = f"train {DLN} --norm batch --steps 3000 --save-every 500 -o run"
    (tmp_path / "alone").mkdir()
    done(line, tmp_path / "alone")
    five = [start(line, tmp_path) for _ in range(5)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in five]
    assert 0 in [code for _, code in ends]
    assert all(code == 0 or (code == 2 and "is writing this run" in err) for err, code in ends), ends
    assert {n: v for n, v in contents(tmp_path).items() if n.startswith("run/")} == contents(tmp_path / "alone")


def test_what_a_living_process_is_writing_is_left_to_it(tmp_path):
    target = tmp_path / "table.parquet"
    abandoned = tmp_path / ".table.12345678.tmp.parquet"
    abandoned.write_bytes(b"half")
    with atomic(target) as mine:
        mine.write_bytes(b"mine")
        code = """if True:
            import pathlib, sys
            from bnsmooth_cli.files import atomic
            with atomic(pathlib.Path(sys.argv[1])) as theirs:
                theirs.write_bytes(b"theirs")
        """
        subprocess.run([sys.executable, "-c", code, target], check=True)
        assert target.read_bytes() == b"theirs"
        assert mine.exists()
        assert not abandoned.exists()
    assert target.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]
