"""docs/findings.md: its statistics against plain loops over the rows, its rules, and its figures."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import bnsmooth_cli as bns
from bnsmooth_cli.kinds import get
from bnsmooth_cli.studies.statistics import Interval
from reproduction import findings, findings_page, noises

PUBLISHED = Path(__file__).parents[1] / "docs"


def rows_of(kind: str, norms=("none", "batch"), seeds=(0, 1), steps=range(0, 1000, 20), lr=0.1, **more) -> pd.DataFrame:
    """Rows of a kind of table with random positive numbers, for some runs."""
    random = np.random.default_rng(3)
    runs = []
    for norm in norms:
        for seed in seeds:
            frame = pd.DataFrame({name: np.exp(random.normal(size=len(steps))) for name in get(kind).columns})
            runs.append(frame.assign(run=f"vgg-{norm}-{seed}", problem="vgg", norm=norm, lr=lr, seed=seed, step=steps))
    return pd.concat(runs, ignore_index=True).assign(**more)


def test_batch_sharpness_is_the_mean_of_the_later_curvatures():
    rows = rows_of("smoothness")
    found = findings.edge(rows).set_index(["norm", "seed"])
    for (norm, seed), values in found.iterrows():
        later = [row for _, row in rows.iterrows() if (row["norm"], row["seed"]) == (norm, seed) and row["step"] > 490]
        assert len(later) == 25
        assert values["batch_sharpness"] == pytest.approx(sum(0.1 * row["curvature"] for row in later) / 25)
        assert values["sharpness"] == pytest.approx(sorted(0.1 * row["sharpness"] for row in later)[12])


@pytest.mark.parametrize(
    ("low", "high", "seeds", "said"),
    [(1.8, 2.2, 5, "at the edge"), (1.79, 2.1, 5, "not decided"), (1.9, 2.21, 5, "not decided"),
     (0.1, 1.79, 5, "below"), (2.21, 9, 5, "above"), (1.9, 2.1, 4, "not decided")],
)  # fmt: skip
def test_a_network_is_at_the_edge_within_a_tenth_of_it(low, high, seeds, said):
    assert findings.at_the_edge(Interval(low, high, 0.94), seeds) == said


@pytest.mark.parametrize(
    ("low", "high", "seeds", "said"),
    [(0.1, 0.94, 5, "smoother"), (0.1, 0.96, 5, "not decided"), (1.06, 2, 5, "rougher"), (1.04, 2, 5, "not decided"),
     (0.1, 0.2, 4, "not decided"), (math.nan, math.nan, 5, "not decided")],
)  # fmt: skip
def test_a_network_is_smoother_if_its_whole_interval_is(low, high, seeds, said):
    assert findings.smoother(Interval(low, high, 0.94), seeds) == said


def falling() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two networks whose roughness is a power of their loss: at equal loss BatchNorm's is 3 times the other's."""
    steps = np.arange(0, 4000, 10)
    train, smoothness = [], []
    for norm, rate, factor in (("none", 1e-3, 1.0), ("batch", 4e-3, 3.0)):
        for seed in (0, 1):
            loss = 2.3 * np.exp(-rate * steps)
            about = {"run": f"{norm}{seed}", "norm": norm, "lr": 0.1, "seed": seed, "step": steps}
            train.append(pd.DataFrame({**about, "loss": loss + 2.0, "penalty": 2.0}))
            rough = factor * loss**2
            line = {"loss_min": 0.0, "loss_max": rough, "predictiveness_max": rough, "grad_norm": 1.0}
            smoothness.append(pd.DataFrame({**about, **line, "curvature": rough, "sharpness": -rough}))
    return pd.concat(smoothness), pd.concat(train)


def test_equal_loss_compares_what_equal_steps_confuse():
    smoothness, train = falling()
    rows = findings.with_loss(smoothness, train)
    loss, step = (at(rows, "batch", "none") for at in (findings.at_equal_loss, findings.at_equal_step))
    assert (*loss.index, *step.index) == (0, 1, 0, 1)
    for metric in findings.METRICS:
        assert loss[metric].to_numpy() == pytest.approx([3, 3], rel=0.1)  # a bin is a factor of 1.5 wide
        assert step[metric].max() < 1e-3  # BatchNorm is far ahead at every step


def test_equal_loss_is_a_mean_over_bins_with_enough_steps_of_both():
    rows = findings.with_loss(rows_of("smoothness"), rows_of("train", penalty=0.0))
    found = findings.at_equal_loss(rows, "batch", "none")
    for seed in (0, 1):
        bins: dict[int, dict[str, list[float]]] = {}
        for _, row in rows[rows["seed"] == seed].iterrows():
            place = math.floor(math.log(row["data_loss"]) / math.log(1.5))
            bins.setdefault(place, {}).setdefault(row["norm"], []).append(row["predictiveness_max"])
        logs = [math.log(np.median(of["batch"]) / np.median(of["none"]))
                for of in bins.values() if min(len(of.get(norm, [])) for norm in ("none", "batch")) >= 3]  # fmt: skip
        assert len(logs) > 3
        assert found.loc[seed, "predictiveness"] == pytest.approx(math.exp(sum(logs) / len(logs)))


