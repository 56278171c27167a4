"""What users see while a command works and at its end: lines of progress, logs, JSON, and whole tables."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys

import pandas as pd
import pytest
from helpers import DLN, ENVIRONMENT

from bnsmooth_cli.cli import progress, terminal
from bnsmooth_cli.cli.layout import wrap
from bnsmooth_cli.storage.tables import kind_of

TRAIN = f"train {DLN} --lr 1e-4 --steps 60 --save-every 20"
VGG = "train --width 0.02 --batch-size 4 --steps 4 --eval-every 2 --save-every 2"


def test_a_batch_job_has_a_line_at_its_first_and_last_step_with_loss_and_time(cli):
    cli(f"{TRAIN} -o runs/one")
    first, *_, last = cli.stderr.splitlines()
    assert first == "one: step 0 of 60"
    assert re.fullmatch(r"one: step 60 of 60, loss [\d.e+]+, [\d.e+]+ steps/s, [\d.]+ s in all", last)
    assert "nan" not in cli.stderr


def test_a_line_at_an_evaluation_has_the_accuracy(cli, monkeypatch):
    monkeypatch.setattr(progress, "SHORTEST", 0.0)
    cli(f"{VGG} -o one")
    at = [
        re.match(r"one: step (\d+) of 4, loss [\d.]+, test accuracy [\d.]+, ", line) for line in cli.stderr.splitlines()
    ]
    assert [int(found[1]) for found in at if found] == [2, 4]


def test_a_measuring_command_has_lines_of_its_points(cli, monkeypatch, small_run):
    monkeypatch.setattr(progress, "SHORTEST", 0.0)
    cli(f"ics {small_run('dln', 'batch').path} -o t.parquet")
    lines = cli.stderr.splitlines()
    assert [re.match(r"ics: (\d) of 4 points", line)[1] for line in lines] == ["0", "1", "2", "3", "4"]
    assert lines[2].startswith("ics: 2 of 4 points, dln-batch step 4, ")


def test_lines_of_a_long_job_grow_rare_and_never_stop(monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    stage, printed = progress._Stage("train", 0, begun=0.0, total=10**9), []
    while now < 86_400:  # a thousand evaluations a second would print no more
        stage.done += 1
        if stage.is_due(milestone=True):
            printed.append(now)
            stage.printed = now
        now += 0.5
    gaps = [later - earlier for earlier, later in itertools.pairwise(printed)]
    assert printed[0] == 0
    assert gaps[0] == progress.SHORTEST
    assert max(gaps) <= progress.LONGEST + 0.5
    assert 1_000 < len(printed) < 2_000


def test_the_lines_of_a_study_name_their_run(cli):
    cli(f"compare --norms none,l1 {DLN} --lrs 1e-4 --steps 8 --measure ics -o s")
    for run in ("dln-none", "dln-l1"):
        assert re.search(rf"^{run}-\S+: finished in [\d.]+ s, [12] of 2 runs$", cli.stderr, re.MULTILINE)


def test_a_resumed_run_says_where_it_continues(cli, tmp_path):
    cli(f"{TRAIN} -o one")
    assert "continuing" not in cli.stderr
    cli(f"{TRAIN} --steps 80 -o one")
    assert "one: continuing from step 60\n" in cli.stderr
    cli("ics one --at 0,20")
    cli("ics one --at 0,20,40,60")
    assert "ics: continuing with 2 of 4 points\n" in cli.stderr


def test_a_resumed_study_says_what_it_has(cli):
    study = f"compare {DLN} --lrs 1e-4 --steps 8 -o s"
    cli(f"{study} --norms none")
    cli(f"{study} --norms none,l1")
    assert "continuing: 1 of 2 runs are finished\n" in cli.stderr


def test_quiet_prints_errors_only_and_verbose_contradicts_it(cli):
    assert cli(f"{TRAIN} -q -o one")[:2] == (0, "")
    assert cli.stderr == ""
    assert cli("train -q -v") == (2, "", "bnsmooth: --quiet and --verbose: give only one of them\n")
    code, out, _ = cli("-q show one/train.parquet")  # what it prints is all that it does
    assert (code, "grad norm" in out) == (0, True)
    assert "absent" in cli("ics absent --quiet")[2]


def test_verbose_says_where_files_go_and_what_computes(cli):
    cli(f"{TRAIN} -o one -v")
    assert re.search(r"^one: bnsmooth \S+, torch \S+, cpu .*, \d+ threads?$", cli.stderr, re.MULTILINE)
    cli("ics one -v --at 0,20")
    assert "one/ics.parquet: measures 2 points\n" in cli.stderr
    cli("ics one -v --at 0")
    assert "one/ics.parquet: is there, with 1 point\n" in cli.stderr


def test_a_log_has_what_is_printed_with_the_time_whatever_is_printed(cli, tmp_path):
    cli(f"--log job.log {TRAIN} -o one")
    stdout = cli(f"{TRAIN} -o one --log job.log -q")[1]
    cli("ics absent --log job.log")
    assert stdout == ""
    lines = (tmp_path / "job.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    texts = [line[20:] for line in lines]
    assert texts[0].endswith(f": bnsmooth --log job.log {TRAIN} -o one")
    assert sum(text.startswith("one: step 60 of 60, loss ") for text in texts) == 1
    assert texts.count("finished at step 60; 4 checkpoints in one") == 2
    assert texts[-1] == "bnsmooth: absent: no such run directory or checkpoint"


def test_a_log_that_cannot_be_written_is_named_before_any_work(cli, tmp_path):
    for file in (".", "absent/job.log"):
        code, out, err = cli(f"{TRAIN} -o one --log {file}")
        assert (code, out, err.startswith(f"bnsmooth: --log {file}: cannot be written")) == (2, "", True)
    assert not (tmp_path / "one").exists()


def test_commands_print_one_json_document(cli, small_run):
    run = small_run("dln", "batch")
    for line, paths in (
        (f"{TRAIN} -o one --json", ["one/train.parquet"]),
        ("--json train --dry-run --problem dln --samples 9 --steps 9 -o dry", []),
        (f"ics {run.path} -o t.parquet --json", ["t.parquet"]),
        ("show t.parquet --json -q", ["t.parquet"]),
        ("plot t.parquet -o t.png --json", ["t.png"]),
        ("list --json", []),
        ("env --json", []),
    ):
        code, out, _ = cli(line)
        document = json.loads(out)
        assert (code, document["paths"]) == (0, paths)
        assert document["command"] in line.split()
        assert document["facts"] or document["tables"] or paths
    assert cli("ics absent --json")[:2] == (2, "")


def test_the_json_of_a_comparison_has_the_rows_of_its_three_tables(cli, small_run):
    runs = [small_run("dln", norm).path for norm in ("none", "batch")]
    document = json.loads(cli(f"compare {runs[0]} {runs[1]} -o c.parquet --json")[1])
    assert document["paths"] == ["c.parquet", "c.summary.parquet", "c.claims.parquet"]
    *written, advice = document["tables"]
    assert advice["title"] == "next"
    assert all(row["command"].startswith(f"bnsmooth compare {runs[0]} {runs[1]} ") for row in advice["rows"])
    for path, table in zip(document["paths"], written, strict=True):
        rows = pd.read_parquet(path)
        assert table["title"] == kind_of(rows)
        assert [*table["rows"][0]] == [*rows]
        assert len(table["rows"]) == len(rows)
    assert json.loads(cli("compare --plan --problem dln --json")[1])["tables"][0]["rows"]


def test_json_has_all_digits_null_for_nan_and_a_word_for_infinity(cli, small_run):
    run = small_run("dln", "batch")
    (table,) = json.loads(cli(f"smoothness {run.path} -o t.parquet --json")[1])["tables"]
    assert [row["beta"] for row in table["rows"]] == pd.read_parquet("t.parquet")["beta"].tolist()
    rows = terminal.records(pd.DataFrame({"a": [float("inf"), float("nan")], "b": pd.array([1, None], "Int64")}))
    assert json.dumps(rows, allow_nan=False) == '[{"a": "Infinity", "b": 1}, {"a": null, "b": null}]'


def test_tables_are_whole_in_a_pipe_and_break_names_at_hyphens_in_a_terminal(cli, monkeypatch):
    name = "dln-noisy-batch-lr1e-06-matrix-uniform-samples30-dimension4-seed"
    for seed in (0, 1):
        cli(f"train {DLN} --steps 2 --seed {seed} -o {name}{seed}")
    monkeypatch.setenv("COLUMNS", "80")
    line = f"smoothness {name}0 {name}1"
    rows = [line.split() for line in cli(line)[1].splitlines() if re.match(r"dln-noisy.* [02] ", line)]
    assert [row[0] for row in rows] == [f"{name}{seed}" for seed in (0, 0, 1, 1)]
    for variable, value in {"FORCE_COLOR": "1", "TERM": "dumb", "LINES": "25"}.items():
        monkeypatch.setenv(variable, value)
    table = cli(line)[1].splitlines()[3:]
    assert max(map(len, table)) <= 80
    parts = [
        line.split()[0]
        for line in table
        if line.startswith(("dln", "lr1e", "noisy", "matrix", "uniform", "samples", "dim", "seed"))
    ]
    assert "".join(parts) == "".join(f"{name}{seed}" for seed in (0, 0, 1, 1))
    assert all(part.endswith(("-", "seed0", "seed1")) for part in parts)


def test_a_name_is_broken_after_a_hyphen_and_not_in_a_number():
    assert wrap("dln-batch-lr1e-06-seed0", 8) == ["dln-", "batch-", "lr1e-06-", "seed0"]


@pytest.mark.slow
def test_the_end_of_a_pipe_ends_nothing(tmp_path, small_run):
    table = small_run("dln", "batch").train_path
    for line in (f"show {table}", f"show {table} --csv -", "train --help", f"show {table} --json", "env"):
        words = f"{sys.executable} -m bnsmooth_cli {line} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", words], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), line


def test_a_log_is_not_appended_to_a_file_of_another_kind(cli, tmp_path, small_run):
    run, table = small_run("dln", "batch"), tmp_path / "t.parquet"
    table.write_bytes(run.train_path.read_bytes())
    assert cli(f"list {run.path} --log {table}")[:2] == (2, "")
    assert "is no log of bnsmooth" in cli.stderr
    assert table.read_bytes() == run.train_path.read_bytes()
    (tmp_path / "empty.log").touch()
    for _ in range(2):
        assert cli(f"list {run.path} --log empty.log")[0] == 0


def test_a_full_disk_for_the_lines_of_progress_does_not_end_the_work(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(terminal.err, "_file", full)
        terminal.inform("step 0")
        terminal.inform("step 1")


def test_csv_and_json_do_not_share_stdout(cli, small_run):
    code, out, _ = cli(f"show {small_run('dln', 'batch').train_path} --csv - --json")
    assert (code, out) == (2, "")
    assert "cannot share standard output with --json" in cli.stderr


def test_names_of_devices_are_no_names_of_runs(cli):
    for name in ("con", "NUL.txt", "com1"):
        assert cli(f"{TRAIN} --name {name} --dry-run")[0] == 2
    assert cli(f"{TRAIN} --name console --dry-run")[0] == 0
