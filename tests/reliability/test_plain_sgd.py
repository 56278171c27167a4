"""What runs of plain SGD compute and write stays as it was when bnsmooth knew no other optimiser, bit by bit.

The samples are of that version; they never change. The steps are compared with a loop of elementary operations, because
the bits of a step are those of its processor.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from attempts import done, run
from torch import Tensor, nn

import bnsmooth_cli as bns
from bnsmooth_cli import problems
from bnsmooth_cli.config import resolve
from bnsmooth_cli.networks.parameters import penalised, trainable
from bnsmooth_cli.norms.state import prepare, stateful
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import open_run, read_checkpoint

SAMPLES = Path(__file__).parent / "samples/plain-sgd"
#: Sample -> the command that trained it, what it measured, and the name that the run had without -o.
MADE_BY = {
    "dln": (
        "train --problem dln --norm batch --depth 2 --dimension 3 --samples 9 --lr 1e-4 --momentum 0.9 --save-every 2"
        " --steps 4 -o dln",
        " --measure landscape,smoothness,ics,activations,theory --every 2",
        "dln-batch-lr0.0001-depth2-dim3-samples9-steps4-momentum0.9-seed0",
    ),
    "vgg": (
        "train --problem vgg --norm l1 --width 0.02 --batch-size 4 --augment --weight-decay 1e-3 --momentum 0.9"
        " --save-every 2 --keep 2 --steps 4 -o vgg",
        " --measure landscape,smoothness --every 4",
        "vgg-l1-lr0.1-w0.02-augment-steps4-bs4-momentum0.9-wd0.001-seed0",
    ),
    "plain": (
        "train --problem vgg --norm none --width 0.02 --batch-size 4 --save-every 4 --keep 1 --steps 4 -o plain",
        "",
        "vgg-none-lr0.1-w0.02-steps4-bs4-seed0",
    ),
}
each = pytest.mark.parametrize("name", MADE_BY)


class PlainLoop:
    """Training by autograd and the three elementary operations of SGD, on a network of its own.

    The penalty is added to the gradients of the weights. On the linear network's fast path, all parameters are one
    vector, and its gradient that of the fast path.
    """

    def __init__(self, config: bns.config.Config) -> None:
        self.config, self.problem = config, problems.build(config)
        self.model = self.problem.build()
        self.parameters = trainable(self.model)
        self.velocity = [torch.zeros_like(p) for p in self.parameters.values()] if config.momentum else []
        self.losses: list[float] = []

    def load(self, content: dict) -> None:
        self.model.load_state_dict(content["model"])
        self.velocity = [v.clone() for v in content["velocity"]]

    def gradients(self, step: int) -> list[Tensor]:
        config, problem, parameters = self.config, self.problem, list(self.parameters.values())
        if (fast_path := problem.fast_path(torch.float32, problem.device)) is not None:
            passes = fast_path(torch.cat([p.detach().flatten() for p in parameters])[None])
            running = torch.cat([buffer.flatten() for buffer in self.model.buffers()])
            fast_path.follow(running, passes)
            nn.utils.vector_to_parameters(running, self.model.buffers())
            self.losses.append(passes.loss.item())
            pieces = passes.gradient[0].split([p.numel() for p in parameters])
            return [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]
        prepare(stateful(self.model), config.seed, step, update_statistics=True)
        inputs, targets = problem.batch(step)
        loss = problem.objective(self.model(inputs), targets)
        gradients = torch.autograd.grad(loss, parameters)
        weights, c = penalised(self.model) if config.weight_decay else [], config.weight_decay
        squares = sum(self.parameters[name].detach().double().square().sum().item() for name in weights)
        self.losses.append(loss.item() + c / 2 * squares)
        return [
            torch.add(slope, p.detach(), alpha=c) if name in weights else slope
            for (name, p), slope in zip(self.parameters.items(), gradients, strict=True)
        ]

    def step(self, step: int) -> None:
        moves = self.gradients(step)
        with torch.no_grad():
            if self.config.momentum:
                for v, g in zip(self.velocity, moves, strict=True):
                    v.mul_(self.config.momentum).add_(g)
                moves = self.velocity
            for p, move in zip(self.parameters.values(), moves, strict=True):
                p.add_(move, alpha=-self.config.lr)

    def assert_is(self, checkpoint: Path) -> None:
        _, content = read_checkpoint(checkpoint)
        assert list(content) == ["format", "run", "config", "step", "model", "velocity"]
        for name, value in self.model.state_dict().items():
            assert torch.equal(content["model"][name], value), name
        assert len(content["velocity"]) == len(self.velocity)
        assert all(map(torch.equal, content["velocity"], self.velocity))


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 0.01}], ids=str)
@pytest.mark.parametrize(
    ("problem", "norm"), [("vgg", "batch"), ("vgg", "noisy-none"), ("dln", "batch"), ("dln", "l1")]
)
@pytest.mark.fast(2)
def test_a_run_of_plain_sgd_has_the_bits_of_a_loop_of_elementary_operations(small_run, problem, norm, settings):
    trained = small_run(problem, norm, **settings)
    loop = PlainLoop(trained.config)
    for step in range(trained.config.steps + 1):
        if step in trained.checkpoints():
            loop.assert_is(trained.checkpoint_path(step))
        loop.step(step)
    assert bns.read_table(trained.train_path)["loss"].tolist() == pytest.approx(loop.losses, rel=1e-6)


def test_adding_what_plain_sgd_leaves_at_its_default_changes_no_file_of_its_runs():
    settings = resolve("vgg").as_dict()
    assert {*settings} == {
        "problem", "norm", "lr", "steps", "batch_size", "momentum", "seed", "save_every", "data", "augment", "depth",
        "width", "eval_every",
    }  # fmt: skip


# The samples


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAMPLES, tmp_path / "samples"))


@each
def test_the_configuration_of_a_sample_is_what_its_command_means_today(name, samples):
    config = open_run(samples / name).config
    line, _, usual = MADE_BY[name]
    done(line.replace(f"-o {name}", "-o again"), samples)
    made, before = (json.loads((samples / folder / "config.json").read_text()) for folder in ("again", name))
    whole = made["config"].get("data_digest", "")
    known_then = {"data_digest": whole.partition(".")[0]} if whole else {}  # of the training images alone
    assert [*(made["config"] | known_then).items()] == [*before["config"].items()]
    assert made["format"] == before["format"]
    assert config.name == usual
    table = pq.read_table(samples / name / "train.parquet").to_pandas()
    assert {*table["settings"]} == {config.settings_text}
    rows, expected = bns.read_table(samples / "again/train.parquet"), bns.read_table(samples / name / "train.parquet")
    same = rows.attrs["bnsmooth"]["stretches"] == expected.attrs["bnsmooth"]["stretches"]
    rows["settings"] = rows["settings"].str.replace(whole, known_then.get("data_digest", ""))
    known = [column for column in table if column != "run"]
    pd.testing.assert_frame_equal(rows[known], expected[known], check_exact=same, rtol=1e-3)


@pytest.mark.parametrize("path", sorted(SAMPLES.rglob("*.parquet")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_samples_table_is_read_with_its_numbers_and_nulls_in_what_was_added(path):
    raw, rows = pq.read_table(path).to_pandas(), tables.read_table(path)
    for column in raw:
        pd.testing.assert_series_equal(rows[column], raw[column], check_dtype=False, check_exact=True)
    assert rows[[column for column in rows if column not in raw]].isna().all().all()


@each
@pytest.mark.slow
def test_a_sample_is_shown_listed_plotted_and_finished(name, samples):
    before = {path: path.read_bytes() for path in samples.rglob("*") if path.is_file()}
    for path in sorted((samples / name).glob("*.parquet")):
        done(f"show {path}", samples)
        done(f"plot {path} -o {name}-{path.stem}.png", samples)
    assert "finished" in done(f"list {name}", samples).out
    assert "finished at step 4" in repr(open_run(samples / name))
    done(MADE_BY[name][0], samples)  # complete: nothing is trained again
    assert {path: path.read_bytes() for path in before} == before


@each
def test_a_sample_is_resumed_with_the_bits_of_plain_sgd(name, samples):
    here = samples / name
    loop = PlainLoop(open_run(here).config)
    loop.load(read_checkpoint(here / "checkpoints/000004.pt")[1])
    loop.step(4)
    loop.step(5)
    first = bns.read_table(here / "train.parquet")
    done(MADE_BY[name][0].replace("--steps 4", "--steps 6"), samples)
    loop.assert_is(here / "checkpoints/000006.pt")
    rows = bns.read_table(here / "train.parquet")
    assert rows["loss"][4:6].tolist() == pytest.approx(loop.losses, rel=1e-6)
    pd.testing.assert_frame_equal(rows[["step", "loss", "grad_norm"]][:4], first[["step", "loss", "grad_norm"]][:4])


@each
def test_the_points_of_a_sample_are_reached_with_its_bits(name, samples):
    here = samples / name
    steps = [*open_run(here).checkpoints()]
    for step in steps:
        point, (_, content) = bns.load_point(here, step), read_checkpoint(here / f"checkpoints/{step:06d}.pt")
        assert all(torch.equal(content["model"][key], value) for key, value in point.model.state_dict().items())
        assert len(point.velocity) == len(content["velocity"])
        assert all(map(torch.equal, content["velocity"], point.velocity))


def test_the_tables_of_a_sample_are_continued(samples):
    done("ics dln --at 0,1,2,3,4", samples)
    assert sorted({*bns.read_table(samples / "dln/ics.parquet")["step"]}) == [0, 1, 2, 3, 4]
    before = bns.read_table(SAMPLES / "dln/ics.parquet")
    after = bns.read_table(samples / "dln/ics.parquet")
    known = pq.read_schema(SAMPLES / "dln/ics.parquet").names
    kept = after[after["step"].isin([0, 2, 4])][known].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before[known], check_exact=True)


def test_a_sample_and_a_run_of_today_are_compared_without_a_word_about_settings(samples):
    done("train --problem dln --norm none --depth 2 --dimension 3 --samples 9 --lr 1e-4 --momentum 0.9 --steps 4"
         " -o other", samples)  # fmt: skip
    ended = run("compare dln other -o both.parquet", samples)
    assert (ended.code, ended.err) == (0, "")
    assert len({*bns.read_table(samples / "both.parquet")["settings"]}) == 1
