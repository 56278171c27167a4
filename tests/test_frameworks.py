"""Models as people have them: Hugging Face's and timm's, their data, and what wraps them for several devices."""

from __future__ import annotations

import copy
import itertools
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from torch.nn import functional as F
from torch.utils import data as torch_data

import bnsmooth_cli as bns
from bnsmooth_cli import InputError, Remark
from bnsmooth_cli.memory import Memory
from bnsmooth_cli.networks.parameters import flatten
from bnsmooth_cli.problems.samples import samples

EXAMPLE = Path(__file__).parents[1] / "docs/examples/frameworks.py"
SETTINGS = {"steps": 4, "save_every": 4, "eval_every": 4, "batch_size": 8, "lr": 0.1}
OPTIONS = "--steps 2 --save-every 2 --eval-every 2 --batch-size 8 --lr 0.1"
TINY = {
    "vocab_size": 16,
    "n_positions": 8,
    "n_embd": 8,
    "n_layer": 1,
    "n_head": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
NO_DROPOUT = {"attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0}
QUICK = ["train", "landscape --at 0,2", "ics --at 0,2", "activations --at 0,2"]
MEASURING = ["smoothness", "smoothness --by-layer", "spectrum", "surface --points 3"]
EVERY = [*QUICK, *(f"{measuring} --at 0,2" for measuring in MEASURING)]


def gpt2(norm):
    ids = torch.randint(16, (24, 8))
    data = {"input_ids": ids, "labels": ids}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**TINY, **NO_DROPOUT)), lambda outputs, _: outputs.loss, data, data


def of(problem, commands, *marks):
    return pytest.param(problem, commands, id=f"{problem}-{len(commands)}", marks=marks)


@pytest.mark.parametrize(
    ("problem", "commands"),
    [
        *(of(problem, QUICK) for problem in ("gpt2", "resnet")),
        *(of(problem, EVERY, pytest.mark.slow) for problem in ("gpt2", "vit", "resnet", "stream")),
    ],
)
def test_every_command_measures_real_models(cli, tmp_path, problem, commands):
    shutil.copy(EXAMPLE, tmp_path)
    norm = "batch" if problem == "resnet" else "none"
    for command in commands:
        code, out, err = cli(f"{command} --problem frameworks:{problem} --norm {norm} {OPTIONS}")
        assert code == 0, (command, err)
        assert ".parquet" in out
    table = bns.read_table(next(tmp_path.glob("runs/*/train.parquet")))
    assert table["accuracy"].notna().all() == (problem != "gpt2")


def test_the_loss_of_a_hugging_face_model_is_measured_at_the_right_points(tmp_path):
    """The loss and the gradient along the gradient, against plain PyTorch."""
    point = bns.load_point(bns.train(gpt2, "none", output=tmp_path / "run", **SETTINGS), 2)
    rows = bns.landscape(point, [0.5, 2.0])
    model, ids = copy.deepcopy(point.model), point.inputs["input_ids"]
    loss = lambda: model(input_ids=ids, labels=ids).loss  # noqa: E731
    start, slope = flatten(model.parameters()).detach(), flatten(torch.autograd.grad(loss(), [*model.parameters()]))
    for _, row in rows.iterrows():
        nn.utils.vector_to_parameters(start - row["alpha"] * 0.1 * slope, model.parameters())
        assert row["loss"] == pytest.approx(loss().item(), rel=1e-5)


