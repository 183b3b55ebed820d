"""What a fingerprint notices of changed data, and what it does not."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from layerwise.data import load, read_scores
from layerwise.data.fingerprint import Fingerprint
from layerwise.errors import InputError


@pytest.fixture
def place(tmp_path, class_folders):
    class_folders(tmp_path / "set" / "train", ("ant", "bee", "wasp"), count=6)
    class_folders(tmp_path / "set" / "test", ("ant", "bee", "wasp"), count=2)
    return tmp_path / "set"


@pytest.fixture
def loaded(tmp_path):
    return lambda place, **options: load(str(place), root=tmp_path / "cache", **options)


def rename(place):
    for part in ("train", "test"):
        (place / part / "bee").rename(place / part / "hornet")


def remove_class(place):
    for part in ("train", "test"):
        shutil.rmtree(place / part / "bee")


def add(place):
    Image.new("RGB", (6, 6)).save(place / "train" / "ant" / "new.png")


def remove_of_test(place):
    (place / "test" / "ant" / "0.png").unlink()


def rename_file(place):
    (place / "train" / "ant" / "0.png").rename(place / "train" / "ant" / "00.png")


def exchange(place):
    Image.new("RGB", (6, 6)).save(place / "train" / "ant" / "0.png")


def move(place):
    (place / "train" / "ant" / "0.png").rename(place / "train" / "bee" / "9.png")


CHANGES = [
    (rename, "the class 'bee' is now 'hornet'"),
    (remove_class, "3 classes then, 2 now ('bee' gone)"),
    (add, "18 train samples then, 19 now"),
    (remove_of_test, "6 test samples then, 5 now"),
    (rename_file, "files have other names or sizes than then"),
    (exchange, "files have other names or sizes than then"),
    (move, "files have other names or sizes than then"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=range(len(CHANGES)))
def test_what_changed_is_named(place, loaded, change, said):
    then = Fingerprint.of(loaded(place, validation=0))
    change(place)
    assert then.changed(Fingerprint.of(loaded(place, validation=0))) == said


def test_the_same_data_elsewhere_and_later(tmp_path, place, loaded):
    """Neither where a folder lies nor when its files were written makes a difference, nor whether
    the images come from the cache."""
    then = Fingerprint.of(loaded(place))
    assert then.changed(Fingerprint.of(loaded(place))) is None
    place = place.rename(tmp_path / "elsewhere")
    os.utime(place / "train" / "ant" / "0.png", ns=(1, 1))
    assert then.changed(Fingerprint.of(loaded(place))) is None


def test_seeds_and_sizes(place, loaded):
    then = Fingerprint.of(load("digits"))
    assert "other labels" in str(then.changed(Fingerprint.of(load("digits", seed=1))))
    assert "other labels" in str(then.changed(Fingerprint.of(load("digits", random_labels=0.5))))
    assert "shape (1, 8, 8) then, (1, 6, 6)" in str(
        then.changed(Fingerprint.of(load("digits", size=6)))
    )
    assert "144 validation samples then, 0 now" in str(
        then.changed(Fingerprint.of(load("digits", validation=0)))
    )


def test_every_token_of_a_text_counts(tmp_path):
    text = "to be or not to be, that is the question. " * 50
    (tmp_path / "a.txt").write_text(text)
    then = Fingerprint.of(load(f"text:{tmp_path / 'a.txt'}"))
    (tmp_path / "a.txt").write_text(text.replace("to be, t", "ot be, t", 1))
    now = Fingerprint.of(load(f"text:{tmp_path / 'a.txt'}"))
    assert then.changed(now) == "other labels, or another order, in the part train"


def test_json_and_back(place, loaded):
    then = Fingerprint.of(loaded(place))
    assert Fingerprint.from_dict(json.loads(json.dumps(then.as_dict()))) == then


@pytest.mark.parametrize(
    "found", [None, [], {}, {"classes": 3}, {"classes": [], "shape": "a"}, "text", 1e400]
)
def test_what_is_no_fingerprint(found):
    with pytest.raises(InputError, match="not the fingerprint of a data set"):
        Fingerprint.from_dict(found)


def scores_of(path, splits, split="train"):
    about = {"split": split, **Fingerprint.of(splits).as_dict()}
    losses = {"losses": torch.rand(len(splits.train)), "labels": splits.train.labels}
    save_file(losses, path, {"samples": json.dumps(about)})
    return path


def test_scores_of_other_data_with_the_same_labels(tmp_path, place, loaded, class_folders):
    splits = loaded(place)
    path = scores_of(tmp_path / "scores.safetensors", splits)
    assert len(read_scores(path, splits)) == len(splits.train)
    assert len(read_scores(path, loaded(place, size=4))) == len(splits.train)
    (place / "test" / "ant" / "0.png").rename(place / "test" / "ant" / "00.png")
    with pytest.raises(InputError, match=r"of other data than .*: files have other names"):
        read_scores(path, loaded(place))
    class_folders(tmp_path / "other" / "train", ("a", "b", "c"), count=6)
    class_folders(tmp_path / "other" / "test", ("a", "b", "c"), count=2)
    other = loaded(tmp_path / "other")
    assert torch.equal(other.train.labels, splits.train.labels)
    with pytest.raises(InputError, match=r"of other data than .*: 3 classes then, 3 now"):
        read_scores(path, other)


def test_scores_of_another_split(tmp_path, place, loaded):
    splits = loaded(place)
    with pytest.raises(InputError, match="the scores are of the test split"):
        read_scores(scores_of(tmp_path / "scores.safetensors", splits, "test"), splits)


def test_scores_of_an_earlier_version(tmp_path, place, loaded):
    splits = loaded(place)
    losses = {"losses": torch.rand(len(splits.train)), "labels": splits.train.labels}
    save_file(losses, tmp_path / "scores.safetensors")
    assert len(read_scores(tmp_path / "scores.safetensors", splits)) == len(splits.train)
    other = replace(splits, train=replace(splits.train, labels=splits.train.labels.flip(0)))
    with pytest.raises(InputError, match="the scores are of other images"):
        read_scores(tmp_path / "scores.safetensors", other)


@pytest.mark.parametrize("spoil", ["pipe", "device", "text", "samples", "folder", "nothing"])
def test_scores_that_are_none(tmp_path, spoil):
    path = tmp_path / "scores.safetensors"
    if spoil == "pipe":
        os.mkfifo(path)
    elif spoil == "device":
        path.symlink_to("/dev/zero")
    elif spoil == "text":
        path.write_text("losses")
    elif spoil == "folder":
        path.mkdir()
    elif spoil == "samples":
        save_file({"losses": torch.rand(3)}, path, {"samples": "[3]"})
    with pytest.raises(InputError, match="cannot be read; give the file that"):
        read_scores(path)
