"""Storage that fails: full, read-only, removed, or a folder in a file's place. One line of error, no file lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attempts import DEFAULT_DLN as DLN
from attempts import contents, done, judge, run, start, wait_for
from complaints import complaints
from helpers import holder

from bnsmooth_cli.storage import files, tables

TRAIN = f"train {DLN} --norm batch --steps 40 --save-every 10 -o run"
STUDY = f"compare --norms none,batch {DLN} --steps 20 --save-every 10 -o study"
#: Name -> a command, and the commands before it.
COMMANDS = {
    "train": (TRAIN, []),
    "train on": (TRAIN.replace("40", "80"), [TRAIN]),
    "landscape": ("landscape run", [TRAIN]),
    "smoothness anew": ("smoothness run --force", [TRAIN, "smoothness run"]),
    "theory elsewhere": ("theory run --units 0 -o new/theory.parquet", [TRAIN]),
    "surface": ("surface run --points 5", [TRAIN]),
    "smoothness by layer": ("smoothness run --by-layer --at 40", [TRAIN]),
    "show": ("show run/train.parquet --csv new/train.csv", [TRAIN]),
    "compare": ("compare run", [TRAIN]),
    "compare, a grid": (STUDY, []),
    "compare, more of a grid": (STUDY.replace("none", "none,l1"), [STUDY]),
    "plot": ("plot run/train.parquet -o figure.png", [TRAIN]),
    "report": ("report study", [STUDY]),
    "report, Markdown": ("report study --format md", [STUDY]),
}

#: For each case, in a namespace of its own: mount a small file system, run the commands before, fill it or make it
#: read-only, run the command, free the space, run the command again. Prints how each ended and which files changed.
SCRIPT = """
import json, subprocess, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from attempts import contents, done, fill, run

def attempt(disk, line, before, how, size):
    mount = lambda *words: subprocess.run(["mount", *words, str(disk)], check=True)
    disk.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")
    for one in before:
        done(one, disk)
    there = contents(disk)
    if how == "full":
        fill(disk)
    elif how == "read-only":
        mount("-o", "remount,ro")
    ended = run(line, disk)
    after = contents(disk)
    kept = all(after.get(name) == content for name, content in there.items())
    more = sorted(set(after) - set(there) - {"filler"})
    if how == "full":
        (disk / "filler").unlink()
    else:
        mount("-o", "remount,rw,size=8M")
    again = run(line, disk)
    return ended.code, ended.err, kept, more, again.code, again.err

cases = json.loads(sys.argv[3])
print(json.dumps([attempt(Path(sys.argv[2]) / str(i), *case) for i, case in enumerate(cases)]))
"""


def in_namespace(folder: Path, *cases: tuple[str, list[str], str, str]) -> list[list]:
    """The outcome of each case (line, lines before it, how the disk fails, size), from one interpreter."""
    words = ["unshare", "-rm", sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(folder), json.dumps(cases)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    line = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(line, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_disk_that_takes_nothing(tmp_path, how):
    found = in_namespace(tmp_path, *((line, before, how, "8M") for line, before in COMMANDS.values()))
    for name, (code, err, kept, more, again, why) in zip(COMMANDS, found, strict=True):
        assert code in (1, 2), (name, err)
        reasons = ("No space left on device", "free; give") if how == "full" else ("Read-only file system",)
        assert any(reason in err for reason in (*reasons, "not a writable folder")), (name, err)
        assert (err.count("\n"), err.startswith("bnsmooth: "), "--debug" in err) == (1, True, False), (name, err)
        assert kept, name
        assert not [path for path in more if ".tmp." in path], (name, more)
        assert (again, why) == (0, ""), name


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")
def test_a_table_that_is_there_is_shown_where_nothing_can_be_written(tmp_path):
    (other := tmp_path / "other").mkdir()
    lines = ["train --problem dln --steps 4 -o run", "smoothness run --at 4", "surface run --points 3 --dimensions 1"]
    for code, err, *_ in in_namespace(tmp_path, *((line, lines, "read-only", "8M") for line in lines[1:])):
        assert (code, err) == (0, "")
    ((code, err, *_),) = in_namespace(other, ("smoothness run --at 3,4", lines, "read-only", "8M"))
    assert (code, "smoothness.parquet: cannot be written" in err) == (2, True), err


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")
def test_a_disk_that_gets_full_meanwhile(tmp_path):
    line = "train --problem vgg --width 0.05 --batch-size 8 --steps 4 --save-every 1 --eval-every 4 -o run"
    # By the numbers, one checkpoint does not fit, or five do not. Five would just fit without the table beside them.
    sizes = {"24k": "free; give", "160k": "free; give", "630k": "No space left on device"}
    found = in_namespace(tmp_path, *((line, [], "small", size) for size in sizes))
    for (size, reason), (code, err, _, more, again, why) in zip(sizes.items(), found, strict=True):
        assert (code, err.count("\n"), reason in err, "--debug" in err) == (2, 1, True, False), err
        assert not [path for path in more if ".tmp." in path], (size, more)
        assert (again, why) == (0, ""), size


#: In a namespace of its own: fill the disk once a run there has a checkpoint, and resume it when there is space again.
FILLING = """
import json, subprocess, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from attempts import contents, fill, run, start, wait_for
from complaints import complaints

