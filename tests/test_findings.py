"""docs/findings.md: its statistics against plain loops over the rows, its rules, and its figures."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import bnsmooth_cli as bns
from bnsmooth_cli import norms
from bnsmooth_cli.kinds import get
from bnsmooth_cli.norms.noise import Noise
from bnsmooth_cli.norms.state import prepare, stateful
from bnsmooth_cli.studies.statistics import Interval
from reproduction import findings, findings_page, noises
from reproduction.scales import NETWORKS

DOCS = Path(__file__).parents[1] / "docs"
SEEDS = range(5)
STEPS = np.arange(0, 4000, 20)


def rows_of(kind: str, norms=("none", "batch"), seeds=SEEDS, steps=range(0, 1000, 20), lr=0.1, **more) -> pd.DataFrame:
    """Rows of a kind of table with random positive numbers, for some runs."""
    random = np.random.default_rng(3)
    runs = []
    for norm in norms:
        for seed in seeds:
            frame = pd.DataFrame({name: np.exp(random.normal(size=len(steps))) for name in get(kind).columns})
            of_run = {
                "run": f"vgg-{norm}-{seed}",
                "problem": "vgg",
                "norm": norm,
                "lr": lr,
                "seed": seed,
                "settings": "",
            }
            runs.append(frame.assign(**of_run, step=steps))
    rows = pd.concat(runs, ignore_index=True).assign(**more)
    return rows.assign(loss_max=rows["loss_min"] + rows["loss_max"]) if "loss_min" in rows else rows


# The edge


def test_batch_sharpness_is_the_mean_of_the_later_curvatures():
    rows = rows_of("smoothness")
    found = findings.edge(rows).set_index(["norm", "seed"])
    assert len(found) == 10
    for (norm, seed), values in found.iterrows():
        later = [row for _, row in rows.iterrows() if (row["norm"], row["seed"]) == (norm, seed) and row["step"] > 490]
        assert len(later) == 25
        assert values["batch_sharpness"] == pytest.approx(sum(0.1 * row["curvature"] for row in later) / 25)
        assert values["eigenvalue"] == pytest.approx(sorted(0.1 * row["sharpness"] for row in later)[12])


def test_an_overflow_and_a_run_that_ends_early_have_an_infinite_batch_sharpness():
    rows = rows_of("smoothness")
    none, batch = rows["norm"] == "none", rows["norm"] == "batch"
    rows.loc[none & (rows["seed"] == 0) & (rows["step"] == 980), "curvature"] = math.nan
    rows = rows[~(batch & (rows["seed"] == 3) & (rows["step"] > 100))]
    found = findings.edge(rows).set_index(["norm", "seed"])["batch_sharpness"]
    assert {place for place, value in found.items() if value == math.inf} == {("none", 0), ("batch", 3)}


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(1.8, 2.2, "at 2 / lr"), (1.79, 2.1, "not decided"), (1.9, 2.21, "not decided"), (0.1, 1.79, "below"),
     (2.21, 9, "above"), (math.nan, math.nan, "")],
)  # fmt: skip
def test_an_interval_is_at_the_edge_if_all_of_it_is_within_a_tenth(low, high, said):
    assert findings.at_the_edge(Interval(low, high, 0.94)) == said


# Equal loss


def falling(factor=3.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Networks whose roughness is a power of their loss: at equal loss BatchNorm's is `factor` times the other's."""
    train, smoothness = [], []
    for norm, rate, times in (("none", 1e-3, 1.0), ("batch", 4e-3, factor)):
        for seed in SEEDS:
            loss = 2.3 * np.exp(-rate * STEPS)
            about = {"run": f"{norm}{seed}", "norm": norm, "lr": 0.1, "seed": seed, "step": STEPS}
            penalty = 2.0 * np.exp(-1e-4 * STEPS)
            train.append(pd.DataFrame({**about, "loss": loss + penalty, "penalty": penalty}))
            rough = times * loss**2
            line = {"loss_min": 0.0, "loss_max": rough, "predictiveness_max": rough, "grad_norm": 1.0, "beta": rough}
            line |= {"saturated": False, "weight_norm": 1.0, "curvature": rough, "sharpness": -rough}
            smoothness.append(pd.DataFrame({**about, **line}))
    return pd.concat(smoothness, ignore_index=True), pd.concat(train, ignore_index=True)


