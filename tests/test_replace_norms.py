"""Norms that replace those of a model: each computes what a network written by hand does, wherever the units are."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import transformers as hf
from timm import layers as timm_layers
from torch import nn

import bnsmooth_cli as bns
from bnsmooth_cli import InputError

EPSILON = 1e-5


def by_hand(name, x, units, last, gamma, beta):
    """The norm by its formula: statistics over a unit's activations, or over a sample's (a token's)."""
    rows = x.movedim(-1, 1) if last else x  # (N, C, *positions)
    over = [0, *range(2, rows.dim())]
    if name in ("layer", "rms"):
        over = [1] if last else [*range(1, rows.dim())]
    mean = rows.mean(over, keepdim=True) if name != "rms" else 0
    scale = {
        "batch": lambda: (rows.var(over, unbiased=False, keepdim=True) + EPSILON).sqrt(),
        "layer": lambda: (rows.var(over, unbiased=False, keepdim=True) + EPSILON).sqrt(),
        "rms": lambda: (rows.square().mean(over, keepdim=True) + EPSILON).sqrt(),
        "l1": lambda: rows.abs().mean(over, keepdim=True),
    }[name]()
    unit = (1, units, *[1] * (rows.dim() - 2))
    out = (rows - mean) / scale * gamma.view(unit) + (0 if name == "rms" else beta.view(unit))
    return out.movedim(1, -1) if last else out


OLD = {
    "tokens": (lambda c: nn.LayerNorm(c), (6, 5), True),
    "tokens of an image": (lambda c: nn.RMSNorm(c), (6, 5, 3), True),
    "images": (lambda c: nn.BatchNorm2d(c), (6, 5, 3), False),
    "images, channels first": (lambda c: timm_layers.LayerNorm2d(c), (6, 5, 3), False),
    "groups": (lambda c: nn.GroupNorm(2, c), (6, 5), False),
    "a sequence": (lambda c: nn.BatchNorm1d(c), (6, 5), False),
    "no positions": (lambda c: nn.BatchNorm1d(c), (6,), False),
    "volumes": (lambda c: nn.InstanceNorm3d(c, affine=True), (6, 5, 2, 3), False),
    "many devices": (lambda c: nn.SyncBatchNorm(c), (6, 5, 3), False),
    "Llama": (lambda c: hf.models.llama.modeling_llama.LlamaRMSNorm(c), (6, 5), True),
    "T5": (lambda c: hf.models.t5.modeling_t5.T5LayerNorm(c), (6, 5), True),
}


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("name", ["batch", "layer", "rms", "l1"])
def test_a_replaced_norm_computes_what_its_formula_says(old, name):
    """The input has a mean and its units differ; gamma and beta are those of the old norm."""
    make, (samples, *positions), last = OLD[old]
    units = 8
    torch.manual_seed(0)
    norm = make(units)
    for p in norm.parameters():
        nn.init.normal_(p)
    gamma, beta = norm.weight.detach().clone(), getattr(norm, "bias", None)
    beta = torch.zeros(units) if beta is None else beta.detach().clone()
    model = nn.Sequential(norm).double()
    report = bns.replace_norms(model, name)
    assert report.counts == {type(norm).__name__: 1}
    shape = (samples, *positions, units) if last else (samples, units, *positions)
    x = torch.randn(shape).double() * torch.rand(units).double().view(*([-1] if last else [-1, *[1] * len(positions)]))
    x = x + 0.7
    expected = by_hand(name, x, units, last, gamma.double(), beta.double())
    assert torch.allclose(model(x), expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["layer", "rms", "dyt", "batch", "l1", "group:4", "noisy-batch", "none"])
def test_every_kind_of_norm_takes_the_place_of_those_of_real_models(name):
    config = hf.GPT2Config(vocab_size=9, n_positions=5, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    gpt2, resnet = hf.GPT2LMHeadModel(config), timm.create_model("resnet10t", channels=(8, 8, 8, 8), num_classes=3)
    assert bns.replace_norms(gpt2, name).counts == {"LayerNorm": 3}
    assert bns.replace_norms(resnet, name).counts == {"BatchNorm2d": 15}
    assert gpt2(torch.arange(10).view(2, 5) % 9).logits.isfinite().all()
    assert resnet(torch.randn(2, 3, 32, 32)).isfinite().all()
    assert not any(isinstance(m, nn.LayerNorm | nn.BatchNorm2d) for m in (*gpt2.modules(), *resnet.modules()))


def test_a_norm_replaced_by_itself_changes_nothing():
    """Gamma, beta, running statistics, the mode and what is trained stay, and a second replacement does no harm."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    for p in model.parameters():
        nn.init.normal_(p)
    model[1].bias.requires_grad_(False)
    x = torch.randn(8, 3, 6, 6)
    model(x)  # statistics
    model.eval()
    before = model(x)
    for _ in range(2):
        bns.replace_norms(model, "batch")
        assert torch.allclose(model(x), before, atol=1e-6)
    assert not any(m.training for m in model.modules())
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name in trained if name.startswith("1.")] == ["1.norm.gamma"]


@pytest.mark.parametrize("name", ["noisy-batch", "dyt", "scale", "group:2"])
def test_gamma_and_beta_are_kept_in_every_norm_that_has_them(name):
    old = nn.BatchNorm2d(4)
    nn.init.zeros_(old.weight)  # as timm ends its residual branches
    nn.init.normal_(old.bias)
    model = nn.Sequential(old)
    bns.replace_norms(model, name)
    kept = [p for p in model.parameters() if p.shape == (4,)]
    assert len(kept) == 2
    assert torch.equal(kept[0], old.weight)
    assert torch.equal(kept[1], old.bias)


def test_what_a_norm_has_not_is_not_trained_in_its_place():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False))
    bns.replace_norms(model, "batch")
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["0.weight", "0.bias"]


def test_a_weight_that_is_no_factor_is_not_taken_for_gamma():
    """Gemma's norm multiplies by 1 + weight, which is 0 at first."""
    norm = hf.models.gemma.modeling_gemma.GemmaRMSNorm(8, eps=EPSILON)
    model, x = nn.Sequential(norm), torch.randn(2, 3, 8)
    before = model(x)
    bns.replace_norms(model, "rms")
    assert torch.allclose(model(x), before, atol=1e-6)


ACTIVE = {
    "BatchNormAct2d": lambda: timm_layers.BatchNormAct2d(8),
    "GroupNormAct": lambda: timm_layers.GroupNormAct(8, 2),
    "LayerNormAct2d": lambda: timm_layers.LayerNormAct2d(8),
    "SyncBatchNormAct": lambda: timm_layers.convert_sync_batchnorm(timm_layers.BatchNormAct2d(8)),
}


@pytest.mark.parametrize("kind", ACTIVE)
def test_the_activation_inside_a_norm_stays_behind_the_new_one(kind):
    model, x = nn.Sequential(ACTIVE[kind]()), torch.randn(4, 8, 5, 5)
    assert bns.replace_norms(model, "rms").counts == {kind: 1}
    expected = by_hand("rms", x, 8, False, torch.ones(8), None).relu()
    assert torch.allclose(model(x), expected, atol=1e-6)
    bns.replace_norms(model, "none")
    assert torch.equal(model(x), x.relu())


def test_shared_norms_stay_shared():
    norm = nn.LayerNorm(4)
    model = nn.ModuleList([nn.Sequential(norm), nn.Sequential(nn.Linear(4, 4), norm)])
    assert bns.replace_norms(model, "rms").counts == {"LayerNorm": 1}
    assert model[0][0] is model[1][1]


@pytest.mark.parametrize("name", ["rms", "group:2", "l1"])
def test_parameters_that_norms_share_stay_shared(name):
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4), nn.LayerNorm(4))
    model[2].weight = model[0].weight
    bns.replace_norms(model, name)
    gammas = [next(norm.parameters()) for norm in (model[0], model[2], model[3])]
    assert gammas[0] is gammas[1]
    assert gammas[0] is not gammas[2]


