"""Event files that grow while a run trains and is measured: they are the beginning of the table's at every moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interrupted import Stop, stopping_at

import bnsmooth_cli as bns
from bnsmooth_cli.measures.measuring import execute, pending, plan
from bnsmooth_cli.storage import event_files, live
from bnsmooth_cli.storage.live import Exports, Live

DLN = {"problem": "dln", "norm": "l1", "depth": 3, "dimension": 4, "samples": 20, "steps": 60, "save_every": 20,
       "device": "cpu"}  # fmt: skip


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """New numbers are passed on as soon as they are known."""
    monkeypatch.setattr(live, "INTERVAL", 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of an uninterrupted run whose event files were written at its end."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    bns.train(output=folder, measure=["ics", "activations"], every=7, **DLN)
    for table in folder.glob("*.parquet"):
        event_files.tensorboard(table)
    return {path.name: path.read_bytes() for path in folder.glob("*.tfevents")}


def grown(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tfevents")}


class Reader:
    """An open TensorBoard: what it has read so far of a file, as (step, tags)."""

    def __init__(self, path):
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        self._loader = EventFileLoader(str(path))
        self.steps: list[int] = []

    def look(self):
        self.steps += [event.step for event in self._loader.Load() if event.HasField("summary")]
        return self.steps


def test_numbers_are_there_while_the_run_trains(tmp_path, whole):
    seen = []

    def look(step, loss):
        known = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.tfevents")}
        assert all(whole[name].startswith(content) for name, content in known.items())
        if known:
            seen.append(len(Reader(tmp_path / "run/train.tfevents").look()))

    run = bns.train(output=tmp_path / "run", measure=["ics", "activations"], every=7, tensorboard=True, progress=look,
                    **DLN)  # fmt: skip
    assert seen == sorted(seen)
    assert {20, 40, 60} <= {*seen}
    assert grown(run.path) == whole


@pytest.mark.parametrize("number", [3, 7, 11])
@pytest.mark.slow
def test_a_run_that_is_interrupted_repeats_and_loses_no_step(tmp_path, whole, number):
    """The live files are ahead of the last checkpoint, and an open TensorBoard reads on."""
    arguments = {**DLN, "output": tmp_path / "run", "measure": ["ics", "activations"], "every": 7, "tensorboard": True}
    with pytest.raises(Stop):
        bns.train(progress=stopping_at(number), **arguments)
    readers = {name: Reader(tmp_path / "run" / name) for name in grown(tmp_path / "run")}
    for reader in readers.values():
        reader.look()
    bns.train(**arguments)
    assert grown(tmp_path / "run") == whole
    assert readers["train.tfevents"].look() == [*range(61)]
    assert readers["ics.tfevents"].look() == [*range(0, 61, 7)]


@pytest.mark.parametrize(("kept", "tail"), [(0, b""), (3001, b"half a record")])
def test_a_half_written_file_is_mended_when_the_run_is_resumed(tmp_path, whole, kept, tail):
    arguments = {**DLN, "output": tmp_path / "run", "measure": ["ics", "activations"], "every": 7, "tensorboard": True}
    with pytest.raises(Stop):
        bns.train(progress=stopping_at(6), **arguments)
    for name, content in grown(tmp_path / "run").items():
        (tmp_path / "run" / name).write_bytes(content[:kept] + tail)
    bns.train(**arguments)
    assert grown(tmp_path / "run") == whole


def test_an_event_file_is_mended_at_every_byte(tmp_path):
    path, parts = tmp_path / "x.tfevents", [event_files.events([(i, {"a": i})]) for i in range(3)]
    with event_files.EventFile(path) as file:
        file.add(b"".join(parts))
    content = path.read_bytes()
    for cut in range(len(content)):
        path.write_bytes(content[:cut] + b"x")
        with event_files.EventFile(path) as file:
            for part in parts:
                file.add(part)
        assert path.read_bytes() == content


def test_points_are_shown_as_they_are_measured(tmp_path, whole):
    run = bns.train(output=tmp_path / "run", **DLN)
    requests = plan("activations", [run.source()], every=7)
    seen = []

    def look(name, step, done, total):
        file = run.path / "activations.tfevents"
        seen.append(Reader(file).look()[-1:] if file.exists() else [])
        if done == 5:
            raise Stop

    with pytest.raises(Stop):
        execute(pending(requests), progress=look, live=Live(Exports(tensorboard=True)))
    assert seen == [[], [0], [7], [14], [21], [28]]
    assert whole["activations.tfevents"].startswith((run.path / "activations.tfevents").read_bytes())
    with pytest.raises(Stop):  # what was measured before is shown again, in its place
        execute(pending(requests), progress=stopping_at(2), live=Live(Exports(tensorboard=True)))
    execute(pending(requests), live=Live(Exports(tensorboard=True)))
    assert (run.path / "activations.tfevents").read_bytes() == whole["activations.tfevents"]


def test_points_between_those_of_a_table_are_put_in_their_places(tmp_path, whole):
    run = bns.train(output=tmp_path / "run", measure=["activations"], every=21, tensorboard=True, **DLN)
    bns.train(output=tmp_path / "run", measure=["activations"], every=7, tensorboard=True, **DLN)
    assert (run.path / "activations.tfevents").read_bytes() == whole["activations.tfevents"]


def test_a_finished_run_gets_its_files_from_its_tables(tmp_path, whole):
    arguments = {**DLN, "output": tmp_path / "run", "measure": ["ics", "activations"], "every": 7}
    bns.train(**arguments)
    assert not grown(tmp_path / "run")
    bns.train(tensorboard=True, **arguments)
    assert grown(tmp_path / "run") == whole
    places = {path: path.stat().st_ino for path in (tmp_path / "run").glob("*.tfevents")}
    bns.train(tensorboard=True, **arguments)
    assert {path: path.stat().st_ino for path in places} == places


def test_a_run_that_diverges_ends_with_its_last_row(tmp_path):
    run = bns.train(output=tmp_path / "run", tensorboard=True, **{**DLN, "norm": "none", "lr": 1e10})
    assert Reader(run.path / "train.tfevents").look() == [*range(run.outcome()["diverged_at"] + 1)]


def test_one_table_of_several_runs_has_a_file_for_each(tmp_path):
    runs = [bns.train(output=tmp_path / name, **DLN | {"seed": seed}) for seed, name in enumerate("ab")]
    requests = plan("ics", [run.source() for run in runs], tmp_path / "both.parquet", every=30)
    execute(requests, live=Live(Exports(tensorboard=True)))
    live_files = {path: path.read_bytes() for path in tmp_path.rglob("ics.tfevents")}
    assert len(live_files) == 2
    shutil.rmtree(tmp_path / "both.tensorboard")
    event_files.tensorboard(tmp_path / "both.parquet")
    assert {path: path.read_bytes() for path in live_files} == live_files


def test_other_objectives_have_tags_of_their_own(cli, tmp_path):
    run = bns.train(output=tmp_path / "run", **DLN)
    for objective in ("batch", "train:2"):
        assert cli(f"smoothness {run.path} --at 0 --points 1 --objective {objective} --tensorboard")[0] == 0
    contents = {path.name: path.read_bytes() for path in run.path.glob("*.tfevents")}
    assert b"smoothness/beta" in contents["smoothness.tfevents"]
    assert b"smoothness.train2/beta" in contents["smoothness.train2.tfevents"]
    assert b"smoothness/beta" not in contents["smoothness.train2.tfevents"]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    run = bns.train(output=tmp_path / "run", **DLN)
    (run.path / "ics.tfevents").mkdir()
    with pytest.raises(bns.InputError, match=r"ics\.tfevents: is not a file; delete it"):
        bns.train(output=run.path, measure="ics", tensorboard=True, **DLN)


def test_the_runs_of_a_study_have_files_of_their_own(tmp_path, whole):
    small = {"problem": "dln", "depth": 3, "dimension": 4, "samples": 20, "steps": 10, "output": tmp_path / "study"}
    study = bns.study(["none"], **small)
    assert not [*tmp_path.rglob("*.tfevents")]
    study = bns.study(["none", "l1"], measure="ics", tensorboard=True, **small)
    for run in study.runs():
        files = grown(run.path)
        assert {*files} == {"train.tfevents", "ics.tfevents"}
        for table in ("train", "ics"):
            event_files.tensorboard(run.path / f"{table}.parquet")
        assert grown(run.path) == files


@pytest.mark.slow
def test_the_workers_of_a_study_write_while_they_train(tmp_path):
    code = (
        "import bnsmooth_cli as bns\nif __name__ == '__main__': bns.study(['none', 'l1'], problem='dln', jobs=2, "
        "steps=20000, save_every=10000, output='study', tensorboard=True)"
    )
    (tmp_path / "script.py").write_text(code)
    process = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path)
    try:
        end = time.monotonic() + 60
        while len(files := [*tmp_path.rglob("train.tfevents")]) < 2 or any(f.stat().st_size < 5000 for f in files):
            assert process.poll() is None, "the files were not there before the end"
            assert time.monotonic() < end
            time.sleep(0.1)
        assert not [*tmp_path.rglob("010000.pt")]
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_killed_run_is_continued_where_it_was(tmp_path):
    line = "train --problem dln --norm l1 --depth 4 --steps 6000 --save-every 1500 --tensorboard -o run"
    command = [sys.executable, "-m", "bnsmooth_cli", *line.split()]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    file = tmp_path / "run/train.tfevents"
    while not (tmp_path / "run/checkpoints/001500.pt").exists() or not file.exists() or file.stat().st_size < 200_000:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    reader = Reader(file)
    assert len(reader.look()) > 1500
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert reader.look() == [*range(6001)]
    content = file.read_bytes()
    file.unlink()
    event_files.tensorboard(Path(tmp_path / "run/train.parquet"))
    assert file.read_bytes() == content
