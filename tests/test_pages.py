"""The pages that a user follows: every command and every snippet runs, and prints what its page shows.

`python tests/test_pages.py FOLDER` runs the commands whose output the README and the tutorial show: at full size, in
this folder, in a terminal of 80 columns. It writes what they print into the pages, and what they draw into
docs/images/.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ENVIRONMENT, commands
from PIL import Image
from torchvision.models import resnet18

import bnsmooth_cli as bns
from bnsmooth_cli import presets
from bnsmooth_cli.norms.batch import BatchNorm

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        ROOT / "README.md",
        DOCS / "tutorial.md",
        *sorted(DOCS.glob("how-to/*.md")),
        *DOCS.glob("concepts/*.md"),
    )
}
#: The pages with output that the commands of this file write.
SHOWN = ("README.md", "docs/tutorial.md")
BLOCK = re.compile(r'^```(\w+)(?: title="([^"\n]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:    |\$ )(bnsmooth .*)$", re.MULTILINE)
OPTION = re.compile(r"--[a-z][a-z-]+")

#: The presets of the tests, as the pages use them. The names of runs are those of the pages.
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
#: What is smaller in a command of the tests than on its page, and in a script.
SHORTER = {
    "--steps 3000 --save-every 150 --eval-every 150": "--steps 60 --save-every 30 --eval-every 30",
    "--every 100": "--every 10",
    "--every 250": "--every 10",
    "0,150,300": "0,10,30",
    "0,300": "0,30",
    "--at 300": "--at 30",
    "000050.pt": "000030.pt",
    "--points 31": "--points 3",
    "--points 13": "--points 3",
    "none,batch,l1,l2,linf,layer,group:4,instance,weight,rms": "none,group:4",
    "--seeds 0-2": "--seeds 0",
    "--warmup 30": "--warmup 10",
    "warmup30": "warmup10",
    "--samples 50": "--samples 20",
    "samples50": "samples20",
    " --steps 100 --lr 0.05 --at 0,100": " --lr 0.05 --at 0,4",
    " --steps 100 --lr 0.05": " --lr 0.05",
}
SHORTER_PYTHON = {'seeds=range(5), problem="dln"': 'seeds=range(1), problem="dln", steps=20'}
#: Options of TensorBoard and SLURM.
OTHERS = {"--logdir", "--signal", "--gres"}
#: What the Python of a page prints, and how often.
PRINTED = {
    "docs/how-to/frameworks.md": ("49 BatchNormAct2d replaced by rms", 1),
    "docs/how-to/study.md": ("-seed0: ", 3),
}
#: What a page's Python makes in a folder, which its commands read.
MADE = "runs/mine/"
#: Commands that the test of commands leaves out: tests/test_docs.py has the workers of a cluster.
ELSEWHERE = ("--dask tcp://", MADE)


def replaced(text: str, by: dict[str, str]) -> str:
    for shown, shorter in by.items():
        text = text.replace(shown, shorter)
    return text


def skeleton(text: str) -> str:
    """What a command prints, without its numbers, its verdicts and its spacing; rows that are alike then count once.

    A ratio, as in x2.4, is left out, because that to zero is not printed.
    """
    text = re.sub(r"\(?(not reproduced|reproduced|inconclusive)\)?", "VERDICT", text)
    text = re.sub(r"-?\d[\d.e+-]*|\bnever\b", "0", re.sub(r" x\d[\d.e+-]*", "", text))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return " ".join(line for line, _ in itertools.groupby(lines) if line)


def sessions(page: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a page's sessions with the parts of its output that the page shows."""
    for language, _, text in BLOCK.findall(page):
        if language == "console":
            for session in text.split("$ ")[1:]:
                line, _, output = session.partition("\n")
                yield line, [part.strip("\n") for part in re.split(r"^\.\.\.$", output, flags=re.MULTILINE)]