def test_the_linear_maps_of_gpt2_are_sites(tmp_path):
    """Their weights are transposed. The theorems hold, in a loss that is float64 throughout."""
    torch.manual_seed(0)
    model, ids = hf.GPT2LMHeadModel(hf.GPT2Config(**TINY, **NO_DROPOUT)).double(), torch.randint(16, (6, 8))
    loss = lambda: F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())  # noqa: E731
    point = bns.Point.of(model, loss, lr=0.1)
    widths = {site.name.rpartition("h.0.")[2]: (site.width, site.units_last) for site in point.structure.sites}
    assert widths == {
        "attn.c_attn": (24, True), "attn.c_proj": (8, True), "mlp.c_fc": (32, True), "mlp.c_proj": (8, True)
    }  # fmt: skip
    seen = []
    handle = model.transformer.h[0].mlp.c_fc.register_forward_hook(lambda m, x, y: seen.append(y.detach()))
    loss()
    handle.remove()
    rows = bns.activations(point, layers=["transformer.h.0.mlp.c_fc"], units=[3, 31])
    assert rows["mean"].tolist() == pytest.approx(seen[0].mean((0, 1))[[3, 31]].tolist())
    proved = bns.theory(point, layers=["transformer.h.0.mlp.c_fc"], units=[0, 31])
    assert proved[proved["statement"].isin(["4.1", "4.2", "4.4"])]["holds"].all()


def test_the_rows_of_transposed_weights_approach_their_optimum(tmp_path):
    """Statement 4.5 compares the weights of each unit at two steps."""
    run = bns.train(gpt2, "none", output=tmp_path / "run", **SETTINGS)
    rows = bns.theory(bns.load_point(run, 4), layers=["transformer.h.0.mlp.c_fc"], units=[5])
    row = rows[rows["statement"] == "4.5"].iloc[0]
    first, last = (bns.load_point(run, step).model.transformer.h[0].mlp.c_fc.weight[:, 5].double() for step in (0, 4))
    assert row["alignment"] == pytest.approx(F.cosine_similarity(first, last, 0).item(), rel=1e-5)


def with_dropout(norm):
    ids = torch.randint(16, (24, 8))
    return hf.GPT2LMHeadModel(hf.GPT2Config(**TINY)), lambda outputs, _: outputs.loss, {"input_ids": ids, "labels": ids}


def with_drop_path(norm):
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, drop_path_rate=0.5, **size)
    return model, F.cross_entropy, (torch.randn(24, 3, 8, 8), torch.randint(2, (24,)))


@pytest.mark.parametrize(
    ("problem", "why"),
    [
        (with_dropout, r"'transformer.drop' \(Dropout\) .* \(in its config: resid_pdrop=0, embd_pdrop=0, attn_pdrop=0"),
        (with_drop_path, r"\(DropPath\) gives another output each time"),
    ],
)
def test_dropout_is_refused_with_the_way_to_turn_it_off(tmp_path, problem, why):
    with pytest.raises(InputError, match=why):
        bns.train(problem, "none", output=tmp_path / "run", **SETTINGS)


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_reduced_precision_is_measured_in_float32(how):
    torch.manual_seed(0)
    model, ids = hf.GPT2LMHeadModel(hf.GPT2Config(**TINY, **NO_DROPOUT)), torch.randint(16, (6, 8))
    if how == "bfloat16":
        model.bfloat16()
    exact = copy.deepcopy(model).float()

    def loss():
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            return model(input_ids=ids, labels=ids).loss

    with pytest.warns(Remark, match="float32"):
        row = bns.smoothness(bns.Point.of(model, loss, lr=0.1)).iloc[0]
    expected = bns.smoothness(bns.Point.of(exact, lambda: exact(input_ids=ids, labels=ids).loss, lr=0.1)).iloc[0]
    for column in ("beta", "lipschitz", "curvature", "sharpness"):
        assert row[column] == pytest.approx(expected[column], rel=1e-3), column


# Data


X, Y = torch.randn(40, 3), torch.randint(2, (40,))
PAIRS = torch_data.TensorDataset(X, Y)


