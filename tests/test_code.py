"""The user's own code on the command line: it is named, run or refused in one line, and a file never runs it."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import reference
import torch
from brute_force import check_ics, check_line, check_smoothness
from helpers import SMALL
from torch import nn

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, norms
from bnsmooth_cli import user_code as code
from bnsmooth_cli.norms.batch import EPSILON
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import open_run

ROOT = Path(__file__).parents[1]
VGG = "-p vgg --width 0.07 --batch-size 16 --lr 0.05 --steps 4 --save-every 2 --eval-every 4 --threads 1"
DLN = "-p dln --depth 3 --dimension 4 --samples 30 --lr 1e-4 --steps 4 --save-every 2 --threads 1"
OWN = "--batch-size 8 --lr 0.05 --steps 4 --save-every 2 --eval-every 4 --threads 1"


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    """As a new process has it: nothing named, no module of an earlier test."""
    monkeypatch.setattr(code, "_allowed", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent.name.startswith("test_"):
            del sys.modules[name]


@pytest.fixture
def here(tmp_path):
    """The folder of the command, with the documentation's norm and the tests' problems in it."""
    shutil.copy(ROOT / "docs/examples/dyt.py", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "run"),
    [
        (VGG, "vgg-dyt.DyT-lr0.05-w0.07-steps4-bs16-seed0"),
        (DLN, "dln-dyt.DyT-lr0.0001-depth3-dim4-samples30-steps4-seed0"),
    ],
)
@pytest.mark.slow
def test_a_users_norm_works_in_every_command_that_takes_it(cli, here, settings, run):
    for kind, more in (
        ("train", ""), ("landscape", "--points 2"), ("smoothness", "--points 2"), ("ics", ""),
        ("surface", "--points 3"), ("smoothness", "--by-layer --points 1 --layers 1,2"),
    ):  # fmt: skip
        out = cli(f"{kind} --norm dyt:DyT {settings} {more}")
        assert (out[0], out[2]) == (0, ""), (kind, out)
    for kind in ("activations", "theory"):  # of the norm's output: tanh is no norm
        status, _, err = cli(f"{kind} --norm dyt:DyT {settings}")
        assert (status, err.startswith("bnsmooth: --norm dyt:DyT: its output is not an affine function")) == (2, True)
    for kind in ("landscape", "smoothness", "ics", "surface", "smoothness-by-layer"):
        assert set(bns.read_table(here / f"runs/{run}/{kind}.parquet")["norm"]) == {"dyt:DyT"}
        assert cli(f"plot runs/{run}/{kind}.parquet -o {kind}.png")[0] == 0
    assert cli(f"train --norm none {settings}")[0] == 0
    code, out, err = cli(f"compare runs/{run} runs/{run.replace('dyt.DyT', 'none')}")
    assert (code, err) == (0, "")
    assert "dyt:DyT" in out


@pytest.mark.slow
def test_a_users_norm_works_in_worker_processes(cli, here):
    line = f"compare --norms none,dyt:DyT {DLN.replace('--lr', '--lrs')} --measure smoothness --jobs 2 -o study"
    assert cli(line)[::2] == (0, "")
    assert set(bns.read_table(here / "study/compare.parquet")["norm"]) == {"none", "dyt:DyT"}
    (here / "study.toml").write_text('norms = ["none", "dyt:DyT"]\nproblem = "dln"\ndepth = 3\nsteps = 2\n')
    code._allowed.clear()
    status, _, err = cli("compare --study study.toml -o other")
    assert (status, "study.toml" in err, "if you trust it, give --norm dyt:DyT" in err) == (2, True, True)
    assert cli("compare --study study.toml --norms none,dyt:DyT --dry-run -o other")[0] == 0


@pytest.mark.parametrize("problem", ["residual", "transformer", "regression"])
@pytest.mark.fast(1)
def test_a_users_problem_works_in_every_command(cli, here, problem):
    run = f"own_code.{problem}-none-lr0.05-steps4-bs8-seed0"
    for kind, more in (
        ("train", ""), ("landscape", "--objective test --points 2"), ("smoothness", "--objective train:2 --points 2"),
        ("ics", ""), ("activations", ""), ("theory", "--units 0"), ("surface", "--dimensions 1 --points 3"),
    ):  # fmt: skip
        out = cli(f"{kind} -p own_code:{problem} --norm none {OWN} {more}")
        assert (out[0], out[2]) == (0, ""), (kind, out)
    names = {path.name for path in (here / "runs" / run).glob("*.parquet")}
    assert {"landscape.test.parquet", "smoothness.train2.parquet"} <= names
    out = cli(f"surface runs/{run} -p own_code:{problem} --directions pca --at 3 --points 3 -o pca.parquet")
    assert (out[0], out[2]) == (0, "")
    assert bns.read_table("pca.parquet")["path_step"].dropna().tolist() == [0, 2, 4]
    assert cli("plot pca.parquet -o pca.svg")[0] == 0
    assert cli(f"compare runs/{run}")[0] == 0


MODULE = """
import torch, random
from torch import nn
from torch.nn import functional as F
class NoUnits(nn.Module):
    def __init__(self): super().__init__()
