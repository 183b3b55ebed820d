"""Decoded images are kept, found again, and never in the way."""

import logging
import os

import pytest
import torch
from PIL import Image

from layerwise.data import decode, load
from layerwise.data.sources import cache


@pytest.fixture
def place(tmp_path, class_folders):
    return class_folders(tmp_path / "set")


@pytest.fixture
def decoded(monkeypatch):
    """Names of the images that were decoded."""
    seen = []
    plain = decode.pixels
    monkeypatch.setattr(
        decode, "pixels", lambda source, i: seen.append(source.where(i)) or plain(source, i)
    )
    return seen


def test_the_second_time_nothing_is_decoded(place, tmp_path, decoded):
    first = load(str(place), root=tmp_path / "cache")
    assert len(set(decoded)) == 10
    decoded.clear()
    second = load(str(place), root=tmp_path / "cache")
    assert decoded == []
    assert second.classes == first.classes
    for part in ("train", "validation", "test"):
        a, b = getattr(first, part), getattr(second, part)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_one_file_and_no_leftovers(place, tmp_path):
    load(str(place), root=tmp_path / "cache")
    (file,) = (tmp_path / "cache" / "decoded").iterdir()
    assert file.suffix == ".safetensors"


def test_a_changed_file_or_size_is_decoded_anew(place, tmp_path):
    root = tmp_path / "cache"
    load(str(place), root=root, validation=0)
    assert load(str(place), root=root, validation=0, size=4).shape == (3, 4, 4)
    for file in (place / "ant").iterdir():
        Image.new("RGB", (6, 6), (255, 0, 0)).save(file)
        os.utime(file, ns=(1, 1))
    splits = load(str(place), root=root, validation=0)
    red = splits.train.images[splits.train.labels == 0]
    assert torch.equal(red, torch.tensor([255, 0, 0], dtype=torch.uint8).expand_as(red))


def test_a_damaged_cache_is_written_anew(place, tmp_path, decoded, caplog):
    root = tmp_path / "cache"
    first = load(str(place), root=root)
    (file,) = (root / "decoded").iterdir()
    file.write_bytes(file.read_bytes()[:50])
    decoded.clear()
    with caplog.at_level(logging.WARNING):
        second = load(str(place), root=root)
    assert "written anew" in caplog.text
    assert torch.equal(first.train.images, second.train.images)
    assert decoded
    decoded.clear()
    load(str(place), root=root)
    assert decoded == []


def test_a_place_that_cannot_be_written_only_disables_the_cache(place, tmp_path, caplog):
    root = tmp_path / "file"
    root.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        splits = load(str(place), root=root)
    assert len(splits.train) == 7
    assert "not cached" in caplog.text


def test_a_full_disk_leaves_nothing_behind(place, tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    with caplog.at_level(logging.WARNING):
        load(str(place), root=tmp_path / "cache")
    assert "No space left" in caplog.text
    assert list((tmp_path / "cache" / "decoded").iterdir()) == []
