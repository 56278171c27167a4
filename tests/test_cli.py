"""The command line as users see it: results, one-line errors, exit statuses, and files that must not change."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import SMALL, commands

import bnsmooth_cli as bns
from bnsmooth_cli import kinds
from bnsmooth_cli.cli import log
from bnsmooth_cli.measures import landscape, measuring
from bnsmooth_cli.networks.chain import Chain
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import open_run

DLN = "-p dln --depth 5 --dimension 4 --samples 30 --lr 1e-4 --steps 6 --save-every 2 --threads 1"


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture
def run(small_run):
    return small_run("dln", "batch")


def test_stages_compose_through_files(cli, tmp_path):
    for norm in ("none", "batch"):
        assert cli(f"train --norm {norm} {DLN}")[0] == 0
    runs = " ".join(f"runs/dln-{norm}-lr0.0001-depth5-dim4-samples30-steps6-seed0" for norm in ("none", "batch"))
    for kind in ("landscape", "smoothness", "ics", "activations", "theory"):
        code, out, err = cli(f"{kind} {runs}")
        assert (code, err) == (0, "")
        assert f"runs/dln-batch-lr0.0001-depth5-dim4-samples30-steps6-seed0/{kind}.parquet" in out
        table = bns.read_table(f"runs/dln-batch-lr0.0001-depth5-dim4-samples30-steps6-seed0/{kind}.parquet", kind)
        assert table["step"].unique().tolist() == [0, 2, 4, 6]
        tables = " ".join(f"{name}/{kind}.parquet" for name in runs.split())
        assert cli(f"plot {tables} -o {kind}.png")[0] == 0
        assert (tmp_path / f"{kind}.png").read_bytes()[:4] == b"\x89PNG"
    code, out, _ = cli(f"compare {runs} -o c.parquet")
    assert code == 0
    losses = {
        n: bns.read_table(f"runs/dln-{n}-lr0.0001-depth5-dim4-samples30-steps6-seed0/train.parquet")["loss"].iloc[-1]
        for n in ("none", "batch")
    }
    printed = [line.split()[0] for line in out.splitlines() if line.split()[0] in losses]
    assert printed == sorted(losses, key=losses.get)
    assert cli("plot c.parquet -o c.svg")[0] == 0
    trains = " ".join(f"{name}/train.parquet" for name in runs.split())
    ics = " ".join(f"{name}/ics.parquet" for name in runs.split())
    assert cli(f"plot {ics} {trains} -o ics.pdf")[0] == 0


def test_without_a_run_an_analysis_trains_it_and_finds_it_again(cli, tmp_path):
    assert cli(f"landscape --norm l1 {DLN}")[0] == 0
    folder = tmp_path / "runs/dln-l1-lr0.0001-depth5-dim4-samples30-steps6-seed0"
    stamps = {name: (folder / name).stat().st_mtime_ns for name in ("train.parquet", "landscape.parquet")}
    assert cli(f"landscape --norm l1 {DLN}")[0] == 0
    assert cli(f"train --norm l1 {DLN}")[0] == 0
    assert stamps == {name: (folder / name).stat().st_mtime_ns for name in stamps}


@pytest.mark.slow
def test_theory_alone_verifies_the_linear_network_and_says_so(cli, tmp_path):
    code, out, err = cli(f"theory {DLN.replace('-p dln ', '')}")
    assert (code, err) == (0, "")
    # 4 points x 20 units x (2 + 1 + 2 + 2 + 1 + 2 + 1). At step 0, the nearest optimum of 4.5 is the start.
    assert "equal to 1e-09 of the largest term in 860 cases; 20 not tested" in " ".join(out.split())
    table = bns.read_table(
        tmp_path / "runs/dln-batch-lr0.0001-depth5-dim4-samples30-steps6-seed0/theory.parquet", "theory"
    )
    assert table.groupby("statement")["holds"].all().drop([*kinds.UNPROVED]).all()


@pytest.mark.slow
def test_summaries_fit_a_narrow_terminal(cli, run, narrow_terminal):
    for kind in ("activations", "theory"):
        _, out, _ = cli(f"{kind} {run.path} -o {kind}.parquet")
        rows = out.splitlines()
        assert max(len(row) for row in rows if "equal" not in row and ".parquet" not in row) <= 80
        table = bns.read_table(f"{kind}.parquet")
        shown = table["sigma"].median() if kind == "theory" else table.query("layer == 1")["sigma"].median()
        assert any(f"{shown:.3g}" in row.split() for row in rows)


def test_a_lone_checkpoint_is_measured_beside_itself(cli, run, tmp_path):
    lone = tmp_path / "somewhere.pt"
    lone.write_bytes(run.checkpoint_path(4).read_bytes())
    assert cli(f"landscape {lone} --points 3 --min-alpha 1 --max-alpha 2")[0] == 0
    table = bns.read_table(tmp_path / "somewhere.landscape.parquet")
    assert table["alpha"].tolist() == [0, 1, 1.5, 2]
    assert set(table["run"]) == {run.name}
    assert set(table["step"]) == {4}


def test_every_and_at_choose_the_steps_and_one_table_takes_several_runs(cli, run, small_run):
    other = small_run("dln", "none")
    assert cli(f"ics {run.path} {other.path} --every 3 -o both.parquet")[0] == 0
    table = bns.read_table("both.parquet")
    assert table.groupby("run")["step"].unique().map(list).to_dict() == {
        run.name: [0, 3, 6],
        other.name: [0, 3, 6],
    }
    assert cli(f"ics {run.path} --at 5,1,5 -o at.parquet")[0] == 0
    assert bns.read_table("at.parquet")["step"].unique().tolist() == [1, 5]


def counted(monkeypatch, owner, name):
    """Replace a function of a module or class by one that records the arguments of its calls."""
    calls, function = [], getattr(owner, name)

    def record(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, record)
    return calls


@pytest.mark.parametrize("problem", ["vgg", "dln"])
def test_an_analysis_plans_once_and_builds_one_network(cli, small_run, monkeypatch, tmp_path, problem):
    run = small_run(problem, "batch")
    plans, networks = counted(monkeypatch, measuring, "plan"), counted(monkeypatch, Chain, "__init__")
    arguments = counted(monkeypatch, landscape, "line_alphas")
    code, first, _ = cli(f"landscape {run.path} -o {tmp_path}/t.parquet")
    assert (code, len(plans), len(arguments), len(networks)) == (0, 1, 1, 1)
    again = cli(f"landscape {run.path} -o {tmp_path}/t.parquet")[1]  # from the table
    assert (again, len(networks)) == (first, 1)


@pytest.mark.parametrize(
    ("command", "count"),
    [("ics --layers fc1,fc2", 1), ("activations --units 0", 1), ("theory --units 0 --at 2", 2)],
)
@pytest.mark.parametrize("problem", ["vgg", "dln"])
@pytest.mark.fast(2)
def test_layers_and_units_are_checked_on_the_network_that_is_measured(
    cli, small_run, monkeypatch, tmp_path, problem, command, count
):
    run = small_run(problem, "batch")
    networks = counted(monkeypatch, Chain, "__init__")
    code, _, err = cli(f"{command} {run.path} -o {tmp_path}/t.parquet")
    assert (code, err) == (0, "")
    assert len(networks) == count  # theory needs the initial weights as well


def test_layers_of_a_run_that_is_not_trained_yet_are_checked_on_the_network_that_is_trained(cli, monkeypatch):
    networks = counted(monkeypatch, Chain, "__init__")
    assert cli(f"ics {DLN} --layers fc1,fc2")[0] == 0
    real = [network for network, *_ in networks if next(network.parameters()).device.type != "meta"]  # no outlines
    assert len(real) == 2  # one for the training, one for the measurement


def test_a_table_of_other_settings_is_refused_and_replaced_by_force(cli, run):
    assert cli(f"landscape {run.path} --points 2 -o t.parquet")[0] == 0
    code, _, err = cli(f"landscape {run.path} --points 3 -o t.parquet")
    assert code == 2
    assert "--force" in err
    assert cli(f"landscape {run.path} --points 3 -o t.parquet --force")[0] == 0
    assert len(bns.read_table("t.parquet")) == 4 * 4


def test_a_random_direction_has_tables_of_its_own(cli, tmp_path):
    assert cli(f"train --norm batch {DLN} -o own")[0] == 0
    run = open_run(tmp_path / "own")
    for kind in ("landscape", "smoothness"):
        assert cli(f"{kind} {run.path} --at 2,4")[0] == 0
        code, out, err = cli(f"{kind} {run.path} --at 2,4 --direction random")
        assert (code, err) == (0, "")
        assert "along a random direction" in out
        plain, random = (bns.read_table(run.path / f"{name}.parquet", name) for name in (kind, f"{kind}-random"))
        measure = {"landscape": bns.landscape, "smoothness": bns.smoothness}[kind]
        same = pd.concat([measure(bns.load_point(run, step), direction="random") for step in (2, 4)], ignore_index=True)
        pd.testing.assert_frame_equal(random, same)
        assert tables.kind_of(same) == f"{kind}-random"
        assert tables.kind_of(plain) == kind
        assert not random.iloc[:, :-1].equals(plain)
        assert cli(f"plot {run.path}/{kind}-random.parquet -o {kind}.png")[0] == 0
        code, _, err = cli(f"plot {run.path}/{kind}-random.parquet {run.path}/{kind}.parquet -o {kind}.png")
        assert (code, "one kind at a time" in err) == (2, True)


def test_force_removes_what_a_run_writes_and_nothing_of_the_users(cli, tmp_path):
    assert cli(f"train --norm l1 {DLN} --tensorboard -o r")[0] == 0
    assert cli("landscape r --points 1 --objective train:8 --tensorboard")[0] == 0
    assert cli("smoothness r --points 1 --tensorboard")[0] == 0
    written = {path.name for path in (tmp_path / "r").iterdir() if path.suffix in (".parquet", ".tfevents")}
    stems = ("train", "landscape.train8", "smoothness")
    assert written == {f"{stem}.{suffix}" for stem in stems for suffix in ("parquet", "tfevents")}
    mine = {
        "landscape.mine.parquet", "smoothness.parquet.bak", "my.tfevents", "compare.parquet", "notes", "surface.png",
        "checkpoints/best.pt",
    }  # fmt: skip
    for name in mine:
        (tmp_path / "r" / name).write_text("mine")
    others = {
        "smoothness-by-layer.train8.parquet",
        "landscape.test.parquet",
        "landscape.test.tfevents",
        "landscape-random.parquet",
    }
    for name in others:
        (tmp_path / "r" / name).write_text("of before")
    assert cli(f"train --norm l1 {DLN} --force -o r")[0] == 0
    left = {str(path.relative_to(tmp_path / "r")) for path in (tmp_path / "r").rglob("[!.]*") if path.is_file()}
    checkpoints = {f"checkpoints/00000{step}.pt" for step in (0, 2, 4, 6)}
    assert left == {*mine, *checkpoints, "config.json", "train.parquet"}


def test_a_run_of_another_configuration_is_refused_and_replaced_by_force(cli, tmp_path):
    assert cli(f"train --norm l1 {DLN} -o r")[0] == 0
    before = {name: (tmp_path / "r" / name).read_bytes() for name in files(tmp_path / "r") if name.endswith("t")}
    code, _, err = cli(f"train --norm l2 {DLN} -o r")
    assert (code, "norm l1, now l2" in err) == (2, True)
    assert before == {name: (tmp_path / "r" / name).read_bytes() for name in before}
    assert cli(f"train --norm l2 {DLN} -o r --force")[0] == 0
    assert open_run("r").config.norm == "l2"


def test_no_resume_begins_an_unfinished_run_again(cli, tmp_path):
    cli(f"train {DLN} -o r")
    (tmp_path / "r/train.parquet").unlink()  # as if it had been stopped
    assert cli(f"train {DLN} -o r --no-resume")[0] == 0
    assert open_run("r").outcome() is not None


BAD = [
    ("train --norm bacth", "did you mean 'batch'"),
    ("train --norm lp:0", "at least 1"),
    ("train --data cifra10", "did you mean 'cifar10'"),
    ("train --data ./absent", "no such folder"),
    ("train --problem vg", "did you mean 'vgg'"),
    ("train --preset papr", "did you mean 'paper'"),
    ("train --lr -0.1", "--lr -0.1"),
    ("train --lr nan", "--lr nan"),
    ("train --lr abc", "--lr': 'abc' is no number"),
    ("train --steps 1.5", "'1.5' is no whole number"),
    ("compare RUN --target-loss x", "'x' is no number"),
    ("compare --norms none --lrs 0.1,x", "--lrs 'x'"),
    ("compare --norms none --seeds 0,x", "--seeds 'x'"),
    ("landscape RUN --alphas 1,y", "--alphas 'y'"),
    ("train --name a/b", "--name 'a/b'"),
    ("train --tag ..", "--tag '..'"),
    ("train --name a --tag b", "--name and --tag"),
    ("train --name a -o b", "--output and --name"),
    ("train --steps 0", "--steps 0"),
    ("train --batch-size 1", "--batch-size 1"),
    ("train -p dln --batch-size 2000", "--samples"),
    ("train --momentum 1", "--momentum"),
    ("train --seed -1", "--seed"),
    ("train --width 0", "--width"),
    ("train --depth 12", "11, 13, 16 or 19"),
    ("train --threads 0", "--threads"),
    ("train -p dln --width 2", "--width"),
    ("train -p dln --augment", "--augment"),
    ("train --device tpu", "--device tpu"),
    ("train -o file", "file"),
    ("train -o full", "no run"),
    ("train -o file/run", "file"),
    ("train --frobnicate", "--frobnicate"),
    ("frobnicate", "frobnicate"),
    ("landscape absent", "absent"),
    ("landscape absent.pt", "absent.pt"),
    ("landscape foreign.pt", "foreign.pt"),
    ("landscape hostile.pt", "hostile.pt"),
    ("landscape short.pt", "short.pt"),
    ("landscape full", "not a run directory"),
    ("landscape RUN --lr 1", "--lr"),
    ("landscape RUN --points 0", "--points"),
    ("landscape RUN --min-alpha -1", "--min-alpha"),
    ("landscape RUN --direction sideways", "unknown direction 'sideways'"),
    ("smoothness --direction sideways", "unknown direction 'sideways'"),
    ("smoothness RUN --by-layer --direction random", "--by-layer"),
    ("landscape RUN --every 0", "--every"),
    ("landscape RUN --every 1 --at 1", "--at"),
    ("landscape RUN --at 1,x", "--at 'x'"),
    ("landscape RUN --at 99", "99"),
    ("landscape RUN RUN", "twice"),
    ("landscape RUN/checkpoints/000002.pt --at 1", "step 1"),
    ("landscape RUN/checkpoints/000002.pt --every 2", "--every"),
    ("ics RUN -o RUN/train.parquet", "of kind train"),
    ("ics RUN -o file/t.parquet", "file"),
    ("landscape --points 0", "--points"),
    ("smoothness --norm l1 --max-alpha -1", "--max-alpha"),
    ("ics -o file", "file"),
    ("ics -o full", "is a folder"),
    ("activations RUN --layers fc6", "did you mean 'fc"),
    ("activations RUN --layers fc1,,", "unknown layer ''"),
    ("activations RUN --units 4", "--units 4: the layer fc1 has the units 0 to 3"),
    ("activations RUN --units x", "--units 'x'"),
    ("activations RUN --units -1", "--units '-1'"),
    ("theory RUN --layers conv1", "known: fc1, fc2, fc3, fc4, fc5"),
    ("theory RUN --units 0,99", "--units 99"),
    ("theory --layers fc26", "unknown layer 'fc26'"),
    ("theory hostile.pt", "hostile.pt"),
    ("theory short.pt", "short.pt"),
    ("theory RUN -o RUN/train.parquet", "of kind train"),
    ("activations --norm l1 --layers fc3", "unknown layer 'fc3'"),
    ("compare absent", "absent"),
    ("compare full", "full"),
    ("compare RUN -o RUN/train.parquet", "of kind train"),
    ("plot absent.parquet -o x.png", "absent.parquet"),
    ("plot file -o x.png", "file"),
    ("plot RUN/train.parquet -o x.bmp", ".png"),
    ("plot RUN/train.parquet -o file/x.png", "file"),
    ("plot RUN/train.parquet", "--output"),
]


@pytest.mark.parametrize(("line", "says"), BAD, ids=[line for line, _ in BAD])
@pytest.mark.fast(28)
def test_bad_input_is_one_line_and_exit_2_and_touches_nothing(cli, run, tmp_path, line, says):
    class Payload:
        def __reduce__(self):
            return (print, ("executed",))

    (tmp_path / "file").write_text("precious")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious").write_text("precious")
    torch.save({"weight": torch.ones(2)}, tmp_path / "foreign.pt")
    torch.save({"payload": Payload()}, tmp_path / "hostile.pt")
    (tmp_path / "short.pt").write_bytes(run.checkpoint_path(2).read_bytes()[:500])
    before = files(tmp_path), files(run.path)
    code, out, err = cli(line.replace("RUN", str(run.path)))
    assert code == 2
    assert out == ""
    assert says in err
    assert err.startswith("bnsmooth: ")
    assert err.count("\n") == 1
    assert before == (files(tmp_path), files(run.path))


def test_a_checkpoint_that_does_not_fit_its_configuration_is_named(cli, run, tmp_path):
    content = torch.load(run.checkpoint_path(2), weights_only=True)
    content["model"].popitem()
    torch.save(content, tmp_path / "cut.pt")
    code, _, err = cli("landscape cut.pt")
    assert (code, "cut.pt: its tensors do not fit" in err) == (2, True)


def test_a_damaged_config_is_named(cli, run, tmp_path):
    for text in (
        "{",
        "[]",
        json.dumps({"format": 1, "config": {"lr": "x"}}),
        json.dumps({"format": 1, "config": {}}),
    ):
        (tmp_path / "config.json").write_text(text)
        code, _, err = cli(f"landscape {tmp_path}")
        assert (code, "config.json" in err) == (2, True)


def test_two_processes_do_not_write_one_run(cli, run, tmp_path):
    settings = {**SMALL["dln"], "steps": 8}
    held = bns.train("dln", "batch", output=tmp_path / "r", **SMALL["dln"])
    before = (held.path / "config.json").read_bytes()
    with held.locked():
        code, _, err = cli(f"train --norm batch {DLN.replace('--steps 6', '--steps 8')} -o r")
    assert code == 2
    assert "is writing this run" in err
    assert (held.path / "config.json").read_bytes() == before
    assert bns.train("dln", "batch", output=tmp_path / "r", **settings).config.steps == 8


def test_help_shows_an_example_for_every_command(cli):
    code, out, _ = cli("--help")
    assert code == 0
    for command in commands():
        assert command in out
        code, text, _ = cli(f"{command} --help")
        assert code == 0
        assert f"bnsmooth {command} " in text


def test_version(cli):
    assert cli("--version")[:2] == (0, f"bnsmooth {bns.__version__}\n")


@pytest.mark.parametrize(
    ("line", "unused"),
    [
        ("--help", {"torch", "pandas"}),
        ("train --help", {"torch", "pandas"}),
        ("plot TABLE -o x.png", {"torch"}),
        ("compare RUN -o c.parquet", {"torch"}),
    ],
)
@pytest.mark.fast(2)
def test_what_takes_long_to_import_is_imported_on_use(run, tmp_path, line, unused):
    arguments = line.replace("TABLE", str(run.train_path)).replace("RUN", str(run.path)).split()
    code = (
        "import sys\nfrom bnsmooth_cli.cli import main\n"
        f"try: main()\nexcept SystemExit: pass\nassert not {unused} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


FAULTS = """
import resource, sys, torch
from bnsmooth_cli import memory

