"""Batches: what they hold, that they repeat, that nothing global decides them."""

import numpy as np
import pytest
import torch

from layerwise.data import Augment, Images, Loader, throughput
from layerwise.data import images as module
from layerwise.errors import InputError

FULL = Augment(flip=True, crop=2, cutout=3)
KINDS = {
    "plain": Augment(),
    "crop": Augment(crop=2),
    "all": FULL,
    "reflect": Augment(crop=2, flip=True, pad_mode="reflect", normalize="none"),
    "circular": Augment(crop=3, pad_mode="circular"),
    "resized": Augment(resized_crop=True, flip=True, cutout=2),
    "colours": Augment(crop=1, jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2),
}


def same(a, b):
    a, b = list(a), list(b)
    assert len(a) == len(b)
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


@pytest.mark.parametrize("augment", KINDS.values(), ids=KINDS)
def test_an_epoch_repeats_bit_for_bit_from_any_batch(noise, augment):
    loader = Loader(noise(50), 8, augment=augment, train=True, seed=4)
    whole = list(loader.epoch(2))
    assert len(whole) == len(loader) == 6
    for start in (0, 3, 6):
        assert same(loader.epoch(2, start), whole[start:])
    again = Loader(noise(50), 8, augment=augment, train=True, seed=4)
    torch.manual_seed(99)
    assert same(again.epoch(2), whole)


def test_epochs_and_seeds_differ(noise):
    loader = Loader(noise(50), 50, augment=FULL, train=True, seed=4)
    other = Loader(noise(50), 50, augment=FULL, train=True, seed=5)
    (first,), (second,), (third,) = loader.epoch(0), loader.epoch(1), other.epoch(0)
    assert not torch.equal(first[1], second[1])
    assert not torch.equal(first[1], third[1])


def test_batches_of_an_epoch_are_drawn_apart():
    # The same image everywhere: only the augmentation is left to differ.
    image = torch.arange(64, dtype=torch.uint8).view(1, 8, 8, 1)
    images = Images(image.repeat(32, 1, 1, 1), torch.zeros(32, dtype=torch.int64))
    first, second = Loader(images, 16, augment=FULL, train=True)
    assert len(torch.cat([first[0], second[0]]).unique(dim=0)) > 24


