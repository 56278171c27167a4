"""What a run takes: estimates against measured memory and files, and runs that cannot fit are refused by the number."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from helpers import DLN, ENVIRONMENT

import bnsmooth_cli as bns
from bnsmooth_cli import optimisers, problems, stopping
from bnsmooth_cli.config import resolve
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.memory import Memory, main_memory
from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.storage.tensors import load_tensors
from bnsmooth_cli.training import needs
from bnsmooth_cli.training.needs import Needs
from bnsmooth_cli.training.saving import tensors_in

#: Prints the peak memory of each piece of work in a process of its own, beyond that of one with the data, and the
#: estimate of it. Each is forked from a process that has done no work, and keeps the memory that it has freed. Files do
#: not count: how much of a library is in memory depends on the file system.
PEAKS = """
import json, os, sys, tempfile
import torch
from bnsmooth_cli import problems
from bnsmooth_cli.config import resolve
from bnsmooth_cli.measures.measuring import measurement
from bnsmooth_cli.memory import keep_freed_memory
from bnsmooth_cli.points.point import Point
from bnsmooth_cli.training.needs import Needs
from bnsmooth_cli.training.optimisers import optimiser_of
from bnsmooth_cli.training.run import train_config

def anonymous():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])

torch.set_num_threads(1)
config = resolve(sys.argv[1], **json.loads(sys.argv[2]))
found = {}
for kind in sys.argv[3:]:
    problem = problems.build(config)
    needs = Needs(problem)
    estimate = needs.memory() if kind == "train" else needs.state + needs.peak(kind)
    problem = problems.build(config)  # without the network, which the estimate has made
    read, write = os.pipe()
    if os.fork() == 0:
        keep_freed_memory()
        before = anonymous()
        with tempfile.TemporaryDirectory() as folder:
            if kind == "train":
                train_config(config, folder + "/run", problem=problem)
            else:
                measure, optimiser = measurement(kind), optimiser_of(config, problem.initial)
                point = Point(problem, problem.initial, optimiser, 0, *problem.batch(0), "run")
                measure.rows(point, **measure.plan(config))
        os.write(write, json.dumps(anonymous() - before).encode())
        os._exit(0)
    os.close(write)  # so that the end of a child that fails ends the reading
    os.wait()
    found[kind] = [json.loads(os.read(read, 100)), estimate]
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
@pytest.mark.parametrize(
    ("problem", "settings", "work"),
    [
        pytest.param("vgg", {"width": 0.3, "batch_size": 50, "steps": 3, "save_every": 1},
                     ["train", "landscape", "smoothness", "ics", "activations"], marks=pytest.mark.slow),
        ("vgg", {"width": 0.3, "batch_size": 100, "norm": "none", "momentum": 0.9, "steps": 3}, ["train", "landscape"]),
        ("vgg", {"width": 0.3, "batch_size": 20, "norm": "none", "optimizer": "adamw", "lr": 1e-3, "steps": 3},
         ["train", "ics"]),
        ("dln", {"dimension": 300, "depth": 10, "samples": 1000, "lr": 1e-9, "steps": 3},
         ["train", "landscape", "ics"]),
    ],
)  # fmt: skip
@pytest.mark.fast(1)
def test_the_estimated_memory_is_near_what_is_taken(problem, settings, work):
    words = [sys.executable, "-c", PEAKS, problem, json.dumps(settings), *work]
    ended = subprocess.run(words, text=True, capture_output=True, env=ENVIRONMENT)
    assert ended.returncode == 0, ended.stderr
    for kind, (taken, estimate) in json.loads(ended.stdout).items():
        assert taken / 2 <= estimate <= 2.5 * taken, (kind, taken, estimate)


@pytest.mark.parametrize(("problem", "norm"), [("vgg", "l1"), ("vgg", "weight"), ("dln", "batch"), ("dln", "layer")])
def test_activations_of_two_small_batches_are_those_of_the_whole_batch(problem, norm):
    small = {"vgg": {"width": 0.07, "batch_size": 16}, "dln": {"depth": 5, "dimension": 4, "samples": 30}}[problem]
    opened = problems.build(resolve(problem, norm=norm, **small))
    whole, _ = needs._saved_by(opened, *opened.batch(0))
    assert Needs(opened).activations == pytest.approx(whole, rel=1e-3)