def test_a_norm_with_hooks_keeps_them():
    model, calls = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4)), []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    assert bns.replace_norms(model, "rms").left == {"1": "LayerNorm, which has hooks"}
    assert not calls
    model(torch.randn(2, 4))
    assert calls == [1]


def test_a_norm_in_eval_mode_is_not_replaced_by_statistics_that_no_batch_has_set():
    model = nn.Sequential(nn.LayerNorm(4)).eval()
    with pytest.raises(InputError, match=r"0 is in eval mode, .*; call model\.train\(\) first$"):
        bns.replace_norms(model, "batch")
    bns.replace_norms(model, "rms")
    model = nn.Sequential(nn.BatchNorm1d(4)).eval()
    model[0].running_mean.fill_(2.0)
    bns.replace_norms(model, "batch")  # which has those of the old one
    assert not model(torch.full((3, 4), 2.0)).any()


def test_the_layers_of_torchs_transformer_work_in_both_modes():
    """In eval mode, its fused path would read the weights of a LayerNorm."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2), torch.randn(2, 3, 8)
    assert bns.replace_norms(model, "rms").counts == {"LayerNorm": 4}
    expected = model(x)
    model.eval()
    padding = torch.tensor([[False, False, True], [False, False, False]])
    with torch.no_grad():
        assert torch.allclose(model(x), expected, atol=1e-6)
        assert torch.allclose(model(x, src_key_padding_mask=padding)[1], expected[1], atol=1e-6)


class Conditioned(nn.Module):
    """A norm with a second input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x, shift):
        return x * self.weight + shift


