"""The notebook of the documentation runs from top to bottom in a real kernel, and shows what it makes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOUR = Path(__file__).parents[1] / "docs/examples/tour.ipynb"


def run(tmp_path):
    """The notebook with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(TOUR, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return notebook


@pytest.mark.slow
def test_the_tour_runs_and_shows_figures_cards_and_progress(tmp_path):
    cells = {cell.source: cell.outputs for cell in run(tmp_path).cells if cell.cell_type == "code"}

    def shown(begins):
        """What a cell shows: the data of its results by type, and the last state of each line that it prints."""
        (outputs,) = (outputs for source, outputs in cells.items() if begins in source)
        data = {kind: text for output in outputs for kind, text in output.get("data", {}).items()}
        streams = "".join(output.text for output in outputs if output.output_type == "stream")
        return data, [line.rpartition("\r")[2] for line in streams.split("\n") if line]

    data, bars = shown("bns.train(")
    assert re.fullmatch(r"train dln-l2-lr1e-06-.*seed0: 100%\|█+\| 200/200 \[.*steps/s, loss .*\]", bars[0])
    assert len(bars) == 1
    assert data["text/plain"].startswith("Run runs/dln-l2-lr1e-06-")
    assert "<table>" in data["text/html"]
    assert "finished at step 200" in data["text/html"]
    data, bars = shown("bns.study(")
    assert [re.sub(r"\[.*", "", bar) for bar in bars] == ["study: 6 of 6 runs: 100%|██████████| "]
    assert data["text/html"].count("finished") == 7  # in the card, and in each row
    assert "step 100" in shown("load_point")[0]["text/html"]
    for source in cells:
        if source.startswith("bns.plot"):
            assert len(shown(source)[0]["image/png"]) > 10_000, source
    for frame in ("bns.landscape", "bns.compare", "bns.list_runs"):
        assert "<table" in shown(frame)[0]["text/html"]
    assert not [output for outputs in cells.values() for output in outputs if output.output_type == "error"]