@pytest.mark.parametrize("loader", ["plain", "shuffled", "subset"])
def test_a_loader_is_its_data_set(loader):
    chosen = [3, 5, 8]
    more = {"plain": {}, "shuffled": {"shuffle": True}, "subset": {"sampler": torch_data.SubsetRandomSampler(chosen)}}
    with pytest.warns(Remark, match="of the DataLoader, the data set and collate_fn are used"):
        found = samples(torch_data.DataLoader(PAIRS, batch_size=7, **more[loader]), "origin")
    expected = X[chosen] if loader == "subset" else X
    assert torch.equal(found.batch(torch.arange(len(found)), seed=0)[0], expected)


WRONG = {
    "a sampler of other data": (
        lambda: torch_data.DataLoader(PAIRS, sampler=torch_data.SequentialSampler(range(9))),
        "a DataLoader with a SequentialSampler",
    ),
    "a weighted sampler": (
        lambda: torch_data.DataLoader(PAIRS, sampler=torch_data.WeightedRandomSampler([1.0] * 40, 40)),
        "a DataLoader with a WeightedRandomSampler",
    ),
    "some samples": (
        lambda: torch_data.DataLoader(PAIRS, sampler=torch_data.RandomSampler(PAIRS, num_samples=9)),
        "a DataLoader with a RandomSampler",
    ),
    "batches of its own": (
        lambda: torch_data.DataLoader(PAIRS, batch_sampler=[[0, 1], [2]]),
        "a DataLoader with a list, but",
    ),
    "no batches": (lambda: torch_data.DataLoader(PAIRS, batch_size=None), "with batch_size=None"),
    "nothing": (lambda: iter([]), "a stream without samples"),
    "texts": (lambda: iter([{"text": "a", "labels": 1}] * 9), "the input 'text' of the kind str"),
    "another order each time": (lambda: Drawn(random=True), "a stream that gives other samples each time"),
    "a sum": (
        lambda: torch_data.DataLoader(PAIRS, collate_fn=lambda items: (items[0][0], items[0][1])),
        r"its collate_fn makes a first tensor of the shape \(3,\) from 4 samples",
    ),
}


@pytest.mark.filterwarnings("ignore::bnsmooth_cli.Remark")
@pytest.mark.parametrize("case", WRONG)
def test_data_that_cannot_be_drawn_soundly_are_refused(case):
    make, why = WRONG[case]
    with pytest.raises(InputError, match=why):
        samples(make(), "origin", needed=8).batch(torch.arange(4), seed=0)


class Drawn(torch_data.IterableDataset):
    """A stream without an end. Its draws are those of torch's default generator, or of one that nobody seeds."""

    def __init__(self, random=False):
        self.generator = torch.Generator() if random else None

    def __iter__(self):
        while True:
            x = torch.randn(3, generator=self.generator)
            yield x, (x[0] > 0).long()


def drawn(norm):
    return nn.Linear(3, 2), F.cross_entropy, Drawn(), itertools.islice(Drawn(), 20)


def looped(norm):
    return nn.Linear(3, 2), F.cross_entropy, torch_data.DataLoader(Drawn(), batch_size=5)


def ended(norm):
    """A stream of 40 samples, which has five batches of eight."""
    return nn.Linear(3, 2), F.cross_entropy, zip(X, Y, strict=True)


@pytest.mark.filterwarnings("ignore::bnsmooth_cli.Remark")
def test_a_stream_is_used_in_its_order_and_depends_on_the_seed_alone(tmp_path):
    runs = []
    for name, seed, steps in (("a", 0, 4), ("b", 0, 8), ("c", 1, 4)):
        torch.rand(3)
        runs.append(bns.train(drawn, "none", output=tmp_path / name, **{**SETTINGS, "steps": steps}, seed=seed))
    tables = [bns.read_table(run.train_path)["loss"] for run in runs]
    assert tables[0][:4].equals(tables[1][:4])  # more steps read more, and change nothing before
    assert not tables[0].equals(tables[2])
    problem = bns.load_point(runs[0]).problem
    assert [problem.indices(step).tolist() for step in (0, 5)] == [[*range(8)], [*range(40, 48)]]
    assert (problem.num_samples, problem.test_size) == (48, 20)
    batches = [problem.batch(step)[0] for step in range(6)]
    assert len(torch.cat(batches).unique(dim=0)) == 48  # no sample comes twice
    with pytest.raises(InputError, match="the batches of 6 steps are kept"):
        bns.landscape(bns.load_point(runs[0], 0, objective="train:7"), [1.0])
    bns.activations(bns.load_point(runs[0], 4), probe=True)  # which takes the batch after the last


