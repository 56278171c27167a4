"""Weights as people keep them: read with the right values, or refused by what they are."""

from __future__ import annotations

import argparse
import collections
import gzip
import io
import pickle
import struct
import time
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import bnsmooth_cli as bns
from bnsmooth_cli import InputError
from bnsmooth_cli.errors import DamagedError, Remark
from bnsmooth_cli.storage.weights import read_weights

LEGACY = {"_use_new_zipfile_serialization": False}


def network():
    """A network whose buffers have been used, and whose names begin like a wrapper's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    model(torch.randn(20, 6))
    return model


MODEL = network()
STATE = MODEL.state_dict()
#: What the file is to be read for: the same network, with other values.
EXPECTED = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).state_dict()


def prefixed(*parts):
    return {"".join(parts) + name: value for name, value in STATE.items()}


def check(path, expected=EXPECTED, state=STATE):
    found = read_weights(path, expected)
    assert found.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(found[name], value), name


def trained():
    """The optimiser and the scheduler of a training state."""
    model = network()
    optimiser = torch.optim.Adam(model.parameters(), 0.1)
    model(torch.randn(20, 6)).sum().backward()
    optimiser.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 5])
    assert isinstance(scheduler.state_dict()["milestones"], collections.Counter)
    return {"optimizer": optimiser.state_dict(), "scheduler": scheduler.state_dict()}


LIGHTNING = {
    "epoch": 1, "global_step": 3, "pytorch-lightning_version": "2.4.0", "loops": {"fit_loop": {"state_dict": {}}},
    "callbacks": {}, "optimizer_states": [], "lr_schedulers": [], "hyper_parameters": {"lr": 0.1, "dims": (1, 2)},
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, LEGACY])
@pytest.mark.parametrize(
    "content",
    [
        STATE,
        dict(STATE),
        dict(MODEL.named_parameters()) | dict(MODEL.named_buffers()),
        nn.DataParallel(MODEL).state_dict(),
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module."),
        prefixed("model."),
        prefixed("model._orig_mod."),
        prefixed("encoder.backbone."),
        torch.optim.swa_utils.AveragedModel(MODEL).state_dict(),
        {"epoch": 3, "state_dict": STATE, "best": 0.9, **trained()},
        {"model": STATE, "epoch": torch.tensor(3)},
        {"model_state_dict": prefixed("module."), "rng": torch.get_rng_state()},
        {"checkpoint": {"net": STATE}, "sizes": torch.Size([1, 2]), "dtype": torch.float32, "tags": {"a", "b"}},
        {"state_dict": prefixed("model."), **LIGHTNING},
        {"model": STATE, "again": dict(STATE)},  # the same values twice are no ambiguity
    ],
)
def test_state_dicts_are_found_under_any_usual_name(tmp_path, content, options):
    torch.save(content, tmp_path / "w.pth.tar", **options)
    check(tmp_path / "w.pth.tar")


def test_compiled_parts_and_wrapped_networks_have_the_plain_names(tmp_path):
    torch.save({f"features._orig_mod.{n}": v for n, v in STATE.items()}, tmp_path / "w.pt")
    check(tmp_path / "w.pt", *({f"features.{n}": v for n, v in s.items()} for s in (EXPECTED, STATE)))
    torch.save(STATE, tmp_path / "w.pt")
    for wrapped in ("module.", "model.", "_orig_mod.", "model.module."):
        check(tmp_path / "w.pt", *({wrapped + n: v for n, v in s.items()} for s in (EXPECTED, STATE)))


def test_safetensors_files_are_read(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "w.safetensors")
    check(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "w.bin")  # known by its content
    check(tmp_path / "w.bin")
    torch.save(STATE, tmp_path / "torch.safetensors")
    check(tmp_path / "torch.safetensors")


def test_a_shared_parameter_may_be_there_once(tmp_path):
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    model[1].weight = model[0].weight
    for left in ("0.weight", "1.weight"):
        torch.save({left: torch.ones(4, 3)}, tmp_path / "w.pt")
        found = read_weights(tmp_path / "w.pt", model.state_dict())
        assert [value.sum().item() for value in found.values()] == [12, 12]
    torch.save({"0.weight": torch.ones(4, 3), "1.weight": torch.zeros(4, 3)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"has two values of one parameter, 0\.weight and 1\.weight"):
        read_weights(tmp_path / "w.pt", model.state_dict())


def test_weights_from_before_batches_were_counted_are_read(tmp_path):
    torch.save({name: value for name, value in STATE.items() if "tracked" not in name}, tmp_path / "w.pt", **LEGACY)
    found = read_weights(tmp_path / "w.pt", EXPECTED)
    assert found["1.num_batches_tracked"] == 0
    assert torch.equal(found["1.running_mean"], STATE["1.running_mean"])


def test_weight_normalised_layers_may_have_their_old_names(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls this function deprecated
        old = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2)), nn.ReLU(), nn.utils.weight_norm(nn.Linear(2, 2)))
    new = nn.Sequential(*(nn.utils.parametrizations.weight_norm(nn.Linear(n, 2)) for n in (3, 2)))
    new.insert(1, nn.ReLU())
    torch.save({f"module.{name}": value for name, value in old.state_dict().items()}, tmp_path / "w.pt")
    new.load_state_dict(read_weights(tmp_path / "w.pt", new.state_dict()))
    x = torch.randn(5, 3)
    assert torch.equal(new(x), old(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_the_networks_without_a_change(tmp_path, dtype):
    half = {name: value.to(dtype) if value.is_floating_point() else value for name, value in STATE.items()}
    torch.save(half, tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt", EXPECTED)
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(found[name], half[name].to(found[name].dtype)) for name in half)


def test_rounding_to_the_networks_precision_is_said_and_overflow_is_refused(tmp_path, recwarn):
    double = {name: value.double() if value.is_floating_point() else value for name, value in STATE.items()}
    torch.save(double, tmp_path / "w.pt")
    check(tmp_path / "w.pt")  # every value is one of float32
    assert not [warning for warning in recwarn if warning.category is Remark]
    torch.save(double | {"0.bias": double["0.bias"] + 1e-12}, tmp_path / "w.pt")
    with pytest.warns(Remark, match=r"w\.pt: the weights are rounded from float64 to float32"):
        read_weights(tmp_path / "w.pt", EXPECTED)
    torch.save(double | {"0.bias": double["0.bias"] + 1e300}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: 0\.bias has values that are too large to convert from float64"):
        read_weights(tmp_path / "w.pt", EXPECTED)


def other_values():
    return {name: value + 1 for name, value in STATE.items()}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"model": STATE, "model_ema": other_values()}, r"two state dicts that fit, 'model' and 'model_ema'; save the"),
        (
            {"a": {"b": STATE}, "c": {"d": other_values()}},
            r"'a\.b' and 'c\.d'; .*torch\.load\(FILE\)\['c'\]\['d'\], NEW",
        ),
        ({"a": {"x": torch.ones(1)}, "b": {**STATE, "more": torch.ones(1)}}, "'b' is no state dict .*: has more$"),
        (
            {"state_dict": prefixed("model.") | {"loss.weight": torch.ones(1)}},
            "'state_dict' is no .*: has loss.weight$",
        ),
        (
            {"epoch": 3},
            "no state dict of this network: lacks 0.weight; lacks 0.bias; has epoch; lacks 1.weight and 5 more",
        ),
        ({}, "lacks 0.weight"),
        ({0: torch.ones(1)}, "has 0"),
        ({"state_dict": STATE, "shapes": {(1, 2): 3}}, "has tuples as keys"),
        ([1, 2], "holds a list, not a dict of tensors"),
        (torch.ones(3), "holds a Tensor, not a dict of tensors"),
        (STATE | {"0.bias": torch.ones(5, dtype=torch.complex64)}, "0.bias is no tensor of plain numbers"),
        (STATE | {"0.bias": torch.ones(5, dtype=torch.int64)}, "0.bias is no tensor of plain numbers"),
        (STATE | {"0.bias": torch.ones(5, device="meta")}, "holds a tensor that is not of plain numbers .meta_tensor"),
        (STATE | {"0.bias": torch.ones(5, 1)}, r"0.bias is \(5, 1\), not \(5,\)"),
        (STATE | {"0.bias": torch.ones(1).expand(10**12)}, r"0.bias is \(1000000000000,\), not \(5,\)"),
        (STATE | {"0.bias": None}, "0.bias is a NoneType"),
        (MODEL, r"holds a whole object of the class torch\.nn\.modules\.container\.Sequential.*model\.state_dict\(\)"),
        ({"model": MODEL}, r"holds a torch\.nn\.modules\.container\.Sequential beside tensors, .*could run code"),
        ({"state_dict": STATE, "args": argparse.Namespace(lr=1)}, r"holds a argparse\.Namespace beside tensors"),
        ({"state_dict": STATE, "best": np.float64(3)}, r"holds a numpy.* beside tensors"),
        ({name: value.numpy() for name, value in STATE.items()}, r"holds a numpy.*_reconstruct beside tensors"),
        (
            STATE | {"0.bias": torch.ones(5).to_sparse()},
            r"holds a tensor that is not of plain numbers \(sparse_tensor\)",
        ),
    ],
)
@pytest.mark.parametrize("options", [{}, LEGACY])
def test_what_does_not_fit_is_named(tmp_path, content, why, options):
    torch.save(content, tmp_path / "w.pt", **options)
    with pytest.raises(InputError, match=why) as refused:
        read_weights(tmp_path / "w.pt", EXPECTED)
    assert str(refused.value).startswith(str(tmp_path / "w.pt"))
    assert "damaged" not in str(refused.value)
    assert "\n" not in str(refused.value)


def archive(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        for name in names:
            target.writestr(name, b"x")
    return stream.getvalue()


def scripted():
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        torch.jit.save(torch.jit.script(MODEL), stream)
    return stream.getvalue()


def compressed():
    stream = io.BytesIO()
    np.savez_compressed(stream, a=np.zeros(1000))
    return stream.getvalue()


def saved(content=STATE, **options):
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


OTHER_FILES = {
    "w.ts": (scripted, "a TorchScript archive"),
    "w.npz": (compressed, "holds NumPy arrays"),
    "w.keras": (lambda: archive("config.json", "model.weights.h5"), "a zip archive that torch.save did not write"),
    "w.npy": (lambda: b"\x93NUMPY\x01\0", "a NumPy array"),
    "w.h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file"),
    "w.onnx": (lambda: b"\x08\x07\x12\x07pytorch", "an ONNX graph"),
    "w.pb": (lambda: b"\x08\x01", "a TensorFlow graph"),
    "w.ckpt.index": (lambda: b"\0\0", "a TensorFlow checkpoint"),
    "w.gguf": (lambda: b"GGUF\x03", "a GGUF file"),
    "w.pt.gz": (lambda: gzip.compress(saved()), "compressed by gzip"),
    "lfs.pt": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "a Git LFS pointer.*git lfs pull",
    ),
    "page.pt": (lambda: b"\n<!DOCTYPE html>\n<html>", "an HTML or XML page"),
    "model.safetensors.index.json": (lambda: b'{"metadata": {}}', "is JSON, not a file that torch.save wrote"),
    "plain.pkl": (lambda: pickle.dumps({"a": np.ones(3)}), "a pickle that torch.save did not write"),
    "plain2.pkl": (lambda: pickle.dumps({"a": 1}, protocol=0), "not a file that torch.save wrote"),
    "text.pt": (lambda: b"weights", "not a file that torch.save wrote"),
    "new.pt": (lambda: saved(pickle_protocol=4), "pickle protocol 4"),
    "old.pt": (lambda: saved(pickle_protocol=4, **LEGACY), "pickle protocol 4"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_refused_by_what_they_are(tmp_path, name):
    make, why = OTHER_FILES[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(InputError, match=f"{name}: .*{why}") as refused:
        read_weights(tmp_path / name, EXPECTED)
    assert "damaged" not in str(refused.value)


def header(text, body=b""):
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "content",
    [
        saved()[:-100],
        saved()[:50],
        saved(**LEGACY)[:-10],
        saved(**LEGACY)[:100],
        safetensors.torch.save(STATE)[:-1],
        safetensors.torch.save(STATE) + b"x",
        safetensors.torch.save(STATE)[:30],
        header(b'{"a": '),
        header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
        header(b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}', bytes(4)),
        header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', bytes(4)),
        struct.pack("<Q", 10**7) + b'{"a',
        b"",
        bytes(100),
    ],
    ids=lambda content: content[:1].hex() or "empty",  # the rest of a file may differ from process to process
)
def test_damaged_files_are_called_so(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(DamagedError, match=r"w\.pt: .*(damaged|cannot be read)"):
        read_weights(tmp_path / "w.pt", EXPECTED)


#: Of a dict whose key is a tuple of tuples of tuples ...: 2^40 of them to hash, in a few bytes.
TUPLES = b")" + b"q\x00" + b"h\x00h\x00\x86q\x00" * 40
STORAGE = b"ctorch\nFloatStorage\n"


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word


ZERO = text(b"0")
KEYS = b"]" + ZERO + b"a"  # of the storages


def storage(key=ZERO, numel=b"K\x01", view=b"N"):
    """A tensor of one number whose storage has these attributes."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + text(b"storage") + STORAGE + key + text(b"cpu") + numel + view
        + b"tQK\x00K\x01\x85K\x01\x85\x89}tR"
    )  # fmt: skip


