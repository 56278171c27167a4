"""Studies: a grid is trained, measured and compared, from Python and from the command line, with bad input too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import own_code
import pytest
from helpers import DLN, ENVIRONMENT, files
from interrupted import Stop, stopping_at

import bnsmooth_cli as bns
from bnsmooth_cli.measures.measuring import measure
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.journal import journal_path
from bnsmooth_cli.storage.locks import locked
from bnsmooth_cli.studies import progress
from bnsmooth_cli.studies import run as execution
from bnsmooth_cli.studies.grid import command, read_grid

GRID = f"compare --norms none,batch --seeds 0,1 {DLN} --lrs 1e-4 --steps 20 --save-every 10 --measure smoothness"
#: The names of its runs, without the seed.
NAME = "dln-{}-lr0.0001-depth5-dim4-samples30-steps20"
#: The grid of GRID as arguments of bns.study.
SMALL = {"problem": "dln", "depth": 5, "dimension": 4, "samples": 30, "steps": 20, "save_every": 10}
ARGUMENTS = {"norms": ["none", "batch"], "seeds": range(2), "lrs": [1e-4], "measure": ["smoothness"], **SMALL}


class Recorded(bns.StudyProgress):
    """Progress that remembers its calls."""

    def __init__(self):
        self.calls = []

    def planned(self, runs):
        self.calls.append(("planned", len(runs)))

    def started(self, run):
        self.calls.append(("started", run))

    def finished(self, run, seconds):
        assert seconds > 0
        self.calls.append(("finished", run))

    def failed(self, run, reason):
        self.calls.append(("failed", run))


@pytest.mark.slow
def test_a_finished_study_removes_what_a_command_left_that_was_killed_at_its_end(cli, tmp_path):
    assert cli(f"{GRID} -o study")[0] == 0
    before = files(tmp_path / "study")
    run = bns.Study("study").runs()[0]
    table = run.path / "smoothness.parquet"
    table.rename(tmp_path / "table")
    with pytest.raises(Stop):  # before its last point
        measure("smoothness", [run.source()], progress=stopping_at(2))
    (tmp_path / "table").rename(table)
    left = tmp_path / "study/.progress/of-a-killed-command/run.json"
    left.parent.mkdir(parents=True)
    left.write_text("[]")
    assert cli(f"{GRID} -o study --dry-run")[0] == 0
    assert journal_path(table).exists()
    assert left.exists()
    for _ in range(2):  # the journal is a run's work, the progress is not
        assert cli(f"{GRID} -o study")[0] == 0
        assert not journal_path(table).exists()
        assert not (tmp_path / "study/.progress").exists()
        left.parent.mkdir(parents=True)
        left.write_text("[]")
    shutil.rmtree(tmp_path / "study/.progress")
    assert files(tmp_path / "study") == before


@pytest.mark.slow
def test_a_study_keeps_the_points_that_another_command_has_yet_to_finish(cli, tmp_path):
    assert cli(f"{GRID} -o study")[0] == 0
    run = bns.Study("study").runs()[0]
    table = run.path / "smoothness.parquet"
    with pytest.raises(Stop):
        measure("smoothness", [run.source()], every=1, progress=stopping_at(5))
    points = journal_path(table).read_bytes()
    assert cli(f"{GRID} -o study")[0] == 0
    assert journal_path(table).read_bytes() == points


def test_a_study_measures_along_random_directions(cli, tmp_path):
    line = GRID.replace("--measure smoothness", "--measure landscape-random,smoothness-random")
    assert cli(f"{line} -o study")[0] == 0
    study = bns.Study("study")
    assert study == bns.Study(tmp_path.relative_to(tmp_path) / "study")
    for run in (tmp_path / "study/runs").iterdir():
        for kind in ("landscape-random", "smoothness-random"):
            assert set(tables.read_table(run / f"{kind}.parquet", kind)["direction"]) == {"random"}
        rows = tables.read_table(run / "smoothness-random.parquet")  # it probes the same line
        row = study.comparison.set_index("run").loc[run.name]
        assert row["random_predictiveness"] == rows["predictiveness_max"].median()
        assert row["random_loss_range"] == (rows["loss_max"] - rows["loss_min"]).median()
    assert study.comparison["ratio_random_predictiveness"].notna().all()
    assert study.comparison["predictiveness"].isna().all()
    parts = study.claims[study.claims["claim"] == 15]
    assert parts["seeds"].tolist() == [2, 2]


@pytest.mark.slow
def test_a_study_from_python_equals_that_of_the_command_byte_for_byte(cli, tmp_path):
    assert cli(f"{GRID} -o study")[0] == 0
    (tmp_path / "study").rename(tmp_path / "command")
    bns.study(**ARGUMENTS, output="study")
    by_command, from_python = (
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "log.json"
        }  # which has times
        for folder in (tmp_path / "command", tmp_path / "study")
    )
    assert from_python == by_command


def test_a_study_from_python_has_its_runs_and_tables(tmp_path):
    study = bns.study(**ARGUMENTS, output=tmp_path / "study")
    assert study == bns.Study(tmp_path / "study")
    assert [run.config.norm for run in study.runs()] == ["batch", "batch", "none", "none"]
    assert study.failed == {}
    assert set(study.comparison["run"]) == {run.name for run in study.runs()}
    assert set(study.summary["figure"]) >= {"final_loss", "beta"}
    assert study.claims["claim"].nunique() == 16


@pytest.mark.slow
def test_callbacks_tell_of_the_runs_that_a_growing_study_adds(tmp_path):
    first, again, grown = Recorded(), Recorded(), Recorded()
    bns.study(**ARGUMENTS, output=tmp_path / "study", progress=first)
    names = [f"{NAME.format(norm)}-seed{seed}" for seed in (0, 1) for norm in ("none", "batch")]
    assert first.calls == [("planned", 4), *((what, name) for name in names for what in ("started", "finished"))]
    bns.study(**ARGUMENTS, output=tmp_path / "study", progress=again)
    assert again.calls == []
    bns.study(**{**ARGUMENTS, "norms": ["l1"]}, output=tmp_path / "study", progress=grown)
    assert grown.calls[0] == ("planned", 2)
    assert len(bns.Study(tmp_path / "study").comparison) == 6


def test_a_run_advances_while_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.02)
    stages = {}

    class Advancing(bns.StudyProgress):
        def advanced(self, run, stage, done, total, note):
            stages.setdefault(stage, []).append((done, total))

    settings = {**ARGUMENTS, "norms": "none", "seeds": 0, "steps": 1000, "measure": ()}
    bns.study(**settings, output=tmp_path / "study", progress=Advancing())
    assert stages["train"] == sorted(stages["train"])
    assert {total for _, total in stages["train"]} == {1000}


def test_a_run_that_fails_is_reported_and_the_others_finish(tmp_path):
    bns.study(**ARGUMENTS, output=tmp_path / "study")
    name = "dln-none-lr0.0001-depth5-dim4-samples30-steps20-seed1"
    (tmp_path / f"study/runs/{name}/smoothness.parquet").write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match=f"{name} failed, the other runs continue: .*smoothness.parquet"):
        study = bns.study(**{**ARGUMENTS, "seeds": "0-2"}, output=tmp_path / "study")
    assert list(study.failed) == [name]
    assert len(study.comparison) == 5


def test_a_norm_may_be_a_class(tmp_path):
    study = bns.study([own_code.Scaled], lrs=[1e-4], output=tmp_path / "study", **SMALL)
    assert study.comparison["norm"].tolist() == ["own_code:Scaled"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norms": ["bacth"]}, "did you mean 'batch'"),
        ({"norms": []}, "--norms: an empty grid"),
        ({"sedes": 3}, "did you mean 'seeds'"),
        ({"jobs": 0}, "--jobs 0: give a whole number"),
        ({"jobs": 2, "dask": "tcp://127.0.0.1:1"}, "leave it out"),
        ({"at": [99]}, "--at 99: beyond the 20 steps"),
        ({"device": "nonsense"}, "--device nonsense"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_any_work(tmp_path, changed, message):
    with pytest.raises(bns.InputError, match=message):
        bns.study(**{**ARGUMENTS, **changed}, output=tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_to_have_one(tmp_path):
    (tmp_path / "script.py").write_text(f"import bnsmooth_cli as bns\nbns.study(**{ARGUMENTS}, jobs=2)\n")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "call bns.study under if __name__ == '__main__'" in done.stderr


def test_a_study_trains_measures_and_concludes(cli, tmp_path):
    code, out, err = cli(f"{GRID} -o study")
    assert (code, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "study/runs").iterdir()) == [
        f"{NAME.format(norm)}-seed{seed}" for norm in ("batch", "none") for seed in (0, 1)
    ]
    assert "Effective beta-smoothness is lower with BatchNorm" in out
    assert "inconclusive" in out
    frame = tables.read_table(tmp_path / "study/compare.parquet", "compare")
    assert len(frame) == 4
    assert frame["beta"].notna().all()
    assert {path.name for path in tables_beside(tmp_path)} == {
        "compare.parquet", "compare.summary.parquet", "compare.claims.parquet",
    }  # fmt: skip


def tables_beside(folder: Path):
    return (folder / "study").glob("*.parquet")


def test_a_study_resumes_and_grows_without_doing_anything_twice(cli, tmp_path, monkeypatch):
    cli(f"{GRID} -o study")
    before = files(tmp_path / "study")
    done: list[str] = []
    work = execution.work
    monkeypatch.setattr(execution, "work", lambda task, folder: done.append(task.name) or work(task, folder))
    assert cli(f"{GRID} -o study")[0] == 0
    assert done == []
    grown = GRID.replace("none,batch", "none,batch,l1").replace("0,1", "0-2").replace("smoothness", "smoothness,ics")
    assert cli(f"{grown} -o study")[0] == 0
    assert len(done) == 9
    after = files(tmp_path / "study")
    assert {name: after[name] for name in before if "/" in name} == {n: v for n, v in before.items() if "/" in n}
    assert len(tables.read_table(tmp_path / "study/compare.parquet")) == 9


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["0-2", "0,2"], ids=["asked for", "not asked for"])
@pytest.mark.parametrize("name", ["train.parquet", "config.json", "smoothness.parquet", "ics.parquet"])
@pytest.mark.parametrize("options", ["", "--force"])
def test_a_damaged_run_is_reported_and_the_others_continue(cli, tmp_path, name, seeds, options):
    cli(f"{GRID} -o study")
    damaged = tmp_path / "study/runs/dln-batch-lr0.0001-depth5-dim4-samples30-steps20-seed1" / name
    damaged.write_bytes((damaged.read_bytes() if damaged.exists() else b"PAR1")[:200])
    code, _, err = cli(f"{GRID.replace('0,1', seeds)} {options} -o study")
    mended = (options, name, seeds) == ("--force", "smoothness.parquet", "0-2")  # it was to be measured anew anyway
    assert code == (0 if mended else 1), err
    if not mended:
        lines = err.splitlines()
        assert "dln-batch-lr0.0001-depth5-dim4-samples30-steps20-seed1 failed, the other runs continue" in lines[0]
        assert str(damaged.relative_to(tmp_path)) in lines[0]
        assert lines[-1].startswith("bnsmooth: left out: dln-batch-lr0.0001-depth5-dim4-samples30-steps20-seed1;")
    assert len(tables.read_table(tmp_path / "study/compare.parquet")) == 5 + mended


def test_force_leaves_nothing_beside_new_runs(cli, tmp_path):
    for norms in ("none", "none,batch"):
        line = f"compare {DLN} --norms {norms} --steps 5 --measure ics --force -o study"
        assert cli(line)[0] == 0
    assert len([*(tmp_path / "study/runs").iterdir()]) == 2


@pytest.mark.parametrize("name", ["", "train.parquet", "smoothness.parquet"])
@pytest.mark.fast(1)
def test_a_deleted_run_or_table_is_made_again(cli, tmp_path, name):
    cli(f"{GRID} -o study")
    before = files(tmp_path / "study")
    damaged = tmp_path / "study/runs/dln-batch-lr0.0001-depth5-dim4-samples30-steps20-seed1" / name
    shutil.rmtree(damaged) if damaged.is_dir() else damaged.unlink()
    assert cli(f"{GRID} -o study")[0] == 0
    assert files(tmp_path / "study") == before


@pytest.mark.slow
def test_a_run_killed_before_its_last_row_is_finished(cli, tmp_path):
    cli(f"{GRID} -o study")
    before = files(tmp_path / "study")
    path = tmp_path / "study/runs/dln-batch-lr0.0001-depth5-dim4-samples30-steps20-seed1/train.parquet"
    rows, provenance = tables.read_table(path), tables.read_provenance(path)
    kept = {name: provenance[name] for name in ("version", "torch", "runs", "stretches")}
    tables.write_table(path, "train", [rows.iloc[:-1]], kept)  # as it is when the last checkpoint is written
    assert cli(f"{GRID} -o study")[0] == 0
    assert files(tmp_path / "study") == before


def test_a_dry_run_with_damaged_runs(cli, tmp_path):
    cli(f"{GRID} -o study")
    runs = sorted((tmp_path / "study/runs").iterdir())
    (runs[0] / "config.json").write_text("{")
    code, out, err = cli(f"{GRID} -o study --dry-run")
    assert (code, out.count("finished"), runs[0].name in err) == (0, 3, True)
    for run in runs:
        (run / "config.json").write_text("{")
    code, _, err = cli(f"{GRID} -o study --dry-run")
    assert (code, err.splitlines()[-1]) == (1, "bnsmooth: study: none of the 4 runs that were asked for can be read")


@pytest.mark.slow
def test_runs_that_do_not_belong_to_the_study_are_left_out_by_name(cli, tmp_path):
    cli(f"{GRID} -o study")
    runs = tmp_path / "study/runs"
    shutil.copytree(runs / "dln-none-lr0.0001-depth5-dim4-samples30-steps20-seed0", runs / "copy of none")
    cli(f"train --norm none --seed 9 {DLN.replace('30', '31')} --lr 1e-4 --steps 20 -o {runs}/other")
    code, out, err = cli(f"{GRID} -o study")
    assert (code, "copy of none" in out, re.search(r"\bother\b", out)) == (1, False, None)
    refused = f"no run of this study (it is {NAME.format('none')}-seed0)"
    assert f"{runs.relative_to(tmp_path)}/copy of none: {refused}" in err
    assert "samples 30, now 31" in err
    assert len(tables.read_table(tmp_path / "study/compare.parquet")) == 4


def test_runs_that_were_trained_one_by_one_become_a_study(cli, tmp_path):
    for norm in ("none", "batch"):
        name = f"{NAME.format(norm)}-seed0"
        cli(f"train --norm {norm} {DLN} --lr 1e-4 --steps 20 --save-every 10 -o study/runs/{name}")
    before = files(tmp_path / "study")
    assert cli(f"{GRID} -o study")[0] == 0
    after = files(tmp_path / "study")
    assert {name: after[name] for name in before} == before
    assert len(tables.read_table(tmp_path / "study/compare.parquet")) == 4


def test_the_advice_for_loose_runs_is_a_study_that_takes_them_and_trains_none_of_them_again(cli, tmp_path, monkeypatch):
    small = "--samples 20 --batch-size 20 --steps 6 --depth 3 --dimension 4"
    for norm in ("none", "batch"):
        assert (
            cli(f"train --problem dln --norm {norm} --lr 1e-4 {small} --measure ics --every 2 -o loose/{norm}")[0] == 0
        )
    out = cli("compare loose/none loose/batch")[1]
    assert "--seeds 0 " not in out
    (line,) = [line for line in out.splitlines() if line.startswith("to measure more: ") and "--lrs 0.0001" in line]
    words = line.removeprefix("to measure more: bnsmooth ")
    assert words.startswith("compare loose/none loose/batch --norms none,batch,")
    assert "--seeds 0-4 " in words
    trained = []
    monkeypatch.setattr(execution, "execute", lambda executor, todo, folder: trained.extend(todo) or [])
    assert cli(words)[0] == 0
    reached = {task.name: task.reached for task in trained}
    names = [f"dln-{norm}-lr0.0001-depth3-dim4-samples20-steps6-seed0" for norm in ("none", "batch")]
    assert [reached.pop(name) for name in names] == [6, 6]
    assert len(reached) > 8
    assert set(reached.values()) == {0}


def test_a_comparison_asks_before_it_replaces_one_of_other_runs(cli, tmp_path):
    for norm in ("none", "batch", "l1"):
        cli(f"train --norm {norm} {DLN} --steps 4 -o {norm}")
    assert cli("compare none batch")[0] == 0
    before = files(tmp_path)
    assert cli("compare none batch")[0] == 0  # the same again
    code, _, err = cli("compare none l1")
    assert (code, err.count("\n")) == (2, 1)
    assert "compare.parquet: compares batch too; --force replaces it, -o writes another table" in err
    assert files(tmp_path) == before
    assert cli("compare none batch l1")[0] == 0  # nothing is lost
    assert cli("compare none l1 --force")[0] == 0
    assert set(bns.read_table("compare.parquet")["run"]) == {"none", "l1"}


def test_a_study_that_takes_a_run_has_its_bytes_and_measures_what_it_lacks(cli, tmp_path):
    train = f"train --norm none --lr 1e-4 {DLN} --steps 20 --save-every 10 --measure smoothness"
    assert cli(train)[0] == 0
    name = f"{NAME.format('none')}-seed0"
    before = files(tmp_path / "runs" / name)
    assert cli(f"{GRID},ics runs/{name} -o study")[0] == 0
    there = files(tmp_path / "study/runs" / name)
    assert {name: there[name] for name in before} == before
    assert "ics.parquet" in {*there} - {*before}
    assert len(bns.Study("study").runs()) == 4
    code, _, err = cli(f"{GRID} --depth 4 runs/{name} -o other")
    assert code == 2
    assert "a run of other settings than the study's (depth" in err
    assert not (tmp_path / "other").exists()


def test_two_runs_of_one_norm_lr_and_seed_are_compared_without_verdicts(cli, tmp_path):
    cli(f"{GRID} -o study")
    shutil.copytree(tmp_path / "study/runs", tmp_path / "again")
    names = sorted(
        str(path)
        for path in [
            *tmp_path.glob("study/runs/*"),
            tmp_path / "again/dln-none-lr0.0001-depth5-dim4-samples30-steps20-seed0",
        ]
    )
    (tmp_path / "again/dln-none-lr0.0001-depth5-dim4-samples30-steps20-seed0").rename(tmp_path / "again/another")
    cli(f"{GRID} -o other".replace("--samples 30", "--samples 20"))
    others = [str(path) for path in tmp_path.glob("other/runs/*")]
    code, out, _ = cli(f"compare {' '.join([*names[1:], *others])} {tmp_path}/again/another")
    assert code == 0
    (note,) = re.findall("no statistics and no verdicts: (.*) and (.*) share norm, lr and seed", out)
    assert {*note} == {NAME.format("none") + "-seed0", "another"}
    assert "medians over seeds" in out  # of the others


@pytest.mark.slow
def test_a_run_that_diverges_at_once_is_a_result(cli, tmp_path):
    line = GRID.replace("1e-4", "1e30").replace("smoothness", "landscape,smoothness,ics,activations,theory")
    code, _, err = cli(f"{line} -o study")
    assert (code, err) == (0, "")
    frame = tables.read_table(tmp_path / "study/compare.parquet")
    assert frame["diverged_at"].notna().all()
    assert cli("report study -o r.html")[0] == 0


def test_a_dry_run_prints_what_is_missing_and_writes_nothing(cli, tmp_path):
    code, out, _ = cli(f"{GRID} -o study --dry-run")
    assert code == 0
    assert out.count("new") == 4
    assert "4 runs: about" in out
    assert not (tmp_path / "study").exists()
    cli(f"{GRID} -o study")
    before = files(tmp_path / "study")
    out = cli(f"{GRID.replace('none,batch', 'none,batch,l2')} -o study --dry-run")[1]
    assert (out.count("new"), out.count("finished")) == (2, 4)
    assert files(tmp_path / "study") == before


@pytest.mark.slow
def test_a_study_file_is_equivalent_to_the_options(cli, tmp_path):
    (tmp_path / "study.toml").write_text("""
