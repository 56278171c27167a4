"""The documentation is true: its commands run, and its options and columns exist."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import commands
from PIL import Image
from torchvision.models import resnet18

import bnsmooth_cli as bns
from bnsmooth_cli import config, presets
from bnsmooth_cli.cli import reference
from bnsmooth_cli.data import texts
from bnsmooth_cli.norms.batch import BatchNorm
from bnsmooth_cli.storage import tables
from bnsmooth_cli.studies import grid

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^(?:    |\$ )(bnsmooth .*)$", README, re.MULTILINE)
TORTURE = ROOT / "tests/reliability/torture.py"
STUDIES = (ROOT / "docs/studies.md").read_text()
#: The presets of the tests, as the examples use them. The names of runs are those of the documentation.
SMALL_PRESETS = {
    "vgg": {"width": 0.0625, "batch_size": 16, "steps": 40, "save_every": 10},
    "dln": {"dimension": 4, "samples": 40, "steps": 20, "save_every": 10},
    "gpt": {
        "depth": 1,
        "embedding": 8,
        "heads": 2,
        "context": 8,
        "batch_size": 4,
        "warmup": 2,
        "steps": 20,
        "save_every": 10,
    },
    "own": {"batch_size": 16, "steps": 4, "save_every": 2},
}
SHORTER = {
    "--steps 3000 --save-every 150 --eval-every 150": "--steps 60 --save-every 30 --eval-every 30",
    "--every 100": "--every 10",
    "--every 250": "--every 10",
    "0,150,300": "0,10,30",
    "0,300": "0,30",
    "000050.pt": "000030.pt",
    "--points 31": "--points 3",
    "--points 13": "--points 3",
    "none,batch,l1,l2,linf,layer,group:4,instance,weight,rms": "none,group:4",
    "--seeds 0-2": "--seeds 0",
    " --steps 100 --lr 0.05 --at 0,100": " --lr 0.05 --at 0,4",
    " --steps 100 --lr 0.05": " --lr 0.05",
}
OWN = (ROOT / "docs/own.md").read_text()
NOTEBOOK = (ROOT / "docs/notebook.md").read_text()


@pytest.fixture
def done(cli):
    """done("train ...") -> stdout, of a command that must succeed."""

    def call(line):
        code, out, err = cli(line)
        assert code == 0, (line, err)
        return out

    return call


@pytest.fixture
def own_files(tmp_path):
    """The files of a user's folder: the examples of a norm and of problems, and weights."""
    for path in (ROOT / "docs/examples").glob("*.py"):
        shutil.copy(path, tmp_path)
    torch.save(resnet18(num_classes=10, norm_layer=BatchNorm).state_dict(), tmp_path / "model.pt")


@pytest.fixture
def small(monkeypatch):
    """Presets of fewer steps and narrower networks, under their usual names."""

    def shrunk(entry, values):
        return dataclasses.replace(entry, presets={name: {**of, **values} for name, of in entry.presets.items()})

    for name, entry in presets.PROBLEMS.items():
        monkeypatch.setitem(presets.PROBLEMS, name, shrunk(entry, SMALL_PRESETS[name]))
    monkeypatch.setattr(presets, "CUSTOM", shrunk(presets.CUSTOM, SMALL_PRESETS["own"]))


def smaller(line):
    """A line of the documentation in small: with shorter lists of steps and norms."""
    command = line.removeprefix("bnsmooth ")
    for shown, shorter in SHORTER.items():
        command = command.replace(shown, shorter)
    return command


def skeleton(text):
    """What a command prints, without its numbers and its spacing."""
    return re.sub(r"-?\d[\d.e+-]*", "0", " ".join(text.split()))


def demonstrated(folder):
    """The commands of `make demo`, in an order in which one job runs them."""
    shutil.copy(ROOT / "Makefile", folder)
    (folder / ".venv").mkdir()
    for name in ("pyproject.toml", ".venv/.installed"):
        (folder / name).touch()
    shown = subprocess.run(["make", "-n", "BNSMOOTH=bnsmooth", "demo"], cwd=folder, capture_output=True, text=True)
    return [line for line in shown.stdout.splitlines() if line.startswith("bnsmooth ")]