def legacy(body, keys=KEYS):
    """A file of the legacy format with this pickle."""
    pickles = (
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
        b"\x80\x02M\xe9\x03.",
        b"\x80\x02}.",
        b"\x80\x02" + body + b".",
    )
    return b"".join(pickles) + b"\x80\x02" + keys + b"." + struct.pack("<q", 1) + struct.pack("<f", 7)


def one(value):
    return b"}" + text(b"a") + value + b"s"


def test_a_legacy_file_by_hand_is_read(tmp_path):
    (tmp_path / "w.pt").write_bytes(legacy(one(storage())))
    assert read_weights(tmp_path / "w.pt", {"a": torch.zeros(1)})["a"].item() == 7
    short = b"U\x01a" + storage(key=b"U\x010")  # strings of Python 2
    (tmp_path / "w.pt").write_bytes(legacy(b"ccollections\nOrderedDict\n)R(" + short + b"u"))
    assert read_weights(tmp_path / "w.pt", {"a": torch.zeros(1)})["a"].item() == 7


@pytest.mark.parametrize(
    "content",
    [
        legacy(b"}" + TUPLES + b"K\x01s"),
        legacy(one(b"ccollections\nCounter\n](" + TUPLES + b"e\x85R")),
        legacy(one(b"c__builtin__\nset\n](" + TUPLES + b"e\x85R")),
        legacy(b"ccollections\nOrderedDict\n](" + TUPLES + b"K\x01\x86e\x85R"),
        legacy(one(storage(key=TUPLES))),
        legacy(one(storage(view=TUPLES + text(b"v") + b"K\x00K\x01\x87"))),
        legacy(one(storage(view=b"(" + TUPLES + b"K\x00K\x01t"))),
        legacy(one(storage()), keys=b"](" + TUPLES + b"e"),
        legacy(one(storage(numel=b"\x8a\x05\x00\x00\x00\x00\x7f"))),  # a storage of 545 billion numbers
        legacy(one(storage(numel=b"J\xff\xff\xff\xff"))),
        legacy(one(b"\x96" + struct.pack("<Q", 2**40))),  # a bytearray of 1 TiB
        legacy(one(b"X" + struct.pack("<I", 2**31))),
        legacy(one(b"cposix\nsystem\n" + text(b"true") + b"\x85R")),
    ],
)
def test_hostile_legacy_files_are_refused_at_once(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"w\.pt: "):
        read_weights(tmp_path / "w.pt", {"a": torch.zeros(1)})
    assert time.perf_counter() - start < 5