@pytest.mark.filterwarnings("ignore::bnsmooth_cli.Remark")
def test_a_stream_that_ends_begins_again(tmp_path):
    run = bns.train(ended, "none", output=tmp_path / "run", **{**SETTINGS, "steps": 12})
    problem = bns.load_point(run).problem
    assert torch.equal(problem.batch(6)[0], X[8:16])


@pytest.mark.filterwarnings("ignore::bnsmooth_cli.Remark")
def test_a_loader_of_a_stream_is_the_stream(tmp_path):
    run = bns.train(looped, "none", output=tmp_path / "run", **SETTINGS)
    assert bns.load_point(run).problem.num_samples == 48


def test_a_stream_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr("bnsmooth_cli.problems.samples.MAX_READ", 50)
    with pytest.raises(InputError, match="does not end after 50 samples"):
        samples(Drawn(), "origin")
    monkeypatch.setattr("bnsmooth_cli.problems.samples.main_memory", lambda: Memory(1000, 1000))
    with pytest.raises(InputError, match=r"samples of the 99 that are needed already take .* fewer --steps"):
        samples(Drawn(), "origin", needed=99)


def padded(norm):
    """Texts of different lengths, tokenised and padded for each batch by Hugging Face's collator."""
    words = {f"w{i}": i + 1 for i in range(8)}
    tokenizer = Tokenizer(WordLevel({"[PAD]": 0, **words}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    texts = [" ".join(f"w{(i + j) % 8}" for j in range(1 + i % 5)) for i in range(24)]
    items = [{**fast(text), "labels": i % 2} for i, text in enumerate(texts)]
    for item in items:
        item.pop("token_type_ids", None)
    loader = torch_data.DataLoader(items, collate_fn=hf.DataCollatorWithPadding(fast))
    config = hf.DistilBertConfig(
        vocab_size=9, dim=8, hidden_dim=16, n_layers=1, n_heads=2, max_position_embeddings=8, dropout=0,
        attention_dropout=0, seq_classif_dropout=0,
    )  # fmt: skip
    return hf.DistilBertForSequenceClassification(config), lambda outputs, _: outputs.loss, loader, loader


@pytest.mark.filterwarnings("ignore::bnsmooth_cli.Remark")
def test_the_collator_of_a_loader_makes_the_batches(tmp_path):
    point = bns.load_point(bns.train(padded, "none", output=tmp_path / "run", **SETTINGS), 2)
    ids, mask = point.inputs["input_ids"], point.inputs["attention_mask"]
    assert ids.shape == mask.shape
    assert torch.equal(ids > 0, mask > 0)
    assert (mask == 0).any()
    assert bns.smoothness(point)["sharpness"].notna().all()
    tested = bns.landscape(point.at("test"), [1.0])["loss"][0]
    with torch.no_grad():
        model, count = point.model.eval(), 0.0
        for inputs, _ in point.problem.test_batches():
            count += model(**inputs).loss.item() * len(inputs["input_ids"]) / 24
    assert tested == pytest.approx(count, rel=1e-5)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, views, meta):
        first, second = views
        return self.linear(first + second["x"]) * meta["scale"][:, None]


class NestedItems(torch_data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        views = (X[i], {"x": X[i] ** 2})
        return {"views": views, "meta": {"scale": 2.0}}, {"class": Y[i], "weight": 0.5}


def nested(norm):
    """Tensors in one split, items in the other."""
    scale = torch.full((40,), 2.0)
    whole = {"views": (X, {"x": X**2}), "meta": {"scale": scale}}, {"class": Y, "weight": torch.full((40,), 0.5)}
    return Nested(), nested_loss, NestedItems(), whole


def nested_loss(outputs, targets):
    return (F.cross_entropy(outputs, targets["class"], reduction="none") * targets["weight"]).mean()


def test_samples_may_have_any_structure(tmp_path):
    run = bns.train(nested, "none", output=tmp_path / "run", **SETTINGS)
    point = bns.load_point(run, 0)
    chosen, model = point.problem.indices(0), point.model
    logits = model.linear(X[chosen] + X[chosen] ** 2) * 2
    expected = F.cross_entropy(logits, Y[chosen]) * 0.5
    assert bns.landscape(point, [1.0])["loss"][0] == pytest.approx(expected.item(), rel=1e-6)
    tested = F.cross_entropy(model.linear(X + X**2) * 2, Y) * 0.5
    assert bns.read_table(run.train_path)["test_loss"][0] == pytest.approx(tested.item(), rel=1e-5)
    assert bns.smoothness(bns.load_point(run, 2))["sharpness"].notna().all()


# What wraps a network


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


@pytest.fixture
def process_group():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "compiled": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
}


@pytest.mark.filterwarnings("ignore::bnsmooth_cli.Remark")
@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapped_network_of_a_loop_is_measured_as_the_network_itself(process_group, kind):
    def measured(model):
        point = bns.Point.of(model, lambda: F.cross_entropy(model(X), Y), lr=0.1)
        return bns.smoothness(point), bns.ics(point), bns.activations(point), point.layers

    model = WRAPPERS[kind](plain())
    found, expected = measured(model), measured(plain())
    for frame, other in zip(found[:3], expected[:3], strict=True):
        assert frame.equals(other)
    assert found[3] == expected[3]
    if kind == "DistributedDataParallel":  # the loop goes on
        for _ in range(2):
            F.cross_entropy(model(X), Y).backward()


def wrapped(norm):
    return nn.DataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(plain())), F.cross_entropy, (X, Y), (X, Y)