def test_equal_loss_compares_what_equal_steps_confuse():
    rows = findings.with_loss(*falling())
    loss, step = (at(rows, "batch", "none") for at in (findings.at_equal_loss, findings.at_equal_step))
    assert [*loss.index] == [*step.index] == [*SEEDS]
    for metric in findings.METRICS:
        assert loss[metric].to_numpy() == pytest.approx([3] * 5, rel=0.1)
        assert step[metric].max() < 1e-3  # BatchNorm is far ahead at every step
    assert findings.smoother(loss[findings.PRIMARY]) == "rougher"


@pytest.mark.parametrize(("factor", "said"), [(1.0, "not decided"), (1.5, "rougher"), (0.5, "smoother")])
def test_a_bin_is_narrow_enough_for_the_margin(factor, said):
    found = findings.at_equal_loss(findings.with_loss(*falling(factor)), "batch", "none")
    assert findings.smoother(found["predictiveness"]) == said


def test_equal_loss_is_a_mean_over_the_bins_with_enough_steps_of_both():
    rows = findings.with_loss(rows_of("smoothness"), rows_of("train", penalty=0.0))
    found = findings.at_equal_loss(rows, "batch", "none")
    for seed in SEEDS:
        bins: dict[int, dict[str, list[float]]] = {}
        for _, row in rows[rows["seed"] == seed].iterrows():
            place = math.floor(math.log(row["data_loss"]) / math.log(1.25))
            bins.setdefault(place, {}).setdefault(row["norm"], []).append(row["predictiveness_max"])
        logs = [math.log(np.median(of["batch"]) / np.median(of["none"]))
                for of in bins.values() if min(len(of.get(norm, [])) for norm in ("none", "batch")) >= 3]  # fmt: skip
        assert len(logs) > 3
        assert found.loc[seed, "bins"] == len(logs)
        assert found.loc[seed, "predictiveness"] == pytest.approx(math.exp(sum(logs) / len(logs)))


def test_a_loss_below_zero_an_overflow_and_a_missing_norm_cost_no_more_than_their_own():
    smoothness, train = falling()
    expected = findings.at_equal_loss(findings.with_loss(smoothness, train), "batch", "none")
    train.loc[(train["run"] == "none0") & (train["step"] == 3980), "loss"] = 0.0
    smoothness.loc[(smoothness["run"] == "batch1") & (smoothness["step"] > 300), "predictiveness_max"] = math.inf
    smoothness = smoothness[smoothness["run"] != "batch2"]
    found = findings.at_equal_loss(findings.with_loss(smoothness, train), "batch", "none")
    assert [*found.index] == [0, 1, 3, 4]
    assert found.loc[0, "predictiveness"] == pytest.approx(expected.loc[0, "predictiveness"], rel=0.05)
    assert found.loc[1, "predictiveness"] == math.inf
    assert found.loc[3].equals(expected.loc[3])
    alone = findings.with_loss(smoothness[smoothness["norm"] == "none"], train)
    for at in (findings.at_equal_loss, findings.at_equal_step):
        assert at(alone, "batch", "none").empty


def test_a_seed_whose_run_diverges_in_its_first_half_has_no_ratio_at_equal_steps():
    smoothness, train = falling()
    last = smoothness["step"].max()
    for share, known in ((0.6, True), (0.4, False)):
        kept = smoothness[(smoothness["run"] != "none2") | (smoothness["step"] < share * last)]
        found = findings.at_equal_step(findings.with_loss(kept, train), "batch", "none")["predictiveness"].notna()
        assert found.to_dict() == {seed: known or seed != 2 for seed in SEEDS}


def test_a_seed_that_shares_too_few_losses_has_no_ratio():
    smoothness, train = falling()
    train.loc[train["run"] == "batch4", "loss"] += 100
    found = findings.at_equal_loss(findings.with_loss(smoothness, train), "batch", "none")
    assert found.loc[4, "bins"] == 0
    assert found.loc[4, [*findings.METRICS]].isna().all()
    assert findings.smoother(found["predictiveness"]) == "not decided"  # a seed without a value could be anything


def test_four_seeds_decide_nothing():
    assert findings.smoother(pd.Series([0.1] * 4)) == "not decided"
    assert findings.smoother(pd.Series([0.1] * 5)) == "smoother"


# Noise and width


def test_a_seed_trains_if_it_is_better_than_chance_and_has_not_diverged():
    runs = rows_of("compare", ("none", "noisy-none"), steps=[1000]).drop(columns="step")
    runs = runs.assign(steps=1000, baseline_accuracy=0.1, diverged_at=np.nan)
    runs["final_test_accuracy"] = np.where(runs["norm"] == "none", 0.4, 0.19)
    runs.loc[runs["seed"] == 2, "diverged_at"] = 300.0
    found = findings.trained(runs)
    assert found.loc["none", ["seeds", "trained"]].tolist() == [5, 4]
    assert found.loc["none", "accuracies"] == [0.4, 0.4, 0.1, 0.4, 0.4]
    assert found.loc["noisy-none", ["seeds", "trained"]].tolist() == [5, 0]


