"""Locks: one process writes at a time, and file systems that cannot lock are named."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import warnings

import pytest
from complaints import complaints
from helpers import DLN, ENVIRONMENT

from bnsmooth_cli.errors import InputError, Remark
from bnsmooth_cli.storage import locks
from bnsmooth_cli.storage.locks import locked

TWO = "do not let two commands write to one run, table or study there at the same time"


@pytest.fixture
def mounts(tmp_path, monkeypatch):
    """Replace the list of mounts: lines in which HERE stands for an empty folder, which is returned."""
    here = tmp_path / "a b"
    here.mkdir()

    def replace(*lines):
        path = tmp_path / "mounts"
        path.write_text("".join(line.replace("HERE", str(here).replace(" ", "\\040")) + "\n" for line in lines))
        monkeypatch.setattr(locks, "_MOUNTS", path)
        return here

    return replace


def failing(code):
    def flock(*_):
        raise OSError(code, "told by the test")

    return flock


def said(folder):
    with warnings.catch_warnings(record=True) as caught, locked(folder, "run"):
        warnings.simplefilter("always")
    return [str(warning.message) for warning in caught if warning.category is Remark]


def test_the_second_holder_of_a_lock_is_refused_until_the_first_is_done(tmp_path):
    with locked(tmp_path, "run"):
        with pytest.raises(InputError, match="another process is writing this table"), locked(tmp_path, "table"):
            pass
        with locked(tmp_path, "table", tmp_path / "ics.parquet"):  # another lock
            pass
    with locked(tmp_path, "run"):
        assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_named_and_the_work_is_done(mounts, monkeypatch, code):
    here = mounts("/dev/x / ext4 rw 0 0", "host:/x HERE beegfs rw,relatime 0 0")
    monkeypatch.setattr(fcntl, "flock", failing(code))
    done = []
    for _ in range(2):
        with pytest.warns(Remark) as caught, locked(here, "run"), locked(here, "run"):
            done.append("work")
    assert done == ["work", "work"]
    message = str(caught[0].message)
    assert message.startswith(f"{here}: the file system has no locks (beegfs: ")
    assert message.endswith(TWO)


def test_without_a_list_of_mounts_the_folder_itself_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_MOUNTS", tmp_path / "absent")
    assert said(tmp_path) == []
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    with (
        pytest.warns(Remark, match=f"^{tmp_path}: the file system has no locks .of unknown type"),
        locked(tmp_path, "x"),
    ):
        pass


def failing_in(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with locked(folder, "run"):
            raise OSError(errno.ENOLCK, "mine")


def test_an_error_of_the_work_stays_what_it_is(tmp_path, monkeypatch):
    for code in (None, errno.ENOLCK):
        if code:
            monkeypatch.setattr(fcntl, "flock", failing(code))
        with pytest.raises(OSError, match="mine"):
            failing_in(tmp_path)


def test_another_error_of_the_lock_is_one_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with pytest.raises(InputError, match=f"^{tmp_path}: cannot be written .told by the test."), locked(tmp_path, "run"):
        pass
    with pytest.raises(InputError, match="absent: cannot be written"), locked(tmp_path / "absent", "run"):
        pass


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("nfs", "rw,vers=3,nolock,addr=10.0.0.1", "nfs, mounted with nolock"),
        ("nfs", "rw,vers=3,local_lock=all", "nfs, mounted with local_lock=all"),
        ("nfs4", "rw,vers=4.2,local_lock=flock", "nfs4, mounted with local_lock=flock"),
        ("lustre", "rw,localflock", "lustre, mounted with localflock"),
        ("cifs", "rw,nobrl", "cifs, mounted with nobrl"),
        ("nfs4", "rw,vers=4.2,local_lock=none", None),
        ("nfs", "rw,vers=3,local_lock=posix", None),  # flock is not what stays on the machine
        ("lustre", "rw,flock", None),
        ("ext4", "rw,nolock", None),
    ],
)
def test_a_network_file_system_that_locks_for_one_machine_alone_is_named(mounts, kind, options, named):
    here = mounts("/dev/x / ext4 rw 0 0", f"host:/x HERE {kind} {options} 0 0")
    (here / "deeper/run").mkdir(parents=True)
    for folder in (here, here / "deeper/run"):  # the same text, which is printed once
        expected = [f"{here}: the file system locks files for one machine alone ({named}); {TWO}"]
        assert said(folder) == (expected if named else [])


def test_the_last_and_deepest_mount_counts(mounts):
    nolock = "nfs rw,nolock 0 0"
    assert said(mounts(f"host:/x / {nolock}", "/dev/x HERE ext4 rw 0 0")) == []
    assert said(mounts("/dev/x HERE ext4 rw 0 0", f"host:/x / {nolock}")) == []
    assert said(mounts(f"host:/x HERE {nolock}", "/dev/x HERE ext4 rw 0 0")) == []
    assert len(said(mounts("/dev/x HERE ext4 rw 0 0", f"host:/x HERE {nolock}"))) == 1
    assert said(mounts(f"host:/x HERE/else {nolock}", f"host:/x HEREx {nolock}")) == []


def test_strange_lists_of_mounts_do_no_harm(mounts):
    assert said(mounts("", "x", "a b", "a HERE", "a HERE nfs", "\\777 \\999 \\0 nolock", "host: HERE nfs \x00")) == []


WITHOUT = """
import errno, fcntl
from bnsmooth_cli.cli import main
def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
main()
"""


@pytest.mark.parametrize("line", [f"train {DLN} --steps 4 -o run", f"compare --norms none,l1 {DLN} --steps 4 -o study"])
@pytest.mark.slow
def test_a_command_on_a_file_system_without_locks_says_so_once_and_works(tmp_path, line):
    words = [sys.executable, "-c", WITHOUT, *line.split(), "--threads", "1"]
    for _ in range(2):
        done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
        assert (done.returncode, complaints(done.stderr).count("\n")) == (0, 1), done.stderr
        assert complaints(done.stderr).startswith("bnsmooth: note: ")
        assert ("has no locks" in done.stderr, TWO in done.stderr) == (True, True)
    assert not [*tmp_path.rglob("*.tmp.*")]
