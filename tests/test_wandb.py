"""Runs at Weights & Biases, by the real package in its offline mode: no network, and its files are read back."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import bnsmooth_cli as bns
from bnsmooth_cli.storage.live import Exports
from bnsmooth_cli.storage.wandb_runs import WandbRun

SMALL = "--problem dln --norm l1 --depth 3 --dimension 4 --samples 20 --steps 12 --save-every 4"
BLOCK = 2**15


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.delenv(name, raising=False)
    yield
    end_service()


def end_service():
    """End the service of this process, which has the folder of its first run, and wait until its files are written."""
    if (wandb := sys.modules.get("wandb")) is not None:
        wandb.teardown()


def records(path):
    """The records of an offline run: a log in blocks, as LevelDB writes it, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, body = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        body = (body if kind in (3, 4) else b"") + content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield Record.FromString(body)


class Logged:
    """What an offline run holds."""

    def __init__(self, folder: Path) -> None:
        (file,) = folder.glob("run-*.wandb")
        self.config: dict[str, object] = {}
        self.steps: dict[str, list[int]] = {}
        self.values: dict[tuple[str, int], float] = {}
        for record in records(file):
            if record.HasField("run"):
                self.id, self.name, self.project = record.run.run_id, record.run.display_name, record.run.project
                self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("exit"):
                self.exit_code = record.exit.exit_code
            if record.HasField("history"):
                row = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                for tag in row.keys() - {"step", "_step", "_runtime", "_timestamp"}:
                    self.steps.setdefault(tag, []).append(int(row["step"]))
                    self.values[tag, int(row["step"])] = json.loads(row[tag])


def logged():
    """The offline runs in the order in which they were begun."""
    end_service()
    return [Logged(folder) for folder in sorted(Path("wandb").glob("offline-run-*"), key=lambda f: f.stat().st_ctime)]


def test_a_run_has_its_name_its_settings_and_every_step(cli):
    code, out, err = cli(f"train {SMALL} --wandb smooth --measure ics --every 6 -o mine")
    assert (code, err) == (0, "")
    (run,) = logged()
    assert (run.name, run.project, run.exit_code) == ("mine", "smooth", 0)
    assert f"mine at Weights & Biases: {Path('wandb').resolve()}/offline-run-" in out
    assert (run.config["norm"], run.config["steps"], run.config["weight_decay"]) == ("l1", 12, 0.0)
    rows = bns.read_table("mine/train.parquet")
    assert run.steps["train/loss"] == rows["step"].tolist()
    assert [run.values["train/loss", step] for step in rows["step"]] == rows["loss"].tolist()
    assert run.steps["ics/fc2/cosine"] == [0, 6, 12]
    assert "train/test_loss" not in run.steps  # null throughout


@pytest.mark.slow
def test_a_second_command_writes_the_same_run_whole(cli):
    assert cli(f"train {SMALL} --wandb smooth -o mine")[0] == 0
    assert cli("smoothness mine --every 6 --wandb smooth")[0] == 0
    assert cli("smoothness mine --every 6 --wandb smooth")[0] == 0  # nothing remains to be measured
    assert cli("smoothness mine --every 6 --wandb another")[0] == 0
    first, second, third, other = logged()
    assert first.id == second.id == third.id != other.id
    assert {*second.steps} > {*first.steps}
    for run in (second, third, other):
        assert run.steps["train/loss"] == [*range(13)]
        assert run.steps["smoothness/beta"] == [0, 6, 12]


@pytest.mark.slow
def test_a_run_whose_folder_was_renamed_is_written_whole(cli):
    assert cli(f"train {SMALL} --wandb smooth --measure smoothness --every 6 -o mine")[0] == 0
    Path("mine").rename("yours")
    assert cli("ics yours --every 6 --wandb smooth")[0] == 0
    first, second = logged()
    assert (second.id, second.name) == (first.id, "yours")
    assert second.steps["train/loss"] == [*range(13)]
    assert second.steps["smoothness/beta"] == second.steps["ics/fc2/cosine"] == [0, 6, 12]


def test_python_logs_live_and_a_resumed_run_is_whole(monkeypatch):
    monkeypatch.setattr("bnsmooth_cli.storage.live.INTERVAL", 0.0)
    arguments = {"depth": 3, "dimension": 4, "samples": 20, "steps": 12, "save_every": 4, "wandb": "smooth"}
    added: list[int] = []
    add = WandbRun.add

    def spy(self, label, numbers):
        numbers = [*numbers]
        added.extend(step for step, _ in numbers)
        add(self, label, numbers)

    def stop(step, loss):
        assert added == [*range(step)]
        if step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(WandbRun, "add", spy)
    with pytest.raises(KeyboardInterrupt):
        bns.train("dln", "l1", output="mine", progress=stop, **arguments)
    bns.train("dln", "l1", output="mine", **arguments)
    first, second = logged()
    assert (first.id, first.exit_code) == (second.id, 1)
    assert first.steps["train/loss"] == [*range(8)]
    assert second.steps["train/loss"] == [*range(13)]