@pytest.fixture
def own_files(tmp_path):
    """The files of a user's folder: the examples of a norm and of problems, weights, and images where CIFAR-10 is."""
    for path in DOCS.glob("examples/*.py"):
        shutil.copy(path, tmp_path)
    torch.save(resnet18(num_classes=10, norm_layer=BatchNorm).state_dict(), tmp_path / "model.pt")
    for split, label, number in itertools.product(("train", "test"), "ab", range(20)):
        folder = tmp_path / "path/to/cifar10" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def write_files(page: str, folder: Path) -> None:
    """The files whose content a page shows; data and learning rates are those that the folder can have."""
    for _, name, text in BLOCK.findall(page):
        if name and not (folder / name).exists():
            (folder / name).write_text(replaced(text, {'"cifar10"': '"path/to/cifar10"', "0.1, 0.5": "0.1"}))


@pytest.fixture
def small(monkeypatch):
    """Presets of fewer steps and narrower networks, under their usual names."""

    def shrunk(entry, values):
        return dataclasses.replace(entry, presets={name: {**of, **values} for name, of in entry.presets.items()})

    for name, entry in presets.PROBLEMS.items():
        monkeypatch.setitem(presets.PROBLEMS, name, shrunk(entry, SMALL_PRESETS[name]))
    monkeypatch.setattr(presets, "CUSTOM", shrunk(presets.CUSTOM, SMALL_PRESETS["own"]))


def demonstrated(folder: Path) -> list[str]:
    """The commands of `make demo`, in an order in which one job runs them."""
    shutil.copy(ROOT / "Makefile", folder)
    (folder / ".venv").mkdir()
    for name in ("pyproject.toml", ".venv/.installed"):
        (folder / name).touch()
    shown = subprocess.run(["make", "-n", "BNSMOOTH=bnsmooth", "demo"], cwd=folder, capture_output=True, text=True)
    return [line for line in shown.stdout.splitlines() if line.startswith("bnsmooth ")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "before"),
    [*((name, "make setup") for name, page in PAGES.items() if COMMAND.search(page)),
     ("README.md", "make demo"), ("docs/how-to/runs.md", "make demo")],
)  # fmt: skip
def test_every_command_of_a_page_runs_in_its_order_and_prints_what_it_shows(
    name, before, cli, small, own_files, narrow_terminal, tmp_path
):
    write_files(PAGES[name], tmp_path)

    def done(line):
        command = replaced(line.removeprefix("bnsmooth ").split("  #")[0], SHORTER)
        for pattern in re.findall(r"\S+\*\S*", command):  # as a shell expands it
            command = command.replace(pattern, " ".join(map(str, sorted(tmp_path.glob(pattern)))))
        code, out, err = cli(command)
        assert code == 0, (line, err)
        return out

    for line in demonstrated(tmp_path) if before == "make demo" else ():
        done(line)
    shown = dict(sessions(PAGES[name]))
    for line in COMMAND.findall(PAGES[name]):
        if not any(part in line for part in ELSEWHERE):
            printed = done(line)
            if before == "make setup":  # the demo has measured more steps
                parts = shown.get(line, [])
                for part in parts:  # what follows the first line of an excerpt differs in a small study
                    assert skeleton(part.partition("\n")[0] if len(parts) > 1 else part) in skeleton(printed), line


def test_the_pages_show_every_command_and_only_options_that_there_are(cli):
    options = {command: {*OPTION.findall(cli(f"{command} --help")[1])} for command in commands()}
    used = {}
    for name, page in PAGES.items():
        for line in COMMAND.findall(page):
            assert {*OPTION.findall(line)} <= options[line.split()[1]], (name, line)
            used.setdefault(line.split()[1], name)
        known = set().union(*options.values(), OTHERS)
        text = re.sub(r"^    (?!bnsmooth).*$", "", BLOCK.sub("", page), flags=re.MULTILINE)  # not of other programs
        assert {*OPTION.findall(text)} <= known, name
    assert {*used} == {*commands()}
    assert {*re.findall(r"^\| `([a-z]+)` \|", PAGES["README.md"], re.MULTILINE)} == {*commands()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if "```python\n" in page])