class Broken(nn.Identity):
    def forward(self, y): return y.nope()
class Random(nn.Identity):
    def forward(self, y): return y * torch.rand(())
class Counts(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
    def forward(self, y):
        self.calls += 1
        return y
class Thing:
    def __init__(self, n): pass
number = 3
x, y, t = torch.randn(12, 3), torch.randn(12), torch.zeros(12, dtype=torch.long)
def mlp(out=2): return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, out))
def misfit(norm): return mlp(1), F.cross_entropy, (x, y)
def vector(norm): return mlp(), lambda o, t: F.cross_entropy(o, t, reduction="none"), (x, t)
def text(norm): return mlp(), lambda o, t: "loss", (x, t)
def detached(norm): return mlp(), lambda o, t: F.cross_entropy(o.detach(), t), (x, t)
def dropout(norm): return nn.Sequential(mlp(), nn.Dropout(0.5)), F.cross_entropy, (x, t)
def pair(norm): return mlp(), F.cross_entropy
def nothing(norm): pass
def frozen(norm): return mlp().requires_grad_(False), F.cross_entropy, (x, t)
def uneven(norm): return mlp(), F.cross_entropy, (x, t[:5])
def empty(norm): return mlp(), F.cross_entropy, (x[:0], t[:0])
def nodata(norm): return mlp(), F.cross_entropy, 12
def badset(norm): return mlp(), F.cross_entropy, [(1, 2, 3)] * 12
def raises(norm): raise ZeroDivisionError("divided")
def tupled(norm):
    class Two(nn.Linear):
        def forward(self, x): return super().forward(x), 1
    return Two(3, 2), F.cross_entropy, (x, t)
