"""Files that name code next to them: a command imports it only if its user gives the name."""

from __future__ import annotations

import json
import sys

import pyarrow.parquet as pq
import pytest
import torch
from attempts import MEASURE

from bnsmooth_cli import user_code as code
from bnsmooth_cli.storage import tables

RUN = "--lr 1e-4 --steps 4 --save-every 2"
HARMLESS = """
from torch import nn, randn
class Norm(nn.Identity):
    pass
def build(norm):
    model = nn.Sequential(nn.Linear(3, 2), norm(2), nn.Linear(2, 1))
    return model, nn.functional.mse_loss, (randn(9, 3), randn(9, 1))
"""
#: The same, with a trace of its import.
EVIL = f"import pathlib\npathlib.Path(__file__).with_name('executed').touch()\n{HARMLESS}"
SETTINGS = {
    "norm": f"--problem dln --depth 3 --dimension 3 --samples 9 --norm evil:Norm {RUN}",
    "problem": f"--problem evil:build --batch-size 9 --norm none {RUN}",
}
STUDY = {
    "norm": "norms = ['none', 'evil:Norm']\nproblem = 'dln'\ndepth = 3\ndimension = 3\nsamples = 9\n",
    "problem": "norms = ['none']\nproblem = 'evil:build'\nbatch_size = 9\n",
}
TABLES = tuple(MEASURE.values())


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Start without named or imported code, as a new process does. The fixture's value does it again."""

    def anew():
        monkeypatch.setattr(code, "_allowed", {})
        sys.modules.pop("evil", None)

    monkeypatch.setattr(sys, "path", [*sys.path])
    anew()
    yield anew
    anew()


def in_a_line(ended: tuple[int, str, str], line: str) -> int:
    """The exit status of a command that succeeded or was refused in one line."""
    status, out, err = ended
    assert status in (0, 2), (line[:99], err[:300])
    assert (err.count("\n"), "--debug" in err) == (1 if status else 0, False), (line[:99], err[:300])
    assert max(len(out), len(err)) < 20_000, line[:99]
    return status


@pytest.mark.slow
@pytest.mark.parametrize("field", SETTINGS)
def test_no_command_runs_the_code_that_a_file_names(cli, forget, tmp_path, field):
    named = {"norm": "--norm evil:Norm", "problem": "--problem evil:build"}[field]
    (tmp_path / "evil.py").write_text(HARMLESS)
    assert cli(f"train {SETTINGS[field]} -o run")[0] == 0
    for line in TABLES:
        assert cli(f"{line} run {named}")[0] == 0
    (tmp_path / "study.toml").write_text(f"{STUDY[field]}lrs = [1e-4]\nsteps = 2\nmeasure = ['ics']\n")
    assert cli(f"compare --study study.toml {named.replace('--norm ', '--norms none,')} -o study")[0] == 0
    forget()
    (tmp_path / "evil.py").write_text(EVIL)
    for line in (f"{kind} {source}" for kind in TABLES for source in ("run", "run/checkpoints/000002.pt")):
        status, _, err = cli(f"{line} -o new.parquet")
        assert (status, f"give {named}" in err, err.count("\n")) == (2, True, 1), (line, err)
    lines = ["ics run --force", "surface run --directions pca -o new.parquet", "ics run --norm none -o new.parquet"]
    lines += [f"compare --study study.toml{more}" for more in ("", " --dry-run", " -o study", " --jobs 2 -o new")]
    lines += ["compare run -o new.parquet", "report study -o report.md"]
    for path in (*(tmp_path / "run").glob("*.parquet"), *(tmp_path / "study").glob("*.parquet")):
        lines += [f"show {path}", f"show {path} --csv {path}.csv", f"plot {path} -o figure.svg"]
    for line in lines:
        in_a_line(cli(line), line)
        assert not (tmp_path / "executed").exists(), line
    assert cli(f"ics run {named} -o named.parquet")[0] == 0
    assert (tmp_path / "executed").exists()  # the trace works


LONG = "n" * 10**5
HOSTILE = {
    "norm": [
        "os:system", "sys:exit", "__main__:x", LONG, f"{'n' * 10**6}:n", f"group:{'9' * 20}",
        f"group:{LONG.replace('n', '9')}", f"lp:{LONG.replace('n', '9')}", "evil:Norm\n", "../evil:Norm", "evil:Norm",
    ],
    "problem": ["__main__:x", "sys:exit", "os:system", LONG, f"n:{LONG}", "evil:build", "loop:Net", ":"],
}  # fmt: skip


@pytest.mark.parametrize(("field", "name"), [(field, name) for field in HOSTILE for name in HOSTILE[field]],
                         ids=lambda text: f"{text[:12]} {len(text)}")  # fmt: skip
@pytest.mark.fast(1)
def test_names_that_are_no_strings_or_far_too_long_are_refused_in_every_file(cli, forget, tmp_path, field, name):
    assert cli(f"train {SETTINGS['norm'].replace('evil:Norm', 'none')} -o run")[0] == 0
    (tmp_path / "evil.py").write_text(EVIL)
    config, checkpoint, table = (
        tmp_path / "run" / name for name in ("config.json", "checkpoints/000002.pt", "train.parquet")
    )
    said = json.loads(config.read_text())
    said["config"][field] = name
    config.write_text(json.dumps(said))
    content = torch.load(checkpoint, weights_only=True)
    content["config"][field] = name
    torch.save(content, checkpoint)
    rows = pq.read_table(table)
    said = json.loads(rows.schema.metadata[tables.METADATA_KEY])
    said["runs"]["run"][field] = name
    del said["crc"]
    pq.write_table(rows.replace_schema_metadata({tables.METADATA_KEY: json.dumps(said)}), table)
    for line in (
        "landscape run -o t.parquet",
        "ics run/checkpoints/000002.pt -o t.parquet",
        "surface run -o t.parquet",
    ):
        assert in_a_line(cli(line), line) == 2
    for line in ("compare run -o t.parquet", "plot run/train.parquet -o f.svg", "show run/train.parquet"):
        in_a_line(cli(line), line)
    assert not (tmp_path / "executed").exists()
    line = f"train {SETTINGS['norm']} --{field} '{name}' -o new"  # the last --norm counts
    assert in_a_line(cli(line), line) == 2 or name == "evil:Norm"
