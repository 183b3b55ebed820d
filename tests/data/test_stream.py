"""A set that is decoded by workers gives what the same set in memory gives."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from layerwise.data import Augment, Loader, Stream, load, stream
from layerwise.data.decode import fit
from layerwise.data.pixels import boxes
from layerwise.data.sources.folder import Files
from layerwise.errors import InputError

FULL = Augment(flip=True, crop=2, cutout=3)


@pytest.fixture
def splits(tmp_path, class_folders, monkeypatch):
    """A streamed set and the same in memory."""
    place = class_folders(tmp_path / "set", count=15, height=12, width=12)
    memory = load(str(place), root=tmp_path / "cache", size=12)
    monkeypatch.setattr(stream, "IN_MEMORY_BYTES", 1000)
    return load(str(place), root=tmp_path / "none", size=12), memory


def same(a, b):
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


def test_stream_and_memory_agree_bit_for_bit(splits):
    streamed, memory = splits
    assert isinstance(streamed.train, Stream)
    assert streamed.shape == memory.shape
    for train in (True, False):
        a = Loader(streamed.train, 4, augment=FULL, train=train, seed=2)
        b = Loader(memory.train, 4, augment=FULL, train=train, seed=2)
        assert len(a) == len(b)
        assert same(a.epoch(1), b.epoch(1))
    assert streamed.test.statistics == memory.test.statistics


def test_an_epoch_repeats_from_any_batch_and_leaves_the_global_generator(splits):
    loader = Loader(splits[0].train, 4, augment=Augment(resized_crop=True, flip=True), train=True)
    before = torch.get_rng_state()
    whole = list(loader.epoch(3))
    assert len(whole) == len(loader)
    assert same(loader.epoch(3, 2), whole[2:])
    assert list(loader.epoch(3, len(loader))) == []
    assert not same(loader.epoch(4), whole)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_workers_give_the_same(splits):
    from dataclasses import replace

    augment = Augment(resized_crop=True, flip=True)
    alone = replace(splits[0].train, workers=0)
    a = Loader(splits[0].train, 4, augment=augment, train=True)
    assert same(a, Loader(alone, 4, augment=augment, train=True))


def test_a_resized_crop_is_cut_from_the_image_at_its_full_size(tmp_path):
    shown = np.random.default_rng(0).integers(0, 256, (30, 44, 3), dtype=np.uint8)
    Image.fromarray(shown).save(tmp_path / "a.png")
    images = Stream(Files([tmp_path / "a.png"] * 6), torch.arange(6), 10, workers=0)
    augment = Augment(resized_crop=True, normalize="none")
    loader = Loader(images, 6, augment=augment, train=True)
    draw = augment.draw(6, (3, 10, 10), loader._generator(0, 1))
    box = boxes(draw.box, 30, 44, augment.scale, augment.ratio)
    ((x, _),) = loader.epoch(0)
    assert len(x.unique(dim=0)) == 6
    for b in range(6):
        top, left, tall, wide = box[b].tolist()
        expected = tv.resized_crop(Image.fromarray(shown), top, left, tall, wide, [10, 10])
        assert np.array_equal((x[b] * 255).round().permute(1, 2, 0).numpy(), np.asarray(expected))


def test_fit_is_resize_and_centre_crop():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    expected = tv.center_crop(tv.resize(image, 16), [14, 14])
    assert np.array_equal(np.asarray(fit(image, 14, 16 / 14)), np.asarray(expected))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_in_one_line(tmp_path, class_folders, workers):
    place = class_folders(tmp_path / "set", ("ant",))
    files = sorted((place / "ant").iterdir())
    files[3].write_bytes(b"nothing")
    images = Stream(Files(files), torch.zeros(5).long(), 6, workers=workers)
    with pytest.raises(InputError, match=r"3\.png cannot be read as an image") as error:
        list(Loader(images, 2, train=False))
    assert "\n" not in str(error.value)


def test_a_stream_without_a_size_is_refused(tmp_path, class_folders, monkeypatch):
    place = class_folders(tmp_path / "set")
    monkeypatch.setattr(stream, "IN_MEMORY_BYTES", 100)
    with pytest.raises(InputError, match=r"give --data\.size"):
        load(str(place), root=tmp_path)


def test_a_subset_of_a_subset(splits):
    train = splits[0].train
    part = train.subset(torch.tensor([5, 3, 1])).subset(torch.tensor([2, 0]))
    assert part.labels.tolist() == train.labels[[1, 5]].tolist()
    assert part.index.tolist() == train.index[[1, 5]].tolist()


def test_a_stream_can_be_sent_to_a_worker(splits):
    sent = pickle.loads(pickle.dumps(splits[0].train))
    assert same(Loader(sent, 4, train=False), Loader(splits[0].train, 4, train=False))


@pytest.mark.parametrize("resized_crop", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_views(splits, resized_crop, workers):
    """The first view is that of a loader that gives one; without a resized crop all are those of
    the set in memory."""
    from dataclasses import replace

    augment = Augment(resized_crop=True, flip=True) if resized_crop else FULL
    streamed = replace(splits[0].train, workers=workers)
    two = Loader(streamed, 4, augment=augment, train=True, seed=2, views=2)
    one = Loader(streamed, 4, augment=augment, train=True, seed=2)
    for (x, y), (first, labels) in zip(two.epoch(1), one.epoch(1), strict=True):
        assert torch.equal(y, labels)
        assert x.shape == (8, 3, 12, 12)
        assert torch.equal(x[:4], first)
        assert not torch.equal(x[:4], x[4:])
    assert same(two.epoch(1, 1), list(two.epoch(1))[1:])
    if not resized_crop:
        memory = Loader(splits[1].train, 4, augment=augment, train=True, seed=2, views=2)
        assert same(two.epoch(1), memory.epoch(1))


def test_streamed_views_in_parts(splits):
    augment = Augment(resized_crop=True, flip=True)

    def loader(part):
        return Loader(splits[0].train, 4, augment=augment, train=True, views=2, part=part)

    halves = [list(loader((k, 2)).epoch(0)) for k in (0, 1)]
    for b, (x, _) in enumerate(loader((0, 1)).epoch(0)):
        for view in (0, 1):
            mine = [half[b][0][2 * view : 2 * view + 2] for half in halves]
            assert torch.equal(torch.cat(mine), x[4 * view : 4 * view + 4])
