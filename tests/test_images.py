"""A user's folder of images: class folders and Parquet files, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import bnsmooth_cli as bns
from bnsmooth_cli import InputError
from bnsmooth_cli.config import resolve
from bnsmooth_cli.data import folders, images
from bnsmooth_cli.storage.runs import Run, write_config
from bnsmooth_cli.studies.grid import read_grid


@pytest.fixture(autouse=True)
def _forget():
    images._of_folder.cache_clear()


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


def test_folders_of_classes_are_read(tmp_path):
    write_classes(tmp_path / "d")
    data = images.load(str(tmp_path / "d"))
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(data.train[3:].numpy(), pictures(3, seed=1).transpose(0, 3, 1, 2))


def test_a_folder_is_decoded_once_and_again_when_it_changes(tmp_path, monkeypatch):
    write_classes(tmp_path / "d")
    first = images.load(str(tmp_path / "d"))
    images._of_folder.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(folders, "decode", lambda _: pytest.fail("decoded again"))
        assert images.load(str(tmp_path / "d")).digest == first.digest
    images._of_folder.cache_clear()
    Image.fromarray(pictures(1, seed=9)[0]).save(tmp_path / "d/train/dog/9.png")
    assert len(images.load(str(tmp_path / "d")).train) == 7


def test_images_that_have_changed_are_read_again_in_the_same_process(tmp_path, monkeypatch):
    for folder in ("d", "elsewhere/d"):
        write_classes(tmp_path / folder)
    Image.fromarray(pictures(1, seed=9)[0]).save(tmp_path / "elsewhere/d/train/dog/9.png")
    assert len(images.load(str(tmp_path / "d")).train) == 6
    Image.fromarray(pictures(1, seed=8)[0]).save(tmp_path / "d/train/dog/8.png")
    Image.fromarray(pictures(1, seed=9)[0]).save(tmp_path / "d/train/dog/9.png")
    assert len(images.load(str(tmp_path / "d")).train) == 8
    for folder, count in ((tmp_path, 8), (tmp_path / "elsewhere", 7)):
        monkeypatch.chdir(folder)
        assert len(images.load("d").train) == count


def test_a_relative_folder_is_recorded_by_its_full_path(tmp_path, monkeypatch):
    write_classes(tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    for data in ("d", Path("d")):
        assert resolve("vgg", data=data).settings.data == str(tmp_path / "d")
        assert read_grid({"norms": "none", "data": data}).settings["data"] == str(tmp_path / "d")


def draw(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pictures(1, seed)[0]).save(path)


def write_splits(folder, **classes):
    """A picture for each class of each split, such as train="abc"; the picture depends on the class."""
    for split, names in classes.items():
        for name in names:
            draw(folder / split / name / "0.png", seed=ord(name[0]))


def test_trains_classes_number_every_split(tmp_path):
    write_splits(tmp_path, train="abcd", test="acd")
    data = images.load(str(tmp_path))
    assert data.train_labels.tolist() == [0, 1, 2, 3]
    assert data.test_labels.tolist() == [0, 2, 3]
    assert np.array_equal(data.test.numpy(), data.train[[0, 2, 3]].numpy())
    (tmp_path / "train/Aa").mkdir()  # without images, it is no class
    images._of_folder.cache_clear()
    assert images.load(str(tmp_path)).test_labels.tolist() == [0, 2, 3]


@pytest.mark.parametrize("name", ["e", "A", "Aa"])
def test_a_class_that_train_lacks_is_refused(tmp_path, name):
    write_splits(tmp_path, train="abcd", test=["a", name])
    (tmp_path / "train/Aa").mkdir()
    with pytest.raises(InputError, match=rf"test.{name}: a class without images in train \(a, b, c, d\); rename"):
        images.load(str(tmp_path))


def test_names_with_a_dot_are_no_classes_and_no_images(tmp_path):
    write_splits(tmp_path, train=["a", "b", ".ipynb_checkpoints"], test=["a", "b", ".trash"])
    for split in ("train", "test"):
        (tmp_path / split / ".DS_Store").write_bytes(b"x")
        (tmp_path / split / "a/._0.png").write_bytes(b"a resource fork")
        (tmp_path / split / "a/Thumbs.db").write_bytes(b"x")
        (tmp_path / split / "labels.csv").write_bytes(b"x")
        draw(tmp_path / split / "b/.ipynb_checkpoints/0.png")
    data = images.load(str(tmp_path))
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0, 1], [0, 1])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("train/a/1.tif", "1.tif: would be left out .*images are read as png, "),
        ("test/a/1.GIF", "1.GIF: would be left out"),
        ("train/a/1.heic", "1.heic: would be left out"),
        ("train/a/1", "train.a.1: would be left out"),
        ("train/1.png", "train.1.png: would be left out .train/CLASS/IMAGE is read"),
        ("test/a/deep/1.png", "deep: a folder in a class's folder"),
    ],
)
def test_no_image_is_left_out_silently(tmp_path, name, why):
    write_splits(tmp_path, train="ab", test="ab")
    images.load(str(tmp_path))
    images._of_folder.cache_clear()
    draw(tmp_path / "1.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "1.png").rename(tmp_path / name)
    with pytest.raises(InputError, match=why):
        images.load(str(tmp_path))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_split_takes_the_place_of_a_missing_test_split(tmp_path, name):
    write_splits(tmp_path, train="ab", **{name: "b"})
    draw(tmp_path / "test/1.png")  # of a competition: without classes
    assert images.load(str(tmp_path)).test_labels.tolist() == [1]


def test_a_missing_test_split_and_a_dead_link_are_named(tmp_path):
    write_splits(tmp_path, train="ab")
    with pytest.raises(InputError, match=r"has train/CLASS/IMAGE, but no test/CLASS/IMAGE \(val/, valid/"):
        images.load(str(tmp_path))
    write_splits(tmp_path, test="ab")
    (tmp_path / "train/a/link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"link\.png: cannot be read"):
        images.load(str(tmp_path))


def test_every_suffix_of_a_format_that_is_read_is_read(tmp_path):
    write_splits(tmp_path, train="ab", test="ab")
    for suffix in ("JPG", "jfif", "pgm", "pbm", "ppm", "bmp", "webp"):
        Image.fromarray(pictures(1)[0, :, :, 0]).convert("1" if suffix == "pbm" else "L").save(
            tmp_path / f"train/b/x.{suffix}"
        )
    assert images.load(str(tmp_path)).train_labels.tolist() == [0] + [1] * 8


def write_shard(path, labels, names=None, column="label", **more):
    """A Parquet file with a picture for each label. `names` are listed as Hugging Face's ClassLabel lists them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": png(array), "path": None} for array in pictures(len(labels))]
    table = pa.table({"image": rows, **more, column: labels})
    if names is not None:
        features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def labels_of(folder):
    images._of_folder.cache_clear()
    data = images.load(str(folder))
    return data.train_labels.tolist(), data.test_labels.tolist()


