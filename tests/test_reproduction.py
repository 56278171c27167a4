"""`make paper`: what it trains and writes, and the published page against its tables."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from audit import Page

import bnsmooth_cli as bns
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.figures import plot_tables
from bnsmooth_cli.identity import read_settings
from bnsmooth_cli.storage.runs import open_run
from bnsmooth_cli.studies.folder import Study
from bnsmooth_cli.studies.grid import read_grid
from reproduction import page, saturation
from reproduction.__main__ import reproduce
from reproduction.figures import ACCURACIES, JUDGED, SECTIONS, Picture, pictures
from reproduction.gather import averaged, drawn, floors, gather, probed, rounded
from reproduction.published import Published
from reproduction.scales import EIGHT, FIVE, LP, NORMS, PLAIN, SCALES, Plan, changed, plans

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "docs/reproduction"
FACTS = {"scale": "quick", "only": None, "data": None, "note": "drawn by hand", "steps": 4, "jobs": 1}
AVAILABLE = {"dln": LP, "vgg": NORMS, "vgg-augmented": PLAIN}
SMALL = {"vgg": {"width": 0.0625, "batch_size": 16}, "dln": {"dimension": 4, "samples": 30}}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[list[Plan], Path, Path]:
    """The quick scale, smaller still, from nothing: its plans, the studies' folder, the page's."""
    folder = tmp_path_factory.mktemp("reproduction")
    found = [changed(plan, SMALL[plan.name[:3]]) for plan in plans("quick", steps=4)]
    assert reproduce(found, folder / "work", folder / "page", FACTS) == 0
    return found, folder / "work", folder / "page"


@pytest.mark.slow
def test_every_figure_and_claim_of_the_paper_is_there(small):
    text = (small[2] / "README.md").read_text()
    for number in (1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13, 14):
        assert re.search(rf"^## Figure {number}: ", text, re.MULTILINE)
    for number in range(1, 17):
        assert re.search(rf"^\| {number}\. ", text, re.MULTILINE)
    for picture in pictures(AVAILABLE):
        assert f"](figures/{picture.name}.png)" in text
        assert (small[2] / f"figures/{picture.name}.png").stat().st_size > 10_000
    assert "drawn by hand" in text
    assert "nan" not in text


@pytest.mark.slow
def test_a_command_of_the_page_draws_its_picture_again(small, tmp_path, monkeypatch):
    text = (small[2] / "README.md").read_text()
    lines = [shlex.split(line) for line in re.findall(r"`(bnsmooth plot [^`]*)`", text)]
    assert len(lines) == len(pictures(AVAILABLE))
    monkeypatch.chdir(small[2])
    for words in lines:
        sources = [Path(word) for word in words[2:] if word.endswith(".parquet")]
        options = dict(zip(words[2 + len(sources) :: 2], words[3 + len(sources) :: 2], strict=True))
        target = options.pop("-o")
        again = tmp_path / Path(target).name
        plot_tables(sources, again, **{name.removeprefix("--"): value for name, value in options.items()})
        assert again.read_bytes() == Path(target).read_bytes()


@pytest.mark.slow
def test_a_study_of_the_page_is_the_command_that_made_it(small):
    said = json.loads((small[2] / "reproduction.json").read_text())["studies"]
    for plan in small[0]:
        configs = [config for grid in plan.grids for config in grid.configs()]
        found = []
        for line in said[plan.name]["commands"]:
            words = shlex.split(line)[2:-2]  # without "bnsmooth compare" and "-o FOLDER"
            given: dict[str, object] = {flag: True for flag in ("augment", "probe") if f"--{flag}" in words}
            words = [word for word in words if word not in ("--augment", "--probe")]
            pairs = zip(words[::2], words[1::2], strict=True)
            found += read_grid(given | {name[2:]: _typed(value) for name, value in pairs}).configs()
        assert found == configs
        assert set(said[plan.name]["runs"]) == {config.name for config in configs}
        assert sum(entry["seconds"] for entry in said[plan.name]["log"]) > 0


def _typed(value: str) -> object:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


@pytest.mark.slow
def test_a_part_of_a_scale_makes_a_page_of_its_figures(tmp_path):
    linear = [changed(plan, SMALL["dln"]) for plan in plans("quick", steps=4, only=["dln"])]
    assert reproduce(linear, tmp_path / "work", tmp_path / "page", {**FACTS, "only": "dln"}) == 0
    text = (tmp_path / "page/README.md").read_text()
    assert "## Figure 9" in text
    assert "## Figure 4" not in text
    assert "make paper SCALE=quick ONLY=dln" in text


@pytest.mark.slow
def test_the_experiments_on_noise_run_with_norms_that_are_code(tmp_path):
    found = plans("quarter", "shapes", steps=2, only=["vgg-noise", "vgg-noise-11"])
    found = [replace(plan, grids=tuple(replace(grid, seeds=(0,), at=None, every=None) for grid in plan.grids))
             for plan in found]  # fmt: skip
    found = [changed(plan, SMALL[plan.name[:3]]) for plan in found]
    assert reproduce(found, tmp_path / "work", tmp_path / "page", {**FACTS, "scale": "quarter"}) == 0
    for plan in found[1:]:
        assert {run.config.norm for run in Study(tmp_path / "work" / plan.name).runs()} == {*plan.grids[0].norms}


@pytest.mark.slow
def test_the_second_time_nothing_is_trained_and_the_page_is_the_same(small):
    found, work, folder = small
    before = {path: path.stat().st_mtime_ns for path in work.glob("*/runs/*/*")}
    said = _without_time(folder)
    assert reproduce(found, work, folder, FACTS) == 0
    assert before == {path: path.stat().st_mtime_ns for path in work.glob("*/runs/*/*")}
    assert _without_time(folder) == said


def _without_time(folder: Path) -> str:
    return re.sub(r"\d+ (s|min) ", "", (folder / "README.md").read_text())


@pytest.mark.slow
def test_a_study_that_fails_ends_it_with_its_status(tmp_path):
    (tmp_path / "paper/quick-4/dln").mkdir(parents=True)
    (tmp_path / "paper/quick-4/dln/mine.txt").write_text("not a study")
    line = [sys.executable, "-m", "reproduction", "quick", "--steps", "4", "--work", tmp_path / "paper", "-o", tmp_path]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds files but no study" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "README.md").exists()


@pytest.mark.slow
def test_ctrl_c_ends_it_and_the_same_command_resumes(tmp_path):
    line = [sys.executable, "-m", "reproduction", "quick", "--steps", "900", "--jobs", "1", "--work", tmp_path]
    study = tmp_path / "quick-900/dln"
    with subprocess.Popen(
        [*line, "-o", tmp_path / "page"], cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # inherited as ignored in the background
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        while not [*study.glob("runs/*/train.parquet")] and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the command and to what it has started
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert bns.Study(study).log()[-1]["seconds"] > 0
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quick", "--data", "."], "quick takes no --data"),
        (["quarter", "--data", "nowhere"], "--data nowhere: no such file or folder"),
        (["quick", "--steps", "0"], "--steps 0: give a whole number of at least 1"),
        (["page", "-o", "nowhere"], "-o nowhere: has no reproduction.json"),
    ],
)
@pytest.mark.fast(1)
def test_impossible_requests_are_refused_in_one_line(words, said):
    done = subprocess.run([sys.executable, "-m", "reproduction", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_damaged_table_is_named_in_a_line(small, tmp_path):
    shutil.copytree(small[2], tmp_path / "page")
    table = tmp_path / "page/tables/figure-1.parquet"
    table.write_bytes(table.read_bytes()[:-100])
    line = [sys.executable, "-m", "reproduction", "page", "-o", tmp_path / "page"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert str(table) in done.stderr


@pytest.mark.slow
def test_a_page_leaves_nothing_of_another_scale_beside_it(small, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(small[2], folder)
    for left in (folder / "tables/vgg-he.parquet", folder / "figures/figure-4-he.png"):
        shutil.copy(next(left.parent.iterdir()), left)
    found, work, _ = small
    gather(found, work, folder, FACTS)
    page.draw(folder)
    assert sorted(path.name for path in folder.rglob("*.p*")) == sorted(path.name for path in small[2].rglob("*.p*"))


@pytest.mark.slow
def test_every_number_of_any_page_follows_from_its_tables(small):
    assert Page(small[2]).audit() == []


def names_no_folder_of_a_machine(folder: Path) -> bool:
    texts = [(folder / name).read_text() for name in ("README.md", "reproduction.json")]
    for path in folder.glob("tables/*.parquet"):
        rows = bns.read_table(path)
        named = rows[[name for name in rows.columns if name in ("run", "problem", "command")]]
        texts += [json.dumps(rows.attrs), *named.astype(str).to_numpy().ravel()]
    return not any(re.search(r"(^|[\s'\"=`(])/\w+/", text) for text in texts)


@pytest.mark.slow
def test_no_folder_of_a_machine_is_named(small):
    assert names_no_folder_of_a_machine(small[2])
    assert names_no_folder_of_a_machine(PUBLISHED)


@pytest.mark.parametrize("scale", SCALES)
def test_a_scale_has_every_norm_and_the_papers_settings(scale):
    found = {plan.name: plan for plan in plans(scale, data="shapes")}
    grids = {name: [*plan.grids] for name, plan in found.items()}
    for name in ("dln", "vgg", *(["vgg-early"] if scale == "quarter" else [])):
        norms = LP if name == "dln" else NORMS  # the paper has no noisy linear networks
        assert {norm for grid in grids[name] for norm in grid.norms} == set(norms)
    assert {lr for grid in grids["vgg"] for lr in grid.lrs} == {0.1, 0.5, 0.01}
    assert all(
        {"none", "batch"} <= {n for g in grids["vgg"] if lr in g.lrs for n in g.norms} for lr in (0.1, 0.5, 0.01)
    )
    configs = {name: plan.grids[0].configs()[0] for name, plan in found.items()}
    assert configs["vgg-augmented"].settings.augment
    assert not configs["vgg"].settings.augment
    if scale != "quick":
        assert configs["vgg"].steps == configs["vgg-augmented"].steps == 15_000
        assert configs["vgg"].settings.depth == 16
        assert configs["dln"].steps == 10_000
        assert (configs["dln"].lr, configs["dln-slow"].lr) == (1e-6, 1e-7)
        assert (grids["vgg"][0].every, grids["dln"][0].every, grids["dln-slow"][0].every) == (100, 50, 50)
        seeds = {name: {grid.seeds for grid in grids[name]} for name in ("dln", "dln-slow", "vgg")}
        assert seeds == {"dln": {EIGHT}, "dln-slow": {EIGHT}, "vgg": {FIVE, (*FIVE, 5)}}
        assert configs["vgg"].settings.width == (1.0 if scale == "paper" else 0.25)


def test_a_part_of_a_scale_is_the_named_studies_and_the_linear_network():
    assert [plan.name for plan in plans("quarter", only=["vgg-early"])] == ["dln", "vgg-early"]
    with pytest.raises(InputError, match="unknown study of the scale quarter 'vgg-erly': did you mean 'vgg-early'"):
        plans("quarter", only=["vgg-erly"])


def test_the_experiment_on_beta_takes_the_studies_that_have_finished_runs_of_both_norms():
    plain, alone = (
        [SimpleNamespace(config=SimpleNamespace(norm=norm)) for norm in norms] for norms in (PLAIN, ("none",))
    )
    assert dict(probed({"dln": plain})) == {"saturation-dln": plain}
    assert dict(probed({"dln": plain, "vgg-early": plain})) == {"saturation-vgg": plain, "saturation-dln": plain}
    assert dict(probed({"dln": plain, "vgg": alone})) == {"saturation-dln": plain}


@pytest.mark.slow
def test_a_page_of_the_finished_runs_has_what_they_allow(small, tmp_path):
    found, work, _ = small
    shutil.copytree(work, tmp_path / "work")
    for run in (tmp_path / "work/vgg/runs").iterdir():
        if "-l1-" in run.name or "-noisy-" in run.name:
            shutil.rmtree(run)
    shutil.rmtree(tmp_path / "work/vgg-augmented")
    assert reproduce(found, tmp_path / "work", tmp_path / "page", FACTS, train=False) == 0
    assert not (tmp_path / "work/vgg-augmented").exists()
    text = (tmp_path / "page/README.md").read_text()
    assert "](figures/figure-4.png)" in text
    assert "](figures/figure-11.png)" not in text
    assert "| `vgg` | every norm" in text
    assert Page(tmp_path / "page").audit() == []
    shutil.rmtree(tmp_path / "work/dln")
    with pytest.raises(InputError, match="dln: has no finished run"):
        reproduce(found, tmp_path / "work", tmp_path / "page", FACTS, train=False)


@pytest.mark.slow
def test_a_page_is_the_same_if_its_runs_come_from_two_machines(small, tmp_path):
    found, work, whole = small
    for name, kept in (("first", ("-lr0.1-",)), ("second", ("-lr0.5-", "-lr0.01-"))):
        shutil.copytree(work, tmp_path / name)
        for run in (tmp_path / name / "vgg/runs").iterdir():
            if not any(part in run.name for part in kept):
                shutil.rmtree(run)
    for name in ("dln", "vgg-augmented"):
        shutil.rmtree(tmp_path / "second" / name)
    folder = tmp_path / "page"
    assert reproduce(found, tmp_path / "first", folder, FACTS, train=False) == 0
    assert reproduce(found, tmp_path / "second", folder, FACTS, train=False, earlier=Published(folder, FACTS)) == 0
    assert [path.name for path in tables_of(folder)] == [path.name for path in tables_of(whole)]
    for mine, other in zip(tables_of(folder), tables_of(whole), strict=True):
        rows = [bns.read_table(path) for path in (mine, other)]
        keys = [name for name in ("run", "step", "layer", "unit", "alpha", "statement", "affine") if name in rows[0]]
        if keys:
            rows = [table.sort_values(keys, kind="stable", ignore_index=True) for table in rows]
        pd.testing.assert_frame_equal(*rows, obj=mine.name)
    assert Page(folder).audit() == []


def test_runs_are_not_added_to_a_page_of_others(tmp_path):
    facts = json.loads((PUBLISHED / "reproduction.json").read_text())
    with pytest.raises(InputError, match="another steps"):
        Published(PUBLISHED, {**facts, "steps": 5})
    with pytest.raises(InputError, match="has no page"):
        Published(tmp_path, facts)
    published = Published(PUBLISHED, facts)
    (plan,) = plans("quarter", only=["vgg"])[1:]
    (config, *_) = plan.grids[0].configs()

    def beside(**settings):
        """The runs of the page that stay beside a new run."""
        return published.runs(plan, [SimpleNamespace(config=config.changed(**settings))])

    every = published.runs(plan, [])
    (digest,) = {
        read_settings("vgg", text)["data_digest"] for text in published.table("vgg.train")["settings"].unique()
    }
    assert len(beside(data_digest=digest)) == len(every) - 1
    with pytest.raises(InputError, match="vgg had other data on the earlier page"):
        beside(data_digest="0" * 16)
    with pytest.raises(InputError, match=r"vgg had width 0\.25 on the earlier page"):
        beside(data_digest=digest, width=0.5)
    with pytest.raises(InputError, match="the earlier page has no figure-99; publish all runs of vgg at once"):
        drawn(Picture("figure-99", "landscape", "vgg", PLAIN), every[0])
    with pytest.raises(InputError, match=f"no rows of {every[0].name} for figure-2; run its study again"):
        drawn(next(item for item in pictures(AVAILABLE) if item.name == "figure-2"), every[0])


def tables_of(folder: Path) -> list[Path]:
    return sorted((folder / "tables").glob("*.parquet"))


def test_steps_end_every_run_earlier_and_are_measured_up_to_there():
    for plan in plans("quarter", data="shapes", steps=200):
        for grid in plan.grids:
            assert {config.steps for config in grid.configs()} == {200}
            assert grid.at is None or max(grid.at) == 200


def line_of(change, lr=0.1):
    """A probed line at one point: `change` gives the gradient's change, in lengths of the gradient, by step length."""
    rows = [{"norm": "batch", "lr": lr, "seed": 0, "step": 5, "alpha": 0.0, "grad_distance": 0.0, "distance": 0.0}]
    for alpha in (*saturation.SHORTEST, 2.0, 4.0):
        rows.append({**rows[0], "alpha": alpha, "grad_distance": change(alpha), "distance": alpha * lr})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("change", "expected", "verdict"),
    [
        (lambda alpha: 1.0, [16, 8, 4, 2, 1], "saturated"),  # the gradient is lost within every step
        (lambda alpha: min(1.0, 6 * alpha), [6, 6, 4, 2, 1], "saturated"),  # but in steps within 1/6
        (lambda alpha: min(2 * alpha, 2.0), [2, 2, 2, 2, 2], "edge of stability"),
        (lambda alpha: 0.3 * alpha, [0.3] * 5, "not decided"),
    ],
)
def test_the_experiment_on_beta_tells_a_saturated_probe_from_a_curvature(change, expected, verdict):
    line = line_of(change)
    curvature = pd.DataFrame([{"norm": "batch", "lr": 0.1, "seed": 0, "step": 5, "curvature": 12.0, "sharpness": 20.0}])
    ((norm, part, medians),) = saturation.groups(line, curvature)
    assert (norm, part, medians["points"]) == ("batch", "later", 1)
    assert [medians[shortest] for shortest in saturation.SHORTEST] == pytest.approx(expected)
    assert (medians["curvature"], medians["sharpness"]) == pytest.approx((1.2, 2.0))
    assert saturation.verdict(medians) == verdict