def badtest(norm): return mlp(), F.cross_entropy, (x, t), (x[:, :2], t)
def noargs(): return mlp(), F.cross_entropy, (x, t)
def arrays(norm): return mlp(), F.cross_entropy, (x.numpy(), t.numpy())
def items(norm): return mlp(), F.cross_entropy, [{"x": 1, "y": 2}] * 12
def drawn(norm): return mlp(), lambda o, t: F.cross_entropy(F.dropout(o, 0.5), t), (x, t)
def mixed(norm): return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).double()), F.cross_entropy, (x, t)
def small(norm): return mlp(), F.cross_entropy, (x, t)
"""

BAD = [
    ("--norm absent:Norm", "no module 'absent'"),
    ("--norm own_parts:Absent", "has no 'Absent'"),
    ("--norm own_parts:NoUnits", "cannot be built from the number of units alone, as by NoUnits(4)"),
    ("--norm own_parts:Thing", "builds a Thing; it must build a torch.nn.Module"),
    ("--norm own_parts:number", "is a int; give a class that builds norms"),
    ("--norm own_parts:Broken", "its model does not take a batch"),
    ("--norm own_parts:Random", "(Random) gives another output each time"),
    ("--norm own_parts:Counts", "buffer 'layers.conv1.norm.calls' changes while it is measured"),
    ("--norm syntax:X", "cannot be imported (SyntaxError: "),
    ("--norm fails:X", "cannot be imported (RuntimeError: at import, fails.py line 1)"),
    ("--norm leaves:X", "cannot be imported (SystemExit: 3"),
    ("--norm needs:X", "cannot be imported (ModuleNotFoundError: No module named 'nowhere', needs.py line 1)"),
    ("--norm own_parts:", "unknown norm"),
    ("-p own_parts:small", "makes no use of the norm that it is called with; give --norm none"),
    ("-p own_parts:arrays", "its train data are no tensors"),
    ("-p own_parts:items", "must be Tensor, not dict"),
    ("-p own_parts:drawn", "the loss gives another output each time"),
    ("-p own_parts:mixed", "its model does not take a batch (RuntimeError: "),
    ("-p own_parts:misfit", "its loss does not take the model's outputs (12, 1) and targets (12,)"),
    ("-p own_parts:vector", "no scalar of floating point ((12,))"),
    ("-p own_parts:text", "no scalar of floating point (str)"),
    ("-p own_parts:detached", "does not depend on the model's parameters"),
    ("-p own_parts:dropout", "the module '1' (Dropout) gives another output each time"),
    ("-p own_parts:pair", "returns a tuple; it has to return bnsmooth_cli.Workload"),
    ("-p own_parts:nothing", "returns a NoneType"),
    ("-p own_parts:frozen", "no parameters that are trained"),
    ("-p own_parts:uneven", "12 of input, 5 of target"),
    ("-p own_parts:empty", "0 of input, 0 of target"),
    ("-p own_parts:nodata", "are a int; give (inputs, targets) as tensors"),
    ("-p own_parts:badset", "do not give pairs (input, target): an item is a tuple of 3"),
    ("-p own_parts:raises", "(ZeroDivisionError: divided, own_parts.py line "),
    ("-p own_parts:badtest", "do not take the test data"),
    ("-p own_parts:noargs", "called with a norm, it fails (TypeError"),
    ("-p own_parts:number", "called with a norm, it fails (TypeError"),
    ("-p own_parts:small --norm weight", "weight_norm"),
    ("-p own_parts:small --norm none --batch-size 13", "larger than the 12 training samples"),
    ("-p own_parts:small --width 2", "has no such setting"),
    ("-p own_parts:small --preset paper", "unknown preset 'paper'"),
    ("-p own_parts", "unknown problem"),
]


@pytest.mark.parametrize(("options", "why"), BAD, ids=[options for options, _ in BAD])
def test_user_code_that_does_not_fit_is_refused_before_anything_is_written(cli, tmp_path, options, why):
    for name, text in (
        ("own_parts", MODULE), ("syntax", "def ("), ("fails", "raise RuntimeError('at import')"),
        ("leaves", "import sys; sys.exit(3)"), ("needs", "import nowhere"),
    ):  # fmt: skip
        (tmp_path / f"{name}.py").write_text(text)
    shared = "--batch-size 12 --steps 2 --threads 1" if "-p" in options else VGG
    options += " --norm none" if "-p" in options and "--norm" not in options and "no use of the norm" not in why else ""
    status, out, err = cli(f"train {shared} {options}")
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert why in err
    assert not (tmp_path / "runs").exists()


def test_a_file_that_names_code_runs_none_of_it(cli, here, tmp_path):
    """A stranger's checkpoint beside a stranger's module: the module runs only if the user names it."""
    assert cli(f"train --norm dyt:DyT {VGG} -o theirs")[0] == 0
    code._allowed.clear()
    sys.modules.pop("dyt")
    (here / "dyt.py").write_text("open('executed', 'w')\n" + (ROOT / "docs/examples/dyt.py").read_text())
    for source in ("theirs", "theirs/checkpoints/000002.pt"):
        status, _, err = cli(f"landscape {source} -o t.parquet")
        assert (status, "if you trust it, give --norm dyt:DyT" in err) == (2, True)
        with pytest.raises(InputError, match="if you trust it, give --norm dyt:DyT"):
            bns.load_point(source)
    assert not (here / "executed").exists()
    assert cli("landscape theirs --norm dyt:DyT --points 1 -o t.parquet")[0] == 0
    code._allowed.clear()
    status, _, err = cli("landscape theirs --points 1 -o t.parquet")  # where a table is already
    assert (status, "if you trust it, give --norm dyt:DyT" in err) == (2, True)
    assert (here / "executed").exists()
    status, _, err = cli("landscape theirs --norm other:Norm -o u.parquet")
    assert (status, "theirs has the norm dyt:DyT" in err) == (2, True)
    assert cli("landscape theirs --norm batch -o u.parquet")[0] == 2


def test_code_that_has_changed_since_the_training_is_found(cli, here):
    assert cli(f"train --norm dyt:DyT {VGG} -o run")[0] == 0
    sys.modules.pop("dyt")
    text = (here / "dyt.py").read_text()
    (here / "dyt.py").write_text(text.replace("torch.tanh(self.alpha * y)", "torch.tanh(2 + self.alpha * y)"))
    status, _, err = cli("ics run --norm dyt:DyT")
    assert (status, "your code has changed since" in err) == (2, True)
    sys.modules.pop("dyt")
    (here / "dyt.py").write_text(text)
    assert cli("ics run --norm dyt:DyT")[0] == 0


def test_runs_of_changed_code_are_not_continued_and_finished_ones_named(cli, here):
    study = "compare --norms none,dyt:DyT --problem dln --steps 4 -o st"
    assert cli(f"{study} --seeds 0")[0] == 0
    assert cli("train --problem dln --norm dyt:DyT --steps 4 -o run")[0] == 0
    with (here / "dyt.py").open("a") as file:
        file.write("# another line")
    status, _, err = cli("train --problem dln --norm dyt:DyT --steps 6 -o run")
    assert (status, err.count("\n")) == (2, 1)
    assert "run: dyt:DyT has changed since step 4 was reached; restore it, or --force trains again" in err
    status, _, err = cli("train --problem dln --norm dyt:DyT --steps 4 -o run")
    assert status == 0
    assert "run: was trained before dyt:DyT changed; restore that, or --force trains it again" in err
    _, _, err = cli(f"{study} --seeds 0-1")
    (named,) = re.findall(r"note: (\S+): was trained before dyt:DyT changed", err)
    assert Path(named).name == "dln-dyt.DyT-lr1e-06-steps4-seed0"
    assert cli("train --problem dln --norm dyt:DyT --steps 6 -o run --force")[0] == 0


UNSEEDED = """
import numpy as np, torch
from torch import nn
from torch.nn import functional as F
def unseeded(norm):
    x = torch.from_numpy(np.random.default_rng().standard_normal((40, 3))).float()
    return nn.Linear(3, 1), F.mse_loss, (x, 3 * x[:, :1])