def faults(rounds=10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(2**24)  # above glibc's largest threshold of its own, 32 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

handed_back = faults()
if not memory.keep_freed_memory():
    sys.exit(77)
faults()  # the heap finds its size
print(handed_back, faults())
"""


def test_memory_once_used_is_used_again():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("not glibc")
    handed_back, kept = map(int, done.stdout.split())
    assert kept < handed_back / 4


COMPLETED = {
    "train --norm l": {"l1", "l2", "linf", "lp:3", "layer"},
    "compare --norms none,l": {"none,l1", "none,l2", "none,linf", "none,lp:3", "none,layer"},
    "train --measure ics,sm": {"ics,smoothness", "ics,smoothness-update", "ics,smoothness-random"},
    "train --preset ": {"quick", "paper"},
    "train --data sh": {"shapes"},
    "train --device c": {"cpu", "cuda"},
    "landscape --direction ": {"gradient", "update", "random"},
    "surface --directions ": {"random", "pca"},
    "smoothness --objective t": {"train:8", "test"},
    "plot --figure ba": {"bands"},
    "plot --paper 4a,4": {"4a,4b", "4a,4c"},
    "report --format ": {"html", "md"},
    "compare --dask ": {"local"},
    "li": {"list"},
}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_every_closed_set_and_the_last_element_of_lists(cli, monkeypatch, shell):
    monkeypatch.setenv("_BNSMOOTH_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    for line, offered in COMPLETED.items():
        words = f"bnsmooth {line}"
        for name, value in {
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
            "_TYPER_COMPLETE_ARGS": words,
        }.items():
            monkeypatch.setenv(name, value)
        out = cli("")[1].replace("\\\\:", ":")
        pattern = r'"([^"]+)"(?::"[^"]*")?' if shell == "zsh" else r"^([^\t\n]+)"
        assert offered <= {*re.findall(pattern, out, re.MULTILINE)}, (shell, line, out)


def test_a_wrong_setting_is_refused_before_torch_is_imported(tmp_path):
    code = (
        "import sys\nfrom bnsmooth_cli.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 2\nassert not {'torch', 'pandas'} & set(sys.modules)"
    )
    for line in ("train --norm btach", "landscape --norm btach", "smoothness --lr abc", "train --steps 0"):
        words = [sys.executable, "-c", code, *line.split()]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
        assert "did you mean 'batch'?" in done.stderr or "btach" not in line


def test_a_name_or_a_tag_names_the_run(cli, tmp_path):
    assert cli(f"train {DLN} --name mine")[0] == 0
    assert cli(f"train {DLN} --tag try.2")[0] == 0
    (tagged,) = (path.name for path in (tmp_path / "runs").iterdir() if path.name != "mine")
    assert tagged == f"{open_run(tmp_path / 'runs/mine').config.name.removesuffix('-seed0')}-try.2-seed0"


SHALLOW = "--problem dln --depth 3 --samples 20 --steps 3"


def test_force_removes_the_tables_of_every_objective_and_what_killed_processes_left(cli, tmp_path):
    cli(f"train {SHALLOW} --norm none -o run")
    for objective in ("batch", "eval", "train:2"):
        assert cli(f"landscape run --objective {objective}")[0] == 0
    for name in ("..ics.f196f465.tmp.points", ".train.0a1b2c3d.tmp.parquet", ".ics.points"):
        (tmp_path / "run" / name).touch()
    (tmp_path / "run/mine.parquet").touch()
    assert cli(f"train {SHALLOW} --norm batch -o run --force")[0] == 0
    left = {path.name for path in (tmp_path / "run").iterdir() if path.suffix != ".lock" and path.name != ".lock"}
    assert left == {"checkpoints", "config.json", "train.parquet", "mine.parquet"}


@pytest.mark.parametrize("line", [
    f"train {SHALLOW} -o ''", f"train {SHALLOW} --output=", "landscape run -o ''", "list ''", "compare '' run",
])  # fmt: skip
def test_an_empty_text_is_no_folder(cli, tmp_path, line):
    code, out, err = cli(line)
    assert (code, out, "an empty text is given; is a variable not set?" in err) == (2, "", True), err
    assert [*tmp_path.iterdir()] == []


def test_an_empty_title_is_none_and_the_present_folder_is_no_table(cli):
    cli(f"train {SHALLOW} -o run")
    assert cli("plot run/train.parquet -o a.png --title ''")[0] == 0
    assert cli("landscape run -o .") == (2, "", "bnsmooth: .: is a folder; choose another file name\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_log_that_cannot_be_written_is_said_once(capfd):
    log.begin(Path("/dev/full"))
    log.write("a line")
    log.write("another one")
    log.end()
    err = capfd.readouterr().err
    assert err.count("bnsmooth: note: --log: lines are missing, since it cannot be written (No space left") == 1, err
    assert err.count("\n") == 1


def test_what_the_users_code_prints_is_no_part_of_the_document(cli, tmp_path, monkeypatch):
    (tmp_path / "loud.py").write_text(
        "import torch, bnsmooth_cli as bns\nfrom torch.nn import functional as F\n"
        "def problem(norm):\n    print('hello')\n    x = torch.randn(20, 3)\n"
        "    return bns.Workload(torch.nn.Linear(3, 2), F.cross_entropy, (x, (x[:, 0] > 0).long()))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code, out, _ = cli("train --problem loud:problem --norm none --batch-size 4 --steps 3 -o run --json")
    assert (code, json.loads(out)["command"], "hello" in cli.stderr) == (0, "train", True)


def test_the_shift_of_a_single_layer_is_said_to_be_none(cli):
    cli(f"train {SHALLOW} -o run")
    code, out, _ = cli("ics run --layers fc2")
    assert (code, out.splitlines()[1:]) == (
        0, ["internal covariate shift: none, since there is one layer, before which nothing moves"]
    )  # fmt: skip


@pytest.mark.parametrize(("option", "said"), [
    ("--target-loss nan", "give a finite number"), ("--target-accuracy 5", "give a share above 0 and up to 1"),
    ("--target-accuracy 0", "give a share above 0"),
])  # fmt: skip
def test_a_target_that_no_run_could_reach_is_refused(cli, option, said):
    cli(f"train {SHALLOW} -o run")
    code, out, err = cli(f"compare {option} run")
    assert (code, out, f"{option}: {said}" in err) == (2, "", True), err


def test_a_run_without_its_first_checkpoints_is_not_reused_by_the_advice(cli):
    cli(f"train {SHALLOW} -o run --save-every 1 --keep 1")
    _, out, _ = cli("compare run -o compare.parquet")
    advice = [line.removeprefix("to measure more: ") for line in out.splitlines() if line.startswith("to measure more")]
    assert advice
    assert all(line.startswith("bnsmooth compare --norms") and "--keep" not in line for line in advice), advice