@pytest.mark.slow
@pytest.mark.parametrize("before", ["make setup", "make demo"])
def test_every_command_of_the_readme_runs_in_its_order_and_prints_what_it_shows(
    done, small, own_files, tmp_path, before
):
    """After either command for the whole project; in small, with a small folder of images where CIFAR-10 would be."""
    for split in ("train", "test"):
        for label, number in itertools.product("ab", range(20)):
            (tmp_path / "path/to/cifar10" / split / label).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "path/to/cifar10" / split / label / f"{number}.png")
    file = "\n".join(re.findall(r"^    (.*)$", README.split("# study.toml")[1].split("bnsmooth")[0], re.MULTILINE))
    for shown, shorter in {'"cifar10"': '"path/to/cifar10"', "0.1, 0.5": "0.1", r'"batch".*"': '"batch"'}.items():
        file = re.sub(shown, shorter, file)
    (tmp_path / "study.toml").write_text(file)
    if before == "make demo":
        for line in demonstrated(tmp_path):
            done(smaller(line))
    printed = dict(part.split("\n", 1) for part in README.split("```")[1].split("$ ")[1:])
    ran = set()
    for line in COMMANDS:
        command = smaller(line)
        for pattern in re.findall(r"\S+\*\S+", command):  # as a shell expands it
            command = command.replace(pattern, " ".join(map(str, sorted(tmp_path.glob(pattern)))))
        out, shown = done(command), printed.pop(line, None)
        if shown is not None and before == "make setup":  # the demo has measured more steps
            assert skeleton(shown) == skeleton(out)
        ran.add(command.split()[0])
    assert not printed
    assert ran == set(commands())


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path):
    block = README.split("## From Python")[1].split("\n\n")[1:3]
    code = "\n".join(line.removeprefix("    ") for part in block for line in part.splitlines())
    assert "bns.train" in code
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.slow
def test_every_command_of_the_page_of_own_code_runs(done, small, own_files):
    lines = re.findall(r"^    (bnsmooth .*)$", OWN, re.MULTILINE)
    for line in lines:
        done(smaller(line))
    assert {line.split()[1] for line in lines} == {"train", "landscape", "smoothness", "ics", "surface", "compare"}


def test_the_code_of_the_page_of_own_code_is_that_of_its_examples():
    blocks = re.findall(r"^```python\n(.*?)^```", OWN, re.MULTILINE | re.DOTALL)
    norm, problem = ((ROOT / "docs/examples" / name).read_text() for name in ("dyt.py", "digits.py"))
    assert blocks[0] == norm
    assert blocks[1] in problem