norms = ["none", "batch"]
seeds = "0-1"
lrs = [1e-4]
measure = ["smoothness"]
steps = 20
save-every = 10
problem = "dln"
depth = 5
dimension = 4
samples = 30
""")
    assert cli("compare --study study.toml -o a")[0] == 0
    assert cli(f"{GRID} -o b")[0] == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert cli("compare --study study.toml --norms none --seeds 3 -o c")[0] == 0  # what is given here wins
    assert [path.name for path in (tmp_path / "c/runs").iterdir()] == [
        "dln-none-lr0.0001-depth5-dim4-samples30-steps20-seed3"
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--norms none,bacth", "did you mean 'batch'"),
        ("--norms ,", "--norms none,batch"),
        ("--norms none --seeds ,", "empty grid"),
        ("--seeds 0-1", "--norms none,batch"),
        ("--norms none --seeds 4-2", "--seeds 4-2"),
        ("--norms none --seeds one", "--seeds 'one'"),
        ("--norms none --lrs fast", "--lrs 'fast'"),
        ("--norms none --measure smothness", "did you mean 'smoothness'"),
        ("--norms none,none", "twice in the grid"),
        ("--norms none --jobs 0", "--jobs 0"),
        ("--norms none --threads 0", "--threads 0"),
        ("--norms none --dask tcp://127.0.0.1:1", "no scheduler answers"),
        ("--norms none --dask nonsense", "no scheduler answers"),
        ("--norms none --jobs 2 --dask tcp://127.0.0.1:1", "leave it out"),
        ("--study absent.toml", "absent.toml"),
        ("--study broken.toml", "not readable as TOML"),
        ("--study unknown.toml", "did you mean 'seeds'"),
        ("--study typed.toml", "wrong type"),
        ("--norms none -o full", "holds files but no study"),
        ("--norms none -o broken.toml", "broken.toml"),
        ("--norms none --at 1 --every 2", "only one of them"),
        ("--norms none --at 99999 --measure ics --problem dln", "beyond"),
        ("--norms none --device nonsense", "--device nonsense"),
        ("--norms none --measure ics --at ,", "name at least one step"),
        ("--norms none --seeds 0-9999999999", "more than 100000 values"),
        ("--norms none --study preset.toml", "preset 3: give quick or paper"),
        ("--norms none --study presets.toml", "give quick or paper"),
        ("--study machine.toml", "--jobs is an option of the command, not of the study"),
        ("RUN --norms none", "other settings than the study's (problem dln, now vgg)"),
        ("RUN --steps 5", "--steps: describes runs to train"),
        ("--norms none --problem dln --at 5", "--at: an option of --measure; add --measure A,B"),
        ("RUN --device cpu --threads 2", "--device: describes runs to train"),
        ("RUN --threads 2", "--threads: describes runs to train"),
        ("RUN --jobs 2", "--jobs: describes runs to train"),
        ("RUN --jobs 2", "--jobs"),
    ],
)
def test_bad_input_is_one_line_and_trains_nothing(cli, tmp_path, small_run, line, said):
    (tmp_path / "broken.toml").write_text("norms = [")
    (tmp_path / "unknown.toml").write_text('norms = "none"\nsedes = 3\n')
    (tmp_path / "typed.toml").write_text('norms = "none"\nsteps = "many"\n')
    (tmp_path / "preset.toml").write_text("preset = 3\n")
    (tmp_path / "presets.toml").write_text('preset = ["quick"]\n')
    (tmp_path / "machine.toml").write_text('norms = "none"\njobs = 2\n')
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    code, _, err = cli(f"compare {line.replace('RUN', str(small_run('dln', 'none').path))}")
    assert code == 2
    assert "bnsmooth: " in err
    assert said in err
    assert "Traceback" not in err
    assert not [*tmp_path.glob("study/runs/*/train.parquet")]


@pytest.mark.slow
def test_a_study_of_other_settings_is_refused(cli, tmp_path):
    cli(f"{GRID} -o study")
    before = files(tmp_path / "study")
    for change, said in (
        ("--depth 6", "depth 5, now 6"),
        ("--problem vgg", "problem dln, now vgg"),
        ("--threads 2", "threads 1, now 2"),
        ("--steps 10", "steps 20, now 10"),
        ("--steps 40", "steps 20, now 40"),
    ):
        line = GRID.replace(DLN, "") if "vgg" in change else GRID.replace("--depth 5", "")
        code, _, err = cli(f"{line} {change} {'' if 'depth' in change or 'vgg' in change else '--depth 5'} -o study")
        assert (code, said in err) == (2, True), err
    assert files(tmp_path / "study") == before
    assert cli(f"{GRID} --at 0 --force -o study")[0] == 0  # measured again, the runs are kept
    after = files(tmp_path / "study")
    assert {n: v for n, v in after.items() if n.endswith(".pt")} == {
        n: v for n, v in before.items() if n.endswith(".pt")
    }


TEXT = {"depth": 1, "embedding": 4, "heads": 1, "context": 4, "batch_size": 2, "steps": 2, "warmup": 0, "eval_every": 2}


def test_a_study_goes_on_where_its_data_are_now(tmp_path):
    def request(place: str, **more: object) -> bns.Study:
        return bns.study(["none"], problem="gpt", data=str(tmp_path / place / "my.txt"), **TEXT, **more)

    for place in ("cluster", "laptop", "other"):
        (tmp_path / place).mkdir()
    text = tmp_path / "cluster/my.txt"
    text.write_text("To be, or not to be: that is the question. " * 20)
    request("cluster", output=tmp_path / "study")
    (first,) = bns.Study(tmp_path / "study").runs()
    before = files(first.path)
    text.rename(tmp_path / "laptop/my.txt")
    with pytest.raises(bns.InputError, match=r"cluster/my\.txt: no such file; if it has moved, give --data$"):
        bns.load_point(first)

    grown = request("laptop", output=tmp_path / "study", seeds=(0, 1), measure=["ics"])
    assert (sorted(run.config.seed for run in grown.runs()), dict(grown.failed)) == ([0, 1], {})
    after = files(first.path)
    assert {name: after[name] for name in before} == before  # not trained again
    assert all((run.path / "ics.parquet").exists() for run in grown.runs())
    taken = request("laptop", output=tmp_path / "taken", seeds=(0, 2), runs=[first.path])
    assert sorted(run.config.seed for run in taken.runs()) == [0, 2]

    (tmp_path / "other/my.txt").write_text("Whether 'tis nobler in the mind to suffer " * 20)
    for folder, more in (("study", {"seeds": (0, 3)}), ("new", {"runs": [first.path], "seeds": (0, 3)})):
        with pytest.raises(bns.InputError, match="not the text that the run was trained on"):
            request("other", output=tmp_path / folder, **more)
    assert not (tmp_path / "new").exists()
    for place, said in (("other", "not the text that the run was trained on"), ("nowhere", "no such file")):
        before = files(tmp_path / "study")
        with pytest.raises(bns.InputError, match=said):  # also where nothing remains to be done
            request(place, output=tmp_path / "study", seeds=(0, 1), measure=["ics"])
        assert files(tmp_path / "study") == before
    (tmp_path / "laptop/my.txt").rename(tmp_path / "laptop/hamlet.txt")
    with pytest.raises(bns.InputError, match="choose a new folder with -o, or rename the data if they have only moved"):
        bns.study(["none"], problem="gpt", data=str(tmp_path / "laptop/hamlet.txt"), output=tmp_path / "study", **TEXT)


@pytest.mark.slow
def test_a_study_grows_with_other_intervals(cli, tmp_path):
    line = (
        f"compare --norms none --problem vgg --width 0.02 --batch-size 4 --steps 4 {'{}'} --measure ics --at 0 -o study"
    )
    assert cli(line.format("--save-every 2 --eval-every 2"))[0] == 0
    before = files(tmp_path / "study/runs")
    code, _, err = cli(
        line.format("--save-every 4 --eval-every 4").replace("none", "none,l1").replace("ics", "ics,theory")
    )
    said = "study/study.json: other settings than before (save_every 2, now 4; eval_every 2, now 4), which runs that"
    assert (code, err.count("\n"), err.startswith(f"bnsmooth: note: {said} have ended do not get")) == (0, 1, True), err
    after = files(tmp_path / "study/runs")
    assert {name: after[name] for name in before} == before
    runs = {run.config.norm: run for run in bns.Study("study").runs()}
    assert {norm: (run.config.eval_every, *run.checkpoints()) for norm, run in runs.items()} == {
        "none": (2, 0, 2, 4), "l1": (4, 0, 4),
    }  # fmt: skip
    assert all((run.path / "theory.parquet").exists() for run in runs.values())


def test_two_commands_on_one_study(cli, tmp_path):
    (tmp_path / "study").mkdir()
    with locked(tmp_path / "study", "study"):
        code, _, err = cli(f"{GRID} -o study")
    assert code == 2
    assert "is writing this study" in err


def test_a_data_folder_in_a_study_file_is_relative_to_the_file(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "cifar10").mkdir()
    for said, meant in (("mine", str(tmp_path / "mine")), ("cifar10", "cifar10"), ("absent", "absent")):
        (tmp_path / "study.toml").write_text(f'norms = "none"\ndata = "{said}"\n')
        assert read_grid({}, tmp_path / "study.toml").settings["data"] == meant


def test_a_request_becomes_a_command_for_readers():
    grid = read_grid({"norms": "none,lp:3", "seeds": "0-3,7", "lrs": "0.1,0.5", "augment": False, "measure": "ics"})
    line = command(grid.request(), Path("a study"))
    assert line == (
        "bnsmooth compare --norms none,lp:3 --lrs 0.1,0.5 --seeds 0-3,7 --no-augment --measure ics -o 'a study'"
    )
