"""The transformer against elementary operations, and every measurement on it against brute force in float64."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import reference
import torch
from brute_force import check_ics, check_line, check_smoothness
from helpers import NORMS, SMALL
from torch import nn
from torch.nn import functional as F

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, kinds, norms, problems
from bnsmooth_cli.config import resolve
from bnsmooth_cli.measures.theory import TOLERANCE
from bnsmooth_cli.networks.hooks import captured
from bnsmooth_cli.norms.state import prepare
from bnsmooth_cli.points.reaching import visit
from bnsmooth_cli.presets import PROBLEMS
from bnsmooth_cli.problems.gpt import TEST_WINDOWS
from bnsmooth_cli.storage.runs import read_checkpoint
from bnsmooth_cli.training.trajectory import Trajectory

#: Every norm that gpt takes.
EVERY = [
    name
    for name, norm in ((norm.example or norm.name, norm) for norm in norms.NORMS)
    if norm.over != "weights" and not norm.needs_positions
]
EVERY[EVERY.index("group:4")] = "group:2"
FEW = ["layer", "none", "batch", "rms", "dyt"]
thorough = pytest.mark.parametrize(
    "norm", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FEW)) for name in EVERY]
)
#: A text of few characters, so that all second derivatives can be computed.
TEXT = "the cat sat on the mat. a rat ate the hat.\n" * 20


@pytest.fixture(scope="session")
def run(tmp_path_factory, small_run):
    path = tmp_path_factory.mktemp("text") / "cats.txt"
    path.write_text(TEXT)
    return lambda norm, **settings: small_run("gpt", norm, data=str(path), **settings)


def built(**settings):
    return problems.build(resolve("gpt", **{**SMALL["gpt"], **settings}))


@pytest.mark.parametrize("norm", EVERY)
@pytest.mark.fast(6)
def test_the_network_is_that_of_elementary_operations(run, norm):
    point = bns.load_point(run(norm), step=3, dtype=torch.float64)
    assert {name for name, _ in point.model.named_children()} == {"tokens", "positions", "block1", "block2", "head"}
    modules = point.model.linear_maps()
    found = captured([*modules.values()], point.loss)
    copy = reference.feeding(point, "head")[0]
    logits, maps = reference.transformer(copy, point.inputs)
    assert [*maps] == [*modules]
    for (x, y), expected in zip(found, maps.values(), strict=True):
        torch.testing.assert_close(x, expected[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(y, expected[1], rtol=1e-10, atol=1e-12)
    loss = -logits.log_softmax(-1).gather(-1, point.targets[..., None]).mean()
    assert point.loss().item() == pytest.approx(loss.item(), rel=1e-12)
    right = [(logits[place].argmax() == point.targets[place]).item() for place in np.ndindex(*point.targets.shape)]
    assert float(point.problem.accuracy(logits, point.targets)) == pytest.approx(np.mean(right))


@pytest.mark.parametrize("norm", ["none", "layer", "rms", "dyt", "group:2"])
def test_no_logit_depends_on_a_later_character_nor_on_another_window(norm):
    model, windows = built(norm=norm).initial, torch.randint(60, (3, 8), generator=torch.Generator().manual_seed(0))
    later = windows.clone()
    later[1, 5] += 1
    a, b = model(windows), model(later)
    assert torch.equal(a[1, :5], b[1, :5])
    assert torch.equal(a[[0, 2]], b[[0, 2]])
    assert not torch.equal(a[1, 5:], b[1, 5:])


def test_norms_act_on_tokens():
    """layer and rms normalise each token, batch each unit over all tokens."""
    seen = []
    for name in ("layer", "rms", "batch"):
        problem = built(norm=name)
        model = problem.initial
        ((x, z),) = captured([model.block2.fc.norm], lambda model=model, problem=problem: model(problem.batch(0)[0]))
        assert x.shape == (4 * 8, 8)
        seen.append((x, z))
    torch.testing.assert_close(seen[0][1], F.layer_norm(seen[0][0], (8,)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[1][1], F.rms_norm(seen[1][0], (8,), eps=1e-5), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[2][1], F.batch_norm(seen[2][0], None, None, training=True), rtol=1e-4, atol=1e-5)


def test_the_initialisation_is_that_of_gpt2_and_a_function_of_the_seed_alone():
    problem = built(embedding=64, depth=8, context=64, norm="none")
    model = problem.initial
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
            continue
        deviation = 0.02 / math.sqrt(16) if "attn_out" in name or "mlp_out" in name else 0.02
        assert parameter.std().item() == pytest.approx(deviation, rel=0.05), name
        assert abs(parameter.mean().item()) < 0.1 * deviation, name
    with torch.random.fork_rng():
        torch.manual_seed(123)
        again = built(embedding=64, depth=8, context=64, norm="layer").initial
    for name, parameter in model.named_parameters():  # the norm draws nothing
        assert torch.equal(parameter, again.get_parameter(name)), name
    other = built(embedding=64, depth=8, context=64, norm="none", seed=1).initial
    assert not torch.equal(other.tokens.weight, model.tokens.weight)


@pytest.mark.slow
def test_a_batch_is_a_function_of_seed_and_step_and_has_windows_of_the_training_part():
    problem, again, other = built(), built(), built(seed=1)
    later = again.batch(7)
    assert not torch.equal(later[0], again.batch(6)[0])
    inputs, targets = problem.batch(7)
    assert torch.equal(inputs, later[0])
    assert torch.equal(targets, later[1])
    assert not torch.equal(inputs, other.batch(7)[0])
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    text = "".join(problem.text.characters[i] for i in problem.text.train)
    for window, after in zip(inputs, targets, strict=True):
        assert "".join(problem.text.characters[i] for i in [*window, after[-1]]) in text


def test_the_test_set_is_a_fixed_number_of_windows_spread_over_the_last_tenth():
    problem, other = built(context=64), built(context=64, seed=3)
    windows = [*problem.test_batches()]
    assert sum(len(inputs) for inputs, _ in windows) == problem.test_size == TEST_WINDOWS == 256
    assert all(torch.equal(a[0], b[0]) for a, b in zip(windows, other.test_batches(), strict=True))
    test = problem.text.test.long()
    assert torch.equal(windows[0][0][0], test[:64])
    assert torch.equal(windows[-1][1][-1], test[-64:])
    assert int(problem._places.diff().min()) > 64  # no two of them overlap


def test_evaluation_and_baseline_are_by_counting(run):
    problem = problems.build(run("layer").config)
    model, targets, right, losses = problem.initial, [], [], []
    model.eval()
    with torch.no_grad():
        for inputs, following in problem.test_batches():
            logits = model(inputs)
            targets += following.flatten().tolist()
            right += (logits.argmax(-1) == following).flatten().tolist()
            losses.append(F.cross_entropy(logits.movedim(-1, 1), following, reduction="none").flatten())
    loss, accuracy = problem.evaluate(problem.initial)
    assert accuracy == pytest.approx(np.mean(right))
    assert loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-6)
    assert problem.baseline() == {"accuracy": np.bincount(targets).max() / len(targets)}


@thorough
def test_the_line_is_the_brute_force_line(run, norm):
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-2)):
        for direction in ("gradient", "random"):
            point = bns.load_point(run(norm), step=3, dtype=dtype)
            check_line(point, tolerance, direction)


@thorough
@pytest.mark.fast(1)
def test_smoothness_is_the_brute_force_hessian_and_line(run, norm):
    check_smoothness(bns.load_point(run(norm), step=3, dtype=torch.float64))


@thorough
@pytest.mark.fast(2)
def test_a_hessian_product_is_that_of_a_plain_double_backward(run, norm):
    """Through attention, of which only the kernel of elementary operations has a second derivative."""
    point = bns.load_point(run(norm), step=3, dtype=torch.float64)
    gradient, hessian = reference.hessian(point)
    found, product = point.hessian()
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)
    v = torch.randn(len(gradient), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(product(v), hessian @ v, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(hessian, hessian.T, rtol=1e-8, atol=1e-10)


def test_the_smoothness_of_a_layer_is_that_of_its_own_block_of_the_hessian(run):
    point = bns.load_point(run("layer"), step=3, dtype=torch.float64)
    rows = bns.smoothness_by_layer(point).set_index("layer_name")
    assert [*rows.index] == [name for name, _ in point.layers]
    gradient, hessian = reference.hessian(point)
    places, start = {}, 0
    for name, parameter in point.model.named_parameters():
        places[name] = torch.arange(start, start := start + parameter.numel())
    for name, parameters in point.layers:
        where = torch.cat([places[parameter] for parameter in parameters])
        g, h = gradient[where], hessian[where][:, where]
        assert rows.loc[name, "grad_norm"] == pytest.approx(float(g.norm()), rel=1e-8)
        assert rows.loc[name, "curvature"] == pytest.approx(float(g @ h @ g / (g @ g)), rel=1e-6)


def plain_loop(config, steps):
    """The network and torch's AdamW after some steps of a plain loop, with the settings that the preset states."""
    problem = problems.build(config)
    model = problem.build()
    matrices = [p for p in model.parameters() if p.dim() > 1]  # all weights; norms have vectors
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99))
    for step in range(steps):
        prepare(model.modules(), config.seed, step, update_statistics=True)
        inputs, targets = problem.batch(step)
        optimiser.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        take_step(config, model, optimiser, step)
    return model, optimiser


