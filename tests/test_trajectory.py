"""A run is a pure function of its configuration: stopping, resuming and revisiting give the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import NORMS, SMALL

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, problems
from bnsmooth_cli.config import from_dict, resolve
from bnsmooth_cli.errors import Remark
from bnsmooth_cli.norms.state import prepare
from bnsmooth_cli.points.reaching import open_problem, structure_of, visit
from bnsmooth_cli.presets import INPUTS
from bnsmooth_cli.problems.custom import CustomProblem
from bnsmooth_cli.problems.linear import DeepLinear
from bnsmooth_cli.problems.vgg import Vgg, crop_and_flip
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import open_run, read_checkpoint
from bnsmooth_cli.storage.stretches import is_stretches
from bnsmooth_cli.training.trajectory import Trajectory

EXTRA = {"vgg": {"momentum": 0.9, "augment": True}, "dln": {"momentum": 0.9}}
each = pytest.mark.parametrize(("problem", "norm"), [(p, n) for p in ("vgg", "dln") for n in NORMS])


def same_state(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_temporary_files_of_a_killed_process_are_removed_by_the_next_run(tmp_path):
    run = bns.train("dln", "none", output=tmp_path / "run", device="cpu", **SMALL["dln"])
    left = [run.path / "checkpoints/.000007.abcd_123.tmp.pt", run.path / ".train.abcd_123.tmp.parquet"]
    for path in left:
        path.write_bytes(b"half")
    bns.train("dln", "none", output=tmp_path / "run", device="cpu", **{**SMALL["dln"], "steps": run.config.steps + 1})
    assert not [path for path in left if path.exists()]


@each
@pytest.mark.fast(2)
def test_a_run_stopped_anywhere_and_resumed_is_bit_identical(small_run, tmp_path, problem, norm):
    whole = small_run(problem, norm, **EXTRA[problem])
    settings = {**SMALL[problem], **EXTRA[problem]}

    class Stop(Exception):
        pass

    def stop_at(limit):
        def progress(step, loss):
            if step >= limit:
                raise Stop

        return progress

    for limit in (2, 4):
        with pytest.raises(Stop):
            bns.train(problem, norm, output=tmp_path / "run", device="cpu", progress=stop_at(limit), **settings)
    part = bns.train(problem, norm, output=tmp_path / "run", device="cpu", **settings)
    for step, path in whole.checkpoints().items():
        _, mine = read_checkpoint(part.checkpoint_path(step))
        _, theirs = read_checkpoint(path)
        same_state(mine["model"], theirs["model"])
        assert all(torch.equal(a, b) for a, b in zip(mine["velocity"], theirs["velocity"], strict=True))
    rows, expected = (bns.read_table(run.train_path).drop(columns="run") for run in (part, whole))
    pd.testing.assert_frame_equal(rows, expected, check_exact=True)


@each
@pytest.mark.fast(5)
def test_a_step_visited_from_any_checkpoint_is_bit_identical(small_run, problem, norm):
    run = small_run(problem, norm, **EXTRA[problem])
    trajectory = Trajectory(problems.build(run.config))
    states = {}
    for step in range(run.config.steps + 1):
        states[step] = {name: value.clone() for name, value in trajectory.model.state_dict().items()}
        trajectory.advance()
    for checkpoint in run.checkpoints().values():
        source = read_checkpoint(checkpoint)[0]
        for point in visit(source, range(min(source.checkpoints), run.config.steps + 1), "cpu"):
            same_state(point.model.state_dict(), states[point.step])
    jumps = [point.step for point in visit(run.source(), [5, 0, 3], "cpu")]
    assert jumps == [0, 3, 5]
    for point in visit(run.source(), [1, 5], "cpu"):
        same_state(point.model.state_dict(), states[point.step])


@pytest.mark.parametrize("problem", ["vgg", "dln", "own_code:residual"])
def test_training_and_visiting_build_one_network_each(tmp_path, monkeypatch, problem):
    built = []

    def recorded(network, problem):
        model = network(problem)
        if next(model.parameters()).device.type != "meta":  # an outline, which takes no memory
            built.append(problem)
        return model

    for kind in (Vgg, DeepLinear, CustomProblem):
        network = kind.network
        monkeypatch.setattr(kind, "network", lambda self, network=network: recorded(network, self))
    settings = SMALL.get(problem, {"steps": 6, "save_every": 2, "batch_size": 8})
    run = bns.train(problem, "batch", output=tmp_path / "run", device="cpu", **settings)
    assert len(built) == 1
    opened = open_problem(run.source(), "cpu")
    assert structure_of(opened).layers
    assert [point.step for point in visit(run.source(), [0, 5], "cpu", opened)] == [0, 5]
    assert built[1:] == [opened]


def test_more_steps_continue_a_run(small_run, tmp_path):
    long = small_run("dln", "batch")
    settings = {**SMALL["dln"], "steps": 4}
    bns.train("dln", "batch", output=tmp_path / "run", **settings)
    grown = bns.train("dln", "batch", output=tmp_path / "run", **SMALL["dln"])
    rows, expected = (bns.read_table(run.train_path).drop(columns="run") for run in (grown, long))
    pd.testing.assert_frame_equal(rows, expected, check_exact=True)
    with pytest.raises(InputError, match="--steps 6"):
        bns.train("dln", "batch", output=tmp_path / "run", **settings)


def test_a_run_is_resumed_with_other_intervals_and_keeps_its_rows(small_run, tmp_path, monkeypatch):
    whole = small_run("vgg", "batch")
    settings = {**SMALL["vgg"], "output": tmp_path / "run", "device": "cpu"}
    with pytest.raises(ZeroDivisionError):
        bns.train("vgg", "batch", **settings, progress=lambda step, loss: 1 // (4 - step))
    run = bns.train("vgg", "batch", **{**settings, "save_every": 3, "eval_every": 5})
    assert sorted(run.checkpoints()) == [0, 2, 3, 6]
    assert (run.config.save_every, run.config.eval_every) == (3, 5)
    assert open_run(run.path).config == run.config
    rows, expected = (bns.read_table(r.train_path).drop(columns="run") for r in (run, whole))
    trained = rows.columns.difference(["test_loss", "test_accuracy"])
    pd.testing.assert_frame_equal(rows[trained], expected[trained], check_exact=True)
    assert rows.loc[rows["test_loss"].notna(), "step"].tolist() == [0, 5, 6]


def stretches(run):
    return bns.read_table(run.train_path).attrs["bnsmooth"]["stretches"]


def test_a_run_that_is_resumed_on_another_machine_says_so_once_and_its_table_tells(tmp_path, monkeypatch):
    settings = {**SMALL["dln"], "output": tmp_path / "run", "device": "cpu"}
    run = bns.train("dln", "batch", **{**settings, "steps": 3})
    (whole,) = stretches(run)
    assert whole == {
        "first": 0, "last": 3, "version": bns.__version__, "torch": torch.__version__, "threads": 1,
        "device": whole["device"],
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bns.train("dln", "batch", **{**settings, "steps": 4})
    assert stretches(run) == [{**whole, "last": 4}]
    torch.set_num_threads(2)
    try:
        with pytest.warns(Remark, match=r"resumed at step 4 by another .* \(1 thread, now 2 threads\)") as said:
            bns.train("dln", "batch", **{**settings, "steps": 6})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bns.train("dln", "batch", **{**settings, "steps": 8})
    finally:
        torch.set_num_threads(1)
    assert len(said) == 1
    assert stretches(run) == [{**whole, "last": 3}, {**whole, "first": 4, "last": 8, "threads": 2}]


def test_a_run_of_an_earlier_version_is_resumed_with_what_its_table_tells(tmp_path):
    settings = {**SMALL["dln"], "output": tmp_path / "run", "device": "cpu"}
    run = bns.train("dln", "batch", **{**settings, "steps": 4})
    rows = bns.read_table(run.train_path)
    provenance = {**rows.attrs["bnsmooth"], "version": "0.0", "torch": "1.9"}
    here = provenance.pop("stretches")[0]
    tables.write_table(run.train_path, "train", [rows], provenance)
    with pytest.warns(Remark, match=f"bnsmooth 0.0, now bnsmooth {bns.__version__}; torch 1.9, now torch "):
        bns.train("dln", "batch", **settings)
    assert stretches(run) == [
        {"first": 0, "last": 3, "version": "0.0", "torch": "1.9"}, {**here, "first": 4, "last": 6}
    ]  # fmt: skip


STRANGE = [
    None, 3, "x", {}, [], [3], [{}], [{"first": 0}], [{"first": 2, "last": 1}], [{"first": -1, "last": 2}],
    [{"first": 0.0, "last": 2}], [{"first": 0, "last": 10**30, "torch": [1]}], [{"first": 0, "last": 2, "torch": None}],
    [{"first": 0, "last": 10**30}, {"first": 0, "last": 0, "threads": "many", "\x1b": "\ud800"}],
    {"run": [{"first": 0}]},
]  # fmt: skip


@pytest.mark.parametrize("strange", STRANGE, ids=str)
@pytest.mark.filterwarnings("ignore::bnsmooth_cli.errors.Remark")
@pytest.mark.fast(4)
def test_strange_stretches_in_a_table_do_not_stop_a_run(tmp_path, strange):
    settings = {**SMALL["dln"], "output": tmp_path / "run", "device": "cpu"}
    run = bns.train("dln", "batch", **{**settings, "steps": 4})
    rows = bns.read_table(run.train_path)
    (here,) = stretches(run)
    tables.write_table(run.train_path, "train", [rows], {**rows.attrs["bnsmooth"], "stretches": strange})
    bns.train("dln", "batch", **settings)
    assert stretches(run)[-1] == {**here, "first": 4, "last": 6}
    assert is_stretches(stretches(run))


def test_a_run_that_has_ended_is_returned_with_its_own_intervals_and_a_remark(tmp_path):
    settings = {**SMALL["vgg"], "output": tmp_path / "run", "device": "cpu"}
    bns.train("vgg", "batch", **settings)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.p*")}
    with pytest.warns(
        Remark, match=r"run: has ended, and is not trained again for other settings \(eval_every 6, now 1\)"
    ):
        again = bns.train("vgg", "batch", **{**settings, "eval_every": 1})
    assert again.config.eval_every == 6
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.p*")} == before


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("problem", "norm", "settings"),
    [
        ("vgg", "batch", {}),
        *(("dln", norm, {}) for norm in NORMS),
        *(("dln", norm, {"last_norm": False}) for norm in ("none", "batch", "l1")),
    ],
)
def test_a_step_is_torchs_sgd_on_torchs_gradient(problem, norm, settings, momentum):
    config = resolve(problem, norm=norm, momentum=momentum, **SMALL[problem], **settings)
    built = problems.build(config)
    trajectory, model = Trajectory(built), built.build()
    optimiser = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=momentum)
    for step in range(3):
        inputs, targets = built.batch(step)
        prepare(model.modules(), config.seed, step, update_statistics=True)
        optimiser.zero_grad()
        built.objective(model(inputs), targets).backward()
        optimiser.step()
        trajectory.advance()
    if problem == "vgg":
        same_state(trajectory.model.state_dict(), model.state_dict())
    else:  # by another way: equal to rounding, running statistics included
        mine = trajectory.model.state_dict()
        assert mine.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(mine[name], value, rtol=2e-5, atol=2e-6, msg=name)


def test_batches_depend_on_seed_and_step_and_an_epoch_has_each_sample_once():
    built = problems.build(resolve("dln", samples=10, batch_size=3))
    epoch = torch.cat([built.indices(step) for step in range(3)])
    assert len(epoch.unique()) == 9  # the incomplete fourth batch is left out
    assert not torch.equal(epoch, torch.cat([built.indices(step) for step in range(3, 6)]))
    other = problems.build(resolve("dln", samples=10, batch_size=3, seed=1))
    assert not torch.equal(epoch, torch.cat([other.indices(step) for step in range(3)]))


def test_augmentation_is_a_padded_crop_and_half_the_time_a_mirror_image():
    image = torch.randint(1, 256, (1, 3, 32, 32), dtype=torch.uint8)
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))[0]
    crops = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    candidates = torch.stack([c for crop in crops for c in (crop, crop.flip(2))])
    found = crop_and_flip(image.expand(300, -1, -1, -1), torch.Generator().manual_seed(0))
    which = [int((candidates == one).flatten(1).all(1).nonzero()[0]) for one in found]
    assert len(set(which)) > 120
    assert 100 < sum(i % 2 for i in which) < 200


@pytest.mark.slow
def test_networks_of_one_seed_start_from_the_same_weights_whatever_the_norm(small_run):
    first = [bns.load_point(small_run("vgg", norm), step=0).model.layers["conv1"].linear.weight for norm in NORMS]
    assert all(torch.equal(first[0], other) for other in first)


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_has_its_depth_and_the_papers_norm_placement(depth):
    model = problems.build(resolve("vgg", norm="batch", depth=depth, width=0.05)).build()
    assert len(model.layers) == depth
    normed = [any(p.startswith("norm.") for p, _ in layer.named_parameters()) for layer in model.layers.values()]
    assert normed == [True] * (depth - 1) + [False]
    if depth == 16:
        paper = problems.build(resolve("vgg", "paper", norm="batch", data="shapes", width=0.125)).build()
        assert len(paper.layers) == depth
        assert paper.layers["conv13"].linear.weight.shape == (64, 64, 3, 3)
        assert paper.layers["fc2"].linear.weight.shape == (512, 512)


@pytest.mark.parametrize(("classifier", "shapes"), [
    ("none", [(10, 32)]), ("512,512", [(32, 32), (32, 32), (10, 32)]), (" 64, 1", [(4, 32), (1, 4), (10, 1)]),
])  # fmt: skip
def test_the_classifier_has_the_widths_that_are_named(classifier, shapes):
    model = problems.build(resolve("vgg", width=0.0625, classifier=classifier)).build()
    linear = {name: layer.linear for name, layer in model.layers.items() if name.startswith("fc")}
    assert list(linear) == [f"fc{i + 1}" for i in range(len(shapes))]
    assert [tuple(layer.weight.shape) for layer in linear.values()] == shapes


def test_the_same_classifier_spelled_otherwise_is_the_same_configuration():
    assert resolve("vgg", classifier=" 64, 01") == resolve("vgg", classifier="64,1")
    assert "classifier" not in resolve("vgg", classifier="512, 512").as_dict()  # the default


@pytest.mark.parametrize("classifier", ["", "0", "12,", "1.5", "-3", "many", "512;512", "10000", "1," * 2000 + "1"])
def test_a_classifier_of_another_kind_is_refused(classifier):
    with pytest.raises(InputError, match=r"--classifier .{0,60}: give the widths of the hidden linear layers"):
        resolve("vgg", classifier=classifier)


def test_inputs_are_standardised_or_only_centred():
    standard, centred = (problems.build(resolve("vgg", inputs=inputs, batch_size=2000)) for inputs in INPUTS)
    pixels = standard.images.train.double().movedim(1, 0).flatten(1)
    mean, std = pixels.mean(1), pixels.std(1, unbiased=False)
    chosen = standard.images.train[standard.indices(0)].double()
    unit = (1, -1, 1, 1)
    expected = {"standard": (chosen - mean.view(unit)) / std.view(unit), "centred": chosen - mean.view(unit)}
    for problem in (standard, centred):
        images = problem.batch(0)[0].double()
        torch.testing.assert_close(images, expected[problem.settings.inputs], rtol=1e-4, atol=1e-4)
        tests = next(problem.test_batches())[0]
        assert tests.std() == pytest.approx(images.std().item(), rel=0.1)
    with pytest.raises(InputError, match="--inputs raw: give standard or centred"):
        resolve("vgg", inputs="raw")


def test_the_linear_network_has_the_papers_shape():
    model = problems.build(resolve("dln", "paper", norm="l1")).build()
    shapes = {tuple(layer.linear.weight.shape) for layer in model.layers.values()}
    assert (len(model.layers), shapes) == (25, {(10, 10)})
    assert all(layer.linear.bias is None for layer in model.layers.values())
    assert all(layer.norm.num_features == 10 for layer in list(model.layers.values())[:24])


def test_the_matrix_of_the_linear_network_is_normal_or_uniform():
    for matrix, mean, std in (("normal", 0.0, 1.0), ("uniform", 0.5, 12**-0.5)):
        built = problems.build(resolve("dln", dimension=100, samples=200, matrix=matrix))
        inputs, targets = (values.double() for values in built.batch(0))
        entries = torch.linalg.lstsq(inputs, targets).solution
        assert entries.mean().item() == pytest.approx(mean, abs=0.05)
        assert entries.std().item() == pytest.approx(std, rel=0.05)
    with pytest.raises(InputError, match="--matrix half: give normal or uniform"):
        resolve("dln", matrix="half")


@pytest.mark.parametrize(("problem", "last"), [("vgg", False), ("dln", True)])
def test_the_norm_follows_the_last_layer_only_where_it_is_asked_for(problem, last):
    for chosen in (last, not last, None):
        config = resolve(problem, norm="batch", last_norm=chosen, **SMALL[problem])
        model = problems.build(config).build()
        normed = [any(name.startswith("norm.") for name, _ in m.named_parameters()) for m in model.layers.values()]
        assert normed == [True] * (len(normed) - 1) + [last if chosen is None else chosen]
        assert ("last_norm" in config.as_dict()) == (chosen is (not last))  # files keep their bytes
        assert from_dict(config.as_dict(), "config.json") == config
    assert resolve(problem, "paper").settings.last_norm is not last


def test_a_diverged_run_is_finished_and_keeps_its_rows(tmp_path):
    settings = {**SMALL["dln"], "lr": 10.0, "steps": 60}
    run = bns.train("dln", "none", output=tmp_path / "run", **settings)
    rows = bns.read_table(run.train_path)
    assert run.outcome()["diverged_at"] == rows["step"].iloc[-1] < 60
    assert not np.isfinite(rows["loss"].iloc[-1])
    assert np.isfinite(rows["loss"].iloc[:-1]).all()
    stamp = run.train_path.stat().st_mtime_ns
    assert bns.train("dln", "none", output=tmp_path / "run", **settings).outcome() is not None
    assert run.train_path.stat().st_mtime_ns == stamp  # found, not trained again


@pytest.mark.slow
def test_an_interrupted_run_can_be_resumed(tmp_path):
    command = [sys.executable, "-m", "bnsmooth_cli", "train", "-p", "dln", "--norm", "batch", "--seed", "3"]
    command += ["--steps", "3000", "--save-every", "50", "--depth", "6", "--threads", "1", "-o", "run"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, as the tests themselves may be, hands an ignored SIGINT on to its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/checkpoints/000100.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert "bnsmooth: stopped; run keeps step" in process.communicate()[1]
    assert process.returncode == 130
    assert open_run(tmp_path / "run").outcome() is None
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    whole = bns.train(
        "dln", "batch", seed=3, steps=3000, save_every=50, depth=6, output=tmp_path / "whole", device="cpu"
    )
    rows, expected = (bns.read_table(tmp_path / n / "train.parquet").drop(columns="run") for n in ("run", "whole"))
    assert len(rows) == len(expected) == 3001
    pd.testing.assert_frame_equal(rows, expected, check_exact=True)
    assert whole.outcome() is not None
