"""The generated language and its entropy rate."""

from __future__ import annotations

import math

import pytest
import torch

from layerwise import data
from layerwise.data.sources.markov import (
    entropy_rate,
    markov,
    random_chain,
    random_words,
    stationary,
    walk,
)
from layerwise.errors import InputError


def test_entropy_rate_by_hand() -> None:
    """After word 0 comes 1, after 1 either: pi_0 = pi_1 / 2, so pi = (1/3, 2/3). Only after 1 is
    there a choice, of ln 2 nats: 2/3 ln 2 a word. A word has 1/3 2 + 2/3 3 = 8/3 characters, so
    each has ln 2 / 4 nats."""
    chain = torch.tensor([[0, 1], [0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(stationary(chain), torch.tensor([1 / 3, 2 / 3]).double())
    assert entropy_rate(chain, torch.tensor([2, 3])) == pytest.approx(math.log(2) / 4, rel=1e-12)


def test_entropy_rate_of_a_fair_die_and_of_a_clock() -> None:
    die = torch.full((6, 6), 1 / 6, dtype=torch.float64)
    assert entropy_rate(die, torch.ones(6)) == pytest.approx(math.log(6))
    clock = torch.eye(5, dtype=torch.float64).roll(1, 1)  # of period 5
    assert stationary(clock).tolist() == pytest.approx([0.2] * 5)
    assert entropy_rate(clock, torch.ones(5)) == 0


def test_the_text_is_of_the_language_and_has_its_entropy() -> None:
    """Read back into words, the text's surprise under the chain is the rate, but for chance: some
    40,000 words of half a nat's standard deviation each give 0.005 of the rate."""
    parts = markov(16, words=12, follow=3, letters=4, characters=150_000, seed=5)
    text = "".join(parts.classes[n] for n in parts.train.tokens.tolist())
    assert len(text) == 150_000
    generator = torch.Generator().manual_seed(5)
    spelt = random_words(12, 4, (2, 3, 4, 5), generator)
    chain = random_chain(12, 3, generator)
    words = ["".join(parts.classes[n] for n in row if n > 0) for row in spelt.tolist()]
    assert sorted(map(len, words)) == [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3
    number = {word: n for n, word in enumerate(words)}
    assert len(number) == 12
    read = torch.tensor([number[word] for word in text.split(" ")[:-1]])
    chances = chain[read[:-1], read[1:]]
    assert chances.min() > 0
    surprise = -chances.log().sum() / (spelt[read[1:]] >= 0).sum()
    assert float(surprise) == pytest.approx(parts.entropy_rate, rel=0.02)


def test_a_chain_is_whole() -> None:
    chain = random_chain(9, 2, torch.Generator().manual_seed(1))
    assert (chain > 0).sum(1).tolist() == [2] * 9
    torch.testing.assert_close(chain.sum(1), torch.ones(9).double())
    assert torch.linalg.matrix_power(chain + torch.eye(9), 9).min() > 0  # each reaches every other


def test_a_walk_visits_as_often_as_it_should() -> None:
    chain = torch.tensor([[0, 1, 0], [0.5, 0.5, 0], [0.3, 0.3, 0.4]], dtype=torch.float64)
    states = walk(chain, 6000, torch.Generator().manual_seed(0))
    counts = torch.bincount(states, minlength=3) / 6000
    assert counts.tolist() == pytest.approx([1 / 3, 2 / 3, 0], abs=0.02)


def test_load() -> None:
    splits = data.load("markov", seed=1)
    assert splits.classes == tuple(" abcdefghijkl")
    assert splits.shape == (64,)
    assert [len(p.tokens) for p in (splits.train, splits.validation, splits.test)] == [
        144_000,
        16_000,
        40_000,
    ]
    assert splits.entropy_rate == data.load("markov").entropy_rate
    assert torch.equal(splits.test.tokens, data.load("markov").test.tokens)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"follow": 33}, r"markov\(follow=33\): give at least 1, and at most the 32"),
        ({"words": 80, "letters": 4}, "20 words of 2 letters; give fewer words"),
        ({"letters": 27}, "up to 26"),
    ],
)
def test_bad_languages(options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        markov(8, **options)