def take_step(config, model, optimiser, step):
    """Clip the gradient, and step with the learning rate of warm-up and cosine."""
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    passed = (step - config.warmup) / (config.steps - config.warmup)
    factor = (step + 1) / config.warmup if step < config.warmup else (1 + math.cos(math.pi * passed)) / 2
    for group in optimiser.param_groups:
        group["lr"] = config.lr * factor
    optimiser.step()


@pytest.mark.parametrize("norm", FEW)
def test_training_is_a_plain_loop_with_adamw_warm_up_cosine_and_clipping(run, norm):
    whole = run(norm)
    model, _ = plain_loop(whole.config, 6)
    for name, value in bns.load_point(whole, step=6).model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-5, atol=1e-7, msg=name)


@thorough
def test_ics_is_definition_2_1_with_the_step_of_adamw(run, norm):
    whole = run(norm)
    point = bns.load_point(whole, step=3, dtype=torch.float64)
    before, optimiser = plain_loop(whole.config, 3)
    model = reference.double_copy(point)
    groups = [{**group, "params": []} for group in optimiser.param_groups]
    for p in model.parameters():
        groups[p.dim() <= 1]["params"].append(p)
    double = torch.optim.AdamW(groups)
    for p, q in zip(before.parameters(), model.parameters(), strict=True):
        state = optimiser.state[p]
        double.state[q] = {"step": state["step"].clone(), **{k: state[k].double() for k in ("exp_avg", "exp_avg_sq")}}
    reference.gradient(point, model)
    take_step(whole.config, model, double, 3)
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    check_ics(point, 1e-6, after=after)


