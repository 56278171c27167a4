"""Image data sets: three folder layouts, downloads, and files that are refused."""

from __future__ import annotations

import hashlib
import io
import pickle
import urllib.error
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torchvision import datasets

import bnsmooth_cli as bns
from bnsmooth_cli import InputError
from bnsmooth_cli.data import images

REAL = Path(__file__).parents[2] / "shared/data/cifar10"


@pytest.fixture(autouse=True)
def _forget():
    images.load.cache_clear()


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(folder, column="img", label="label"):
    (folder / "plain_text").mkdir(parents=True)
    for split, count in (("train", 6), ("test", 4)):
        rows = [{"bytes": png(array), "path": None} for array in pictures(count)]
        table = pa.table({column: rows, label: [i % 2 for i in range(count)]})
        pq.write_table(table, folder / f"plain_text/{split}-00000-of-00001.parquet")


def write_cifar(folder, hundred=False):
    """Four images a file, in the structure of the original files."""
    folder.mkdir(parents=True)
    names = ["train", "test"] if hundred else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name in names:
        rows = pictures(4).transpose(0, 3, 1, 2).reshape(4, -1)
        content = {
            "data": rows,
            "fine_labels" if hundred else "labels": [0, 1, 0, 1],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = {"fine_label_names" if hundred else "label_names": ["cat", "dog"]}
    (folder / ("meta" if hundred else "batches.meta")).write_bytes(pickle.dumps(meta))


def publish(folder, monkeypatch, hundred=False):
    """Let torchvision take these files for the published ones."""
    kind = datasets.CIFAR100 if hundred else datasets.CIFAR10

    def md5(name):
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for names in ("train_list", "test_list"):
        monkeypatch.setattr(kind, names, [[name, md5(name)] for name, _ in getattr(kind, names)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(kind.meta["filename"])})


def write_classes(folder):
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i, array in enumerate(pictures(count, seed=label)):
                Image.fromarray(array).save(folder / split / name / f"{i}.png")


def test_a_folder_of_parquet_files_is_read(tmp_path):
    write_parquet(tmp_path / "d")
    data = images.load(str(tmp_path / "d"))
    assert np.array_equal(data.train.numpy(), pictures(6).transpose(0, 3, 1, 2))
    assert data.train_labels.tolist() == [0, 1, 0, 1, 0, 1]
    pixels = pictures(6) / 255
    assert data.mean.numpy() == pytest.approx(pixels.mean((0, 1, 2)), rel=1e-6)
    assert data.std.numpy() == pytest.approx(pixels.std((0, 1, 2)), rel=1e-6)


def test_parquet_columns_may_have_other_names(tmp_path):
    write_parquet(tmp_path / "d", column="image", label="fine_label")
    assert images.load(str(tmp_path / "d")).num_classes == 2


@pytest.mark.parametrize("hundred", [False, True])
@pytest.mark.parametrize("below", [False, True])
def test_a_cifar_folder_is_read_by_itself_or_as_its_usual_subfolder(tmp_path, monkeypatch, hundred, below):
    folder = tmp_path / "d" / ("cifar-100-python" if hundred else "cifar-10-batches-py") if below else tmp_path / "d"
    write_cifar(folder, hundred)
    publish(folder, monkeypatch, hundred)
    data = images.load(str(tmp_path / "d"))
    assert len(data.train) == (4 if hundred else 20)
    assert np.array_equal(data.test.numpy(), pictures(4).transpose(0, 3, 1, 2))
    assert data.test_labels.tolist() == [0, 1, 0, 1]


def test_folders_of_classes_are_read(tmp_path):
    write_classes(tmp_path / "d")
    data = images.load(str(tmp_path / "d"))
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(data.train[3:].numpy(), pictures(3, seed=1).transpose(0, 3, 1, 2))


def test_a_folder_is_decoded_once_and_again_when_it_changes(tmp_path, monkeypatch):
    write_classes(tmp_path / "d")
    first = images.load(str(tmp_path / "d"))
    images.load.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(images, "_decode", lambda _: pytest.fail("decoded again"))
        assert images.load(str(tmp_path / "d")).digest == first.digest
    images.load.cache_clear()
    Image.fromarray(pictures(1, seed=9)[0]).save(tmp_path / "d/train/dog/9.png")
    assert len(images.load(str(tmp_path / "d")).train) == 7


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(("hundred", "name"), [
    (False, "data_batch_3"), (False, "test_batch"), (False, "batches.meta"), (True, "train"), (True, "meta"),
])  # fmt: skip
def test_a_cifar_file_that_is_not_the_published_one_is_refused_and_never_unpickled(
    tmp_path, monkeypatch, hundred, name
):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "d", hundred)
    publish(tmp_path / "d", monkeypatch, hundred)
    hostile = pickle.dumps({"data": Payload(), "labels": [0]})
    (tmp_path / "d" / name).write_bytes(hostile)
    with pytest.raises(InputError, match=rf"d.{name}: .*MD5 .*https://.*Parquet or class folders") as refused:
        images.load(str(tmp_path / "d"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "executed").exists()
    pickle.loads(hostile)
    assert (tmp_path / "executed").exists()  # what reading it would have done


def test_a_cifar_folder_that_lacks_a_file_is_refused(tmp_path, monkeypatch):
    write_cifar(tmp_path / "d")
    publish(tmp_path / "d", monkeypatch)
    (tmp_path / "d/data_batch_5").unlink()
    with pytest.raises(InputError, match="data_batch_5: missing"):
        images.load(str(tmp_path / "d"))


def test_unreadable_images_and_tables_are_named(tmp_path):
    write_classes(tmp_path / "a")
    (tmp_path / "a/train/cat/1.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"cat.1\.png"):
        images.load(str(tmp_path / "a"))
    write_parquet(tmp_path / "b")
    file = tmp_path / "b/plain_text/test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="test-00000"):
        images.load(str(tmp_path / "b"))


def test_a_path_without_a_data_set_is_refused_with_a_hint(tmp_path):
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        images.load("cifra10")
    with pytest.raises(InputError, match="no such folder"):
        images.load(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="known layouts"):
        images.load(str(tmp_path))


def test_a_failed_download_says_how_to_fix_it(monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", offline)
    with pytest.raises(InputError, match=r"connect to the network.*--data PATH"):
        images.load("cifar10")


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("svhn", "SVHN")])
def test_downloaded_sets_become_32_pixel_planes(monkeypatch, name, kind):
    class Downloaded:
        def __init__(self, root, download, **_):
            shape = {"mnist": (5, 28, 28), "svhn": (5, 3, 32, 32)}[name]
            self.data = np.full(shape, 7, np.uint8)
            setattr(self, "labels" if name == "svhn" else "targets", [0, 1, 0, 1, 0])

    monkeypatch.setattr(datasets, kind, Downloaded)
    data = images.load(name)
    assert data.train.shape == (5, 1 if name == "mnist" else 3, 32, 32)
    assert data.train[0, 0, 16, 16] == 7
    assert data.train[0, 0, 0, 0] == (0 if name == "mnist" else 7)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_downloaded_cifar_is_read(monkeypatch, name):
    hundred = name == "cifar100"

    def download(url, root, *, filename, md5):
        assert url.startswith("https://")
        assert len(md5) == 32
        folder = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
        write_cifar(folder, hundred)
        publish(folder, monkeypatch, hundred)

    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", download)
    data = images.load(name)
    assert data.test.shape == (4, 3, 32, 32)
    assert data.test_labels.tolist() == [0, 1, 0, 1]


def test_images_that_changed_since_training_are_refused(tmp_path):
    write_classes(tmp_path / "d")
    settings = {"width": 0.05, "batch_size": 2, "steps": 2, "save_every": 1, "eval_every": 2}
    run = bns.train("vgg", "batch", data=str(tmp_path / "d"), output=tmp_path / "run", **settings)
    (tmp_path / "d").rename(tmp_path / "moved")
    images.load.cache_clear()
    assert bns.load_point(run, step=1, data=str(tmp_path / "moved")).step == 1
    Image.fromarray(pictures(1, seed=9)[0]).save(tmp_path / "moved/train/dog/1.png")
    images.load.cache_clear()
    with pytest.raises(InputError, match="digest"):
        bns.load_point(run, step=1, data=str(tmp_path / "moved"))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real CIFAR-10 is not beside the checkout")
def test_the_real_cifar10():
    data = images.load(str(REAL))
    assert (data.train.shape, data.test.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert data.mean.numpy() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-3)
    assert data.train_labels.bincount().tolist() == [5000] * 10