def test_a_hostile_archive_is_refused_at_once(tmp_path):
    """torch hashes the names of storages."""
    with zipfile.ZipFile(io.BytesIO(saved())) as source, zipfile.ZipFile(tmp_path / "w.pt", "w") as target:
        for item in source.infolist():
            body = b"\x80\x02" + one(storage(key=TUPLES, view=b"")) + b"."
            target.writestr(item, body if item.filename.endswith("data.pkl") else source.read(item))
    with pytest.raises(DamagedError, match=r"w\.pt"):
        read_weights(tmp_path / "w.pt", {"a": torch.zeros(1)})


def test_a_bnsmooth_checkpoint_and_the_command_line_take_the_same_files(small_run, cli, tmp_path):
    run = small_run("dln", "batch")
    point = bns.load_point(run, 6)
    settings = {"depth": 5, "dimension": 4, "samples": 30, "lr": 1e-4}
    safetensors.torch.save_file(point.model.state_dict(), tmp_path / "w.safetensors")
    for path in (tmp_path / "w.safetensors", run.checkpoint_path(6)):
        assert torch.equal(bns.load_weights(path, "dln", "batch", **settings).theta, point.theta)
    options = " ".join(f"--{name} {value}" for name, value in settings.items())
    double = {name: value.double() + 1e-12 for name, value in point.model.state_dict().items()}
    torch.save(double, tmp_path / "double.pt")
    status, _, err = cli(f"landscape --weights double.pt -p dln --norm batch {options}")
    assert (status, err.count("rounded from float64 to float32")) == (0, 1)
    status, _, err = cli(f"landscape w.safetensors -p dln --norm batch {options}")
    assert status == 2
    status, _, err = cli("landscape w.safetensors")
    assert (status, "--weights" in err, err.count("\n")) == (2, True, 1)
    status, _, err = cli(f"landscape --weights . -p dln --norm batch {options}")
    assert (status, "is a folder" in err) == (2, True)
