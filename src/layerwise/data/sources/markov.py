"""A generated language whose entropy rate is known: words of a Markov chain, spelt."""

from __future__ import annotations

from bisect import bisect

import torch
from torch import Tensor

from layerwise.data.splits import Parts
from layerwise.data.text import Text
from layerwise.errors import InputError

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def markov(
    context: int,
    words: int = 32,
    follow: int = 4,
    letters: int = 12,
    lengths: tuple[int, ...] = (2, 3, 4, 5),
    characters: int = 200_000,
    seed: int = 0,
) -> Parts:
    """A text of random words, each followed by a space and by one of a few words.

    Which words there are, which `follow` a word and how likely each is are drawn once from `seed`,
    the probabilities uniformly over all that add up to 1. Words differ and end with a space, so the
    characters determine the words, and the text has the entropy rate of the chain, of which no
    model's loss can be less in the long run.

    Args:
        context: tokens of a window.
        words: how many there are; as many of each length.
        follow: how many can follow a word, at most `words`.
        letters: of the alphabet, to which the space comes.
        lengths: of words, in letters.
        characters: of the whole text.
        seed: of language and text.

    Raises:
        InputError: there are not as many words of some length, or not as many to follow.
    """
    if not 1 <= follow <= words:
        raise InputError(f"markov(follow={follow}): give at least 1, and at most the {words} words")
    generator = torch.Generator().manual_seed(seed)
    spelt = random_words(words, letters, lengths, generator)
    chain = random_chain(words, follow, generator)
    length = spelt.gt(-1).sum(1)
    drawn = walk(chain, characters // int(length.min()) + 1, generator)
    text = spelt[drawn].flatten()
    tokens = text[text >= 0][:characters].to(torch.uint8)
    rate = entropy_rate(chain, length)
    return Parts(Text(tokens, context), None, None, (" ", *LETTERS[:letters]), rate)


def random_words(
    words: int, letters: int, lengths: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Different words in letters 1, 2, ..., each followed by 0, the space, and then by -1: int64
    (words, longest + 1).

    Raises:
        InputError: there are not as many of some length.
    """
    spelt = torch.full((words, max(lengths) + 1), -1)
    for k, length in enumerate(lengths):
        rows = spelt[k :: len(lengths)]
        if len(rows) > letters**length or not 1 <= letters <= len(LETTERS):
            raise InputError(
                f"markov(words={words}, letters={letters}): {len(rows)} words of {length} letters; "
                f"give fewer words, or more letters, up to {len(LETTERS)}"
            )
        number = torch.randperm(letters**length, generator=generator)[: len(rows)]
        for place in range(length):
            rows[:, place] = number // letters**place % letters + 1
        rows[:, length] = 0
    return spelt


def random_chain(states: int, follow: int, generator: torch.Generator) -> Tensor:
    """The probabilities of a Markov chain, float64 (from, to), `follow` of a row above 0. A cycle
    goes through all states, so each is reached from every other."""
    cycle = torch.randperm(states, generator=generator)
    chance = torch.rand(states, states, generator=generator, dtype=torch.float64)
    chance[cycle, cycle.roll(-1)] = 2  # comes first
    chosen = chance.topk(follow, dim=1).indices
    u = torch.rand(states, follow, generator=generator, dtype=torch.float64)
    weight = -torch.log1p(-u).clamp_max(-1e-12)
    weight = weight / weight.sum(1, keepdim=True)
    return torch.zeros(states, states, dtype=torch.float64).scatter_(1, chosen, weight)


def stationary(chain: Tensor) -> Tensor:
    """How often each state is visited in the long run: pi with pi P = pi, (S,)."""
    states = len(chain)
    equations = chain.T - torch.eye(states, dtype=chain.dtype)
    equations[-1] = 1  # one of them follows from the others: that they add up to 1, instead
    right = torch.zeros(states, dtype=chain.dtype)
    right[-1] = 1
    return torch.linalg.solve(equations, right)


def entropy_rate(chain: Tensor, lengths: Tensor) -> float:
    """Nats per character of a chain whose states are words of `lengths` characters:

        sum_w pi_w H(P_w) / sum_w pi_w length_w

    Args:
        chain: P, from each state to each, float64 (S, S); each is reached from every other.
        lengths: (S,).
    """
    visits = stationary(chain)
    entropies = torch.special.entr(chain).sum(1)  # H(P_w) = -sum_v P_wv ln P_wv
    return float(visits @ entropies / (visits @ lengths.to(chain.dtype)))


def walk(chain: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """`steps` states of a chain, the first from its stationary distribution: int64 (steps,)."""
    # Divided, so that rounding leaves no u beyond the last state that can follow.
    sums = torch.cat([chain, stationary(chain)[None]]).cumsum(1)
    *rows, row = (sums / sums[:, -1:]).tolist()
    drawn = torch.rand(steps, generator=generator, dtype=torch.float64).tolist()
    states = []
    for u in drawn:
        states.append(bisect(row, u))
        row = rows[states[-1]]
    return torch.tensor(states)