@pytest.mark.slow
def test_the_python_of_the_notebook_page_runs(tmp_path):
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", NOTEBOOK, re.MULTILINE | re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"landscape.png", "landscape.parquet", "mine.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_the_python_of_the_monitor_page_runs(done, tmp_path):
    page = (ROOT / "docs/how-to/monitor.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for line in re.findall(r"^    bnsmooth (.*)$", page, re.MULTILINE):
        done(line)


def norm_table(summary):
    """Medians and intervals of the four metrics, one row per norm, the most accurate first."""
    figures = {"final_test_accuracy": "{:.3f}", "beta": "{:.3g}", "predictiveness": "{:.3g}", "sharpness": "{:.3g}"}
    found = summary.set_index(["norm", "figure"])
    best = summary[summary["figure"] == "final_test_accuracy"].sort_values(["median", "norm"], ascending=[False, True])
    lines = []
    for norm in best["norm"]:
        cells = []
        for figure, form in figures.items():
            row = found.loc[(norm, figure)]
            cells.append(f"{form.format(row['median'])} [{form.format(row['low'])}, {form.format(row['high'])}]")
        lines.append(f"| `{norm}` | {' | '.join(cells)} |")
    return "\n".join(lines)


@pytest.mark.parametrize("data", ["shapes", "cifar", "gpt"])
def test_the_page_of_norms_says_what_its_tables_say(data):
    table = norm_table(tables.read_table(ROOT / f"docs/norms/{data}.summary.parquet", "compare-summary"))
    assert table in (ROOT / "docs/norms.md").read_text()
    rows = tables.read_table(ROOT / f"docs/norms/{data}.parquet", "compare")
    assert set(rows["norm"]) == set(re.findall(r"`(\S+)` \|", table))


def test_the_page_of_norms_has_the_learning_rates_of_the_transformer():
    summary = tables.read_table(ROOT / "docs/norms/gpt-lrs.summary.parquet", "compare-summary")
    found = summary.set_index(["norm", "lr", "figure"])
    lines = []
    for norm in ("layer", "none"):
        for lr in (0.001, 0.003, 0.01, 0.03, 0.1):
            rows = [found.loc[(norm, lr, figure)] for figure in ("final_loss", "final_test_accuracy")]
            cells = [f"{row['median']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in rows]
            lines.append(f"| `{norm}` | {lr:g} | {' | '.join(cells)} |")
    assert "\n".join(lines) in (ROOT / "docs/norms.md").read_text()
    of_layer = summary[(summary["norm"] == "layer") & (summary["figure"] == "final_loss")]
    assert of_layer.loc[of_layer["median"].idxmin(), "lr"] == config.resolve("gpt").lr


def test_every_option_that_the_readme_names_exists(done):
    shown = re.compile(r"--[a-z][a-z-]+")
    options = {command: {*shown.findall(done(f"{command} --help"))} for command in commands()}
    for line in COMMANDS:
        assert {*shown.findall(line)} <= options[line.split()[1]], line
    assert {*re.findall(r"^\| `([a-z]+)` \|", README, re.MULTILINE)} == {*commands()}
    assert {*shown.findall(README)} - {"--logdir"} <= set().union(*options.values())


def test_the_reference_page_is_what_the_registries_say():
    assert (ROOT / "docs/reference.md").read_text() == reference.page(), (
        "python -m bnsmooth_cli.cli.reference writes it"
    )


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", ["", *commands()])
def test_the_paragraphs_of_the_help_fill_the_terminal(command, width, done, monkeypatch):
    """A line ends only where the next word does not fit: no line break of a docstring is left."""
    monkeypatch.setenv("TERM", "xterm")  # at TERM=dumb any width is 80
    monkeypatch.setenv("COLUMNS", str(width))
    text = done(f"{command} --help").partition("\u256d")[0]
    paragraphs = [part.splitlines() for part in re.split(r"\n\s*\n", text.strip())]
    assert len(paragraphs) >= 3
    for lines in paragraphs:
        assert max(len(line) for line in lines) <= width
        for line, following in itertools.pairwise(lines):
            assert len(f"{line.rstrip()} {following.split()[0]}") > width - 1, line


def test_without_a_command_the_help_is_printed(cli):
    code, out, err = cli("")
    assert (code, err) == (0, "")
    assert out == cli("--help")[1]
    for command in commands():
        assert re.search(rf"^. {command} ", out, re.MULTILINE), command


def test_public_names_are_the_same_for_type_checkers_and_at_run_time():
    imported = re.findall(r"^    from \S+ import \w+ as (\w+)$", Path(bns.__file__).read_text(), re.MULTILINE)
    assert {*imported, "__version__"} == {*bns.__all__} == {*dir(bns)}
    assert all(getattr(bns, name) is not None for name in bns.__all__)


BIN = Path(sys.executable).parent
SMALL_STUDY = "--problem dln --dimension 4 --samples 30 --steps 20 --save-every 10 --threads 1"


def fenced(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]


@pytest.mark.slow
def test_the_makefile_of_the_studies_page_does_a_study(tmp_path):
    (tmp_path / "study.mk").write_text(fenced(STUDIES, "make"))
    line = ["make", "-j2", "-f", "study.mk", "NORMS=none,batch", "SEEDS=0,1", f"TRAIN={SMALL_STUDY}"]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    for said in ("study/report.html", "nothing to be done"):
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout.replace("Nothing", "nothing").replace("is up to date", "nothing to be done")
    assert len([*tmp_path.glob("study/runs/*/smoothness.parquet")]) == 4


@pytest.mark.slow
def test_the_cluster_of_the_studies_page_does_a_study(tmp_path):
    """Real jobs of dask-jobqueue, in a queue that starts each at once."""
    sbatch = 'job=$(cat "$1")\nsetsid sh -c "$job" >/dev/null 2>&1 &\necho "Submitted batch job $!"'
    queue = {"sbatch": sbatch, "scancel": 'kill -- "-$1"'}
    for name, does in queue.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = fenced(STUDIES.split("## SLURM")[1], "python").replace("8786", port).replace("jobs=16", "jobs=2")
    (tmp_path / "cluster.py").write_text(script)
    process = subprocess.Popen(
        [sys.executable, "cluster.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL,
        env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.endswith(port)
        line = f"compare --norms none,batch {SMALL_STUDY} --dask {address} -o study"
        command = [sys.executable, "-m", "bnsmooth_cli", *line.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert len([*tmp_path.glob("study/runs/*/train.parquet")]) == 2


def test_every_option_of_the_studies_page_exists(done):
    shown = re.compile(r"--[a-z][a-z-]+")
    lines = re.findall(r"bnsmooth compare .*$", STUDIES, re.MULTILINE)
    assert {option for line in lines for option in shown.findall(line)} <= set(shown.findall(done("compare --help")))
    install = re.search(r"pip install '?([a-z-]+)'?\n    python cluster", STUDIES)
    assert install
    assert f'"{install[1]}' in (ROOT / "pyproject.toml").read_text()


def test_the_bounds_of_the_reliability_page_are_the_bounds():
    rows = re.findall(r"^\| (.*?) \| ([0-9e+]+) \|$", (ROOT / "docs/reliability.md").read_text(), re.MULTILINE)
    said = {name.replace("-", "_"): float(most) for names, most in rows for name in re.findall(r"--([a-z-]+)", names)}
    bounds = {name: field.metadata["setting"].bounds for name, field in config.FIELDS.items() if field.metadata}
    most = {
        name: bound.high for name, bound in bounds.items() if bound and name not in ("momentum", "square_decay", "seed")
    }
    assert said == {
        **most,
        "threads": config.MAX_THREADS,
        **dict.fromkeys(("norms", "lrs", "seeds", "at"), grid.MAX_VALUES),
    }
    rest = {what: float(most) for what, most in rows if "--" not in what}
    assert list(rest.values()) == [presets.MAX_NUMBERS, presets.MAX_NUMBERS, texts.MAX_BYTES, tables.MAX_VALUES]


def test_make_torture_does_what_the_reliability_page_says():
    page = (ROOT / "docs/reliability.md").read_text()
    done = subprocess.run(["make", "-n", "torture"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"/python {TORTURE.relative_to(ROOT)}\n" in done.stdout
    line = re.search(r"^    .venv/bin/python (.*)$", page, re.MULTILINE)
    assert line
    script, *words = shlex.split(line[1])
    assert ROOT / script == TORTURE
    help = subprocess.run([sys.executable, TORTURE, "--help"], capture_output=True, text=True, check=True).stdout
    assert {word for word in words if word.startswith("-")} <= set(re.findall(r"--[a-z]+", help))


def test_pictures_and_links_of_the_documentation_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), (page.name, target)


@pytest.mark.parametrize("name", [
    "vgg-noisy-batch-lr0.1-seed3", "dln-lp3-lr1e-06-seed0", "vgg-none-lr0.5-seed12", "dln-none-lr1e-06-paper-seed0",
    "vgg-noisy-none-lr0.1-paper-w0.25-seed0",
])  # fmt: skip
def test_the_makefile_reads_a_runs_options_from_its_name(name):
    done = subprocess.run(
        ["make", "-n", f"runs/{name}/train.parquet", "BNSMOOTH=bnsmooth"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("bnsmooth train"))
    from bnsmooth_cli.config import resolve

    given = dict(zip(*[iter(shlex.split(line)[2:])] * 2, strict=True))
    config = resolve(given["--problem"], norm=given["--norm"], lr=float(given["--lr"]), seed=int(given["--seed"]))
    assert config.name == re.sub("-paper.*-", "-", name)  # what is not the preset's is given in TRAIN
