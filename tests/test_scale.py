"""The scale of the weights before BatchNorm: what it changes and what not, and the table of docs/paper.md.

`python tests/test_scale.py` writes the table anew.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bnsmooth_cli as bns
from bnsmooth_cli.networks.parameters import copied

FACTOR = 3.0
PAGE = Path(__file__).parents[1] / "docs/paper.md"
MARKS = "<!-- scale: python tests/test_scale.py -->\n", "<!-- end -->\n"
#: The run and the step of the table, and the step lengths of its line.
RUN = {"preset": "paper", "steps": 500, "save_every": 500}
ALPHAS = (0.01, 0.1, 1.0, 10.0, 30.0)


def multiplied(model, names, factor):
    """A copy of a network with some of its parameters multiplied."""
    model = copied(model)
    for name in names:
        model.get_parameter(name).data.mul_(factor)
    return model


def moving(model, names):
    """A copy of a network of whose parameters only the named ones are trained."""
    model = copied(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return model


def measured(model, loss, lr, alphas=ALPHAS):
    """The row of smoothness and the rows of ICS, with relative distances and the scale-free beta."""
    point = bns.Point.of(model, lambda: loss(model), lr=lr)
    (row,) = bns.smoothness(point, alphas).to_dict("records")
    shift = bns.ics(point)
    return {
        **row,
        "beta * weight_norm^2": row["beta"] * row["weight_norm"] ** 2,
        "predictiveness_max / grad_norm": row["predictiveness_max"] / row["grad_norm"],
        "ics": shift["ics"],
        "ics / grad_norm": shift["ics"] / shift["grad_norm"],
        "cosine": shift["cosine"],
    }


@pytest.fixture
def network():
    """A network in which every trained parameter is a weight before BatchNorm, and its loss."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8, eps=1e-30), nn.Tanh(), nn.Linear(8, 8, bias=False),
        nn.BatchNorm1d(8, eps=1e-30), nn.Tanh(), nn.Linear(8, 3),
    ).double()  # fmt: skip
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    inputs, targets = torch.randn(32, 4).double(), torch.randint(3, (32,))
    for norm in (model[1], model[4]):
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    return moving(model, ("0.weight", "3.weight")), lambda model: nn.functional.cross_entropy(model(inputs), targets)


def test_the_scale_before_batchnorm_divides_beta_and_cancels_in_the_scale_free_figures(network):
    """The same network with its weights W times c, and c^2 times the step, which leads to c times the same weights."""
    model, loss = network
    c = FACTOR
    plain = measured(model, loss, 1.0)
    other = measured(multiplied(model, ("0.weight", "3.weight"), c), loss, c**2)
    divided = {
        "loss": 1, "loss_min": 1, "loss_max": 1, "weight_norm": 1 / c, "grad_norm": c, "predictiveness_min": c,
        "predictiveness_max": c, "lipschitz": c, "beta": c**2, "curvature": c**2, "beta * weight_norm^2": 1,
        "predictiveness_max / grad_norm": 1, "beta_alpha": 1, "critical_alpha": 1,
    }  # fmt: skip
    for name, divisor in divided.items():
        assert other[name] == pytest.approx(plain[name] / divisor, rel=1e-9, nan_ok=name == "critical_alpha"), name
    assert other["sharpness"] == pytest.approx(plain["sharpness"] / c**2, rel=0.01)
    for name, divisor in {"ics": c, "ics / grad_norm": 1, "cosine": 1}.items():
        assert other[name].to_numpy() == pytest.approx(plain[name].to_numpy() / divisor, rel=1e-9), name
    assert plain["ics"][1] > 0.01 * plain["grad_norm"]  # otherwise its rows would say nothing


def test_at_the_same_step_the_relative_figures_change_too(network):
    """The step is c^2 times shorter relative to the weights, so no figure along it is free of the scale."""
    model, loss = network
    plain, other = (measured(multiplied(model, ("0.weight", "3.weight"), c), loss, 1.0) for c in (1.0, FACTOR))
    assert other["loss"] == pytest.approx(plain["loss"])
    assert other["predictiveness_max / grad_norm"] < 0.8 * plain["predictiveness_max / grad_norm"]
    assert other["ics / grad_norm"][1] < 0.8 * plain["ics / grad_norm"][1]


def test_the_weight_norm_is_that_of_the_penalised_weights_and_missing_without_any():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    x = torch.randn(8, 3)
    row = bns.smoothness(bns.Point.of(model, lambda: model(x).square().mean(), lr=0.1)).iloc[0]
    squares = sum((model[place].weight.detach() ** 2).sum().item() for place in (0, 2))
    assert row.weight_norm == pytest.approx(math.sqrt(squares), rel=1e-6)
    scales = nn.BatchNorm1d(3, track_running_stats=False)
    row = bns.smoothness(bns.Point.of(scales, lambda: (scales(x) - 1).pow(3).mean(), lr=0.1)).iloc[0]
    assert math.isnan(row.weight_norm)


#: The columns of the page's table: whether only the weights before BatchNorm move, and by what the step is multiplied.
COLUMNS = {
    "all parameters": (False, 1.0),
    "these weights alone": (True, 1.0),
    "these weights alone, steps 9 times as long": (True, FACTOR**2),
}
QUANTITIES = (
    "loss", "weight_norm", "beta", "beta * weight_norm^2", "predictiveness_max", "predictiveness_max / grad_norm",
    "ics", "ics / grad_norm",
)  # fmt: skip


def divisors(folder):
    """By what each quantity is divided (rows) if the weights before BatchNorm are multiplied (columns)."""
    run = bns.train("dln", "batch", output=Path(folder) / "run", device="cpu", **RUN)
    point = bns.load_point(run, RUN["steps"], dtype=torch.float64)
    network = nn.Sequential(*point.model.layers.values())
    before = [f"{i}.linear.weight" for i in range(run.config.settings.depth - 1)]

    def loss(model):
        return point.problem.objective(model(point.inputs), point.targets)

    found = {}
    for column, (alone, longer) in COLUMNS.items():
        model = moving(network, before) if alone else network
        plain = measured(model, loss, run.config.lr)
        other = measured(multiplied(model, before, FACTOR), loss, run.config.lr * longer)
        ratios = {name: plain[name] / other[name] for name in QUANTITIES}
        found[column] = [np.median(ratio[1 : len(before)]) if np.ndim(ratio) else ratio for ratio in ratios.values()]
    return found


def written(found):
    """The page with its table."""
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    rows = [["", *found], ["---"] * (1 + len(found))]
    rows += [[f"`{name}`", *(f"{found[column][i]:.3g}" for column in found)] for i, name in enumerate(QUANTITIES)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"{before}{MARKS[0]}{table}{MARKS[1]}{rest.partition(MARKS[1])[2]}"


@pytest.mark.slow
def test_the_table_of_the_page_is_what_is_measured(tmp_path):
    found = divisors(tmp_path)
    rows = PAGE.read_text().partition(MARKS[0])[2].partition(MARKS[1])[0].splitlines()
    for row, (i, name) in zip(rows[2:], enumerate(QUANTITIES), strict=True):
        first, *cells = row.strip("| ").split(" | ")
        assert first == f"`{name}`"
        assert [*map(float, cells)] == pytest.approx([found[column][i] for column in COLUMNS], rel=0.02), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(written(divisors(folder)))