def seeded(norm):
    x = torch.from_numpy(np.random.standard_normal((40, 3))).float()
    return nn.Linear(3, 1), F.mse_loss, (x, 3 * x[:, :1])
"""


def test_data_that_depend_on_more_than_the_seed_are_found_and_the_message_says_what_can_be_done(cli, here):
    (here / "own_data.py").write_text(UNSEEDED)
    for name in ("unseeded", "seeded"):
        assert cli(f"train -p own_data:{name} --norm none {OWN} -o {name}")[0] == 0
    status, _, err = cli("landscape unseeded -p own_data:unseeded")
    assert (status, err.count("\n")) == (2, 1)
    for part in ("own_data:unseeded has not changed since", "numpy.random.default_rng() without a seed", "--force"):
        assert part in err
    assert cli("landscape seeded -p own_data:seeded --at 0,2,3,4")[0] == 0


@pytest.mark.parametrize(("change", "status"), [(1.01, 0), (1.05, 2)])
def test_another_machine_may_round_differently_and_is_named_otherwise(cli, here, monkeypatch, change, status):
    (here / "own_data.py").write_text(UNSEEDED)
    assert cli(f"train -p own_data:seeded --norm none {OWN} -o run")[0] == 0
    table = bns.read_table("run/train.parquet")
    provenance = table.attrs["bnsmooth"]
    (made,) = provenance["stretches"]
    assert made["device"].startswith("cpu ")
    provenance["stretches"] = [{**made, "device": "abacus"}]
    table["loss"] *= change
    tables.write_table(Path("run/train.parquet"), "train", [table], provenance)
    found, _, err = cli("landscape run -p own_data:seeded")
    said = f"made by bnsmooth {made['version']}, torch {torch.__version__}, abacus, 1 thread: measure it there"
    assert (found, said in err) == (status, status == 2), err
    assert cli(f"train -p own_data:seeded --norm none {OWN.replace('--steps 4', '--steps 6')} -o run")[0] == 0
    assert bns.read_table("run/train.parquet").attrs["bnsmooth"]["stretches"] == [
        {**made, "device": "abacus", "last": 3}, {**made, "first": 4, "last": 6}
    ]  # fmt: skip


@pytest.mark.parametrize(("machines", "status"), [([f"torch {torch.__version__} on cpu"], 2), (["torch 1 on x"], 0)])
def test_the_machines_in_tables_of_earlier_versions_are_read(cli, here, machines, status):
    (here / "own_data.py").write_text(UNSEEDED)
    assert cli(f"train -p own_data:seeded --norm none {OWN} -o run")[0] == 0
    table = bns.read_table("run/train.parquet")
    provenance = table.attrs["bnsmooth"]
    del provenance["stretches"]
    table["loss"] *= 1.01
    tables.write_table(Path("run/train.parquet"), "train", [table], {**provenance, "machines": machines})
    assert cli("landscape run -p own_data:seeded")[0] == status


def test_a_run_whose_loss_overflows_at_a_checkpoint_can_be_measured(cli, here):
    (here / "own_data.py").write_text(UNSEEDED)
    options = OWN.replace("--lr 0.05", "--lr 1e20").replace("--save-every 2", "--save-every 1")
    assert cli(f"train -p own_data:seeded --norm none {options} -o run")[0] == 0
    steps = ",".join(str(step) for step in open_run("run").checkpoints())
    status, _, err = cli(f"landscape run -p own_data:seeded --at {steps.rpartition(',')[2]}")
    assert (status, "training recorded" in err) == (0, False), err


def test_a_table_made_with_code_that_has_changed_is_not_reused(cli, here):
    assert cli(f"landscape --norm dyt:DyT {VGG} --points 1")[0] == 0
    assert cli(f"landscape --norm dyt:DyT {VGG} --points 1")[0] == 0
    (here / "dyt.py").write_text((here / "dyt.py").read_text() + "# another state\n")
    status, _, err = cli(f"landscape --norm dyt:DyT {VGG} --points 1")
    assert (status, "of other code" in err, "--force" in err) == (2, True, True)


def test_the_users_folder_precedes_the_libraries_only_while_a_module_is_imported(here, monkeypatch):
    monkeypatch.chdir(here)
    (here / "colorsys.py").write_text("stranger = True")  # of the standard library, and not imported yet
    sys.modules.pop("colorsys", None)
    code.allow("dyt:DyT")
    assert norms.build("dyt:DyT", 3)(torch.ones(2, 3)).shape == (2, 3)
    assert not hasattr(__import__("colorsys"), "stranger")
    assert sys.path[-1] == str(here)


def test_a_class_or_function_is_recorded_by_its_module_and_name(tmp_path):
    from own_code import Scaled, residual

    run = bns.train(residual, Scaled, output=tmp_path / "r", batch_size=8, steps=2, save_every=2)
    assert (open_run(run.path).config.problem, run.config.norm) == ("own_code:residual", "own_code:Scaled")
    code._allowed.clear()
    with pytest.raises(InputError, match="give --problem own_code:residual"):
        bns.load_point(run)
    assert bns.load_point(run, code=[residual, "own_code:Scaled"]).step == 2
    with pytest.raises(InputError, match="can be imported by this name"):
        bns.train("vgg", lambda units: nn.Identity())


class TestWeights:
    """Weights that were trained elsewhere."""

    @pytest.fixture
    def trained(self, small_run, tmp_path):
        model = bns.load_point(small_run("vgg", "batch")).model
        torch.save(model.state_dict(), tmp_path / "model.pt")
        return model.state_dict()

    @pytest.mark.slow
    def test_weights_are_measured_like_the_checkpoint_they_came_from(self, cli, small_run, trained, tmp_path):
        settings = "-p vgg " + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in SMALL["vgg"].items())
        assert cli(f"landscape --weights model.pt --norm batch {settings}")[0] == 0
        table = bns.read_table(tmp_path / "model.landscape.parquet")
        point = bns.load_point(small_run("vgg", "batch"), step=6)
        inputs, targets = point.problem.batch(0)
        there = bns.Point(point.problem, point.model, point.optimiser, 0, inputs, targets, "model")
        assert table["loss"].to_numpy() == pytest.approx(bns.landscape(there)["loss"].to_numpy(), rel=1e-5)
        assert (set(table["run"]), set(table["step"])) == ({"model"}, {0})
        for kind, more in (("ics", "--at 0,2"), ("theory", "--units 0"), ("surface", "--points 1")):
            assert cli(f"{kind} --weights model.pt --norm batch {settings} {more}")[0] == 0
        trained["layers.conv1.linear.bias"] += 1
        torch.save(trained, tmp_path / "model.pt")
        status, _, err = cli(f"landscape --weights model.pt --norm batch {settings}")
        assert (status, "of other weights" in err) == (2, True)

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda s: s.pop("layers.fc3.linear.bias"), "lacks layers.fc3.linear.bias"),
            (lambda s: s.update(extra=torch.ones(1)), "has extra"),
            (
                lambda s: s.update({"layers.fc3.linear.bias": torch.ones(11)}),
                "layers.fc3.linear.bias is (11,), not (10,)",
            ),
            (lambda s: s.update({"layers.fc3.linear.bias": 3}), "layers.fc3.linear.bias is a int, not (10,)"),
            (lambda s: s.update({"layers.fc3.linear.bias": None}), "layers.fc3.linear.bias is a NoneType, not (10,)"),
            (
                lambda s: s.update({"layers.fc3.linear.bias": torch.zeros(10, dtype=torch.complex64)}),
                "layers.fc3.linear.bias is no tensor of plain numbers",
            ),
            (lambda s: s.clear(), "and 58 more"),
        ],
    )
    def test_keys_that_differ_are_named(self, trained, tmp_path, change, why):
        change(trained)
        torch.save(dict(trained), tmp_path / "model.pt")
        with pytest.raises(InputError) as error:
            bns.load_weights(tmp_path / "model.pt", "vgg", "batch", **SMALL["vgg"])
        assert why in str(error.value)
        assert "model.pt" in str(error.value)

    def test_files_that_hold_no_weights_are_refused(self, cli, trained, tmp_path):
        torch.save(nn.Linear(2, 2), tmp_path / "pickled.pt")
        (tmp_path / "text.pt").write_text("weights")
        (tmp_path / "cut.pt").write_bytes((tmp_path / "model.pt").read_bytes()[:5000])
        torch.save([1, 2], tmp_path / "list.pt")
        for name in ("pickled.pt", "text.pt", "cut.pt", "list.pt", "absent.pt", "."):
            status, _, err = cli(f"landscape --weights {name} {VGG}")
            assert (status, name in err, err.count("\n")) == (2, True, 1), err
        status, _, err = cli("landscape somewhere --weights model.pt")
        assert (status, "leave out somewhere" in err) == (2, True)


FORMULAS = {
    "layer": lambda y: (y - y.flatten(1).mean(1).view(_samples(y))) / _root(y.flatten(1).var(1, unbiased=False), y),
    "rms": lambda y: y / _root(y.flatten(1).square().mean(1), y),
}


def _samples(y):
    return (-1,) + (1,) * (y.dim() - 1)


def _root(variance, y):
    return (variance + EPSILON).sqrt().view(_samples(y))


@pytest.mark.parametrize("shape", [(7, 6), (5, 6, 3, 4)])
@pytest.mark.parametrize("name", FORMULAS)
def test_norms_over_a_sample_are_their_formulas(name, shape):
    y = torch.randn(shape, dtype=torch.float64) * 2 + 0.7
    torch.testing.assert_close(norms.build(name, 6).double()(y), FORMULAS[name](y), rtol=1e-10, atol=1e-12)


def test_group_norm_normalises_groups_and_instance_norm_units():
    y = torch.randn(5, 6, 3, 4, dtype=torch.float64) + 1
    parts = y.reshape(5, 2, -1)
    expected = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, unbiased=False, keepdim=True) + EPSILON).sqrt()
    torch.testing.assert_close(norms.build("group:2", 6).double()(y), expected.reshape(y.shape))
    dims = (2, 3)
    expected = (y - y.mean(dims, keepdim=True)) / (y.var(dims, unbiased=False, keepdim=True) + EPSILON).sqrt()
    torch.testing.assert_close(norms.build("instance", 6).double()(y), expected)
    vectors = torch.randn(5, 6, dtype=torch.float64)
    assert torch.equal(norms.build("instance", 6).double()(vectors), vectors)


def test_weight_norm_begins_at_the_plain_networks_function_and_learns_lengths_and_directions(small_run):
    plain, weight = (bns.load_point(small_run("vgg", norm), 0) for norm in ("none", "weight"))
    assert weight.loss().item() == pytest.approx(plain.loss().item(), rel=1e-5)
    assert len(weight.theta) == len(plain.theta) + sum(site.width for site in weight.structure.sites)
    later = bns.load_point(small_run("vgg", "weight"), 6)
    linear = later.model.layers["conv1"].linear
    length, direction = linear.parametrizations.weight.original0, linear.parametrizations.weight.original1
    by_hand = length * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(linear.weight, by_hand)


SAMPLEWISE = ("layer", "group:2", "instance", "weight", "rms")


@pytest.mark.parametrize("norm", SAMPLEWISE)
@pytest.mark.parametrize("problem", [pytest.param("vgg", marks=pytest.mark.slow), "dln"])
@pytest.mark.fast(1)
def test_norms_over_samples_or_weights_agree_with_brute_force(small_run, problem, norm):
    if (problem, norm) == ("dln", "instance"):
        with pytest.raises(InputError, match="positions of images"):
            small_run(problem, norm)
        return
    # Narrow enough for every second derivative, of which the one unit of some layers makes no two groups.
    narrow, norm = ({"width": 0.01, "batch_size": 8}, norm.replace("2", "1")) if problem == "vgg" else ({}, norm)
    point = bns.load_point(small_run(problem, norm, **narrow), step=3, dtype=torch.float64)
    check_line(point, 1e-9)
    check_ics(point, 1e-9)
    check_smoothness(point)
    name = "conv1" if problem == "vgg" else "fc2"
    found = bns.theory(point, [name], [0]).set_index(["affine", "statement"])
    for (affine, statement), row in found.iterrows():
        if statement in ("4.1", "4.2", "4.2b", "4.4", "C.1"):
            left, right = reference.statements(point, name, 0, affine)[statement]
            assert (row["lhs"], row["rhs"]) == pytest.approx((left, right), rel=1e-7)


def test_groups_that_do_not_divide_the_units_are_refused(cli):
    for norm, why in (("group:3", "4 units do not divide"), ("group:0", "G is a whole"), ("group:x", "G is a whole")):
        status, _, err = cli(f"train --norm {norm} {VGG}")
        assert (status, why in err) == (2, True)