def test_names_of_labels_are_numbered_as_train_numbers_them(tmp_path):
    write_shard(tmp_path / "train-00000-of-00002.parquet", [0, 1], ["cat", "dog", "owl"])
    write_shard(tmp_path / "train-00001-of-00002.parquet", [0, 1, 2], ["owl", "dog", "cat"])
    write_shard(tmp_path / "test-00000-of-00001.parquet", [0, 1, 0], ["owl", "cat"])
    assert labels_of(tmp_path) == ([0, 1, 2, 1, 0], [2, 0, 2])
    write_shard(tmp_path / "test-00000-of-00001.parquet", [2, 0, 1])  # without names, a number is a number
    assert labels_of(tmp_path)[1] == [2, 0, 1]
    write_shard(tmp_path / "test-00000-of-00001.parquet", [0, 1], {"0": "owl", "1": "cat"})
    assert labels_of(tmp_path)[1] == [2, 0]
    write_shard(tmp_path / "test-00000-of-00001.parquet", ["dog", "owl"])
    assert labels_of(tmp_path)[1] == [1, 2]
    write_shard(tmp_path / "test-00000-of-00001.parquet", [0, 0], ["cat", "emu"])  # a name without images
    assert labels_of(tmp_path)[1] == [0, 0]
    for labels, names in (([0, 1], ["cat", "emu"]), (["cat", "emu"], None)):
        write_shard(tmp_path / "test-00000-of-00001.parquet", labels, names)
        with pytest.raises(
            InputError, match=r"test-00000.*: a class 'emu' that .*train-00000.* lacks \(cat, dog, owl\)"
        ):
            labels_of(tmp_path)
    write_shard(tmp_path / "test-00000-of-00001.parquet", [0, -1], ["owl", "cat"])
    with pytest.raises(InputError, match="a label of -1, but its classes are 0 to 1"):
        labels_of(tmp_path)
    write_shard(tmp_path / "test-00000-of-00001.parquet", [3], ["cat", "dog", "owl"])
    with pytest.raises(InputError, match="a label of 3, but it has 3 classes"):
        labels_of(tmp_path)


def test_labels_may_be_names(tmp_path):
    write_shard(tmp_path / "train-0.parquet", ["owl", "cat", "10", "9"])
    write_shard(tmp_path / "test-0.parquet", pa.array(["owl", "9"]).dictionary_encode())
    assert labels_of(tmp_path) == ([3, 2, 0, 1], [3, 1])
    write_shard(tmp_path / "test-0.parquet", [0, 1])
    with pytest.raises(
        InputError, match=r"test-0\.parquet: its labels are numbers, and those of .*train-0.* are names"
    ):
        labels_of(tmp_path)
    write_shard(tmp_path / "test-0.parquet", ["owl", None])
    with pytest.raises(InputError, match="an image without a label"):
        labels_of(tmp_path)


