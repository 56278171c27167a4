"""The generated pages and the pages of results are true, and so are links, pictures and bounds."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import commands

import bnsmooth_cli as bns
from bnsmooth_cli import config, presets
from bnsmooth_cli.cli import reference
from bnsmooth_cli.data import texts
from bnsmooth_cli.storage import tables
from bnsmooth_cli.studies import grid

ROOT = Path(__file__).parents[1]
TORTURE = ROOT / "tests/reliability/torture.py"
CLUSTER = (ROOT / "docs/how-to/cluster.md").read_text()


@pytest.fixture
def done(cli):
    """done("train ...") -> stdout, of a command that must succeed."""

    def call(line):
        code, out, err = cli(line)
        assert code == 0, (line, err)
        return out

    return call


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


def test_the_reference_page_is_what_the_registries_say():
    assert (ROOT / "docs/reference.md").read_text() == reference.page(), (
        "python -m bnsmooth_cli.cli.reference writes it"
    )


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", ["", *commands()])
@pytest.mark.fast(6)
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
    with pytest.raises(AttributeError) as error:
        bns.smothness  # noqa: B018
    assert (error.value.name, error.value.obj) == ("smothness", bns)  # of which Python makes "Did you mean"


BIN = Path(sys.executable).parent
SMALL_STUDY = "--problem dln --dimension 4 --samples 30 --steps 20 --save-every 10 --threads 1"


def shown(name):
    """The content of a file that the page of clusters shows."""
    return re.findall(rf'^```[a-z]+ title="{name}"\n(.*?)^```', CLUSTER, re.MULTILINE | re.DOTALL)[0]


@pytest.mark.slow
def test_the_makefile_of_the_cluster_page_does_a_study(tmp_path):
    (tmp_path / "study.mk").write_text(shown("study.mk"))
    line = ["make", "-j2", "-f", "study.mk", "NORMS=none,batch", "SEEDS=0,1", f"TRAIN={SMALL_STUDY}"]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    for said in ("study/report.html", "nothing to be done"):
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout.replace("Nothing", "nothing").replace("is up to date", "nothing to be done")
    assert len([*tmp_path.glob("study/runs/*/smoothness.parquet")]) == 4


@pytest.mark.slow
def test_the_cluster_of_the_cluster_page_does_a_study(tmp_path):
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
    script = shown("cluster.py").replace("8786", port).replace("jobs=16", "jobs=2")
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


def test_the_cluster_page_installs_what_its_script_imports():
    install = re.search(r"pip install '?([a-z-]+)'?\n    python cluster", CLUSTER)
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


@pytest.mark.slow
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
    notebooks = (ROOT / "notebooks").glob("*.ipynb")
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *notebooks):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
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
