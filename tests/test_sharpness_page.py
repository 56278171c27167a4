"""docs/sharpness.md: its numbers against plain loops over the rows of its tables, and the page against its template."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import ENVIRONMENT, SMALL

import bnsmooth_cli as bns
from bnsmooth_cli.measures.measuring import measure
from bnsmooth_cli.storage.runs import open_run
from reproduction import sharpness

DOCS = Path(__file__).parents[1] / "docs"
TABLES = DOCS / "sharpness"
PAGE = (DOCS / "sharpness.md").read_text()


def table_under(heading: str, place: int = 0) -> list[list[str]]:
    """The cells of a table of the page's section, without its headings."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)[place]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def rows_of(name: str) -> pd.DataFrame:
    rows = bns.read_table(TABLES / f"{name}.parquet", "smoothness")
    return rows.assign(sharpness=rows["sharpness"].abs())


def seeds_of(rows: pd.DataFrame, norm: str, step: int) -> dict[int, dict[str, float]]:
    """The rows of a norm and step by seed."""
    found = {}
    for row in rows.to_dict("records"):
        if (row["norm"], row["step"]) == (norm, step):
            assert row["seed"] not in found
            found[row["seed"]] = row
    return found


def check(cell: str, values: list[float]) -> None:
    """The cell has the median and the range of these values."""
    numbers = [float(part.replace(",", "")) for part in re.findall(r"-?[\d.,]+(?:e[+-]?\d+)?", cell)]
    expected = [float(np.median(values)), *([min(values), max(values)] if len(values) > 1 else [])]
    assert numbers == pytest.approx(expected, rel=6e-3), cell


def test_the_page_is_its_template_with_the_tables():
    assert sharpness.text(TABLES, DOCS / "norms") == PAGE, "python -m reproduction.sharpness writes it"


def test_modes():
    batch, evaluated, eight = (rows_of(name) for name in sharpness.MODES)
    cells = table_under("Train mode or eval mode")
    assert {(row[0], row[1]) for row in cells} == {
        (f"`{n}`", s) for n in ("none", "batch") for s in ["0", "100", "200", "300"]
    }
    for norm, step, *shown in cells:
        of = [seeds_of(rows, norm.strip("`"), int(step)) for rows in (batch, evaluated, eight)]
        assert [*of[0]] == [*range(5)] == sorted(of[1]) == sorted(of[2])
        train, in_eval, over = ([rows[seed] for seed in range(5)] for rows in of)
        check(shown[0], [row["loss"] for row in train])
        check(shown[1], [row["loss"] for row in in_eval])
        check(shown[2], [row["sharpness"] for row in train])
        check(shown[3], [row["sharpness"] for row in in_eval])
        check(shown[4], [b["sharpness"] / a["sharpness"] for a, b in zip(train, in_eval, strict=True)])
        check(shown[5], [b["sharpness"] / a["sharpness"] for a, b in zip(train, over, strict=True)])


@pytest.mark.parametrize(("name", "place"), [("vgg", 0), ("cifar", 1)])
def test_batch_sharpness_in_units_of_the_learning_rate(name, place):
    rows = rows_of(name)
    assert (rows["step_lr"] == 0.1).all()
    for norm, step, *shown in table_under("Batch sharpness at learning rate 0.1", place):
        of = [*seeds_of(rows, norm.strip("`"), int(step.replace(",", ""))).values()]
        for cell, column in zip(
            shown, ("batch_sharpness", "batch_sharpness_error", "curvature", "sharpness"), strict=False
        ):
            check(cell, [0.1 * row[column] for row in of])
        if not any(math.isnan(row["critical_lr"]) for row in of):
            check(shown[4], [row["critical_lr"] / 0.1 for row in of])


def test_the_share_of_the_threshold():
    rows = rows_of("gpt")
    losses = bns.read_table(DOCS / "norms/gpt.parquet", "compare")
    for norm, loss, *shown in table_under("Adam: the preconditioned sharpness"):
        name = norm.strip("`")
        check(loss, [*losses[losses["norm"] == name]["final_loss"]])
        for cell, step in zip(shown, sharpness.STEPS, strict=False):
            of = [*seeds_of(rows, name, step).values()]
            assert len(of) == 5
            # Adam's own threshold, of Cohen et al. 2022, with beta1 = 0.9: 2 (1 + beta1) / (1 - beta1) / lr
            check(cell, [row["preconditioned"] * row["step_lr"] / 38 for row in of])
        check(shown[-1], [row["sharpness"] * row["step_lr"] / 2 for row in seeds_of(rows, name, 300).values()])


def test_the_tables_are_gathered_without_the_paths_of_a_machine(tmp_path):
    settings = {**SMALL["dln"], "problem": "dln", "measure": "smoothness", "at": [0, 4], "device": "cpu"}
    settings["lrs"] = [settings.pop("lr")]
    for name in ("gpt", "folder/vgg"):
        bns.study(["none", "batch"], output=tmp_path / name, **settings)
    (run, *_) = (tmp_path / "gpt/runs").iterdir()
    (table,) = measure("smoothness", [open_run(run).source()], output=tmp_path / "folder/vgg-eval.parquet", at=[4])
    sharpness.gather(tmp_path / "gpt", tmp_path / "folder", tmp_path / "tables")
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {"gpt.parquet", "vgg.parquet", table.name}
    rows = bns.read_table(tmp_path / "tables/gpt.parquet", "smoothness")
    assert sorted(zip(rows["norm"], rows["step"], strict=True)) == [
        ("batch", 0),
        ("batch", 4),
        ("none", 0),
        ("none", 4),
    ]
    assert bns.read_table(tmp_path / "tables" / table.name).attrs["bnsmooth"].keys() & {"runs", "sources"} == set()


def test_a_missing_study_is_one_line():
    command = [sys.executable, "-m", "reproduction.sharpness", "--gather", "nowhere", "there"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=DOCS.parent, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"reproduction\.sharpness: nowhere[^\n]*\n", done.stderr)