disk, line = Path(sys.argv[2]), sys.argv[3]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", str(disk)], check=True)
process = start(line, disk)
wait_for((disk / "run/checkpoints/000200.pt").exists)
fill(disk)
err = complaints(process.communicate(timeout=60)[1])
(disk / "filler").unlink()
left = [name for name in contents(disk) if ".tmp." in name]
again = run(line, disk)
found = {name: data.hex() for name, data in contents(disk).items()}
print(json.dumps([process.returncode, err, left, again.code, again.err, found]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")
@pytest.mark.parametrize("more", ["", "--keep 2", "--measure smoothness --every 100"])
def test_a_disk_that_is_filled_while_a_run_trains(tmp_path, more):
    line = f"{TRAIN.replace('40', '6000').replace('10', '200')} {more}"
    words = ["unshare", "-rm", sys.executable, "-c", FILLING, str(Path(__file__).parent), str(tmp_path), line]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    code, err, left, again, why, found = json.loads(ended.stdout.splitlines()[-1])
    assert (code, err.count("\n"), "No space left on device" in err, left) == (2, 1, True, []), err
    assert (again, why) == (0, "")
    (tmp_path / "whole").mkdir()
    done(line, tmp_path / "whole")
    assert found == {name: data.hex() for name, data in contents(tmp_path / "whole").items()}


@pytest.mark.slow
@pytest.mark.parametrize("line", [TRAIN.replace("40", "90000").replace("10", "500"), "landscape run --every 1"])
def test_a_folder_that_is_removed_meanwhile(tmp_path, line):
    if line.startswith("landscape"):
        done(f"train {DLN} --norm batch --steps 3000 --save-every 500 -o run", tmp_path)
    process = start(line, tmp_path)
    landscape, checkpoint = tmp_path / "run/.landscape.lock", tmp_path / "run/checkpoints/001000.pt"
    wait_for(lambda: holder(landscape) or ("landscape" not in line and checkpoint.exists()))
    (tmp_path / "run").rename(tmp_path / "moved")  # at once, as no rmtree is
    shutil.rmtree(tmp_path / "moved")
    err = complaints(process.communicate(timeout=120)[1])
    assert process.returncode in (1, 2)
    assert (err.count("\n"), err.startswith("bnsmooth: run")) == (1, True), err
    assert not [*tmp_path.glob("run/*")], "half a run"


@pytest.mark.slow
def test_a_study_whose_folder_is_removed_meanwhile(tmp_path):
    process = start(f"compare --norms none,l1 {DLN} --steps 40000 --save-every 500 --jobs 2 -o study", tmp_path)
    wait_for(
        (tmp_path / "study/runs/dln-l1-lr1e-06-depth5-dim4-samples30-steps40000-seed0/checkpoints/000500.pt").exists
    )
    (tmp_path / "study").rename(tmp_path / "moved")
    begun = time.monotonic()
    err = complaints(process.communicate(timeout=120)[1])
    assert process.returncode in (1, 2), err
    assert "Traceback" not in err
    assert time.monotonic() - begun < 60
    assert not [*tmp_path.glob("study/*")], err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode there")
def test_names_that_are_no_unicode(tmp_path):
    done(TRAIN.replace("-o run", "-o r\udcff"), tmp_path)
    done("ics r\udcff", tmp_path)
    done("smoothness r\udcff/checkpoints/000020.pt -o t\udcff.parquet", tmp_path)
    done("plot t\udcff.parquet -o f\udcff.png", tmp_path)
    assert (tmp_path / "f\udcff.png").is_file()
    said = done("compare r\udcff -o c\udcff.parquet", tmp_path).out
    assert "c\\udcff.parquet" in said
    assert tables.read_table(tmp_path / "c\udcff.parquet")["run"].tolist() == ["r\\udcff"]
    done(STUDY.replace("-o study", "-o s\udcff"), tmp_path)
    done("report s\udcff -o r\udcff.html", tmp_path)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("run/train.parquet", TRAIN.replace("40", "80")),
        ("run/train.parquet", "compare run"),
        ("run/config.json", TRAIN),
        ("run/config.json", "ics run"),
        ("run/checkpoints/000020.pt", "landscape run"),
        ("run/checkpoints/000040.pt", TRAIN.replace("40", "80")),
        ("run/smoothness.parquet", "smoothness run"),
        ("run/smoothness.parquet", "smoothness run --force"),
        ("run/smoothness.parquet", "plot run/smoothness.parquet -o f.png"),
        ("compare.parquet", "compare run"),
        ("figure.png", "plot run/train.parquet -o figure.png"),
    ],
)
@pytest.mark.fast(2)
def test_a_folder_where_a_file_was(tmp_path, path, line):
    done(TRAIN, tmp_path)
    done("smoothness run", tmp_path)
    before = {name: data for name, data in contents(tmp_path).items() if name != path}
    (tmp_path / path).unlink(missing_ok=True)
    (tmp_path / path / "mine").mkdir(parents=True)
    ended = run(line, tmp_path)
    assert ended.code == 2
    assert judge(ended, path) == ""
    assert {name: contents(tmp_path).get(name) for name in before} == before


@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the open files")
def test_a_file_is_closed_before_it_is_renamed_where_locks_are_missing(tmp_path, monkeypatch):
    """On Windows, which has no fcntl, an open file cannot be renamed."""
    held = []

    def replace(temporary, target):
        held.extend(link for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link) == str(temporary))
        os.replace(temporary, target)

    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(Path, "replace", replace)
    files.save_json(tmp_path / "a.json", {"format": 1})
    assert files.load_json(tmp_path / "a.json", "test folder", 1, ()) == {"format": 1}
    assert held == []