OPTIMISERS = [
    {}, {"momentum": 0.9}, *({"optimizer": rule.name, "lr": 1e-3} for rule in optimisers.RULES if rule.name != "sgd"),
    {"optimizer": "rmsprop", "momentum": 0.9, "lr": 1e-4},
    {"optimizer": "adamw", "weight_decay": 0.1, "clip": 1.0, "lr": 1e-3},
]  # fmt: skip


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=str)
@pytest.mark.parametrize("problem", ["vgg", "dln"])
@pytest.mark.fast(6)
def test_the_size_of_a_checkpoint_and_the_state_of_the_optimiser(tmp_path, problem, optimiser):
    settings = {"vgg": {"width": 0.07, "batch_size": 16, "eval_every": 2}, "dln": {"samples": 30}}[problem]
    run = bns.train(problem, steps=2, save_every=2, output=tmp_path / "run", **settings, **optimiser)
    first, last = run.checkpoints().values()
    found = Needs(problems.build(run.config))
    assert found.checkpoint == pytest.approx(last.stat().st_size, rel=0.1)
    assert found.first == pytest.approx(first.stat().st_size, rel=0.1)
    kept = [*tensors_in({key: part for key, part in load_tensors(last).items() if key != "model"})]
    assert found.optimiser == sum({t.data_ptr(): t.numel() * t.element_size() for t in kept}.values())
    large = [t.numel() for t in kept if t.dim()]
    assert sum(large) * 4 == found.parameters * round(sum(large) * 4 / found.parameters)  # whole copies


def test_what_the_users_own_optimiser_keeps_is_taken_to_be_as_much_as_adam_keeps(monkeypatch, tmp_path):
    """It is not asked, and refuses no run for its memory."""
    problem = problems.build(resolve("dln", depth=5, dimension=4, samples=30))
    problem.config = problem.config.changed(optimizer="mine:absent")
    found = Needs(problem)
    assert found.optimiser == 2 * found.parameters
    machine(monkeypatch, total=2 * found.parameters + found.data)
    needs.check(problem, tmp_path / "run")


def test_an_estimate_changes_no_number_and_takes_no_random_draw(small_run):
    before = torch.random.get_rng_state()
    opened = problems.build(small_run("vgg", "noisy-batch").config)
    values = {name: value.clone() for name, value in opened.initial.state_dict().items()}
    Needs(opened).memory(["landscape"])
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(values[name], value) for name, value in opened.initial.state_dict().items())


def run_of(tmp_path, steps=100, **settings):
    """A run that does not exist yet."""
    small = {"samples": 20, "dimension": 3, "depth": 3, "save_every": 10}
    return Run(tmp_path / "run", resolve("dln", steps=steps, **{**small, **settings}))


def test_how_many_checkpoints_are_still_written(tmp_path):
    count = {"new": 11, "steps": 11, "odd": 12, "keep": 3, "huge": 10**9 + 1}
    assert needs.saves(run_of(tmp_path)).files == count["new"]
    assert needs.saves(run_of(tmp_path, steps=101)).files == count["odd"]
    assert needs.saves(run_of(tmp_path, keep=2)).files == count["keep"]
    assert needs.saves(run_of(tmp_path, steps=10**9, save_every=1)).files == count["huge"]


def test_what_is_there_already_counts_when_a_run_is_resumed(tmp_path):
    run = run_of(tmp_path, steps=50)
    bns.train("dln", output=run.path, **settings_of(run))
    more = run_of(tmp_path, steps=100)
    assert needs.saves(run).count == 0
    assert needs.saves(more).files == 5
    again = needs.saves(more, force=True)
    assert (again.files, again.freed) == (11, sum(file.stat().st_size for file in run.checkpoints().values()))
    assert needs.saves(run_of(tmp_path, steps=100, keep=2)).files == 1


def settings_of(run):
    return {name: value for name, value in run.config.as_dict().items() if name not in ("problem", "norm")}


