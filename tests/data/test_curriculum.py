"""Which samples a batch is drawn from, and that plain training is a special case."""

from __future__ import annotations

import itertools

import pytest
import torch

from layerwise.data import Augment, Curriculum, Images, Loader


def _images(count: int = 10) -> Images:
    """Image i is filled with i and has the label i."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 1)
    return Images(pixels.contiguous(), torch.arange(count))


def _loader(curriculum: Curriculum | None, batch_size: int = 3, **options) -> Loader:
    options = {"train": True, "seed": 5, **options}
    return Loader(_images(), batch_size, curriculum=curriculum, **options)


SCORES = torch.tensor([5.0, 1.0, 4.0, 0.0, 3.0, 9.0, 8.0, 7.0, 6.0, 2.0])  # easiest: 3 1 9 4 2 ...


def test_pacing_by_hand() -> None:
    """10 samples, start 0.2, doubled every 3 batches: 2 2 2 4 4 4 8 8 8 10."""
    curriculum = Curriculum(SCORES, start=0.2, increase=2.0, every=3)
    assert [curriculum.count(i) for i in range(11)] == [2, 2, 2, 4, 4, 4, 8, 8, 8, 10, 10]
    assert curriculum.count(10**9) == 10
    single = Curriculum(SCORES, start=0.3, increase=1 / 0.3, every=4)
    assert [single.count(i) for i in range(6)] == [3, 3, 3, 3, 10, 10]


def test_batches_are_of_the_easiest() -> None:
    easiest = SCORES.argsort().tolist()
    for anti in (False, True):
        curriculum = Curriculum(SCORES, 0.2, 2.0, 3, anti)
        known = easiest[::-1] if anti else easiest
        number = 0
        for e in range(4):
            for _, y in _loader(curriculum).epoch(e):
                admitted = known[: curriculum.count(number)]
                assert set(y.tolist()) <= set(admitted)
                number += 1
        assert number == 12


def test_one_step_by_hand() -> None:
    """Of the epoch's order 7 3 0 1 9 2 8 6 5 4 are admitted 3, 1, 9, 4: 3 1 9 4 3 1 9 ..."""
    order = torch.tensor([7, 3, 0, 1, 9, 2, 8, 6, 5, 4])
    curriculum = Curriculum(SCORES, start=0.4, increase=1.0)
    found = [curriculum.batch(order, b, 3 * b, 3).tolist() for b in range(3)]
    assert found == [[3, 1, 9], [4, 3, 1], [9, 4, 3]]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("anti", [True, False])
def test_all_samples_are_plain_training(drop_last: bool, anti: bool) -> None:
    """Bit for bit, augmentation included."""
    options = {"drop_last": drop_last, "augment": Augment(crop=1, flip=True)}
    plain, all_of_them = (
        _loader(curriculum, 4, **options)
        for curriculum in (None, Curriculum(SCORES, start=1.0, anti=anti))
    )
    for e in range(3):
        pairs = list(itertools.zip_longest(plain.epoch(e), all_of_them.epoch(e)))
        assert len(pairs) == (2 if drop_last else 3)
        for (x, y), (other_x, other_y) in pairs:
            assert torch.equal(x, other_x)
            assert torch.equal(y, other_y)


def test_it_goes_on_in_the_middle() -> None:
    """What a batch holds depends on its number alone; labels alone are the same, and parts."""
    curriculum = Curriculum(SCORES, 0.2, 2.0, 3)
    loader = _loader(curriculum, 4)
    for e in range(3):
        whole = list(loader.epoch(e))
        rest = list(loader.epoch(e, start=1))
        for (x, y), (other_x, other_y) in zip(whole[1:], rest, strict=True):
            assert torch.equal(x, other_x)
            assert torch.equal(y, other_y)
        for (_, y), alone in zip(whole, loader.labels(e), strict=True):
            assert torch.equal(y, alone)
        halves = [list(_loader(curriculum, 4, part=(k, 2)).epoch(e)) for k in (0, 1)]
        for (_, y), (_, a), (_, b) in zip(whole, *halves, strict=True):
            assert torch.equal(y, torch.cat([a, b]))


def test_not_in_evaluation() -> None:
    curriculum = Curriculum(SCORES, start=0.1)
    loader = _loader(curriculum, 5, train=False)
    assert torch.cat([y for _, y in loader.epoch(0)]).tolist() == list(range(10))


def test_ties_keep_their_order() -> None:
    curriculum = Curriculum(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert curriculum.rank.tolist() == [2, 0, 3, 1]


def test_bad_input() -> None:
    for options, says in (
        ({"start": 0.0}, r"start=0.0\): give a share"),
        ({"start": 1.5}, r"start=1.5\): give a share"),
        ({"increase": 0.5}, r"increase=0.5\): give a factor"),
        ({"every": 0}, r"every=0\): give 1 batch"),
        ({"scores": torch.tensor([1.0, float("nan")])}, "one finite number per sample"),
        ({"scores": torch.zeros(2, 2)}, r"got \(2, 2\); give one"),
    ):
        with pytest.raises(ValueError, match=says):
            Curriculum(**{"scores": SCORES, **options})
    with pytest.raises(ValueError, match="it has 4 scores and the set 10 images"):
        _loader(Curriculum(torch.zeros(4)))
