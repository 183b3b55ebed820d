"""torchvision's sets, from tiny files in the layout of the originals."""

import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets as tv

from layerwise.data import Loader, load
from layerwise.errors import InputError

RNG = np.random.default_rng(0)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_idx(place, images, labels, prefix):
    place.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">IIII", 0x803, *images.shape)
    (place / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
    head = struct.pack(">II", 0x801, len(labels))
    (place / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_mnist_and_fashion_mnist(tmp_path, name, folder):
    images = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    write_idx(tmp_path / folder / "raw", images, np.arange(20) % 10, "train")
    write_idx(tmp_path / folder / "raw", images[:10], np.arange(10), "t10k")
    splits = load(name, root=tmp_path, validation=0, download=False)
    assert splits.shape == (1, 28, 28)
    assert splits.num_classes == 10
    assert np.array_equal(splits.train.images[..., 0].numpy(), images)
    assert splits.train.labels.tolist() == list(range(10)) * 2
    assert len(splits.test) == 10
    assert splits.classes[9] == {"mnist": "9 - nine", "fashion-mnist": "Ankle boot"}[name]


def cifar(root, monkeypatch, kind, label, files, meta):
    place = root / kind.base_folder
    place.mkdir()
    sums, shown = {}, {}
    for file, count in files.items():
        rows = RNG.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": rows, label: [i % 10 for i in range(count)]}
        (place / file).write_bytes(pickle.dumps(content))
        sums[file], shown[file] = md5(place / file), rows
    name, key, classes = meta
    (place / name).write_bytes(pickle.dumps({key: classes}))
    names = list(files)
    monkeypatch.setattr(kind, "train_list", [[f, sums[f]] for f in names[:-1]])
    monkeypatch.setattr(kind, "test_list", [[names[-1], sums[names[-1]]]])
    monkeypatch.setattr(kind, "meta", {"filename": name, "key": key, "md5": md5(place / name)})
    return shown


def test_cifar10(tmp_path, monkeypatch):
    files = {"data_batch_1": 20, "data_batch_2": 20, "test_batch": 10}
    meta = ("batches.meta", "label_names", list("abcdefghij"))
    shown = cifar(tmp_path, monkeypatch, tv.CIFAR10, "labels", files, meta)
    splits = load("cifar10", root=tmp_path, validation=0.25, download=False)
    assert splits.classes == tuple("abcdefghij")
    assert splits.shape == (3, 32, 32)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [30, 10, 10]
    # A row is the red plane, then green, then blue.
    expected = shown["test_batch"].reshape(10, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(splits.test.images.numpy(), expected)
    assert splits.test.images.is_contiguous()
    assert splits.test.labels.tolist() == list(range(10))


def test_cifar100_is_read_by_its_fine_labels(tmp_path, monkeypatch):
    meta = ("meta", "fine_label_names", [f"c{i}" for i in range(100)])
    cifar(tmp_path, monkeypatch, tv.CIFAR100, "fine_labels", {"train": 20, "test": 10}, meta)
    splits = load("cifar100", root=tmp_path, validation=0, download=False)
    assert splits.num_classes == 100
    assert (len(splits.train), len(splits.test)) == (20, 10)


def test_a_cifar_file_that_is_not_the_published_one_is_never_unpickled(tmp_path, monkeypatch):
    files = {"data_batch_1": 20, "test_batch": 10}
    meta = ("batches.meta", "label_names", list("abcdefghij"))
    cifar(tmp_path, monkeypatch, tv.CIFAR10, "labels", files, meta)

    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").touch, ())

    file = tmp_path / tv.CIFAR10.base_folder / "test_batch"
    file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="data cifar10"):
        load("cifar10", root=tmp_path, download=False)
    assert not (tmp_path / "exploded").exists()


def test_svhn(tmp_path, monkeypatch):
    sums = {}
    images = RNG.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    for split in ("train", "test"):
        file = tmp_path / f"{split}_32x32.mat"
        labels = np.arange(1, 21) % 10
        labels[labels == 0] = 10  # the file's name for the digit 0
        savemat(file, {"X": images, "y": labels[:, None].astype(np.uint8)})
        sums[split] = ["", file.name, md5(file)]
    monkeypatch.setattr(tv.SVHN, "split_list", sums)
    splits = load("svhn", root=tmp_path, validation=0, download=False)
    assert splits.shape == (3, 32, 32)
    assert splits.train.labels.tolist() == [*range(1, 10), 0] * 2
    assert np.array_equal(splits.train.images[7].numpy(), images[..., 7])


def test_stl10(tmp_path, monkeypatch):
    place = tmp_path / "stl10_binary"
    place.mkdir()
    lists, shown = {"train": [], "test": []}, {}
    for split, count in (("train", 20), ("test", 10)):
        # Planes are stored column by column.
        planes = RNG.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        (place / f"{split}_X.bin").write_bytes(planes.tobytes())
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)
        (place / f"{split}_y.bin").write_bytes(labels.tobytes())
        lists[split] = [
            [f.name, md5(f)] for f in (place / f"{split}_X.bin", place / f"{split}_y.bin")
        ]
        shown[split] = planes
    (place / "class_names.txt").write_text("\n".join("abcdefghij") + "\n")
    monkeypatch.setattr(tv.STL10, "train_list", lists["train"])
    monkeypatch.setattr(tv.STL10, "test_list", lists["test"])
    splits = load("stl10", root=tmp_path, validation=0, download=False)
    assert splits.shape == (3, 96, 96)
    assert splits.num_classes == 10
    assert splits.test.labels.tolist() == list(range(10))
    assert np.array_equal(splits.test.images.numpy(), shown["test"].transpose(0, 3, 2, 1))


def test_imagenet_is_tested_on_its_validation_part(tmp_path):
    for split, count in (("train", 10), ("val", 3)):
        for c in ("n01440764", "n01443537"):
            place = tmp_path / "imagenet" / split / c
            place.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 30), (i, 0, 0)).save(place / f"{i}.JPEG")
    splits = load("imagenet", root=tmp_path, size=16)
    assert splits.classes == ("n01440764", "n01443537")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [18, 2, 6]
    ((x, _),) = Loader(splits.test, 6, train=False)
    assert x.shape == (6, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "MNIST/raw/"),
        ("fashion-mnist", "FashionMNIST/raw/"),
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("svhn", "{train,test}_32x32.mat"),
        ("stl10", "stl10_binary"),
        ("imagenet", "imagenet/{train,val}/CLASS"),
    ],
)
@pytest.mark.parametrize("download", [True, False])
def test_what_is_missing_says_where_to_place_it(tmp_path, name, place, download):
    with pytest.raises(InputError) as error:
        load(name, root=tmp_path, download=download)
    assert place in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_one_line(tmp_path):
    images = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    write_idx(tmp_path / "MNIST" / "raw", images, np.arange(20), "train")
    write_idx(tmp_path / "MNIST" / "raw", images, np.arange(20), "t10k")
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(InputError, match="data mnist") as error:
        load("mnist", root=tmp_path, download=False)
    assert "\n" not in str(error.value)


def test_torch_is_seeded_by_nobody(tmp_path):
    before = torch.get_rng_state()
    load("digits")
    assert torch.equal(torch.get_rng_state(), before)