def not_wrapped(norm):
    return plain(), F.cross_entropy, (X, Y), (X, Y)


def test_a_wrapped_network_of_a_problem_trains_as_the_network_itself(tmp_path):
    runs = [bns.train(f, "none", output=tmp_path / f.__name__, **SETTINGS) for f in (wrapped, not_wrapped)]
    tables = [bns.read_table(run.train_path)[["loss", "test_loss"]] for run in runs]
    assert tables[0].equals(tables[1])
    frames = [bns.activations(bns.load_point(run, 4)).drop(columns="run") for run in runs]
    assert frames[0].drop(columns="problem").equals(frames[1].drop(columns="problem"))


ALONE = """
import sys, torch
from torch import nn
from torch.nn import functional as F
import bnsmooth_cli as bns

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
x, y = torch.randn(40, 3), torch.randint(2, (40,))
model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.parallel.DistributedDataParallel(net))
if rank == 0:
    rows = bns.smoothness(bns.Point.of(model, lambda: F.cross_entropy(model(x), y), lr=0.1))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    print(rows.equals(bns.smoothness(bns.Point.of(net, lambda: F.cross_entropy(net(x), y), lr=0.1))))
torch.distributed.barrier()
"""


@pytest.mark.slow
def test_one_of_two_processes_measures_alone(tmp_path):
    lines = [[sys.executable, "-c", ALONE, str(rank), str(tmp_path / "group")] for rank in (0, 1)]
    processes = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for line in lines]
    try:
        assert processes[0].communicate(timeout=120)[0].strip() == "True"
        assert processes[1].wait(timeout=120) == 0
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("how", ["fully_shard", "FullyShardedDataParallel"])
@pytest.mark.filterwarnings("ignore")
def test_distributed_parameters_are_refused(process_group, how):
    from torch.distributed import fsdp

    model = getattr(fsdp, how)(plain(), **({} if how == "fully_shard" else {"device_id": torch.device("cpu")}))
    with pytest.raises(InputError, match=r"model: its parameters are distributed over processes \(FSDP\)"):
        bns.Point.of(model, lambda: F.cross_entropy(model(X), Y), lr=0.1)