def test_a_norm_belongs_to_the_layer_that_it_feeds_and_layers_have_one_number_for_all_norms(run):
    layers = {norm: bns.load_point(run(norm), step=0).layers for norm in ("none", "layer", "dyt")}
    names = ["tokens", "positions"]
    names += [f"block{i}.{part}" for i in (1, 2) for part in ("qkv", "attn_out", "fc", "mlp_out")] + ["head"]
    for norm, found in layers.items():
        assert [name for name, _ in found] == names
        parameters = [parameter for _, own in found for parameter in own]
        assert parameters == [name for name, _ in bns.load_point(run(norm), step=0).model.named_parameters()]
    assert dict(layers["layer"])["block1.fc"][:2] == ["block1.fc.norm.weight", "block1.fc.norm.bias"]


@pytest.mark.parametrize("norm", EVERY)
@pytest.mark.fast(4)
def test_activations_are_those_of_the_linear_maps(run, norm):
    point = bns.load_point(run(norm), step=3, dtype=torch.float64)
    rows = bns.activations(point, ["block2.fc", "head"], [0, 3])
    assert [*rows["layer"].unique()] == [9, 11]
    for row in rows.to_dict("records"):
        values = reference.feeding(point, row["layer_name"])[3][:, row["unit"]]
        for column, expected in reference.moments(values).items():
            assert row[column] == pytest.approx(expected, rel=1e-7, abs=1e-9), column


