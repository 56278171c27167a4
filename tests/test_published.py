"""The original files of CIFAR, MNIST and SVHN: read, refused by name, and named where a download fails."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import re
import struct
import urllib.error
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import scipy.io
from torchvision import datasets

from bnsmooth_cli import InputError
from bnsmooth_cli.data import images

REAL = Path(__file__).parents[2] / "shared/data/cifar10"
MNIST = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]


@pytest.fixture(autouse=True)
def _forget(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images._of_folder.cache_clear()
    images._downloaded.cache_clear()


@pytest.fixture
def _offline(monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no route to host")

    for module, function in (
        (datasets.cifar, "download_and_extract_archive"),
        (datasets.mnist, "download_and_extract_archive"),
        (datasets.svhn, "download_url"),
    ):
        monkeypatch.setattr(module, function, unreachable)


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def idx(array):
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def digits():
    """The arrays of MNIST's four files, in the order of their names."""
    rng = np.random.default_rng(0)
    sizes = (20, 12)
    return [array for n in sizes for array in (rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10)]


def write_mnist(folder, ending="", dotted=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(MNIST, digits(), strict=True):
        name = name.replace("-idx", ".idx") if dotted else name
        (folder / f"{name}{ending}").write_bytes(gzip.compress(idx(array)) if ending else idx(array))


def write_svhn(folder, monkeypatch):
    """Ten pictures a file, in the structure of the original ones, which torchvision takes for them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, (url, name, _) in list(datasets.SVHN.split_list.items())[:2]:
        labels = np.arange(1, 11)[:, None]  # 10 stands for the digit 0
        scipy.io.savemat(folder / name, {"X": pictures(10).transpose(1, 2, 3, 0), "y": labels})
        md5 = hashlib.md5((folder / name).read_bytes()).hexdigest()
        monkeypatch.setitem(datasets.SVHN.split_list, split, [url, name, md5])


def check_mnist(data):
    train, labels, test, _ = digits()
    assert data.train.shape == (20, 1, 32, 32)
    assert np.array_equal(data.train[:, 0, 2:30, 2:30].numpy(), train)
    assert not data.train[:, 0, :2].any()
    assert data.train_labels.tolist() == labels.tolist()
    assert np.array_equal(data.test[:, 0, 2:30, 2:30].numpy(), test)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw", "FashionMNIST/raw"])
def test_mnists_files_are_read_where_torchvision_keeps_them(tmp_path, ending, below):
    write_mnist(tmp_path / "d" / below, ending)
    check_mnist(images.load(str(tmp_path / "d")))


def test_mnists_files_are_read_by_their_content(tmp_path):
    write_mnist(tmp_path / "d", dotted=True)
    check_mnist(images.load(str(tmp_path / "d")))
    for name in MNIST:  # a browser decompressed them, and kept the names
        (tmp_path / "d" / name.replace("-idx", ".idx")).rename(tmp_path / "d" / f"{name}.gz")
    images._of_folder.cache_clear()
    check_mnist(images.load(str(tmp_path / "d")))


def declare(shape):
    return struct.pack(f">{len(shape) + 1}I", 0x800 + len(shape), *shape)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        (0, lambda b: b[:-1], "declares 15680 bytes and has fewer"),
        (0, lambda b: b + b"x", "declares 15680 bytes and has more"),
        (0, lambda b: b[:7], "not a whole idx file"),
        (0, lambda b: b"", "not a whole idx file"),
        (0, lambda b: b"\0\0\x0d\x03" + b[4:], "begins with 0xd03, not with 0x803"),
        (0, lambda b: declare((2**32 - 1,) * 3) + b[16:], "more than it can hold"),
        (0, lambda b: declare((2**20, 28, 28)) + b[16:], "more than it can hold|has fewer"),
        (0, lambda b: declare((20, 14, 56)) + b[16:], "images of 14 x 56 pixels, expected 28 x 28"),
        (2, lambda b: declare((11, 28, 28)) + b[16 : 16 + 11 * 784], "t10k-labels.*: 12 labels for 11 images"),
        (1, lambda b: b[:-1] + b"\x0a", "a label of 10; the labels of this format are 0 to 9"),
        (1, lambda b: b[:8] + b[8:].replace(b"\x09", b"\x08"), "a label of 9 in its test split"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, file, change, why, zipped):
    if zipped and file == 1 and "test split" in why:
        pytest.skip("the files are as whole as without gzip")
    write_mnist(tmp_path / "d", ".gz" if zipped else "")
    path = tmp_path / "d" / f"{MNIST[file]}{'.gz' if zipped else ''}"
    content = change(idx(digits()[file]))
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(InputError, match=why) as refused:
        images.load(str(tmp_path / "d"))
    assert "\n" not in str(refused.value)
    if "split" not in why:
        assert "-ubyte" in str(refused.value)


def test_a_truncated_gzip_file_is_named(tmp_path):
    write_mnist(tmp_path / "d", ".gz")
    path = tmp_path / "d" / f"{MNIST[0]}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: not a whole idx file .*; delete it"):
        images.load(str(tmp_path / "d"))


def test_a_missing_file_and_a_choice_of_data_sets_are_named(tmp_path, monkeypatch):
    write_mnist(tmp_path / "d/MNIST/raw")
    write_mnist(tmp_path / "d/FashionMNIST/raw")
    with pytest.raises(InputError, match=r"several data sets; give one folder, such as .*FashionMNIST.raw"):
        images.load(str(tmp_path / "d"))
    (tmp_path / "d/MNIST/raw" / MNIST[3]).unlink()
    with pytest.raises(InputError, match=f"{MNIST[3]}: is missing; the data set has train-images-idx3-ubyte, "):
        images.load(str(tmp_path / "d/MNIST"))
    write_svhn(tmp_path / "svhn", monkeypatch)
    (tmp_path / "svhn/test_32x32.mat").unlink()
    with pytest.raises(InputError, match=r"test_32x32\.mat: is missing"):
        images.load(str(tmp_path / "svhn"))


def test_svhns_files_are_read_if_they_are_the_published_ones(tmp_path, monkeypatch):
    write_svhn(tmp_path / "d", monkeypatch)
    data = images.load(str(tmp_path / "d"))
    assert np.array_equal(data.train.numpy(), pictures(10).transpose(0, 3, 1, 2))
    assert data.test_labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    scipy.io.savemat(tmp_path / "d/test_32x32.mat", {"X": pictures(10), "y": np.arange(10)})
    images._of_folder.cache_clear()
    with pytest.raises(InputError, match=r"test_32x32\.mat: .*MD5 .*housenumbers.*Parquet or class folders"):
        images.load(str(tmp_path / "d"))


class TestDownloads:
    """What a name such as `--data mnist` does without a network."""

    def follow(self, message, folder, monkeypatch):
        """Do what the message of a failed download says, and return the path to give."""
        if "unpack it" in message:
            hundred = "cifar-100" in message
            name = re.search(r"--data path/to/([\w-]+)$", message)[1]
            write_cifar(folder / name, hundred)
            publish(folder / name, monkeypatch, hundred)
            return folder / name
        names = re.search(
            r"get ([^()]+) elsewhere \(from http[^ ]+\) and give the folder that has them: --data path", message
        )
        names = names[1].split(", ")
        if names[0].endswith(".mat"):
            write_svhn(folder, monkeypatch)
        else:
            write_mnist(folder, ".gz")
        assert sorted(path.name for path in folder.iterdir()) == sorted(names)
        return folder

    @pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion-mnist", "svhn"])
    @pytest.mark.usefixtures("_offline")
    def test_the_message_names_a_remedy_that_works(self, tmp_path, monkeypatch, name):
        with pytest.raises(InputError, match="connect to the network and try again, or get ") as failed:
            images.load(name)
        path = self.follow(str(failed.value), tmp_path / "elsewhere", monkeypatch)
        assert images.load(str(path)).test.shape[2:] == (32, 32)

    @pytest.mark.parametrize("ending", ["", ".gz"])
    @pytest.mark.usefixtures("_offline")
    def test_files_that_are_there_already_are_read(self, ending):
        folder = platformdirs.user_cache_path("bnsmooth") / "downloads/mnist/MNIST/raw"
        write_mnist(folder, ending)
        check_mnist(images.load("mnist"))

    @pytest.mark.usefixtures("_offline")
    def test_damaged_and_partial_downloads_are_told_apart(self):
        folder = platformdirs.user_cache_path("bnsmooth") / "downloads/mnist/MNIST/raw"
        write_mnist(folder)
        whole = (folder / MNIST[2]).read_bytes()
        (folder / MNIST[2]).write_bytes(whole[:1000])  # unpacking was interrupted
        with pytest.raises(InputError, match=rf"{MNIST[2]}: not a whole idx file .*; delete it, and get it again"):
            images.load("mnist")
        (folder / MNIST[2]).unlink()
        with pytest.raises(InputError, match=r"the download failed .*connect to the network"):
            images.load("mnist")

    def test_a_download_is_read(self, monkeypatch):
        def download(url, download_root, filename, md5):
            assert url.startswith("http")
            assert len(md5) == 32
            write_mnist(Path(download_root))

        monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", download)
        check_mnist(images.load("fashion-mnist"))


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


@pytest.mark.skipif(not REAL.is_dir(), reason="the real CIFAR-10 is not beside the checkout")
@pytest.mark.slow
def test_the_real_cifar10():
    data = images.load(str(REAL))
    assert (data.train.shape, data.test.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert data.mean.numpy() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-3)
    assert data.train_labels.bincount().tolist() == [5000] * 10
