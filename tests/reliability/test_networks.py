"""A few dozen random networks, and the simplest ones of all that were once measured wrong."""

from __future__ import annotations

import measured_networks
import networks
import pytest

#: Recipes that a search found a fault with, and what they come to.
FOUND = [
    ({"parts": [["Identity", ""]], "more": ["unused"]}, "measured"),
    ({"parts": [["Identity", ""]], "more": ["called and unused"]}, "measured"),
    ({"parts": [["Linear", "without grad"]]}, "asymmetric"),
    ({"parts": [["Linear", "detached"]]}, "asymmetric"),
    ({"parts": [["forces", ""]]}, "measured"),
    ({"parts": [["Linear", "old weight_norm"], ["Tanh", ""]]}, "measured"),
    ({"parts": [["Linear", "pruned by unit"], ["Tanh", ""]]}, "measured"),
    ({"parts": [["Linear", "checkpointed function"], ["Linear", "checkpoint"]]}, "measured"),
    ({"parts": [["Identity", ""]], "input": "Embedding sparse"}, "measured"),
    ({"parts": [["Identity", ""]], "input": "EmbeddingBag mean"}, "measured"),
    ({"parts": [["Identity", ""]], "input": "EmbeddingBag max"}, "measured"),
    ({"parts": [["Identity", ""]], "input": "Embedding bounded"}, "refused"),
    ({"parts": [["Linear", ""], ["Hardsigmoid", ""]]}, "measured"),
    ({"parts": [["LSTM with dropout", ""]]}, "refused"),
    ({"parts": [["Identity", ""]], "loss": "ctc_loss"}, "by differences"),
    ({"parts": [["Identity", ""]], "loss": "multi_margin_loss"}, "by differences"),
    ({"parts": [["Linear", ""], ["CrossMapLRN2d", ""]]}, "by differences"),
    ({"parts": [["Linear", ""], ["Linear", ""], ["Function once", ""]], "seed": 90}, "by differences"),
    ({"parts": [["Linear", ""], ["Function detached", ""]]}, "by differences"),
    ({"parts": [["our l1", "twice"]], "input": "image"}, "measured"),
    ({"parts": [["Linear", ""]], "compiled": "aot_eager"}, "measured"),
    ({"parts": [["Linear", ""], ["ReLU in place", "compiled"]]}, "measured"),
    ({"parts": [["Linear", ""]], "type": "bfloat16"}, "measured"),
    ({"parts": [["Linear", ""]], "type": "mixed"}, "measured"),
    ({"parts": [["Linear", ""]], "way": "no_grad"}, "measured"),
    # Lanczos' iteration ended before it had seen the largest eigenvalue.
    ({"parts": [["ReplicationPad3d", ""], ["PReLU by unit", ""]], "loss": "cross_entropy smoothed", "seed": 258},
     "measured"),
    ({"parts": [["LayerNorm flat", ""], ["Flatten", ""], ["logsumexp", ""]], "input": "line",
      "loss": "smooth_l1_loss", "seed": 181}, "measured"),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "comes_to"), FOUND)
@pytest.mark.fast(4)
def test_networks_that_were_measured_wrong(recipe, comes_to, tmp_path):
    assert measured_networks.judge(networks.DEFAULTS | recipe, tmp_path) == comes_to


@pytest.mark.parametrize("number", range(2))
@pytest.mark.slow
def test_random_networks_are_measured_right_or_refused(number, tmp_path):
    tried = measured_networks.prepare(tmp_path / "trial")(number)
    assert tried.fault == ""
    assert "measured" in tried.what


@pytest.mark.parametrize(
    ("recipe", "fault"),
    [
        ({"parts": [["Linear", ""]], "seed": 1}, "is right"),
        ({"parts": [["Linear", ""]], "loss": "l1_loss"}, "draws at random"),
        ({"parts": [["GroupNorm flat", ""], ["Tanh", ""]]}, "is right"),
    ],
)
def test_a_wrong_number_is_a_fault(recipe, fault, tmp_path, monkeypatch):
    """The judge itself: it sees a measurement on other data, and a network that is not refused."""
    recipe = networks.DEFAULTS | recipe
    other = {**recipe, "seed": 5}
    build = networks.build
    monkeypatch.setattr(networks, "build", lambda r, plain=False: build(r if plain else other, plain))
    monkeypatch.setattr(measured_networks, "alone", lambda recipe: ("", recipe["loss"] == "l1_loss"))
    with pytest.raises(Exception, match=fault):
        measured_networks.judge(recipe, tmp_path)
