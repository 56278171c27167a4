"""What `compare` prints of its outcome: statistics of each group of runs, and the claims with all of their parts."""

from __future__ import annotations

import re

import pytest
from helpers import DLN
from judged_runs import RIGHT, world, write_run
from rich.console import Console

from bnsmooth_cli.cli import outcomes, terminal
from bnsmooth_cli.errors import DamagedError
from bnsmooth_cli.studies.folder import table_paths
from bnsmooth_cli.studies.outcome import Outcome, conclude

BOTH = "none", "batch"


@pytest.fixture
def shown(monkeypatch, capsys):
    """What is printed of an outcome in a terminal of some columns: shown(outcome, 80)."""

    def show(outcome, width: int, **more) -> str:
        monkeypatch.setattr(terminal, "out", Console(width=width, force_terminal=True, highlight=False, markup=False,
                                                     emoji=False, **more))  # fmt: skip
        outcomes.show(outcome)
        return capsys.readouterr().out

    return show


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.fast(1)
def test_a_claim_shows_all_of_its_parts_with_their_names_within_the_terminal(tmp_path, plain, shown, width):
    runs = world(tmp_path, "dln", RIGHT, 5, BOTH, kinds=("ics", "smoothness"))
    outcome = conclude(runs)
    text = shown(outcome, width)
    claims = text[text.index("the paper's claims") : text.index("to measure more")]
    assert max(map(len, claims.splitlines())) <= width
    words = " ".join(claims.split())
    parts = outcome.claims[outcome.claims["claim"].isin((1, 4, 5, 6, 7))]
    for part in parts.itertuples():
        assert part.title in words
        if width == 80:  # a name has lines of its own
            assert part.part in words
        for word in part.part.split():
            assert re.search(rf"(^|\s){re.escape(word)}($|[\s;])", claims, re.MULTILINE), word
    distance = parts[parts["part"].str.startswith("distance")].iloc[0]
    assert f"{distance['median']:.2g} [{distance['low']:.2g}, {distance['high']:.2g}]  > 0.8" in claims
    assert "reproduced: both parts (5 seeds, power 0.18)" in claims


def test_one_seed_has_a_median_and_no_interval(cli, tmp_path):
    runs = world(tmp_path, "vgg", RIGHT, 1, BOTH, kinds=("ics", "smoothness"))
    code, out, _ = cli(f"compare {' '.join(str(run.path) for run in runs)}")
    assert code == 0
    assert "distance of the layers' gradients, batch / none" in out
    for table in ("compare", "compare.summary", "compare.claims"):
        out += cli(f"show {table}.parquet")[1]
    assert not re.search(r"\bnan\b", out)


def test_what_never_happened_is_counted(tmp_path, plain, shown):
    runs = world(tmp_path, "dln", RIGHT, 3, BOTH, kinds=())
    runs += [write_run(tmp_path, "dln", "none", 1e-6, seed, RIGHT, kinds=()) for seed in (3, 4)]
    slow = {"batch": RIGHT["batch"] | {"loss": 90.0}}
    runs += [write_run(tmp_path, "dln", "batch", 1e-6, 3, slow, kinds=())]
    runs += [write_run(tmp_path, "dln", "batch", 1e-6, 4, RIGHT, kinds=(), diverged=10)]
    outcome = conclude(runs)
    text = shown(outcome, 120)
    assert "5, 1 diverged" in text
    assert "2 of 5 never" in text
    row = outcome.summary.set_index(["norm", "figure"]).loc["batch", "steps_to_loss"]
    assert (row["seeds"], row["never"], row["diverged"]) == (5, 2, 1)


def test_runs_of_other_settings_are_tables_of_their_own_titled_by_what_differs(cli, tmp_path):
    for samples in (20, 40):
        for norm in BOTH:
            train = f"train --problem dln --depth 3 --dimension 4 --samples {samples} --batch-size 20 --steps 4"
            assert cli(f"{train} --norm {norm} -o runs/{norm}{samples}")[0] == 0
    out = cli(f"compare {' '.join(map(str, sorted((tmp_path / 'runs').iterdir())))}")[1]
    titles = [line for line in out.splitlines() if line.startswith("dln")]
    for samples in (20, 40):
        assert sum(title.startswith(f"dln: {samples} samples") for title in titles) == 2  # runs, and claims
    assert len(titles) == 4


@pytest.mark.parametrize("colours", [True, False])
def test_verdicts_are_coloured_where_there_is_colour(tmp_path, monkeypatch, shown, colours):
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    runs = world(tmp_path, "dln", RIGHT, 5, BOTH, kinds=())
    text = shown(conclude(runs), 120, color_system="standard")
    assert ("\x1b[32m" in text) == colours
    assert "reproduced" in text


def test_a_pipe_gets_whole_lines(cli, tmp_path):
    runs = world(tmp_path, "dln", RIGHT, 5, BOTH, kinds=("ics",))
    out = cli(f"compare {' '.join(str(run.path) for run in runs)}")[1]
    (line,) = [line for line in out.splitlines() if "distance of the layers' gradients, batch / none" in line]
    assert re.search(r"> 0\.8 +1\.7 +reproduced$", line)


# What is refused.


def test_tables_that_were_measured_with_other_options_are_not_compared(cli):
    for norm in ("none", "batch"):
        assert cli(f"train --norm {norm} {DLN} --steps 20 -o {norm}")[0] == 0
        assert cli(f"smoothness {norm} --every 5")[0] == 0
    assert cli("compare none batch")[0] == 0
    assert cli("smoothness batch --every 10 --batches 2 --force")[0] == 0
    assert cli("compare none batch --force")[0] == 0  # other steps, and columns that are added to the same numbers
    assert cli("smoothness batch --every 5 --alphas 100,1000 --force")[0] == 0
    for line in ("compare none batch --force", "compare --plan none batch"):
        code, out, err = cli(line)
        assert (code, out) == (2, "")
        assert "tables of kind smoothness are of different options (alphas [" in err
        assert "--force" in err
        assert len(err.strip().splitlines()) == 1
    assert cli("smoothness none --every 5 --alphas 100,1000 --force")[0] == 0
    assert cli("compare none batch --force")[0] == 0


def test_tables_of_two_comparisons_are_not_read_as_one(tmp_path):
    runs = world(tmp_path, "dln", RIGHT, 3, BOTH, kinds=("smoothness",))
    path = tmp_path / "compare.parquet"
    first, second = conclude(runs[:4]), conclude(runs, target_loss=50.0)
    first.write(path, runs[:4])
    assert len(Outcome.read(path).comparison) == 4
    parts = {file: file.read_bytes() for file in [*table_paths(path).values()][1:]}
    second.write(path, runs)
    assert Outcome.read(path).targets == {"target_loss": 50.0}
    for file, content in parts.items():  # as a kill between the files leaves them
        file.write_bytes(content)
    with pytest.raises(DamagedError, match=r"is of another comparison than .*compare\.parquet; compare again"):
        Outcome.read(path)
    second.write(path, runs)
    conclude(runs).write(tmp_path / "other.parquet", runs)
    for file, other in zip(parts, [*table_paths(tmp_path / "other.parquet").values()][1:], strict=True):
        file.write_bytes(other.read_bytes())  # of the same runs, with another target
    with pytest.raises(DamagedError, match="compare again"):
        Outcome.read(path)