def test_widths_are_compared_at_the_steps_of_both():
    smoothness, _ = falling()
    wide = smoothness[(smoothness["step"] <= 1000) & (smoothness["seed"] == 0)]
    found = findings.widths(smoothness, wide.assign(sharpness=2 * wide["sharpness"])).set_index(["norm", "metric"])
    assert len(found) == 2 * len(findings.METRICS)
    for (norm, metric), row in found.iterrows():
        assert row["low"] == row["median"] == row["high"]
        assert row["wide"] == pytest.approx(row["median"] * (2 if metric == "eigenvalue" else 1)), norm


VALUES = torch.from_numpy(np.random.default_rng(0).normal(size=(256, 5, 4, 4)).astype("float32"))


@pytest.mark.parametrize(
    ("trained", "outcome"),
    [([3, 3, 3, 0], "confirmed"), ([3, 3, 2, 0], "refuted"), ([3, 3, 3, 1], "refuted"), ([3, 2, 3, 0], "not tested"),
     ([2, 3, 3, 0], "not tested"), ([3, 3, 3], "")],
)  # fmt: skip
def test_the_prediction_about_the_parts_of_batchnorm(trained, outcome):
    parts = ["centre only", "division only", "centre only, with the noise", "division only, with the noise"]
    assert {*parts} < {*NETWORKS.values()}
    runs = pd.DataFrame({"seeds": 3, "trained": trained}, index=parts[: len(trained)])
    assert findings.protection(runs) == outcome


def test_the_parts_of_the_noise_are_what_they_are_called():
    found = {}
    for part in (noises.Shift, noises.UnitShift, noises.SampleShift, noises.Scale, Noise):
        noise = part()
        noise.key = (0, 7, 2)
        found[part.__name__] = noise(VALUES)
    shift, sample = found["UnitShift"] - VALUES, found["SampleShift"] - VALUES
    assert shift.std(dim=(0, 2, 3)).max() < 1e-6
    assert 0.05 < shift.mean(dim=(0, 2, 3)).abs().max() <= 0.5
    assert sample.abs().max() <= 0.1 + 1e-6
    assert sample.std(dim=(0, 2, 3)).numpy() == pytest.approx(0.1 / math.sqrt(3), rel=0.03)
    assert (found["Shift"] - shift - sample - VALUES).abs().max() < 1e-6
    scale = (found["Scale"] / VALUES).movedim(1, 0).flatten(1)
    for unit, values in zip(scale, VALUES.movedim(1, 0).flatten(1), strict=True):
        certain = unit[values.abs() > 0.01]
        assert 1 <= certain.mean() <= 1.25
        assert certain.std() == pytest.approx(0.1, rel=0.05)
    assert (found["Noise"] - found["Scale"] - shift - sample).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["Centre", "noisy_centre", "noisy_scale"])
def test_the_parts_of_batchnorm_follow_the_batch_and_leave_a_measurement_alone(name):
    module = getattr(noises, name)(5)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    prepare(stateful(module), 0, 7)
    module(VALUES + 3)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    prepare(stateful(module), 0, 7, update_statistics=True)
    out = module(VALUES + 3)
    norm, *noise = module if isinstance(module, torch.nn.Sequential) else [module]
    expected = norm(VALUES + 3)
    for part in noise:
        assert part.key == (0, 7, 0)
        expected = part(expected)
    assert torch.equal(out, expected)
    centred = norm(VALUES + 3).mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert centred == (name != "noisy_scale")
    if name != "noisy_scale":
        assert norm.running_mean.numpy() == pytest.approx(3 * (1 - 0.9**3), abs=0.02)  # three batches by now
        norm.eval()
        assert norm(VALUES).mean().item() == pytest.approx(-3 * (1 - 0.9**3), abs=0.02)


def test_batchnorm_is_its_centre_and_its_scale():
    both = norms.build("scale", 5)(noises.Centre(5)(VALUES))
    assert torch.allclose(both, norms.build("batch", 5)(VALUES), atol=1e-5)


# The page


