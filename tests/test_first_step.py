"""The hypotheses about the paper's settings: their networks and measurements, and the page against its tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import bnsmooth_cli as bns
from bnsmooth_cli import paper
from bnsmooth_cli.config import resolve
from bnsmooth_cli.problems import build
from bnsmooth_cli.storage.tables import read_table
from reproduction import first_step, saturation
from reproduction.first_step import LINEAR, PAGE, VGG, Linear, LinearNetworks, Vgg, VggNetwork, gradients, length, line


def parameters(network):
    return dict(network.named_parameters())


@pytest.mark.parametrize("norm", ["none", "batch", "linf"])
def test_networks_side_by_side_are_those_of_single_seeds(norm):
    together = LinearNetworks(Linear("small", depth=4), norm, [3, 5])
    losses, slopes = gradients(together, parameters(together), together.batch)
    for i, seed in enumerate([3, 5]):
        alone = LinearNetworks(Linear("small", depth=4), norm, [seed])
        loss, slope = gradients(alone, parameters(alone), alone.batch)
        torch.testing.assert_close(losses[i], loss[0])
        torch.testing.assert_close(length(slopes, 2)[i], length(slope, 1)[0])


def test_the_first_hypothesis_is_the_linear_network_of_the_preset():
    problem = build(resolve("dln", preset="paper", norm="batch", seed=4), torch.device("cpu"))
    inputs, targets = problem.batch(0)
    network = LinearNetworks(LINEAR[0], "batch", [4])
    torch.testing.assert_close(network(*network.batch)[0], problem.objective(problem.initial(inputs), targets))


def test_the_line_is_that_of_the_landscape():
    torch.manual_seed(0)
    network = LinearNetworks(Linear("small", depth=4), "batch", [1])
    lr, alphas = 1e-5, (0.5, 1.0, 4.0)
    values = parameters(network)
    _, start = gradients(network, values, network.batch)
    found = line(network, values, start, network.batch, lr, alphas, summed=False)
    rows = bns.landscape(bns.Point.of(network, lambda: network(*network.batch).sum(), lr=lr), alphas=alphas)[1:]
    beta = (rows["grad_distance"] / (rows["step_size"] * (rows["distance"] / rows["step_size"]))).max()
    expected = [rows["loss"].min(), rows["loss"].max(), *rows["grad_distance"].agg(["min", "max"]), beta]
    np.testing.assert_allclose([value.item() for value in found.values()], expected, rtol=1e-4)
    assert length(start, 1) > length(start, 1, summed=False)


def test_the_penalty_and_the_norms_of_vgg():
    network = VggNetwork(Vgg("small", depth=11, classifier=(8,), penalty=0.5), "batch", 0)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    weights = sum(value.square().sum() for value in network.parameters() if value.dim() > 1)
    bare = torch.nn.functional.cross_entropy(network.layers(images), labels)
    torch.testing.assert_close(network(images, labels)[0], bare + weights / 4)
    norms = [type(module).__name__ for module in network.layers].count("BatchNorm")
    assert norms == 8 + 1 + 1


def test_the_tables_have_every_variant_and_the_papers_numbers():
    for problem, variants in (("dln", LINEAR), ("vgg", VGG)):
        rows = pd.read_parquet(first_step.table(problem))
        assert {*rows["variant"]} == {variant.name for variant in variants}
        assert rows["seed"].nunique() > 1
        for row in rows[rows["quantity"] == "beta"].drop_duplicates(["norm", "lr", "paper"]).itertuples():
            shown = paper.rows("smoothness", problem, row.norm, row.lr)
            assert row.paper == shown.loc[shown["step"] == 0, "beta"].item()


def test_the_page_has_the_tables():
    text = first_step.PAGE.read_text()
    assert text == first_step.page(text)


def test_the_page_quotes_the_papers_losses():
    text = first_step.PAGE.read_text()
    edge = paper.read("4a").query("norm == 'batch'").set_index("step")["loss_min"]
    middle = edge[(edge.index >= 5000) & (edge.index <= 10000)]
    slope = np.polyfit(middle.index.to_numpy(float), np.log(middle), 1)[0]
    assert f"falls by {-slope:.1e}".replace("e-0", "e-") in " ".join(text.split())
    late = edge[edge.index.isin([3000, 4500, 6000, 7500, 9000, 12000, 15000])]
    for c in (4e-4, 4.5e-4):
        excess = late - 2 * np.exp(-2 * 0.1 * c * late.index)
        assert f"{excess.min():.3f} to {excess.max():.3f} above" in " ".join(text.split())
    first, later = (
        paper.read(name).query("norm == 'none' and lr == 1e-6").set_index("step")["loss"] for name in ("3b-loss", "12a")
    )
    assert f"starts at {first[0]:,.0f} without a norm and figure 12a at {later[0]:,.0f}" in " ".join(text.split())
    assert f"lies {first[50] - later[50]:.0f} below" in text
    slow = paper.read("3b-loss").query("norm == 'none' and lr == 1e-7").set_index("step")["loss"]
    assert f"lowers the loss by about {round((slow[450] - slow[550]) / 10, -1):.0f}" in text
    for norm, last in (("none", "1,661"), ("batch", "479"), ("l1", "97"), ("l2", "481"), ("linf", "986")):
        assert f"{paper.rows('train', 'dln', norm, 1e-6)['loss'].iloc[-1]:,.0f}" == last


@pytest.mark.parametrize(("depth", "expected"), [(13, 7613), (16, 8893), (19, 10173)])
def test_the_sum_of_squares_of_glorots_weights(depth, expected):
    network = VggNetwork(Vgg("wide", depth=depth), "none", 0)
    total = sum(value.double().square().sum().item() for value in network.parameters() if value.dim() > 1)
    assert total == pytest.approx(expected, rel=2e-3)
    assert f"{expected:,}" in first_step.PAGE.read_text()


def test_the_page_says_what_fits_and_what_does_not():
    text = " ".join(first_step.PAGE.read_text().split())
    rows = pd.read_parquet(first_step.table("dln"))
    best, last = (rows[rows["variant"] == variant.name] for variant in LINEAR[:2])
    late = last.query(
        "norm == 'batch' and lr == 1e-6 and quantity in ['loss at step 100', 'loss at step 200', 'loss at step 500']"
    )
    assert (late["value"] > late["paper"]).all()
    end = last.query("norm == 'linf' and quantity == 'loss at step 500'")
    assert (end["value"] > 3 * end["paper"]).all()

    def outside(part):
        """norm -> the numbers of the paper that all seeds lie above (+) or below (-), at 1e-6."""
        found = (
            part[part["lr"] == 1e-6]
            .groupby(["norm", "quantity"])
            .agg(least=("value", "min"), most=("value", "max"), paper=("paper", "first"))
        )
        signs = np.select([found["least"] > found["paper"], found["most"] < found["paper"]], ["+", "-"], "")
        names = found.assign(sign=signs).query("sign != ''").reset_index()
        return {norm: {*(names["sign"] + names["quantity"])[names["norm"] == norm]} for norm in names["norm"].unique()}

    assert outside(best) == {
        "none": {"+loss at step 0", "+largest difference"},
        "batch": {"-loss at step 0", "-largest loss"},
        "l1": {"+largest loss", "+least difference", "+largest difference"},
        "l2": {"-loss at step 50", "+loss at step 500", "+largest difference"},
        "linf": {"+least difference", "+largest difference", "+beta", "+loss at step 200"},
    }
    vgg = pd.read_parquet(first_step.table("vgg"))
    bare = vgg[(vgg["variant"] == VGG[5].name) & (vgg["quantity"] == "least loss")]
    assert (bare["value"] > 5).all()
    normed = vgg[(vgg["variant"] == VGG[4].name) & (vgg["updates"] == 1)]
    beta = normed[normed["quantity"] == "beta"]["value"]
    assert f"beta is {beta.min():.0f} to {beta.max():.0f} where the paper has 25 to 29" in text
    loss = normed.query("norm == 'batch' and quantity == 'largest loss'")["value"]
    assert f"BatchNorm's largest loss is {loss.min():.2f} to {loss.max():.2f}, the paper's 5.20" in text
    changes = normed[normed["quantity"].str.contains("difference")]
    factors = (changes["value"] / changes["paper"]).groupby(changes["norm"] == "linf").agg(["min", "max"])
    assert f"ours are {factors.loc[False, 'min']:.1f} to {factors.loc[False, 'max']:.1f} of the paper's with" in text
    assert f"{factors.loc[True, 'min']:.1f} to {factors.loc[True, 'max']:.1f} times the paper's with `linf`" in text
    small = vgg[vgg["variant"].isin([VGG[1].name, VGG[2].name]) & (vgg["quantity"] == "least difference")]
    assert (small["value"] * 5 < small["paper"]).all()


@pytest.mark.parametrize("variant", LINEAR, ids=lambda variant: variant.name)
def test_the_published_first_losses_are_those_of_the_code(variant):
    rows = pd.read_parquet(first_step.table("dln"))
    rows = rows[(rows["variant"] == variant.name) & (rows["quantity"] == "loss at step 0") & (rows["lr"] == 1e-6)]
    published = rows[rows["norm"] == "batch"].sort_values("seed")
    with torch.no_grad():
        network = LinearNetworks(variant, "batch", published["seed"].tolist())
        np.testing.assert_allclose(network(*network.batch), published["value"], rtol=1e-3)


def test_the_page_says_of_effective_beta_what_its_tables_say():
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    folder = PAGE.parent / "paper"
    probe, smoothness = (read_table(folder / f"beta-{name}.parquet", name) for name in ("landscape", "smoothness"))
    points = saturation.betas(probe).query("norm == 'batch' and step >= 4000")

    def ends(shortest):
        return f"{points[shortest].min():.3g} to {points[shortest].max():.3g}"

    later = smoothness[smoothness["step"] > 600]
    over = (later["sharpness"] * later["lr"] / 2).groupby(later["norm"]).median()
    bent = (later["curvature"] * later["lr"]).groupby(later["norm"]).median()
    for phrase in (
        f"beta times lr is {ends(0.5)} for a shortest step of 1/2 and {ends(1.0)} for one of 1",
        f"for a shortest step of 1/16 it is {ends(1 / 16)}.",
        f"its median is {over['batch']:.3g} times 2 / lr with BatchNorm and {over['none']:.3g} times without.",
        f"has medians of {bent['batch']:.3g} and {bent['none']:.3g}.",
    ):
        assert phrase in text
    assert not smoothness["saturated"].any()
    assert {row[-1] for row in saturation.rows(probe, smoothness)} == {"not decided"}
