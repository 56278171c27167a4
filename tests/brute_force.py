"""Checks that the measurements at a point agree with the brute force of reference.py."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch

import bnsmooth_cli as bns
from bnsmooth_cli.derivatives.lanczos import SHARPNESS_TOLERANCE
from bnsmooth_cli.networks.parameters import trainable

#: Step lengths of the line, in learning rates.
ALPHAS = (0.5, 1.0, 4.0)


def check_line(point, tolerance, direction="gradient"):
    found = bns.landscape(point, ALPHAS, direction=direction).to_dict("records")
    for row, expected in zip(found, reference.line(point, ALPHAS, direction), strict=True):
        size = expected["grad_norm"]
        scales = {
            "grad_distance": size,
            "grad_cosine": 1.0,
            "grad_distance_summed": 10 * size,
        }  # a difference has absolute errors
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=tolerance, abs=tolerance * scales.get(name, 0.0)), name


def weights_by_hand(model):
    """Weights by the shapes and names that the tests' networks have: no vectors, and nothing of a norm.

    Of a weight-normalised layer, these are the lengths, `original0`: the directions change nothing.
    """
    inside = {id(p) for m in model.modules() if "Norm" in type(m).__name__ for p in m.parameters()}
    inside |= {id(p) for name, p in model.named_parameters() if name.endswith("original1")}
    return [p for p in model.parameters() if p.requires_grad and p.dim() > 1 and id(p) not in inside]


def check_smoothness(point, direction="gradient"):
    """Every column, at a point in float64, against the line and all eigenvalues of the Hessian."""
    (row,) = bns.smoothness(point, ALPHAS, direction=direction).to_dict("records")
    line = reference.line(point, ALPHAS, direction)
    losses = [r["loss"] for r in line]
    distances = [r["grad_distance"] for r in line]
    g, h = reference.hessian(point)
    d = g
    if direction == "random":
        d = reference.flatten(
            reference.random_direction(point, reference.gradient(point, reference.double_copy(point)))
        )
    expected = {
        "loss": losses[0],
        "weight_norm": math.sqrt(sum(float((w.detach() ** 2).sum()) for w in weights_by_hand(point.model))),
        "grad_norm": line[0]["grad_norm"],
        "loss_min": min(losses[1:]),
        "loss_max": max(losses[1:]),
        "predictiveness_min": min(distances[1:]),
        "predictiveness_max": max(distances[1:]),
        "lipschitz": max(r["grad_norm"] for r in line),
        "beta": max(r["grad_distance"] / r["distance"] for r in line[1:]),
        "curvature": float(d @ h @ d / (d @ d)),
        "beta_alpha": max(line[1:], key=lambda r: r["grad_distance"] / r["distance"])["alpha"],
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-8), name
    shortest = min(line[1:], key=lambda r: r["alpha"])
    near = 0.98 <= expected["beta"] * shortest["step_size"] <= 1.02
    assert row["saturated"] == (near and shortest["grad_norm"] <= 0.1 * line[0]["grad_norm"])
    values = torch.linalg.eigvalsh(h)
    assert row["sharpness"] == pytest.approx(float(values[values.abs().argmax()]), rel=SHARPNESS_TOLERANCE)
    rising = [r["alpha"] for r in line[1:] if r["loss"] > losses[0]]
    assert row["critical_alpha"] == pytest.approx(min(rising, default=math.nan), nan_ok=True)
    check_critical_lr(point, row["critical_lr"], direction)


def check_critical_lr(point, found, direction):
    """It is the first rise of the loss, or one after rises that end before the step has doubled."""
    first = reference.critical_lr(point, direction)
    if found == pytest.approx(first, rel=0.012, nan_ok=True):
        return
    assert found > first
    rises = reference.rising_on_line(point, direction)
    assert rises(found)
    assert not rises(found / 1.011)
    begun = math.inf
    for eta in np.geomspace(first, found / 1.011, 200):
        begun = min(begun, eta) if rises(eta) else math.inf
        assert eta < 2 * begun


def check_ics(point, tolerance, layers=None, after=None):
    """The layers that are named, or all of them; `after` are the parameters after the step, if it is not SGD's."""
    known = dict(point.layers)
    if layers is None:
        layers_of_point = point.layers
    else:
        parameters = trainable(point.model)
        layers_of_point = [
            (name, known.get(name, [p for p in parameters if p.startswith(f"{name}.")])) for name in layers
        ]
    names = ("model", "config", "velocity", "loss")
    fixed = SimpleNamespace(**{name: getattr(point, name) for name in names}, layers=layers_of_point)
    found = bns.ics(point, layers)
    assert list(found["layer_name"]) == [name for name, _ in layers_of_point]
    assert found["ics"][0] == 0.0  # no layer before the first one has moved
    assert found["cosine"][0] == 1.0
    for row, expected in zip(found.to_dict("records"), reference.ics(fixed, after), strict=True):
        size = expected["grad_norm"]
        scales = {"grad_norm_updated": size, "ics": size + expected["grad_norm_updated"], "cosine": 1.0}
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=tolerance, abs=tolerance * scales.get(name, 0.0)), name