def test_the_default_activations_are_the_inputs_to_the_non_linearities(small_run):
    point = bns.load_point(small_run("gpt", "layer", depth=4))
    names = [f"block{i}.fc" for i in (1, 2, 3, 4)]
    assert [*bns.activations(point)["layer_name"].unique()] == names
    assert PROBLEMS["gpt"].presets["quick"]["depth"] == 4


@pytest.mark.parametrize("norm", FEW)
@pytest.mark.parametrize("name", ["block1.qkv", "block1.fc", "head"])
@pytest.mark.slow
def test_both_sides_of_the_statements_agree_with_brute_force(run, norm, name):
    point = bns.load_point(run(norm), step=3)
    found = bns.theory(point, [name], [1]).set_index(["affine", "statement"])
    for affine in ("identity", "standard"):
        for statement, (left, right) in reference.statements(point, name, 1, affine).items():
            if (affine, statement) in found.index:
                row, scale = found.loc[(affine, statement)], max(abs(left), abs(right))
                assert row["lhs"] == pytest.approx(left, rel=1e-6, abs=1e-9 * scale), statement
                assert row["rhs"] == pytest.approx(right, rel=1e-6, abs=1e-9 * scale), statement


@thorough
@pytest.mark.fast(1)
def test_every_proved_statement_holds_in_every_layer(run, norm):
    rows = bns.theory(bns.load_point(run(norm), step=6), units=[0, 2])
    proved = rows[rows["statement"].isin(kinds.PROVED)]
    assert proved["layer_name"].nunique() == 9
    assert not proved["holds"].eq(False).any()
    proved = proved[proved["holds"].notna()]  # 4.5 states nothing where its condition is not met
    assert len(proved) > 150
    assert proved["residual"].abs().max() < TOLERANCE


def test_a_surface_has_the_losses_of_its_points(run):
    point = bns.load_point(run("layer"), step=3)
    rows = bns.surface(point, points=3)
    assert len(rows) == 9
    centre = rows[(rows["x"] == 0) & (rows["y"] == 0)]["loss"].item()
    assert centre == pytest.approx(point.loss().item(), rel=1e-6)
    assert rows["loss"].notna().all()