def test_the_global_generator_is_neither_read_nor_moved(noise):
    loader = Loader(noise(50), 8, augment=FULL, train=True)
    before = torch.get_rng_state()
    list(loader.epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_passes_of_a_plain_loop_are_the_epochs_in_turn(noise):
    loader = Loader(noise(20), 8, train=True)
    assert same(list(loader) + list(loader), list(loader.epoch(0)) + list(loader.epoch(1)))


def test_training_sees_every_image_once(noise):
    images = Images(noise(21).images, torch.arange(21))
    loader = Loader(images, 8, train=True, drop_last=False)
    labels = torch.cat([y for _, y in loader])
    assert len(loader) == 3
    assert not torch.equal(labels, torch.arange(21))
    assert torch.equal(labels.sort().values, torch.arange(21))


def test_images_keep_their_labels_when_shuffled(noise):
    images = noise(20)
    images = Images(images.images, torch.arange(20))
    for x, y in Loader(images, 4, train=True, augment=Augment(normalize="none")):
        expected = images.images[y].permute(0, 3, 1, 2).float() / 255
        assert torch.equal(x, expected)


def test_evaluation_is_in_order_and_as_it_is(noise):
    images = noise(21)
    loader = Loader(images, 8, augment=FULL, train=False)
    assert [len(y) for _, y in loader] == [8, 8, 5]
    x = torch.cat([x for x, _ in loader])
    expected = (images.images.permute(0, 3, 1, 2).float() - 127.5) / 127.5
    assert torch.equal(x, expected)
    assert torch.equal(torch.cat([y for _, y in loader]), images.labels)


@pytest.mark.parametrize("augment", KINDS.values(), ids=KINDS)
def test_channels_last_holds_the_same_numbers(noise, augment):
    plain = Loader(noise(16), 8, augment=augment, train=True)
    last = Loader(noise(16), 8, augment=augment, train=True, channels_last=True)
    for (x, _), (z, _) in zip(plain, last, strict=True):
        assert torch.equal(x, z)
        assert x.is_contiguous()
        assert z.is_contiguous(memory_format=torch.channels_last)


def test_padding_the_set_and_padding_the_batch_agree(noise, monkeypatch):
    set_padded = list(Loader(noise(40), 8, augment=FULL, train=True))
    monkeypatch.setattr(module, "PADDED_BYTES", 0)
    assert same(Loader(noise(40), 8, augment=FULL, train=True), set_padded)


def test_a_batch_is_the_augmentations_one_after_another(noise):
    images = noise(8)
    loader = Loader(images, 8, augment=FULL, train=True, seed=1)
    order = torch.randperm(8, generator=loader._generator(3, 0))
    draw = FULL.draw(8, (3, 8, 8), loader._generator(3, 1))
    ((x, y),) = loader.epoch(3)
    assert torch.equal(y, images.labels[order])
    for b in range(8):
        wide = torch.zeros(12, 12, 3)
        wide[2:10, 2:10] = images.images[order[b]]
        top, left = draw.corner[b].tolist()
        one = (wide[top : top + 8, left : left + 8] - 127.5) / 127.5
        one = one.flip(1) if draw.flip[b] else one
        row, column = (draw.centre[b] - 1).tolist()
        one[max(row, 0) : row + 3, max(column, 0) : column + 3] = 0
        assert torch.equal(x[b], one.permute(2, 0, 1))


def test_standard_has_mean_0_and_deviation_1_over_training_alone(noise):
    train = noise(40)
    test = Images(train.images // 2, train.labels, train)
    augment = Augment(normalize="standard")
    x = torch.cat([x for x, _ in Loader(train, 8, augment=augment, train=False)]).double()
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-6, rtol=0)
    pixels = x.permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(
        pixels.std(1, correction=0), torch.ones(3).double(), atol=1e-6, rtol=0
    )
    assert test.statistics == train.statistics
    z = torch.cat([x for x, _ in Loader(test, 8, augment=augment, train=False)])
    mean, std = (torch.tensor(s)[:, None, None] * 255 for s in train.statistics)
    expected = (test.images.permute(0, 3, 1, 2).float() - mean) / std
    torch.testing.assert_close(z, expected)


def test_a_given_mean_and_deviation_are_used(noise):
    augment = Augment(normalize="standard", mean=(0.5, 0.0, 1.0), std=(0.5, 1.0, 0.25))
    images = noise(4)
    ((x, _),) = Loader(images, 4, augment=augment, train=False)
    scaled = images.images.permute(0, 3, 1, 2).float() / 255
    expected = torch.stack([(scaled[:, 0] - 0.5) / 0.5, scaled[:, 1], (scaled[:, 2] - 1) / 0.25], 1)
    torch.testing.assert_close(x, expected)


def test_statistics_are_those_of_the_pixels(noise):
    images = noise(40)
    mean, std = images.statistics
    scaled = images.images.double().flatten(0, 2) / 255
    torch.testing.assert_close(torch.tensor(mean).double(), scaled.mean(0))
    torch.testing.assert_close(torch.tensor(std).double(), scaled.std(0, correction=0))


def test_a_constant_channel_is_centred(noise):
    flat = Images(torch.full((4, 2, 2, 1), 51, dtype=torch.uint8), torch.zeros(4).long())
    ((x, _),) = Loader(flat, 4, augment=Augment(normalize="standard"), train=False)
    torch.testing.assert_close(x, torch.zeros(4, 1, 2, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("count", "options", "said"),
    [
        (5, {"batch_size": 8, "train": True}, "at most 5"),
        (5, {"batch_size": 0, "train": True}, "1 or more"),
        (5, {"batch_size": 2, "train": True, "seed": -1}, "0 or more"),
        (0, {"batch_size": 2, "train": False}, "no images"),
        (5, {"batch_size": 2, "train": True, "augment": Augment(crop=9)}, "larger than the 8x8"),
    ],
)
def test_a_loader_that_cannot_be_is_refused(noise, count, options, said):
    with pytest.raises(InputError) as error:
        Loader(noise(count), **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_large_batch_is_fine_where_the_last_may_be_short(noise):
    ((x, _),) = Loader(noise(5), 8, train=True, drop_last=False)
    assert x.shape == (5, 3, 8, 8)


def test_throughput_is_images_over_time(noise, monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    # Began at 0; batches of 8 end at 1, 2 and 3, when 2.5 s are over; read again at 4.
    assert throughput(Loader(noise(50), 8, train=True), 2.5) == 3 * 8 / 4


def test_throughput_goes_from_epoch_to_epoch(noise):
    assert throughput(Loader(noise(50), 8, augment=FULL, train=True), 0.05) > 0


@pytest.mark.parametrize("normalize", ["symmetric", "standard", "none"])
def test_denormalize_gives_the_bytes_back(normalize):
    images = Images(torch.randint(256, (9, 4, 5, 3), dtype=torch.uint8), torch.arange(9))
    loader = Loader(images, 9, train=False, augment=Augment(normalize=normalize))
    [(x, _)] = loader.epoch(0)
    back = loader.denormalize(x).permute(0, 2, 3, 1) * 255
    torch.testing.assert_close(back, images.images.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("train", [True, False])
def test_labels_are_those_of_the_epoch(train):
    images = Images(torch.zeros(11, 2, 2, 1, dtype=torch.uint8), torch.arange(11))
    loader = Loader(images, 4, train=train, seed=3)
    for e, start in ((0, 0), (1, 0), (1, 1)):
        wanted = [y for _, y in loader.epoch(e, start)]
        got = list(loader.labels(e, start))
        assert len(got) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("train", [True, False])
def test_parts_make_the_whole(train):
    """Images, labels and augmentation of each part are those that it has in the whole batch."""
    images = Images(torch.randint(256, (26, 6, 6, 3), dtype=torch.uint8), torch.arange(26))
    augment = Augment(flip=True, crop=2, cutout=2)

    def loader(part):
        return Loader(images, 12, train=train, augment=augment, seed=1, part=part)

    whole = list(loader((0, 1)).epoch(1))
    parts = [list(loader((k, 3)).epoch(1)) for k in range(3)]
    for b, (x, y) in enumerate(whole):
        mine = [part[b] for part in parts if b < len(part)]
        assert torch.equal(torch.cat([x for x, _ in mine]), x)
        assert torch.equal(torch.cat([y for _, y in mine]), y)
        for k, part in enumerate(parts):
            if b < len(part):
                labels = list(loader((k, 3)).labels(1))[b]
                assert torch.equal(labels, part[b][1])
    # The last batch, where it is not dropped, holds 2 images: nothing is left for the third part.
    assert [len(part) for part in parts] == ([2, 2, 2] if train else [3, 3, 2])


def test_batches_that_do_not_divide():
    images = Images(torch.zeros(8, 2, 2, 1, dtype=torch.uint8), torch.arange(8))
    with pytest.raises(InputError, match="does not divide into 3 equal parts"):
        Loader(images, 4, train=True, part=(0, 3))


@pytest.mark.parametrize("augment", KINDS.values(), ids=KINDS)
def test_the_first_view_is_the_only_one_there_was(noise, augment):
    one = Loader(noise(21), 8, augment=augment, train=True, seed=4, drop_last=False)
    three = Loader(noise(21), 8, augment=augment, train=True, seed=4, drop_last=False, views=3)
    assert len(one) == len(three) == 3
    for start in (0, 1):  # also resumed in the middle
        for (x, y), (xs, ys) in zip(one.epoch(2, start), three.epoch(2, start), strict=True):
            assert torch.equal(y, ys)
            assert len(xs) == 3 * len(y)
            assert torch.equal(xs[: len(y)], x)
            first, second, third = xs.split(len(y))
            drawn = augment.random
            assert torch.equal(first, second) != drawn
            assert torch.equal(second, third) != drawn


def test_views_are_of_the_same_images(noise):
    """Each view holds the batch's images in its order, with draws of its own."""
    images = Images(noise(16).images, torch.arange(16))
    loader = Loader(
        images, 8, augment=Augment(flip=True, normalize="none"), train=True, seed=1, views=2
    )
    flipped = []
    for x, y in loader.epoch(0):
        for view in x.split(8):
            plain = images.images[y].permute(0, 3, 1, 2).float() / 255
            as_is = (view == plain).flatten(1).all(1)
            mirrored = (view == plain.flip(-1)).flatten(1).all(1)
            assert (as_is ^ mirrored).all()
            flipped.append(mirrored)
    first, second, third, fourth = flipped
    assert not torch.equal(first, second)
    assert not torch.equal(third, fourth)


def test_parts_of_views_make_the_whole():
    images = Images(torch.randint(256, (24, 6, 6, 3), dtype=torch.uint8), torch.arange(24))
    augment = Augment(flip=True, crop=2, cutout=2)

    def loader(part):
        return Loader(images, 12, train=True, augment=augment, seed=1, part=part, views=2)

    parts = [list(loader((k, 3)).epoch(1)) for k in range(3)]
    for b, (x, y) in enumerate(loader((0, 1)).epoch(1)):
        for view, whole in enumerate(x.split(len(y))):
            mine = [part[b][0].split(len(part[b][1]))[view] for part in parts]
            assert torch.equal(torch.cat(mine), whole)


def test_evaluation_gives_one_view(noise):
    loader = Loader(noise(9), 4, augment=FULL, train=False, views=2)
    assert [len(x) for x, _ in loader] == [len(y) for _, y in loader] == [4, 4, 1]


def test_channels_last_holds_for_views(noise):
    loader = Loader(noise(9), 4, augment=FULL, train=True, views=2, channels_last=True)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in loader)


def test_no_views_are_refused(noise):
    with pytest.raises(InputError, match=r"Loader\(views=0\): give 1 or more"):
        Loader(noise(9), 4, train=True, views=0)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (
            torch.rand(4, 2, 2, 3),
            torch.arange(4),
            r"torch.float32 \(4, 2, 2, 3\); give bytes 0..255",
        ),
        (torch.rand(4, 2, 2, 3) * 255, torch.arange(4), r"\(255 \* images\).round\(\).to\(torch.u"),
        (torch.zeros(4, 2, 2).byte(), torch.arange(4), r"torch.uint8 \(4, 2, 2\); give bytes"),
        (np.zeros((4, 2, 2, 3), np.uint8), torch.arange(4), r"Images\(images\): got ndarray"),
        (
            torch.zeros(4, 2, 2, 3).byte(),
            [0, 1, 2, 3],
            r"Images\(labels\): got list; give a tensor",
        ),
        (torch.zeros(4, 2, 2, 3).byte(), torch.arange(3), r"torch.int64 \(3,\) for 4 images"),
        (torch.zeros(4, 2, 2, 3).byte(), torch.zeros(4), r"torch.float32 \(4,\) for 4 images"),
        (torch.zeros(4, 2, 2, 3).byte(), torch.arange(4).int(), r"torch.int32 \(4,\) for 4 images"),
    ],
)
def test_images_of_another_type_are_refused(images, labels, said):
    """Floats above all: they would be divided by 255, whatever their range."""
    with pytest.raises(InputError, match=said) as error:
        Images(images, labels)
    assert "\n" not in str(error.value)


def test_images_may_come_in_any_memory_format():
    made = torch.randint(256, (8, 3, 6, 6), dtype=torch.uint8)
    images = Images(made.permute(0, 2, 3, 1), torch.arange(8))
    loader = Loader(images, 4, train=True, augment=Augment(crop=1, flip=True))
    assert sum(len(y) for _, y in loader.epoch(0)) == 8


def test_alternating_flips_mirror_each_image_in_every_second_epoch():
    pixels = torch.arange(40 * 4, dtype=torch.uint8).view(40, 2, 2, 1)
    images = Images(pixels, torch.arange(40), 40)
    augment = Augment(flip="alternating", normalize="none")

    def mirrored(
        epoch: int, part: tuple[int, int] = (0, 1), views: int = 1, view: int = 0
    ) -> dict[int, bool]:
        loader = Loader(images, 8, augment=augment, train=True, seed=1, part=part, views=views)
        seen = {}
        for x, y in loader.epoch(epoch):
            for image, label in zip(x.chunk(views)[view], y, strict=True):
                seen[int(label)] = bool(image[0, 0, 0] > image[0, 0, 1])
        return seen

    first = mirrored(0)
    assert len(first) == 40
    assert 10 < sum(first.values()) < 30
    assert mirrored(2) == first
    assert mirrored(1) == mirrored(3) == {label: not flip for label, flip in first.items()}
    assert mirrored(1, (0, 2)) | mirrored(1, (1, 2)) == mirrored(1)
    assert mirrored(1, views=2) == mirrored(1)  # the first view is that of a loader with one
    assert mirrored(1, views=2, view=1) == first