def test_losses_are_those_of_the_last_kept_step():
    smoothness, train = falling()
    sparse = train[train["step"] % 100 == 0]
    rows = findings.with_loss(smoothness[smoothness["step"] == 250], sparse).set_index("norm")
    assert rows["data_loss"].loc["none"].tolist() == pytest.approx([2.3 * math.exp(-0.2)] * 2)


def test_runs_that_share_no_loss_give_no_ratio():
    smoothness, train = falling()
    train["loss"] = train["loss"].where(train["norm"] == "none", train["loss"] + 100)
    found = findings.at_equal_loss(findings.with_loss(smoothness, train), "batch", "none")
    assert found["sharpness"].isna().all()
    assert findings.smoother(findings.described(found["sharpness"])[1], 2) == "not decided"


def test_widths_are_compared_at_the_steps_of_both():
    smoothness, _ = falling()
    wide = smoothness[smoothness["step"] <= 1000].query("seed == 0")
    wide = wide.assign(sharpness=2 * wide["sharpness"])
    found = {(norm, metric): second / first for norm, metric, first, second in findings.widths(smoothness, wide)}
    assert found["batch", "sharpness"] == pytest.approx(2)
    assert found["none", "curvature"] == pytest.approx(1)


def test_the_parts_of_the_noise_are_what_they_are_called():
    a = np.random.default_rng(0).normal(size=(64, 5, 4, 4)).astype("float32")
    values = torch.from_numpy(a)
    found = {}
    for part in (noises.Shift, noises.UnitShift, noises.SampleShift, noises.Scale):
        noise = part()
        noise.key = (0, 7, 2)
        found[part.__name__] = noise(values)
        assert noise.eval()(values).shape == values.shape
    shift = found["UnitShift"] - values
    assert shift.std(dim=(0, 2, 3)).max() < 1e-6
    assert 0.05 < shift.mean(dim=(0, 2, 3)).abs().max() <= 0.5
    sample = found["SampleShift"] - values
    assert sample.abs().max() <= 0.1 + 1e-6
    assert sample.std(dim=(0, 2, 3)).numpy() == pytest.approx(0.1 / math.sqrt(3), rel=0.1)
    assert (found["Shift"] - shift - sample - values).abs().max() < 1e-6
    scale = (found["Scale"] / values)[values.abs() > 0.1]
    assert 1 <= scale.mean() <= 1.25
    assert scale.std() == pytest.approx(math.sqrt(0.1**2 + (0.25**2) / 12), rel=0.5)


@pytest.fixture
def gathered(tmp_path) -> Path:
    """A folder of tables with random numbers, as the reproduction gathers them."""
    folder = tmp_path / "reproduction/tables"
    folder.mkdir(parents=True)
    for name in ("vgg", "vgg-full", "dln", "dln-slow", "dln-fresh"):
        problem, lr = name[:3], 0.1 if name.startswith("vgg") else 1e-6
        rows = rows_of("smoothness", problem=problem, lr=lr, beta_alpha=0.5, saturated=False)
        bns.save_table(rows.astype({"step": "int64"}), folder / f"{name}.smoothness.parquet")
        bns.save_table(rows_of("train", problem=problem, lr=lr, penalty=0.0), folder / f"{name}.train.parquet")
    for name in ("vgg-noise", "vgg-noise-11"):
        norms = ("none", "noisy-none", "reproduction.noises:Shift")
        bns.save_table(rows_of("train", norms), folder / f"{name}.train.parquet")
        runs = rows_of("compare", norms, steps=[9], steps_=1).drop(columns=["step", "steps_"])
        runs = runs.assign(
            steps=9, final_test_accuracy=runs["norm"].map({"none": 0.4}).fillna(0.1), baseline_accuracy=0.1
        )
        bns.save_table(runs, folder / f"{name}.parquet")
    for problem in ("vgg", "dln"):
        lr = 0.1 if problem == "vgg" else 1e-6
        line = [rows_of("landscape", problem=problem, lr=lr, alpha=alpha, distance=alpha) for alpha in
                (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)]  # fmt: skip
        bns.save_table(pd.concat(line), folder / f"saturation-{problem}.parquet")
    return tmp_path


def test_the_page_has_every_figure_and_table_that_its_tables_allow(gathered):
    findings_page.write(gathered / "reproduction", gathered / "findings.md")
    text = (gathered / "findings.md").read_text()
    pictures = re.findall(r"\]\((findings/.+?\.png)\)", text)
    assert pictures == [f"findings/{name}.png" for name in ("beta", "edge", "equal-loss", "noise", "width")]
    assert all((gathered / picture).stat().st_size > 10_000 for picture in pictures)
    assert "| Shift | 16 | 2 | 10.0% [10.0%, 10.0%] | stopped |" in text
    assert "| none | 11 | 2 | 40.0% [40.0%, 40.0%] | trains |" in text
    assert "nan" not in text
    (gathered / "reproduction/tables/vgg-noise.train.parquet").unlink()
    findings_page.write(gathered / "reproduction", gathered / "findings.md")
    assert "findings/noise.png" not in (gathered / "findings.md").read_text()
    assert not (gathered / "findings/noise.png").exists()