@pytest.mark.parametrize("norm", FEW)
def test_a_run_stopped_and_resumed_or_visited_has_the_same_bits(run, tmp_path, norm):
    whole = run(norm)

    class Stop(Exception):
        pass

    def stop(step, loss):
        if step >= 3:
            raise Stop

    values = {**whole.config.as_dict(), "output": tmp_path / "run", "device": "cpu"}
    values.pop("data_digest")
    with pytest.raises(Stop):
        bns.train(progress=stop, **values)
    again = bns.train(**values)
    rows, expected = (bns.read_table(one.train_path).drop(columns="run") for one in (again, whole))
    pd.testing.assert_frame_equal(rows, expected, check_exact=True)
    for step in (4, 6):
        ours, theirs = (read_checkpoint(one.checkpoints()[step])[1]["model"] for one in (again, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    trajectory = Trajectory(problems.build(whole.config))
    for point in visit(whole.source(), range(6), "cpu"):
        assert torch.equal(point.theta, torch.cat([p.detach().flatten() for p in trajectory.model.parameters()]))
        trajectory.advance()


@pytest.mark.parametrize("norm", FEW)
@pytest.mark.fast(2)
def test_measuring_leaves_the_point_bit_identical(run, norm):
    point = bns.load_point(run(norm), step=3)
    before = {name: value.clone() for name, value in point.model.state_dict().items()}
    generators = torch.get_rng_state()
    first = bns.smoothness(point)
    bns.landscape(point)
    bns.ics(point)
    bns.activations(point, probe=True)
    bns.theory(point, ["block1.qkv"], [0])
    bns.surface(point, points=3)
    assert first.equals(bns.smoothness(point))
    assert all(torch.equal(before[name], value) for name, value in point.model.state_dict().items())
    assert torch.equal(generators, torch.get_rng_state())
    assert point.model.training
    assert all(parameter.grad is None for parameter in point.model.parameters())


@pytest.mark.parametrize("problem", ["vgg", "dln"])
def test_dynamic_tanh_is_no_norm_of_a_chain(small_run, problem):
    point = bns.load_point(small_run(problem, "dyt"), step=3)
    for measure in (bns.activations, bns.theory):
        with pytest.raises(InputError, match="--norm dyt: its output is not an affine function"):
            measure(point)
    assert bns.smoothness(point)["sharpness"].notna().all()


@pytest.mark.slow
def test_the_same_commands_work_as_for_images(cli, tmp_path):
    settings = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in SMALL["gpt"].items())
    for norm in ("none", "layer"):
        assert cli(f"train -p gpt --norm {norm} {settings} -o runs/{norm}")[0] == 0
    for command in ("landscape", "smoothness", "ics", "activations"):
        status, _, err = cli(f"{command} runs/none runs/layer --at 0,6")
        assert (status, err) == (0, "")
        assert cli(f"plot runs/none/{command}.parquet runs/layer/{command}.parquet -o {command}.png")[0] == 0
    assert cli("theory runs/layer --at 6 --units 0")[0] == 0
    assert cli("plot runs/none/train.parquet runs/layer/train.parquet -o train.png")[0] == 0
    assert cli("smoothness runs/layer --at 6 --by-layer --objective test -o by.parquet")[0] == 0
    status, out, _ = cli("compare runs/none runs/layer")
    assert (status, "gpt" in out) == (0, True)
    assert "the paper's theory; its other claims are not about gpt" in out
    judged = bns.read_table(tmp_path / "compare.claims.parquet")
    assert sorted(judged["claim"].unique()) == [10, 11, 12, 13, 14]
    assert judged["part"][judged["part_verdict"] == "identity verified"].str.contains("4.3").any()
    status, out, _ = cli("list runs")
    assert (status, "layer" in out) == (0, True)


def test_the_preset_has_layer_unless_another_norm_is_given(cli, tmp_path):
    assert resolve("gpt").norm == "layer"
    assert resolve("gpt", norm="rms").name == "gpt-rms-lr0.01-seed0"
    assert {name: resolve(name).norm for name in ("vgg", "dln", "m:f")} == {
        "vgg": "batch",
        "dln": "batch",
        "m:f": "batch",
    }
    out = cli("train --help")[1]
    assert "gpt: layer" in " ".join(out.split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "instance"}, "--norm instance: takes statistics over the positions of images, and gpt has none"),
        ({"norm": "weight"}, "--norm weight: acts on the weights of the layer before it"),
        ({"norm": "group:3"}, "8 units do not divide into 3 groups"),
        ({"heads": 3}, "--heads 3: the 8 units of --embedding do not divide into as many heads"),
        ({"embedding": 10**4}, "--embedding 10000: give a whole number from 1 to 2048"),
        ({"embedding": 2048, "depth": 9}, "--embedding 2048: with depth 9 and a context of 8 that is .* at most"),
        ({"context": 10**6}, "--context 1000000: give a whole number from 1 to 4096"),
        ({"depth": 0}, "--depth 0"),
        ({"heads": 0}, "--heads 0"),
        ({"batch_size": 10**7}, "--batch-size 10000000: larger than the 1003846 windows of shakespeare"),
        ({"width": 0.5}, "--width: the problem gpt has no such setting"),
        ({"samples": 5}, "--samples: the problem gpt has no such setting"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(settings, message):
    with pytest.raises(InputError, match=message) as error:
        problems.build(resolve("gpt", **{**SMALL["gpt"], **settings})).initial  # noqa: B018
    assert "\n" not in str(error.value)


def test_a_text_with_too_many_characters_for_the_embedding_is_refused(tmp_path):
    (tmp_path / "t.txt").write_text("".join(map(chr, range(0x4E00, 0x4E00 + 20_000))) * 2)
    with pytest.raises(InputError, match=r"--embedding 2048: with the 20,000 characters of .* at most"):
        built(data=str(tmp_path / "t.txt"), embedding=2048, heads=1, depth=1)


def test_every_norm_of_the_batch_is_tested_here():
    assert set(NORMS) <= {*EVERY, "lp:3"}
    assert isinstance(built(norm="none").initial.head.norm, nn.Identity)