def test_the_python_of_a_page_runs(name, cli, own_files, tmp_path):
    write_files(PAGES[name], tmp_path)
    code = "\n".join(
        text for language, title, text in BLOCK.findall(PAGES[name]) if (language, title) == ("python", "")
    )
    (tmp_path / "script.py").write_text(replaced(code, SHORTER_PYTHON))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text, times = PRINTED.get(name, ("", 1))
    assert done.stdout.count(text) >= times
    for picture in re.findall(r'savefig\("(.*?)"\)', code):
        assert (tmp_path / picture).is_file()
    for line in COMMAND.findall(PAGES[name]):
        if MADE in line:
            assert cli(line.removeprefix("bnsmooth "))[::2] == (0, ""), line


def test_the_files_that_pages_show_are_those_of_the_examples():
    examples = {path.name: path.read_text() for path in DOCS.glob("examples/*.py")}
    shown = [(title, text) for page in PAGES.values() for _, title, text in BLOCK.findall(page) if title in examples]
    assert {title for title, _ in shown} == {*examples}
    assert all(text in examples[title] for title, text in shown)
    assert ("dyt.py", examples["dyt.py"]) in shown


def test_the_front_page_is_a_page():
    assert len(PAGES["README.md"].splitlines()) <= 120


def test_the_page_of_figures_has_every_figure_of_the_paper():
    """What each table's figures correspond to in the paper, as the registry says."""
    rows = re.findall(r"^\| .*? \| (.*?) \| `bnsmooth ([a-z]+)", PAGES["docs/how-to/figure.md"], re.MULTILINE)
    from bnsmooth_cli.kinds import KINDS

    assert {(draws, command) for draws, command in rows if draws} == {
        (drawing.draws, kind.command) for kind in KINDS for drawing in kind.figures if drawing.draws
    }


def test_the_api_page_has_every_public_name():
    listed = re.findall(r"^::: bnsmooth_cli\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted({*bns.__all__} - {"__version__"})


def excerpt(parts: list[str], output: str) -> str:
    """The parts of an output that a page showed before, as the command prints them now.

    A part begins at the line that has the skeleton of its first line, and has as many lines as before.
    """
    if len(parts) == 1:
        return output
    lines, shown, at = output.splitlines(), [], 0
    for part in (part.splitlines() for part in parts if part):
        at = next(i for i in range(at, len(lines)) if skeleton(lines[i]) == skeleton(part[0]))
        shown.append("\n".join(lines[at : at + len(part)]))
        at += len(part)
    return "\n...\n".join([*shown, ""])


def rewrite(name: str, folder: Path) -> None:
    """Run the sessions of a page in a folder, and write what they print and draw."""
    page = PAGES[name]
    shell = {**ENVIRONMENT, "FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    for line, parts in [*sessions(page)]:
        command = line.replace("bnsmooth", f"{sys.executable} -m bnsmooth_cli", 1)
        done = subprocess.run(command, shell=True, cwd=folder, env=shell, stdout=subprocess.PIPE, text=True, check=True)
        printed = "".join(f"{line.rstrip()}\n" for line in excerpt(parts, done.stdout).splitlines())
        before = re.search(rf"^\$ {re.escape(line)}\n(.*?)(?=^\$ |^```)", page, re.MULTILINE | re.DOTALL)
        assert before
        end = "\n" if before[1] == "\n" or before[1].endswith("\n\n") else ""
        page = page[: before.start(1)] + printed + end + page[before.end(1) :]
    for picture in re.findall(r"images/(\S+\.png)\)", page):
        shutil.copy(folder / picture, DOCS / "images" / picture)
    (ROOT / name).write_text(page)


if __name__ == "__main__":
    work = Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    for shown in SHOWN:
        rewrite(shown, work)