def test_the_column_of_the_labels_is_never_guessed(tmp_path):
    for split in ("train", "test"):
        write_shard(tmp_path / f"{split}-0.parquet", [1, 0], column="animal", id=[0, 1])
    with pytest.raises(InputError, match=r"no column of labels \(whole numbers or text\) named 'label'"):
        labels_of(tmp_path)
    for split in ("train", "test"):
        write_shard(tmp_path / f"{split}-0.parquet", [1, 0], ["cat", "dog"], column="animal", id=[0, 1])
    assert labels_of(tmp_path) == ([1, 0], [1, 0])
    more = {"mask": [{"bytes": b"", "path": None}] * 2}
    for split in ("train", "test"):
        write_shard(tmp_path / f"{split}-0.parquet", [1, 0], **more)
    assert labels_of(tmp_path) == ([1, 0], [1, 0])


def test_files_that_are_missing_or_of_another_data_set_are_named(tmp_path):
    write_shard(tmp_path / "a/train-00000-of-00003.parquet", [0, 1])
    write_shard(tmp_path / "a/train-00002-of-00003.parquet", [0, 1])
    with pytest.raises(InputError, match=r"train-00001-of-00003\.parquet: is missing"):
        labels_of(tmp_path)
    (tmp_path / "a/train-00002-of-00003.parquet").rename(tmp_path / "kept")
    (tmp_path / "a/train-00000-of-00003.parquet").rename(tmp_path / "a/train-0.parquet")
    with pytest.raises(InputError, match=r"has train-\*\.parquet, but no test-\*\.parquet \(val-\*, valid"):
        labels_of(tmp_path)
    (tmp_path / "a/train-0.parquet").rename(tmp_path / "a/train-00000-of-00003.parquet")
    (tmp_path / "kept").rename(tmp_path / "a/train-00002-of-00003.parquet")
    write_shard(tmp_path / "a/validation-00000-of-00001.parquet", [0, 1])
    with pytest.raises(InputError, match=r"train-00001-of-00003\.parquet: is missing"):
        labels_of(tmp_path)
    write_shard(tmp_path / "a/train-00001-of-00003.parquet", [1, 0])
    assert labels_of(tmp_path) == ([0, 1, 1, 0, 0, 1], [0, 1])
    write_shard(tmp_path / "a/train-00000-of-00001.parquet", [1, 0])
    with pytest.raises(InputError, match=r"train-00000-of-00001\.parquet: is one of 1, but there are 4"):
        labels_of(tmp_path)
    (tmp_path / "a/train-00000-of-00001.parquet").unlink()
    write_shard(tmp_path / "b/train-00000-of-00001.parquet", [1, 0])
    write_shard(tmp_path / ".cache/train-00000-of-00001.parquet", [1, 0])
    with pytest.raises(InputError, match=r"of several data sets \(a, b\); give one of the folders"):
        labels_of(tmp_path)


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


def test_images_that_changed_since_training_are_refused(tmp_path):
    write_classes(tmp_path / "d")
    settings = {"width": 0.05, "batch_size": 2, "steps": 2, "save_every": 1, "eval_every": 2}
    run = bns.train("vgg", "batch", data=str(tmp_path / "d"), output=tmp_path / "run", **settings)
    (tmp_path / "d").rename(tmp_path / "moved")
    images._of_folder.cache_clear()
    assert bns.load_point(run, step=1, data=str(tmp_path / "moved")).step == 1
    Image.fromarray(pictures(1, seed=9)[0]).save(tmp_path / "moved/train/dog/1.png")
    images._of_folder.cache_clear()
    with pytest.raises(InputError, match=r"trained on .*digest"):
        bns.load_point(run, step=1, data=str(tmp_path / "moved"))


def test_test_images_that_changed_since_training_are_refused(tmp_path):
    write_classes(tmp_path / "d")
    settings = {"data": str(tmp_path / "d"), "width": 0.05, "batch_size": 2, "save_every": 1, "eval_every": 2}
    run = bns.train("vgg", "batch", output=tmp_path / "run", steps=2, **settings)
    digest = run.config.settings.data_digest
    early = Run(tmp_path / "early", run.config.changed(data_digest=digest.split(".")[0]))
    early.path.mkdir()
    write_config(early)
    Image.fromarray(pictures(1, seed=9)[0]).save(tmp_path / "d/test/dog/1.png")
    with pytest.raises(InputError, match=r"tested on .*digest"):
        bns.load_point(run, step=1)
    with pytest.raises(InputError, match="another configuration"):
        bns.train("vgg", "batch", output=run.path, steps=4, **settings)
    assert bns.train("vgg", "batch", output=early.path, steps=2, **settings).outcome()["last_step"] == 2