# --swap-norm


def swapped(norm):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    return model, F.cross_entropy, (torch.randn(24, 3, 4, 4), torch.randint(2, (24,)))


@pytest.mark.filterwarnings("ignore::bnsmooth_cli.Remark")
def test_a_swapped_norm_belongs_to_the_layer_before_it(tmp_path):
    run = bns.train(swapped, "l2", output=tmp_path / "run", swap_norm=True, **SETTINGS)
    point = bns.load_point(run, 2)
    assert [(name, len(parameters)) for name, parameters in point.layers] == [("0", 4), ("4", 2)]
    rows = bns.activations(point, layers=["0"])
    assert rows["std"].tolist() == pytest.approx([1.0] * 4, rel=0.2)  # after the norm
    proved = bns.theory(point, layers=["0"])
    assert proved[proved["statement"].isin(["4.1", "4.2", "4.4"])]["holds"].all()


def test_the_norms_of_a_model_are_swapped(cli, tmp_path):
    shutil.copy(EXAMPLE, tmp_path)
    code, _, err = cli(f"smoothness --problem frameworks:gpt2 --norm rms --swap-norm --at 0,2 {OPTIONS}")
    assert code == 0, err
    assert "bnsmooth: note: --problem frameworks:gpt2: 5 LayerNorm replaced by rms" in cli.stderr
    folder = next(tmp_path.glob("runs/*"))
    assert folder.name == "frameworks.gpt2-rms-lr0.1-swapnorm-steps2-bs8-seed0"
    rows = bns.read_table(folder / "smoothness.parquet")
    assert '"swap_norm": true' in rows["settings"][0]
    assert rows["norm"].eq("rms").all()
    code, _, err = cli("compare runs/frameworks.gpt2-rms-lr0.1-swapnorm-steps2-bs8-seed0")  # imports nothing
    assert code == 0, err


@pytest.mark.slow
def test_a_study_swaps_the_norms_of_a_model(cli, tmp_path):
    shutil.copy(EXAMPLE, tmp_path)
    options = OPTIONS.replace("--lr ", "--lrs ")
    norms = "--norms layer,rms,dyt,none --seeds 0,1 --measure smoothness --every 2"
    code, _, err = cli(f"compare --problem frameworks:gpt2 --swap-norm {norms} {options} -o study")
    assert code == 0, err
    assert len([*tmp_path.glob("study/runs/*-swapnorm-*/smoothness.parquet")]) == 8


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--problem vgg --swap-norm", "--swap-norm: the problem vgg has no such setting"),
        ("--problem frameworks:gpt2 --norm rms", "give --norm none for the model as it is, or --swap-norm"),
        ("--problem frameworks:gpt2 --norm instance --swap-norm", "h.0.ln_1 acts on tokens"),
        ("--problem plain_model:linear --norm rms --swap-norm", "the model has no norm module that could be replaced"),
    ],
)
def test_a_swap_that_makes_no_sense_is_refused(cli, tmp_path, options, why):
    shutil.copy(EXAMPLE, tmp_path)
    (tmp_path / "plain_model.py").write_text(
        "import torch\ndef linear(norm):\n    x = torch.randn(20, 3)\n"
        "    return torch.nn.Linear(3, 1), torch.nn.functional.mse_loss, (x, x[:, :1])\n"
    )
    code, _, err = cli(f"train {options} --steps 2 --batch-size 8")
    assert code == 2
    assert why in err
    assert not [*tmp_path.glob("runs/*")]
