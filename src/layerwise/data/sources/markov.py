"""A generated language of known entropy rate: the words of a Markov chain, spelt out."""

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

    `seed` decides which words exist, which words follow a word, and how likely each of them is; the
    probabilities are drawn uniformly from all that add up to 1. Words differ and end with a space,
    so the characters determine the words, and the text has the entropy rate of the chain. In the
    long run, no model's loss can be below that rate.

    Args:
        context: number of tokens in a window.
        words: number of words, equally many of each length.
        follow: number of words that can follow a word, at most `words`.
        letters: number of letters in the alphabet, the space not counted.
        lengths: of words, in letters.
        characters: length of the whole text.
        seed: of the language and of the text.

    Raises:
        InputError: there are too few different words of some length, or fewer words than `follow`.
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
    """Draw different words in letters 1, 2, ...

    Returns:
        int64 (words, longest + 1): each word's letters, then 0 (the space), then -1 to the end.

    Raises:
        InputError: there are too few different words of some length.
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
    """Draw the transition probabilities of a Markov chain: float64 (from, to).

    Every row has `follow` probabilities above 0. A cycle goes through all states, so every state
    can be reached from every other.
    """
    cycle = torch.randperm(states, generator=generator)
    chance = torch.rand(states, states, generator=generator, dtype=torch.float64)
    chance[cycle, cycle.roll(-1)] = 2  # the next state of the cycle is always chosen
    chosen = chance.topk(follow, dim=1).indices
    u = torch.rand(states, follow, generator=generator, dtype=torch.float64)
    weight = -torch.log1p(-u).clamp_max(-1e-12)
    weight = weight / weight.sum(1, keepdim=True)
    return torch.zeros(states, states, dtype=torch.float64).scatter_(1, chosen, weight)


def stationary(chain: Tensor) -> Tensor:
    """The stationary distribution pi of a chain P, with pi P = pi: (S,)."""
    states = len(chain)
    equations = chain.T - torch.eye(states, dtype=chain.dtype)
    equations[-1] = 1  # one equation is redundant: it is replaced with sum(pi) = 1
    right = torch.zeros(states, dtype=chain.dtype)
    right[-1] = 1
    return torch.linalg.solve(equations, right)


def entropy_rate(chain: Tensor, lengths: Tensor) -> float:
    """Entropy rate, in nats per character, of a chain whose states are words:

        sum_w pi_w H(P_w) / sum_w pi_w length_w

    Args:
        chain: transition probabilities P, float64 (from, to), (S, S); every state can be reached
            from every other.
        lengths: of the words, in characters, (S,).
    """
    visits = stationary(chain)
    entropies = torch.special.entr(chain).sum(1)  # H(P_w) = -sum_v P_wv ln P_wv
    return float(visits @ entropies / (visits @ lengths.to(chain.dtype)))


def walk(chain: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Draw `steps` states, the first from the stationary distribution: int64 (steps,)."""
    # Divided by the last sum, so that rounding cannot put u beyond the last possible state.
    sums = torch.cat([chain, stationary(chain)[None]]).cumsum(1)
    *rows, row = (sums / sums[:, -1:]).tolist()
    drawn = torch.rand(steps, generator=generator, dtype=torch.float64).tolist()
    states = []
    for u in drawn:
        states.append(bisect(row, u))
        row = rows[states[-1]]
    return torch.tensor(states)