class ConditionedNorm(Conditioned):
    pass


class Block(nn.Module):
    """A block whose name says that there is a norm inside."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)


class NormBlock(Block):
    pass


def test_what_cannot_be_replaced_is_named():
    model = nn.ModuleDict(
        {
            "a": NormBlock(),
            "b": ConditionedNorm(),
            "c": nn.LayerNorm([3, 4]),
            "d": timm_layers.EvoNorm2dS0(8),
            "e": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "f": Conditioned(),
            "g": nn.Linear(4, 4),
            "h": torch.jit.script(nn.Sequential(nn.LayerNorm(4))),
        }
    )
    report = bns.replace_norms(model, "rms")
    assert report.counts == {"LayerNorm": 1}
    assert list(report.left) == ["b", "c", "d", "h"]
    assert "b (ConditionedNorm, whose units are in an unknown dimension)" in str(report)
    assert isinstance(model["a"].linear, nn.Linear)


def _replaced(name):
    model = nn.Sequential(nn.LayerNorm(4))
    bns.replace_norms(model, name)
    return model


REFUSED = {
    "no norms": (lambda: nn.Linear(2, 2), "rms", "no norm module .* functions cannot be found"),
    "an unknown name": (lambda: nn.Sequential(nn.LayerNorm(4)), "rns", "unknown norm 'rns'"),
    "weights": (lambda: nn.Sequential(nn.LayerNorm(4)), "weight", "acts on the weights of layers"),
    "positions": (lambda: nn.Sequential(nn.LayerNorm(4)), "instance", "positions, and 0 acts on tokens"),
    "positions of a replaced norm": (lambda: _replaced("rms"), "instance", "positions, and 0.norm acts on tokens"),
    "lazy modules": (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)), "rms", "run it once on a batch"),
    "groups": (lambda: nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(6)), "group:4", "6 units do not divide"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_leaves_the_model_as_it_was(case):
    make, name, why = REFUSED[case]
    model = make()
    before = list(model.modules())
    with pytest.raises(InputError, match=why):
        bns.replace_norms(model, name)
    assert list(model.modules()) == before


def test_a_class_of_the_users_is_a_norm():
    class Halved(nn.Module):
        def __init__(self, num_features):
            super().__init__()
            self.units = num_features

        def forward(self, y):
            assert y.shape[1:] == (self.units,)
            return y / 2

    globals()["Halved"], Halved.__qualname__ = Halved, "Halved"
    model, x = nn.Sequential(nn.LayerNorm(4)), torch.randn(2, 3, 4)
    bns.replace_norms(model, Halved)
    assert torch.equal(model(x), x / 2)


def test_types_and_running_statistics_are_those_of_the_old_norm():
    model = nn.Sequential(nn.BatchNorm2d(3)).bfloat16()
    bns.replace_norms(model, "linf")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert math.isfinite(model(torch.randn(4, 3, 2, 2).bfloat16()).sum().item())
