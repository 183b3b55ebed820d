"""Train, validation and test have no image in common and the classes in proportion."""

import pytest
import torch

from layerwise.data import Images, load
from layerwise.data.load import split
from layerwise.data.splits import Parts, complete
from layerwise.data.stratify import stratify
from layerwise.errors import InputError


def rows(images):
    return {bytes(image.flatten().tolist()) for image in images.images}


def test_stratify_cuts_each_class_in_proportion():
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 10)
    first, second = stratify(labels, 0.1, seed=0)
    assert torch.bincount(labels[second]).tolist() == [10, 5, 1]
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(160))
    assert torch.equal(first, first.sort().values)


def test_largest_remainders_make_up_the_total():
    # 7 * 0.3 = 2.1 and 4 * 0.3 = 1.2 leave round(18 * 0.3) - (2 + 2 + 1) = 0; with 0.35 the shares
    # 2.45, 2.45, 1.4 leave 6 - 5 = 1, which goes to the first of the largest remainders.
    labels = torch.tensor([0] * 7 + [1] * 7 + [2] * 4)
    assert torch.bincount(labels[stratify(labels, 0.3, 0)[1]]).tolist() == [2, 2, 1]
    assert torch.bincount(labels[stratify(labels, 0.35, 0)[1]]).tolist() == [3, 2, 1]


def test_stratify_is_decided_by_its_seed_alone():
    labels = torch.arange(200) % 4
    torch.manual_seed(1)
    a = stratify(labels, 0.2, seed=3)[1]
    torch.manual_seed(2)
    assert torch.equal(stratify(labels, 0.2, seed=3)[1], a)
    assert not torch.equal(stratify(labels, 0.2, seed=4)[1], a)


def test_a_class_of_one_image_stays_in_training():
    labels = torch.tensor([0] * 9 + [1])
    first, _ = stratify(labels, 0.9, seed=0)
    assert 9 in first.tolist()


def test_digits_are_known():
    splits = load("digits")
    assert splits.classes == tuple("0123456789")
    assert (splits.num_classes, splits.shape, splits.name) == (10, (1, 8, 8), "digits")
    sizes = [len(part) for part in (splits.train, splits.validation, splits.test)]
    assert sizes == [1294, 144, 359]  # 359 of 1,797, then 144 of the 1,438 left
    every = torch.cat([p.labels for p in (splits.train, splits.validation, splits.test)])
    assert torch.bincount(every).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # scikit-learn's levels 0..16 spread over 0..255: 1 becomes 16 (15.94), 15 becomes 239
    levels = {round(i * 255 / 16) for i in range(17)}
    assert set(splits.train.images.unique().tolist()) == levels
    assert splits.train.images.is_contiguous()


def test_parts_of_digits_are_disjoint():
    splits = load("digits", validation=0.3)
    train, validation, test = (rows(p) for p in (splits.train, splits.validation, splits.test))
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_the_test_part_does_not_follow_the_seed():
    a, b = load("digits", seed=0), load("digits", seed=1)
    assert torch.equal(a.test.images, b.test.images)
    assert not torch.equal(a.validation.images, b.validation.images)


def test_without_validation_all_of_train_trains():
    splits = load("digits", validation=0)
    assert splits.validation is None
    assert len(splits.train) == 1438


def test_every_part_is_normalised_by_training():
    splits = load("digits")
    assert splits.test.statistics == splits.validation.statistics == splits.train.statistics
    alone = Images(splits.test.images, splits.test.labels)
    assert alone.statistics != splits.test.statistics


def test_a_validation_part_of_its_own_is_used(noise):
    parts = Parts(noise(20), noise(7), noise(5), ("a",) * 5)
    splits = complete(parts, name="x", validation=0.1, seed=0)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [20, 7, 5]


def test_a_grey_part_becomes_coloured_where_another_is(noise):
    parts = Parts(noise(20), None, noise(5, channels=1), ("a",) * 5)
    splits = complete(parts, name="x", validation=0, seed=0)
    assert splits.test.shape == splits.train.shape == (3, 8, 8)
    assert torch.equal(splits.test.images[..., 0], splits.test.images[..., 2])