def machine(monkeypatch, total=None, available=None, free=None):
    """Pretend that the machine has so much memory and disk space."""
    monkeypatch.setattr(needs, "main_memory", lambda: Memory(total, available))
    monkeypatch.setattr(needs, "free_space", lambda path: free)


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_run_is_refused_if_its_tensors_exceed_all_memory_by_one_byte(cli, monkeypatch, beyond):
    line = f"train {DLN} --momentum 0.9 --steps 3 --device cpu -o run"
    config = resolve("dln", depth=5, dimension=4, samples=30, momentum=0.9)
    found = Needs(problems.build(config))
    machine(monkeypatch, total=2 * found.parameters + found.optimiser + found.data - beyond)
    code, _, err = cli(line)
    assert code == (2 if beyond else 0)
    if beyond:
        assert err.startswith(
            "bnsmooth: run: the parameters, their gradients, the optimiser's state and the data take 2."
        )
        assert "kB in all; give a smaller --dimension and --depth" in err
        assert not Path("run").exists()


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_run_is_refused_if_its_checkpoints_exceed_the_free_disk_by_one_byte(cli, monkeypatch, beyond):
    config = resolve("dln", depth=5, dimension=4, samples=30)
    machine(monkeypatch, free=5 * Needs(problems.build(config)).checkpoint - beyond)
    line = f"train {DLN} --steps 40 --save-every 10 --device cpu -o run"
    code, _, err = cli(line)
    assert code == (2 if beyond else 0)
    if beyond:
        assert err.startswith("bnsmooth: run: 5 checkpoints of ")
        assert "free; give --keep 2, a larger --save-every, or another disk with -o" in err
        assert (err.count("\n"), Path("run").exists()) == (1, False)
        assert cli(f"{line} --keep 2")[0] == cli(f"{line} --save-every 20 -o other")[0] == 0


def test_a_run_that_has_ended_is_returned_whatever_is_free(cli, monkeypatch):
    line = f"train {DLN} --steps 20 --save-every 10 --device cpu -o run"
    assert cli(line)[0] == 0
    machine(monkeypatch, total=1, available=1, free=0)
    assert cli(line)[0] == 0
    machine(monkeypatch, free=0)
    assert "2 checkpoints of" in cli(line.replace("20", "40"))[2]


@pytest.mark.parametrize(("available", "said"), [(10**12, False), (10**6, True)])
def test_a_run_that_may_not_fit_is_trained_with_a_note(cli, monkeypatch, available, said):
    machine(monkeypatch, available=available)
    code, _, err = cli(f"train {DLN} --steps 2 --device cpu -o run-{available}")
    assert code == 0
    assert err.startswith("bnsmooth: note: training takes about 20 MB of memory, and 1 MB are available") == said