def test_the_published_page_is_what_its_tables_say():
    assert (PUBLISHED / "README.md").read_text() == page.page(PUBLISHED)


def test_the_published_pictures_are_there_and_their_tables_small():
    studies = json.loads((PUBLISHED / "reproduction.json").read_text())["studies"]
    available = {name: {run["norm"] for run in study["runs"].values()} for name, study in studies.items()}
    for picture in pictures(available):
        table = PUBLISHED / f"tables/{picture.sources[0]}.parquet"
        assert (PUBLISHED / f"figures/{picture.name}.png").is_file()
        assert set(picture.norms) <= set(bns.read_table(table)["norm"])
    assert sum(path.stat().st_size for path in PUBLISHED.glob("tables/*")) < 15e6


def test_the_verdicts_of_the_published_page_are_those_of_its_claims_tables():
    text = (PUBLISHED / "README.md").read_text().partition("## The claims")[2].split("\n## ")[0]
    said, number = {}, 0
    for cells in (line.strip("| ").split(" | ") for line in text.splitlines() if line.endswith(" |")):
        if found := re.match(r"(\d+)\. ", cells[0]):
            number = int(found[1])
        if number:
            said[number, cells[-7].strip("`")] = cells[-1].split(";")[0].strip("*")
    for study in (name for name in JUDGED if (PUBLISHED / f"tables/{name}.claims.parquet").is_file()):
        claims = bns.read_table(PUBLISHED / f"tables/{study}.claims.parquet")
        for claim, parts in claims.groupby("claim"):
            verdict = parts["verdict"].iloc[0]
            assert said.get((claim, study), verdict) == verdict
            assert ((claim, study) in said) == (verdict not in ("not measured", "not applicable"))


