"""The notebooks run from top to bottom in a real kernel, and show what they make."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
SOURCES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def outputs(name, tmp_path):
    """The outputs of the cells by their source."""
    NotebookClient(NOTEBOOKS[name], timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = {cell.source: cell.outputs for cell in NOTEBOOKS[name].cells if cell.cell_type == "code"}
    assert not [output for of_cell in cells.values() for output in of_cell if output.output_type == "error"]
    for source in cells:
        if re.search(r"^bns\.plot", source, re.MULTILINE):
            assert len(data(cells, source)["image/png"]) > 10_000, source
    return cells


def data(cells, begins):
    """The data of a cell's results by type."""
    (found,) = (of_cell for source, of_cell in cells.items() if begins in source)
    return {kind: text for output in found for kind, text in output.get("data", {}).items()}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_opens_in_colab_installs_what_is_missing_and_has_no_outputs(name):
    nbformat.validate(NOTEBOOKS[name])
    first, install = NOTEBOOKS[name].cells[:2]
    path = f"{SOURCES.removeprefix('https://github.com/')}/blob/main/notebooks/{name}.ipynb"
    assert f"(https://colab.research.google.com/github/{path})" in first.source
    assert f'%pip install --quiet "git+{SOURCES}"' in install.source
    assert install.source == NOTEBOOKS["tour"].cells[1].source
    assert not any(cell.get("outputs") for cell in NOTEBOOKS[name].cells), "commit notebooks without outputs"


@pytest.mark.slow
def test_the_tour_runs_and_shows_figures_cards_and_progress(tmp_path):
    cells = outputs("tour", tmp_path)

    def shown(begins):
        """What a cell shows: the data of its results by type, and the last state of each line that it prints."""
        (found,) = (of_cell for source, of_cell in cells.items() if begins in source)
        streams = "".join(output.text for output in found if output.output_type == "stream")
        return data(cells, begins), [line.rpartition("\r")[2] for line in streams.split("\n") if line]

    shows, bars = shown("bns.train(")
    assert re.fullmatch(r"train dln-l2-lr1e-06-.*seed0: 100%\|█+\| 200/200 \[.*steps/s, loss .*\]", bars[0])
    assert len(bars) == 1
    assert shows["text/plain"].startswith("Run runs/dln-l2-lr1e-06-")
    assert "<table>" in shows["text/html"]
    assert "finished at step 200" in shows["text/html"]
    shows, bars = shown("bns.study(")
    assert [re.sub(r"\[.*", "", bar) for bar in bars] == ["study: 6 of 6 runs: 100%|██████████| "]
    assert shows["text/html"].count("finished") == 7  # in the card, and in each row
    assert "step 100" in shown("load_point")[0]["text/html"]
    for frame in ("bns.landscape", "bns.compare", "bns.list_runs"):
        assert "<table" in shown(frame)[0]["text/html"]


@pytest.mark.slow
def test_the_notebook_of_a_model_measures_it_with_both_norms(tmp_path):
    cells = outputs("own_model", tmp_path)
    for begins in ("smooth = ", "evaluated = "):
        table = data(cells, begins)["text/html"]
        assert "__main__:Scaled" in table
        assert "batch" in table
    assert [*tmp_path.glob("runs/*/train.parquet")]


@pytest.mark.slow
def test_the_notebook_of_a_study_has_verdicts_and_the_step_of_the_optimiser(tmp_path):
    cells = outputs("is_it_the_norm", tmp_path)
    assert "10 finished" in data(cells, "bns.study(")["text/plain"]
    assert re.search("<td>(reproduced|not reproduced|inconclusive)</td>", data(cells, "judged = ")["text/html"])
    assert "<td>beta</td>" in data(cells, "ratios = ")["text/html"]
    assert "38000.0" in data(cells, 'direction="update") for run')["text/html"]  # 38 / lr, Adam's threshold