def test_the_activations_of_the_users_own_network_are_not_estimated_by_training(monkeypatch, tmp_path):
    machine(monkeypatch, total=10**12, available=10**12, free=10**12)
    monkeypatch.setattr(Needs, "activations", property(lambda self: pytest.fail("the user's network ran again")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bns.train("own_code:residual", "batch", batch_size=8, steps=2, output=tmp_path / "run", device="cpu")


def test_a_network_larger_than_any_memory_is_refused_before_it_is_made(cli):
    layers = ",".join(["9999"] * 900)
    code, _, err = cli(f"train --problem vgg --width 4 --classifier {layers} --steps 1 -o run")
    assert (code, err.count("\n")) == (2, 1)
    assert " TB of memory, and there are " in err
    assert "in all; give a smaller --width and --classifier" in err


def in_bytes(text):
    """The bytes that a size in words means."""
    number, unit = text.split()
    return float(number) * {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]


def note_of(out):
    """The numbers of the last line of a dry run: memory and disk."""
    found = re.search(r"thread, (\S+ \S+) of memory and (\S+ \S+) on the disk; nothing was written$", out.strip())
    return tuple(map(in_bytes, found.groups()))


SIZES = f"{DLN} --steps 60 --save-every 10"


@pytest.mark.parametrize("optimiser", ["", "--optimizer adamw --lr 1e-3 --schedule cosine --clip 1"])
@pytest.mark.parametrize("keep", [0, 2])
def test_a_dry_run_of_training_tells_the_disk_that_it_takes_and_writes_nothing(cli, tmp_path, keep, optimiser):
    line = f"train {SIZES} --keep {keep} {optimiser} --measure landscape,ics --every 20 -o run"
    code, out, err = cli(f"{line} --dry-run")
    assert (code, err, [*tmp_path.iterdir()]) == (0, "", [])
    assert ": what the run would do\n" in out
    assert "1 run: about " in out
    assert cli(line)[0] == 0
    taken = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*"))
    assert taken / 2 <= note_of(out)[1] <= 2 * taken
    assert "finished" in cli(f"{line} --dry-run")[1]


@pytest.mark.parametrize("more", ["", "--keep 1", "--keep 7"])
def test_the_disk_of_a_run_of_adamw_is_that_of_its_checkpoints_but_for_what_the_first_one_lacks(cli, tmp_path, more):
    """The first checkpoint has no averages yet; in a wide network, they are two thirds of the others."""
    line = "train --problem dln --dimension 100 --depth 5 --samples 30 --optimizer adamw --lr 1e-4 --steps 20"
    line += f" --save-every 10 {more} -o run"
    disk = note_of(cli(f"{line} --dry-run")[1])[1]
    assert cli(line)[0] == 0
    taken = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*"))
    most = taken * (2 if more == "--keep 1" else 1)  # the next one is written beside it
    assert disk == pytest.approx(most, rel=0.05)


def test_a_dry_run_counts_what_a_run_still_takes(cli):
    line = f"train {SIZES} --measure ics --every 10 --dry-run -o run"
    cli(f"train {SIZES} --measure ics --every 10 -o run".replace("60", "30"))
    rows = [line.split() for line in cli(line)[1].splitlines()]
    assert rows[2][:5] == ["from", "step", "30", "30", "3"]
    assert [line.split() for line in cli(f"{line} --force")[1].splitlines()][2][:3] == ["new", "60", "7"]
    rows = [line.split() for line in cli(line.replace("--every 10", "--at 0,5,40"))[1].splitlines()]
    assert rows[2][3:5] == ["30", "2"]  # step 0 is there, and step 5 takes a walk


def test_a_dry_run_counts_the_points_of_a_pass_that_was_interrupted(cli, monkeypatch):
    line = f"train {SIZES} --measure ics --every 5 -o run"
    calls = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "told", lambda: next(calls) == 32)
        patch.setattr(stopping, "stop", lambda kept: (_ for _ in ()).throw(InputError(kept)))
        said = re.match(r"bnsmooth: run keeps step (\d+) of 60; run/ics.parquet keeps \d+ of 13 points\n", cli(line)[2])
    assert said is not None
    step = int(said[1])
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    rows = [line.split() for line in cli(f"{line} --dry-run")[1].splitlines()]
    points = [at for at in range(0, 61, 5) if at >= step]
    assert rows[2][:5] == ["from", "step", str(step), str(60 - step), str(len(points))]
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_a_dry_run_needs_no_folder_that_can_be_written(cli, tmp_path, monkeypatch):
    for name in ("TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "/proc/none")
    monkeypatch.setattr("tempfile.mkdtemp", lambda *_, **__: pytest.fail("a folder was made"))
    for line in (f"train {SIZES} --measure ics", f"compare --norms none,batch {SIZES} --measure activations --probe"):
        code, _, err = cli(f"{line} --dry-run -o /proc/none/run")
        assert (code, err) == (0, "")


def test_a_dry_run_counts_the_time_that_checkpoints_take(cli):
    seconds = [
        json.loads(cli(f"train {SIZES} --save-every {every} --dry-run --json")[1])["tables"][0]["rows"][0]["seconds"]
        for every in (1, 60)
    ]
    assert seconds[0] - seconds[1] > 0.4  # 60 of 61 saves, of which each takes more than a disk's time


def test_a_dry_run_is_refused_as_the_run_would_be(cli, monkeypatch):
    machine(monkeypatch, free=100)
    for line in (f"train {SIZES} -o run", f"compare --norms none {SIZES} -o study"):
        code, out, err = cli(f"{line} --dry-run")
        assert (code, out) == (2, "")
        assert "7 checkpoints of" in err


def test_a_dry_run_of_a_study_multiplies_by_the_jobs_and_fits_80_columns(cli, narrow_terminal):
    line = f"compare --norms none,batch --seeds 0-1 {SIZES} --measure landscape,ics --every 20 --dry-run"
    one, two = cli(line)[1], cli(f"{line} --jobs 2")[1]
    assert all(len(row) <= 80 for row in one.splitlines()[:-1])
    assert one.splitlines()[1].split() == ["run", "training", "steps", "points", "about", "memory", "disk"]
    assert note_of(two)[0] == pytest.approx(3 * note_of(one)[0], rel=0.2)  # two workers, and what waits for them
    assert note_of(two)[1] == pytest.approx(note_of(one)[1], rel=0.1)


def test_a_dry_run_remarks_on_jobs_that_do_not_fit(cli, monkeypatch):
    line = f"compare --norms none --seeds 0-1 {SIZES} --jobs 2 --dry-run"
    checkpoints = 7 * Needs(problems.build(resolve("dln", norm="none", depth=5, dimension=4, samples=30))).checkpoint
    machine(monkeypatch, available=10**8, free=checkpoints)
    code, _, err = cli(line)
    assert code == 0
    assert re.search(r"note: .* of memory are more than the available 100 MB\n", err)
    assert re.search(r"note: .* on the disk are more than the free ", err)


MEMINFO = "MemTotal:  1000 kB\nMemFree: 10 kB\nMemAvailable:  800 kB\nSwapTotal:  100 kB\n"
KIB = 1024


def system(folder, files):
    """A folder with the files of /proc and /sys."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def v2(group, limit, used, idle=0):
    place = f"sys/fs/cgroup{group}"
    files = {
        "memory.max": f"{limit}\n",
        "memory.current": f"{used}\n",
        "memory.stat": f"anon 1\ninactive_file {idle}\n",
    }
    return {f"{place}/{name}": text for name, text in files.items()}


def v1(group, limit, used, idle=0):
    place = f"sys/fs/cgroup/memory{group}"
    return {
        f"{place}/memory.limit_in_bytes": f"{limit}\n", f"{place}/memory.usage_in_bytes": f"{used}\n",
        f"{place}/memory.stat": f"inactive_file 7\ntotal_inactive_file {idle}\n",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "total", "available"),
    [
        ({}, None, None),
        ({"proc/meminfo": MEMINFO}, 1100, 800),
        ({"proc/meminfo": "MemTotal: 1000 kB\n"}, 1000, None),
        ({"proc/meminfo": "\0damaged"}, None, None),
        # A SLURM job: its own group has no limit, and the one above has.
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/job/step\n", **v2("/job/step", "max", 5),
          **v2("/job", 400 * KIB, 300 * KIB, 50 * KIB)}, 500, 150),
        # A container sees its group at the root, and in /proc the host's name of it.
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "4:cpu,memory:/docker/x\n", **v1("", 600 * KIB, 100 * KIB)},
         700, 500),
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "4:memory:/docker/x\n0::/\n",
          **v1("/docker/x", 9223372036854771712, 100 * KIB)}, 1100, 800),
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/full\n", **v2("/full", 400 * KIB, 500 * KIB)}, 500, 0),
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/../../x\nnonsense\n\n", **v2("/x", "", "")}, 1100, 800),
    ],
)  # fmt: skip
def test_the_memory_of_machines_containers_and_jobs(tmp_path, files, total, available):
    found = main_memory(system(tmp_path, files))
    assert found == tuple(None if value is None else KIB * value for value in (total, available))


#: Mounts a small file system at a folder and runs a command in it.
ON_A_SMALL_DISK = """
import subprocess, sys
disk, size, line = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=" + size, "tmpfs", disk], check=True)
sys.exit(subprocess.run([sys.executable, "-m", "bnsmooth_cli", *line.split()], cwd=disk).returncode)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "keep", "code"), [("128k", 0, 2), ("128k", 2, 0), ("8M", 0, 0)])
def test_a_disk_that_is_too_small_for_the_checkpoints(tmp_path, size, keep, code):
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    line = f"train {DLN} --steps 400 --save-every 10 --keep {keep} --device cpu -o run"
    words = ["unshare", "-rm", sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path), size, line]
    ended = subprocess.run(words, text=True, capture_output=True, env=ENVIRONMENT)
    assert ended.returncode == code, ended.stderr
    if code:
        assert ended.stderr.startswith("bnsmooth: run: 41 checkpoints of ")
        assert ended.stderr.endswith("free; give --keep 2, a larger --save-every, or another disk with -o\n")