def test_the_published_accuracies_are_those_of_the_runs():
    text = (PUBLISHED / "README.md").read_text().partition("## The accuracies")[2].split("## ")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| `")]
    for study in filter(lambda name: (PUBLISHED / f"tables/{name}.parquet").is_file(), ACCURACIES):
        runs = bns.read_table(PUBLISHED / f"tables/{study}.parquet")
        for (lr, norm), found in runs.groupby(["lr", "norm"]):
            median = float(pd.Series(found["final_test_accuracy"]).median())
            row = next(row for row in rows if row[1:3] == [f"`{study}`", f"{lr:g}"] and row[3].startswith(f"`{norm}`"))
            assert row[6].split(" ")[0] == f"{100 * (0.0 if found['diverged_at'].notna().all() else median):.1f}%"


def test_the_linear_network_ends_near_the_saddles_that_the_page_of_differences_names():
    known = json.loads((PUBLISHED / "reproduction.json").read_text())["floors"]
    ends = bns.read_table(PUBLISHED / "tables/dln.parquet").pivot(index="seed", columns="norm", values="final_loss")
    ranks = set()
    for norm in ("none", "batch", "l1", "l2", "linf"):
        for seed, losses in known.items():
            ranks.add(
                1 + min(range(10), key=lambda rank: abs(math.log(ends.loc[int(seed), norm] / (losses[rank] + 1))))
            )
    text = " ".join((PUBLISHED / "differences.md").read_text().split())
    assert f"maps of rank {min(ranks)} to {max(ranks)} out of 10" in text


@pytest.mark.slow
def test_a_floor_is_the_least_loss_of_its_rank(small):
    run = next(Study(small[1] / "dln").path.glob("runs/*none*"))
    point = bns.load_point(open_run(run), step=0)
    inputs, targets = point.inputs.double(), point.targets.double()
    torch.manual_seed(0)
    for rank, least in enumerate(floors(open_run(run)), start=1):
        left, right = (torch.randn(4, rank, dtype=torch.float64, requires_grad=True) for _ in range(2))
        shift = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([left, right, shift], max_iter=500, line_search_fn="strong_wolfe")

        def loss():
            return (inputs @ left @ right.T + shift - targets).square().sum()  # noqa: B023 - called at once

        def closure():
            optimizer.zero_grad()  # noqa: B023
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)
        assert loss().item() == pytest.approx(least, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("steps", "eval_every", "every"), [(15_000, 500, 20), (5500, 1000, 8), (300, 100, 1), (96, 97, 1)]
)
def test_a_thinned_training_curve_keeps_the_evaluations_and_the_means(steps, eval_every, every):
    rows = pd.DataFrame({"step": range(steps + 1)})
    rows["accuracy"] = np.random.default_rng(0).random(steps + 1)
    rows["test_accuracy"] = np.where((rows["step"] % eval_every == 0) | (rows["step"] == steps), 0.5, np.nan)
    found = averaged(rows, eval_every).set_index("step")
    tested = set(rows["step"][rows["test_accuracy"].notna()])
    assert set(found.index) == tested | set(range(0, steps + 1, every))
    for step in found.index[1:]:
        assert found.loc[step, "accuracy"] == pytest.approx(
            rows["accuracy"][max(0, step - every + 1) : step + 1].mean()
        )


def test_what_was_measured_is_rounded_and_nothing_else():
    values = np.array([1 / 3, -1e-300 / 3, 1e300 / 3, 0.0, np.inf, np.nan])
    rows = pd.DataFrame({"step": range(6), "lr": 0.1, "loss": values})
    found = rounded(rows)
    assert found[["step", "lr"]].equals(rows[["step", "lr"]])
    np.testing.assert_allclose(found["loss"], values, rtol=2**-24)
    mantissas = np.frexp(found["loss"])[0]
    assert mantissas.equals(mantissas.astype("float32").astype("float64"))
    for kept in (rows.assign(accuracy=1 / 3), rows.assign(statement="4.1")):
        assert rounded(kept).equals(kept)


def test_sections_name_pictures_once():
    found = [picture for section in SECTIONS for picture in section.pictures]
    names = [picture.name for picture in found]
    assert len(set(names)) == len(names)
    of_studies = {f"{picture.study}.train" for picture in found}
    assert {name for picture in found for name in (picture.beside, picture.table)} - {""} <= of_studies
    assert all(section.pictures or section.saturation for section in SECTIONS)