def test_parts_of_different_sizes_are_refused(noise):
    parts = Parts(noise(20), None, noise(5, height=9), ("a",) * 5)
    with pytest.raises(InputError, match=r"train 8x8, test 9x8.*--data\.size"):
        complete(parts, name="x", validation=0, seed=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "cifar11"}, "did you mean 'cifar10'?"),
        ({"name": "zzz"}, "there is: cantor, cifar10"),
        ({"name": "digits", "validation": -0.1}, "0 <= validation < 1"),
        ({"name": "digits", "validation": 1.0}, "0 <= validation < 1"),
        ({"name": "digits", "validation": 0.0001}, "larger share"),
        ({"name": "digits", "size": 0}, "give 1 to 8192 pixels"),
        ({"name": "digits", "size": 10**30}, "give 1 to 8192 pixels"),
        ({"name": "digits", "size": 8192}, "1797 images of 8192x8192 take 112 GiB"),
        ({"name": "digits", "seed": -1}, "0 or more"),
        ({"name": "folder:/no/such/place"}, "there is no folder /no/such/place"),
        ({"name": "./no/such/place"}, "there is no folder"),
        ({"name": "hf:/no/such/place"}, "there is no directory /no/such/place"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(options, said, tmp_path):
    with pytest.raises(InputError) as error:
        load(root=tmp_path, **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_size_scales_what_comes_decoded():
    splits = load("digits", size=12)
    assert splits.shape == (1, 12, 12)
    assert splits.train.images.dtype == torch.uint8


def test_resized_keeps_the_central_square():
    ramp = torch.arange(12, dtype=torch.uint8).view(1, 1, 12, 1).repeat(1, 4, 1, 1) * 10
    got = Images(ramp, torch.zeros(1).long()).resized(4)
    assert torch.equal(got.images[0, 0, :, 0], torch.tensor([40, 50, 60, 70], dtype=torch.uint8))


def test_subset_and_device_keep_the_reference(noise):
    train = noise(20)
    part = train.normalized_by(noise(5)).subset(torch.tensor([3, 1])).to("cpu")
    assert torch.equal(part.images, train.images[[3, 1]])
    assert torch.equal(part.labels, train.labels[[3, 1]])
    assert part.statistics == noise(5).statistics


# ---------------------------------------------------------------- a share of the labels


def test_a_share_of_the_labels() -> None:
    """1,294 images: 129 or 130 of a class, and a tenth is 129 labels, 12 or 13 of each class. The
    images are the same; a smaller share is part of a larger one; the seed alone decides."""
    whole = load("digits", seed=3)
    some, fewer = (load("digits", labels=share, seed=3) for share in (0.1, 0.01))
    kept = some.train.labels >= 0
    count = whole.train.labels.bincount()
    assert int(kept.sum()) == 129
    assert ((some.train.labels[kept].bincount() - count / 10).abs() < 1).all()
    assert torch.equal(some.train.labels[kept], whole.train.labels[kept])
    assert (some.train.labels[~kept] == -100).all()
    assert torch.equal(some.train.images, whole.train.images)
    assert some.test.labels.min() >= 0
    assert some.validation.labels.min() >= 0
    assert int((fewer.train.labels >= 0).sum()) == 13
    assert kept[fewer.train.labels >= 0].all()
    assert torch.equal(kept, load("digits", labels=0.1, seed=3).train.labels >= 0)
    assert not torch.equal(kept, load("digits", labels=0.1, seed=4).train.labels >= 0)


def test_without_the_unlabelled() -> None:
    """The 13 labelled images 99 or 100 times each, normalised as the whole set."""
    whole, few = load("digits"), load("digits", labels=0.01, unlabelled=False)
    kept = load("digits", labels=0.01).train.labels >= 0
    images, times = few.train.images.flatten(1).unique(dim=0, return_counts=True)
    assert torch.equal(images, whole.train.images[kept].flatten(1).unique(dim=0))
    assert len(few.train) == len(whole.train) == 1294
    assert set(times.tolist()) == {99, 100}
    assert few.train.statistics == whole.train.statistics


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("digits", {"labels": 0.0}, "above 0 to 1"),
        ("digits", {"labels": 1.5}, "above 0 to 1"),
        ("digits", {"labels": 0.0003}, "less than one label"),
        ("digits", {"labels": 0.5, "random_labels": 0.5}, "only one of both"),
        ("markov", {"labels": 0.5}, "only images can lack labels"),
    ],
)
def test_labels_that_cannot_be_hidden(name: str, options: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load(name, **options)


def test_real_labels_cannot_be_missing() -> None:
    """-100 would be learned as a number. Three of the ten images that have theirs are three."""
    images = Images(torch.zeros(10, 4, 4, 1, dtype=torch.uint8), torch.randn(10, 1))
    parts = Parts(images, images, images, ())
    with pytest.raises(InputError, match="cannot be missing; also give unlabelled=False"):
        split(parts, "own", labels=0.3)
    few = split(parts, "own", labels=0.3, unlabelled=False).train
    assert len(few) == 10
    assert len(few.labels.unique()) == 3
    assert torch.isin(few.labels, images.labels).all()
