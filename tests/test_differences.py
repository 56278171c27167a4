"""The page of differences from the paper quotes the published tables and the paper's own figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import bnsmooth_cli as bns
from bnsmooth_cli import paper
from bnsmooth_cli.paper.matching import distances
from reproduction import saturation
from reproduction.findings import trained
from reproduction.scales import LP, PLAIN

PUBLISHED = Path(__file__).parents[1] / "docs/reproduction"


def _halfway():
    """The mean test accuracies at steps 5,000 and 6,000, of BatchNorm and without, as the page words them."""
    tables = [bns.read_table(PUBLISHED / f"tables/{name}.train.parquet") for name in ("vgg", "vgg-full")]
    words = (
        "{} with BatchNorm and {} without at a quarter of the widths",
        "{} and {} at the paper's widths (one seed)",
        "and {} and {}",
    )
    for table, text in zip([*tables, paper.read("1b")], words, strict=True):
        rows = table[table["step"].isin([5000, 6000]) & (table["lr"] == 0.1)]
        medians = rows.groupby(["norm", "run"])["test_accuracy"].mean().groupby("norm").median()
        yield text.format(*(f"{medians[norm]:.1%}" for norm in ("batch", "none")))


def _fitted(norm):
    """What figure 3a of the paper shows at 0.01: the step from which every measured batch of a network is classified
    without an error, and the median shift in layer 5 before and from then on."""
    accuracies, shift = (
        paper.read(name).query(f"lr == 0.01 and norm == '{norm}'") for name in ("3a-accuracy", "3a-ics")
    )
    accuracies, shift = accuracies.set_index("step")["accuracy"], shift.query("layer == 5").set_index("step")["ics"]
    last = accuracies.index[accuracies < 1].max()
    first = accuracies.index[accuracies.index > last].min()
    return f"{first:,}", f"{shift[shift.index < first].median():.3g}", f"{shift[shift.index >= first].median():.3g}"


def _at_a_hundredth():
    """What the page says of the runs at the learning rate 0.01."""
    verdicts, runs, training = (
        bns.read_table(PUBLISHED / f"tables/vgg.{name}parquet").query("lr == 0.01")
        for name in ("claims.", "", "train.")
    )

    def part(start, *columns):
        row = verdicts[verdicts["part"].str.startswith(start)].iloc[0]
        return [f"{row[column]:.3g}" for column in (*columns, "paper")]

    def spread(start):
        return "{} [{}, {}]".format(*part(start, "median", "low", "high"))

    last = runs.groupby("norm")["final_test_accuracy"].median()
    assert last["batch"] < last["none"]
    smoothed = training[training["norm"] == "batch"].groupby("step")["accuracy"].median()
    batch, none = _fitted("batch"), _fitted("none")
    faster, shift = "training accuracy averaged over the run, batch", "distance of the layers"
    usual = bns.read_table(PUBLISHED / "tables/vgg.claims.parquet").query("lr == 0.1").set_index("part")
    early = usual.loc["ratio of the loss's range, batch / none: early over later"]
    return [
        f"is {spread('ratio of the loss')} times as large early as later at 0.01, and {early['median']:.3g} "
        f"[{early['low']:.3g}, {early['high']:.3g}] times at 0.1, where the paper's own figure has "
        f"{early['paper']:.3g}.",
        f"averaged over the run, is {spread(faster)} higher, and {part(faster)[-1]} higher in the paper's figure. Its "
        f"last test accuracy is {last['batch']:.1%}, and the plain network's {last['none']:.1%};",
        f"the range of the loss is {spread('range of the loss on the line, batch')} times the plain network's, and the "
        f"change of the gradient {spread('largest change of the gradient on the line, batch')} times.",
        f"With BatchNorm it is {spread(shift)} times the plain network's, and {part(shift)[-1]} times in the paper's",
        f"without an error from step {batch[0]} on, and the plain network from step {none[0]} on.",
        f"layer 5 is {batch[1]} before and {batch[2]} from then on with BatchNorm, and {none[1]} and {none[2]} "
        "without.",
        f"training accuracy is {smoothed[5000]:.1%} at step 5,000 and {smoothed.iloc[-1]:.1%} at the end.",
    ]


def test_the_page_of_differences_quotes_the_tables():
    text = " ".join((PUBLISHED / "differences.md").read_text().split())
    runs = bns.read_table(PUBLISHED / "tables/dln.parquet")
    last = runs.groupby("norm")["final_loss"].median()
    linear, slow = (bns.read_table(PUBLISHED / f"tables/{name}.claims.parquet") for name in ("dln", "dln-slow"))

    def part(table, start, column="median"):
        return float(table[table["part"].str.startswith(start)][column].iloc[0])

    quoted = [
        f"{last['none']:,.0f} without a norm, {last['batch']:.0f} with BatchNorm, {last['l1']:.0f} with `l1`, "
        f"{last['l2']:.0f} with `l2` and {last['linf']:.0f} with `linf`.",
        f"loss is {part(linear, 'training loss, geometric mean over the run, batch'):.3g} of the plain network's, and "
        f"{part(linear, 'training loss, geometric mean over the run, batch', 'paper'):.3g} in the paper's figure.",
        f"is {part(linear, 'distance of the layers'):.3g} times the plain network's, and "
        f"{part(linear, 'distance of the layers', 'paper'):.3g} times in the paper's figure",
        f"the shift is {part(slow, 'distance of the layers'):,.0f} times the plain network's, and "
        f"{part(slow, 'distance of the layers', 'paper'):,.0f} times in the paper's figure",
        f"BatchNorm's is {-part(slow, 'cosine of the layers'):.3g} lower; the paper's is "
        f"{-part(slow, 'cosine of the layers', 'paper'):.3g} lower.",
        f"range of the loss is {part(linear, 'range of the loss on the line, batch'):.3g} times the plain network's, "
        f"the change of the gradient {part(linear, 'largest change of the gradient on the line, batch'):.3g} times",
        f"The paper's own curves give {part(linear, 'range of the loss on the line, batch', 'paper'):.3g} and "
        f"{part(linear, 'largest change of the gradient on the line, batch', 'paper'):.3g}.",
        f"BatchNorm's gradient changes {part(slow, 'largest change of the gradient on the line, batch'):,.0f} times as",
        f"loss with `l1` is {part(linear, 'training loss, geometric mean over the run, l1'):.3g} of BatchNorm's",
        f"`linf`'s is {part(linear, 'training loss, geometric mean over the run, linf'):.3g} times BatchNorm's",
        f"and {part(slow, 'training loss, geometric mean over the run, linf'):.3g} times at 1e-07",
        f"in {part(linear, 'share of units where 4.2'):.0%} of cases at the median over seeds",
        f"with BatchNorm is {part(linear, 'quadratic form'):.3g} of the plain network's",
    ]
    fresh = bns.read_table(PUBLISHED / "tables/dln-fresh.claims.parquet").query("lr == 1e-6")

    def spread(start):
        row = fresh[fresh["part"].str.startswith(start)].iloc[0]
        return f"{row['median']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"

    quoted += [
        f"BatchNorm's loss is {part(fresh, 'training loss, geometric mean over the run, batch'):.3g} of the plain "
        "network's, averaged over the run, and "
        f"`l1`'s is {spread('training loss, geometric mean over the run, l1')} of BatchNorm's.",
        f"change of the gradient is {spread('largest change of the gradient on the line, batch')} times",
        f"the shift {spread('distance of the layers')} times.",
        f"lower with BatchNorm, {spread('effective beta where neither')} of the plain network's",
        f"its gradient changes more, {spread('largest change of the gradient along a random')} times as much,",
    ]
    betas = saturation.betas(bns.read_table(PUBLISHED / "tables/saturation-vgg.parquet")).query("norm == 'batch'")
    quarter = betas.groupby("step")[0.25].median()
    assert (quarter[quarter.index > 6000].sub(4).abs() < 0.4).mean() > 0.5
    quoted.append(
        f"is {quarter[2000]:.3g} at step 2,000, {quarter[5000]:.3g} at step 5,000 and {quarter[6000]:.3g} at step 6,000"
    )
    stated = bns.read_table(PUBLISHED / "tables/dln-stated.claims.parquet")

    def of_stated(start):
        row = stated[stated["part"].str.startswith(start)].iloc[0]
        low, high = (f"{row[end]:,.0f}" if row[end] >= 1000 else f"{row[end]:.3g}" for end in ("low", "high"))
        return f"{row['median']:.3g} [{low}, {high}]"

    quoted += [
        f"over the run, is {of_stated('training loss, geometric mean over the run, batch')} of the plain network's.",
        f"change of the gradient is {of_stated('largest change of the gradient on the line, batch')} times the plain",
        f"effective beta {of_stated('effective beta where neither')} times.",
    ]
    theory = bns.read_table(PUBLISHED / "tables/dln.theory.parquet").query("statement == '4.1 at y'")
    ratio = theory.assign(ratio=theory["lhs"] / theory["grad_norm"] ** 2).groupby(["norm", "seed"])["ratio"].median()
    quoted += [
        f"squared gradient is {ratio['none'].median():.3g} times the plain network's at the weights that were trained "
        f"without a norm, and {ratio['batch'].median():.3g} times at those trained with BatchNorm."
    ]
    early, full = (
        bns.read_table(PUBLISHED / f"tables/{name}.claims.parquet").query("lr == 0.1") for name in ("vgg-early", "vgg")
    )
    frozen = (
        "change of the layer inputs' mean between measured steps: share that remains with frozen weights, noisy-batch"
    )
    quoted += [f"changes the mean by {part(early, frozen):.0%} of what it changes over 100 steps of training"]
    behind = [-part(early, f"training accuracy averaged over the run, {norm} less batch") for norm in LP[2:]]
    ahead = part(early, "training accuracy averaged over the run, linf less batch", "paper")
    quoted += [
        f"their training accuracy is {behind[0]:.3g}, {behind[1]:.3g} and {behind[2]:.3g} lower than BatchNorm's;",
        f"`linf`'s is {ahead:.3g} higher.",
    ]
    vgg = bns.read_table(PUBLISHED / "tables/vgg-early.parquet").set_index("norm")

    def early_of(norm, metric, form):
        values = vgg.loc[[norm], metric]
        return f"{values.median():{form}} [{values.min():{form}}, {values.max():{form}}]"

    runs_of_vgg = bns.read_table(PUBLISHED / "tables/vgg.parquet").query("lr == 0.1")
    ends = runs_of_vgg.groupby("norm")["final_test_accuracy"].median()
    line = bns.read_table(PUBLISHED / "tables/figure-4.parquet").query("lr == 0.1")
    largest = line.groupby(["norm", "seed", "step"])[["grad_distance_summed", "grad_distance"]].max().reset_index()
    times = pd.cut(largest["step"], [-1, 999, 4999, 15_000])
    medians = largest.groupby(["norm", times], observed=True)[["grad_distance_summed", "grad_distance"]].median()
    sizes = {(norm, column): [f"{value:.3g}" for value in medians.loc[norm, column]]
             for norm in PLAIN for column in ("grad_distance_summed", "grad_distance")}  # fmt: skip
    beta = bns.read_table(PUBLISHED / "tables/figure-4c.parquet").query("step > 5000 and lr == 0.1")
    at_20 = (beta["beta"] / 20 - 1).abs().lt(0.02).groupby(beta["norm"]).mean()
    shown = {"landscape": bns.read_table(PUBLISHED / "tables/figure-9.parquet")}
    apart = distances(paper.find("9b"), shown).query("norm == 'batch'").set_index("quantity")["distance"]

    def listed(values):
        return f"{values[0]}, {values[1]} and {values[2]}"

    quoted += [
        f"within 2%, beta is 20 at {at_20['batch']:.0%} of the measured steps after step 5,000, in both.",
        f"at {at_20['none']:.0%} of them instead of",
        f"The last test accuracy is {ends['batch']:.1%} with BatchNorm and {ends['none']:.1%} without",
        f"averaged over the run, is {part(full, 'training accuracy averaged over the run, batch'):.3g} higher, and "
        f"{part(full, 'training accuracy averaged over the run, batch', 'paper'):.3g} higher in the paper's figure.",
        f"with BatchNorm is {part(full, 'range of the loss on the line, batch'):.3g} times the plain network's, and "
        f"the change of the gradient {part(full, 'largest change of the gradient on the line, batch'):.3g} times; the "
        f"paper's own curves give {part(full, 'range of the loss on the line, batch', 'paper'):.3g} and "
        f"{part(full, 'largest change of the gradient on the line, batch', 'paper'):.3g}.",
        f"to 5,000 and after are {listed(sizes['batch', 'grad_distance_summed'])} with BatchNorm,",
        f"Without a norm they are {listed(sizes['none', 'grad_distance_summed'])},",
        f"ours are {listed(sizes['batch', 'grad_distance'])} with BatchNorm.",
        f"lower with BatchNorm over the whole run**: {part(full, 'distance of the layers'):.3g} times the plain "
        "network's, and "
        f"{part(full, 'distance of the layers', 'paper'):.3g} times in the paper's figure.",
        f"after 1,000 steps is {early_of('noisy-none', 'final_test_accuracy', '.1%')}, and "
        f"{early_of('none', 'final_test_accuracy', '.1%')} without noise. Noisy BatchNorm reaches "
        f"{early_of('noisy-batch', 'final_test_accuracy', '.1%')}, "
        f"BatchNorm {early_of('batch', 'final_test_accuracy', '.1%')}.",
        f"is {early_of('none', 'mean_change', '.3g')} at the median over the first 1,000 steps, noisy BatchNorm's "
        f"{early_of('noisy-batch', 'mean_change', '.3g')} and BatchNorm's {early_of('batch', 'mean_change', '.3g')}.",
        f"accuracies is {', '.join(_halfway())} in the paper's figure.",
        f"falls from {apart['predictiveness']:.3g} to {apart['predictiveness, summed']:.3g} decades",
    ]
    half = bns.read_table(PUBLISHED / "tables/vgg.train.parquet").query("lr == 0.5").dropna(subset=["test_accuracy"])
    (never,) = half[(half["norm"] == "none") & (half["step"] > 0)]["test_accuracy"].unique()
    of_half = bns.read_table(PUBLISHED / "tables/vgg.parquet").query("lr == 0.5")
    diverged = sorted(of_half["diverged_at"].dropna())  # of the plain network
    normed = of_half[of_half["norm"] == "batch"]["final_test_accuracy"]
    plain = of_half[(of_half["norm"] == "none") & of_half["diverged_at"].isna()]
    seeds = ("no", "one", "two", "three", "four", "five", "six")[len(plain)]
    noise, shallow = (
        bns.read_table(PUBLISHED / f"tables/{name}.parquet").query("norm == 'noisy-none'")
        for name in ("vgg-noise", "vgg-noise-11")
    )
    quoted += [
        f"In {seeds} seeds the plain network's test accuracy is {never:.1%} at every evaluation after step 0, as in "
        f"the paper's figure; it diverges in the others, at the steps {' and '.join(f'{d:.0f}' for d in diverged)}.",
        f"BatchNorm's last one is {normed.median():.1%} [{normed.min():.1%}, {normed.max():.1%}],",
        f"There seed 1 trains with the noise, to {noise['final_test_accuracy'].max():.1%}, and here",
    ]
    quoted += _at_a_hundredth()
    assert noise.loc[noise["final_test_accuracy"].idxmax(), "seed"] == 1
    assert (trained(noise)["trained"].item(), shallow["diverged_at"].notna().sum()) == (1, 3)
    assert not [phrase for phrase in quoted if phrase not in text]
    none = bns.read_table(PUBLISHED / "tables/dln-slow.ics.parquet").query("norm == 'none' and layer > 1")
    assert none["cosine"].median() == pytest.approx(1, abs=1e-3)
    ends = runs.pivot(index="seed", columns="norm", values="final_loss")
    assert (ends["l1"] / ends["batch"]).min() > 0.203
    groups = saturation.groups(
        *(bns.read_table(PUBLISHED / f"tables/{n}.parquet") for n in ("saturation-dln", "figure-9c"))
    )
    for norm, when, medians in groups:
        if when == "later":
            assert saturation.verdict(medians) == "edge of stability", norm
            assert medians["sharpness"] == pytest.approx(2, rel=0.02)
    probed = [bns.read_table(PUBLISHED / f"tables/{name}.parquet") for name in ("saturation-vgg", "figure-4c")]
    found = {norm: medians for norm, when, medians in saturation.groups(*probed) if when == "later"}
    assert {norm: saturation.verdict(medians) for norm, medians in found.items()} == {
        "batch": "saturated", "none": "not decided"}  # fmt: skip
    assert all(medians["sharpness"] > 2 * 2 for medians in found.values())