def test_a_monitor_logs_its_points_and_a_resumed_one_logs_them_all(tmp_path):
    model = torch.nn.Linear(3, 1)

    def watch(steps, **options):
        with bns.Monitor(
            model, lambda x: model(x).square().mean(), lr=0.1, every=2, budget=None, folder="mine", wandb="smooth",
            measures=["smoothness"], **options,
        ) as monitor:  # fmt: skip
            for _ in range(steps):
                monitor.step(torch.ones(4, 3))

    watch(3)
    watch(3, start_step=3)
    first, second = logged()
    assert (first.id, first.name, first.project, first.exit_code) == (second.id, "mine", "smooth", 0)
    assert first.steps["smoothness/beta"] == [0, 2]
    assert second.steps["smoothness/beta"] == [0, 2, 4]
    assert second.config.items() >= {"problem": "loop:Linear", "norm": "own", "lr": 0.1}.items()
    assert not {"batch_size", "momentum", "steps"} & {*second.config}  # which are unknown


def test_a_run_of_ones_own_goes_on(monkeypatch):
    import wandb

    with wandb.init(project="own", settings=wandb.Settings(silent=True, console="off")) as own:
        bns.train("dln", "l1", depth=3, dimension=4, samples=20, steps=4, output="mine", wandb="smooth")
        assert wandb.run is own
        own.log({"x": 1, "step": 0})
    assert sorted(run.project for run in logged()) == ["own", "smooth"]


@pytest.mark.slow
def test_the_workers_of_a_study_log_their_own_runs():
    code = (
        "import bnsmooth_cli as bns\nif __name__ == '__main__': bns.study(['none', 'l1'], problem='dln', jobs=2, "
        "depth=3, dimension=4, samples=20, steps=12, output='study', wandb='smooth', measure='ics')"
    )
    Path("script.py").write_text(code)
    for count in (2, 4):  # the second time, the runs are finished
        done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        runs = logged()
        assert len(runs) == count
        assert len({run.id for run in runs}) == 2
        assert all(run.steps["train/loss"] == [*range(13)] for run in runs)
        assert all(len(run.steps["ics/fc2/cosine"]) == 2 for run in runs)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_killed_run_is_whole_after_the_next_command():
    line = "train --problem dln --norm l1 --depth 4 --steps 4000 --save-every 1000 --wandb smooth -o run"
    process = subprocess.Popen([sys.executable, "-m", "bnsmooth_cli", *line.split()], stdout=subprocess.DEVNULL)
    while not Path("run/checkpoints/001000.pt").exists():
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([sys.executable, "-m", "bnsmooth_cli", *line.split()], check=True, stdout=subprocess.DEVNULL)
    assert logged()[-1].steps["train/loss"] == [*range(4001)]


def test_what_prevents_it_is_one_line_before_any_work(cli, monkeypatch):
    for project in ("a/b/c", "", "a?"):
        assert cli(f"train {SMALL} --wandb '{project}'")[::2] == (
            2,
            f"bnsmooth: --wandb {project}: give the name of a project, or ENTITY/PROJECT\n",
        )
    code, _, err = cli("compare --plan --wandb smooth --problem dln")
    assert (code, err.count("\n")) == (2, 1)
    monkeypatch.setitem(sys.modules, "wandb", None)
    expected = "bnsmooth: --wandb: needs the extra: pip install 'bnsmooth[wandb]'\n"
    assert cli(f"train {SMALL} --wandb smooth")[::2] == (2, expected)
    assert cli(f"compare {SMALL.replace('--norm', '--norms')} --wandb smooth")[::2] == (2, expected)
    with pytest.raises(bns.InputError, match="needs the extra"):
        bns.train("dln", wandb="smooth")
    assert not [*Path().iterdir()]


def test_without_a_login_it_says_how_to_log_in(tmp_path):
    code = "from bnsmooth_cli.storage.live import Exports\nExports(wandb='smooth').check()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "HOME": str(tmp_path)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True,
    )  # fmt: skip
    assert "InputError: --wandb: " in done.stderr.splitlines()[-1]
    assert re.search(r"wandb[ .]login", done.stderr.splitlines()[-1])
    assert "WANDB_MODE=offline" in done.stderr.splitlines()[-1]
    assert Exports() == Exports(False, None)