@pytest.fixture
def gathered(tmp_path) -> Path:
    """A folder of tables as the reproduction gathers them, in which BatchNorm is rougher at equal loss."""
    folder = tmp_path / "reproduction/tables"
    folder.mkdir(parents=True)
    settings = {"problem": "vgg", "width": 0.25, "depth": 16, "steps": 6500}
    studies = {
        "vgg": settings, "vgg-full": {**settings, "width": 1.0}, "dln": {"problem": "dln"},
        "dln-slow": {"problem": "dln"}, "vgg-noise": settings, "vgg-noise-11": {**settings, "depth": 11},
    }  # fmt: skip
    facts = {"studies": {name: {"settings": about} for name, about in studies.items()}}
    (folder.parent / "reproduction.json").write_text(json.dumps(facts))
    smoothness, train = falling()
    for name, seeds in (("vgg", 5), ("vgg-full", 1), ("dln", 5), ("dln-slow", 2)):
        problem, lr = name[:3], 0.1 if name.startswith("vgg") else 1e-6
        about = {"problem": problem, "lr": lr}
        chosen = {kind: rows_of(kind, seeds=range(seeds), steps=STEPS).drop(columns=[*about]) for kind in
                  ("smoothness", "train")}  # fmt: skip
        for kind, rows in (("smoothness", smoothness), ("train", train)):
            rows = rows[rows["seed"] < seeds].reset_index(drop=True)
            assert rows["step"].equals(chosen[kind]["step"])
            full = chosen[kind].assign(**{column: rows[column] for column in rows if column in chosen[kind]}, **about)
            if kind == "smoothness":
                full = full.assign(curvature=2 / lr, beta_alpha=0.5)
            bns.save_table(full, folder / f"{name}.{kind}.parquet")
    for name in ("vgg-noise", "vgg-noise-11"):
        names = ("none", "noisy-none", "reproduction.noises:Shift")
        bns.save_table(rows_of("train", names, range(3)), folder / f"{name}.train.parquet")
        runs = rows_of("compare", names, range(3), steps=[1000]).drop(columns="step")
        runs = runs.assign(steps=1000, baseline_accuracy=0.1, diverged_at=np.nan)
        runs["final_test_accuracy"] = runs["norm"].map({"none": 0.4}).fillna(0.1)
        bns.save_table(runs, folder / f"{name}.parquet")
    for problem, lr in (("vgg", 0.1), ("dln", 1e-6)):
        line = [rows_of("landscape", problem=problem, lr=lr, alpha=alpha, distance=alpha) for alpha in
                (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)]  # fmt: skip
        bns.save_table(pd.concat(line), folder / f"saturation-{problem}.parquet")
    return tmp_path


@pytest.mark.slow
def test_the_page_has_every_figure_and_table_that_its_tables_allow(gathered):
    findings_page.write(gathered / "reproduction", gathered / "findings.md")
    text = (gathered / "findings.md").read_text()
    pictures = re.findall(r"\]\((findings/.+?\.png)\)", text)
    assert pictures == [f"findings/{name}.png" for name in ("beta", "edge", "equal-loss", "noise", "width")]
    assert all((gathered / picture).stat().st_size > 10_000 for picture in pictures)
    assert "| `vgg` | `batch` | 0.1 | 5 | 2 [2, 2] | at 2 / lr | " in text
    assert re.search(r"\| `vgg` \| 0.1 \| largest change of the gradient \| 5 \| .+ \| 3.* \| \d+ \| rougher \|", text)
    assert text.count("| rougher |") == 1  # all else is description
    assert "| plain, shift only | 16 | 10.0%, 10.0%, 10.0% | 0 of 3 |" in text
    assert "| plain | 11 | 40.0%, 40.0%, 40.0% | 3 of 3 |" in text
    assert "| `batch` | largest change of the gradient | " in text
    assert text.count("| inside |") == 8
    assert not re.search(r"\bnan\b|\binf\b", text)
    (gathered / "reproduction/tables/vgg-noise.train.parquet").unlink()
    findings_page.write(gathered / "reproduction", gathered / "findings.md")
    assert "What the noise does" not in (gathered / "findings.md").read_text()
    assert not (gathered / "findings/noise.png").exists()


def test_the_page_can_be_written_from_the_published_tables(tmp_path):
    published = tmp_path / "reproduction"
    shutil.copytree(DOCS / "reproduction/tables", published / "tables")
    shutil.copy(DOCS / "reproduction/reproduction.json", published)
    findings_page.write(published, tmp_path / "findings.md")
    text = (tmp_path / "findings.md").read_text()
    assert "## What determines effective beta" in text
    assert text == (DOCS / "findings.md").read_text()
    assert {path.name for path in (DOCS / "findings").iterdir()} == {
        path.name for path in (tmp_path / "findings").iterdir()}  # fmt: skip
