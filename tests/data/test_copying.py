"""The copy tasks, position by position; their splits; what cannot be asked for."""

from __future__ import annotations

import pytest
import torch

from layerwise.data import Loader, load
from layerwise.data.sources.copying import copies
from layerwise.errors import InputError
from layerwise.labels import IGNORED


def test_copy_by_definition() -> None:
    x, y = copies(50, 3, symbols=4, generator=torch.Generator().manual_seed(1))
    assert x.shape == y.shape == (50, 6)
    for row, labels in zip(x.tolist(), y.tolist(), strict=True):
        assert row[3:] == [4, 4, 4]
        assert labels == [IGNORED] * 3 + row[:3]
    assert {*x[:, :3].flatten().tolist()} == {0, 1, 2, 3}


def test_repeat_copy_by_definition() -> None:
    """Symbols 0 and 1, go 2, x1 to x3 are 3 to 5, the end is 6."""
    x, y = copies(50, 2, repeats=3)
    assert x.shape == y.shape == (50, 10)
    seen = set()
    for row, labels in zip(x.tolist(), y.tolist(), strict=True):
        times = row[2] - 2
        seen.add(times)
        assert row[3:] == [2] * 7
        wanted = [IGNORED] * 3 + row[:2] * times + [6]
        assert labels == wanted + [IGNORED] * (10 - len(wanted))
    assert seen == {1, 2, 3}


def test_parts_hold_whole_sequences() -> None:
    splits = load("repeat-copy:length=2,repeats=3", validation=0.25)
    assert splits.classes == ("0", "1", "go", "x1", "x2", "x3", "end")
    assert (splits.shape, splits.entropy_rate) == ((10,), 0.0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [
        6000,
        2000,
        2000,
    ]
    for part in (splits.train, splits.validation, splits.test):
        for x, y in Loader(part, 500, train=False).epoch(0):
            assert (x[:, 3:] == 2).all()
            assert torch.equal(y[:, 3:5], x[:, :2])
    assert load("copy").shape == (16,)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("copy:repeats=2", {}, "'repeats'"),
        ("copy", {"context": 8}, "only texts, such as markov, have a context"),
        ("copy", {"contiguous": True}, "only texts, such as markov, are contiguous"),
        ("copy:length=0", {}, "give 1 or more"),
        ("copy:length=x", {}, "give a whole number"),
        ("copy", {"size": 8}, "images have a size"),
    ],
)
def test_bad_options(name: str, options: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(name, **options)
