"""Generated sequences that have to be remembered: `copy` and `repeat-copy`."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.data.splits import Parts
from layerwise.data.text import Text
from layerwise.errors import InputError
from layerwise.labels import IGNORED

SYMBOLS = 2
SEQUENCES = 10_000


def copy(length: int = 8, symbols: int = SYMBOLS, sequences: int = SEQUENCES) -> Parts:
    """The task of copying a sequence once; see `copying`."""
    return copying(length, None, symbols, sequences)


def repeat_copy(
    length: int = 8, repeats: int = 4, symbols: int = SYMBOLS, sequences: int = SEQUENCES
) -> Parts:
    """The task of copying a sequence as often as it says; see `copying`."""
    return copying(length, repeats, symbols, sequences)


def copying(length: int, repeats: int | None, symbols: int, sequences: int, seed: int = 0) -> Parts:
    """Sequences of random symbols, each to be written down again after it was read.

    These are the tasks of Jaderberg et al. 2017 (arXiv:1608.05343), section 3.2, after Graves et
    al. 2014 (arXiv:1410.5401). See `copies`. No model's loss can be below 0, and one that has
    learned the task reaches it.

    Args:
        length: number of symbols to copy.
        repeats: the largest number of copies in `repeat-copy`; None for `copy`.
        symbols: number of different symbols.
        sequences: number of sequences in all parts together.
        seed: of the sequences.

    Raises:
        InputError: a number below 1.
    """
    x, y = copies(sequences, length, symbols, repeats, torch.Generator().manual_seed(seed))
    names = [*map(str, range(symbols)), "go"]
    if repeats is not None:
        names += [f"x{n}" for n in range(1, repeats + 1)] + ["end"]
    text = Text(x.flatten().to(torch.uint8), x.shape[1], labels=y.flatten().to(torch.int16))
    return Parts(text, None, None, tuple(names), 0.0)


def copies(
    many: int,
    length: int,
    symbols: int = SYMBOLS,
    repeats: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw sequences and their labels.

    Symbols are 0 to S - 1, and S stands for "go", which asks for the next symbol:

        copy:         x = s_1 ... s_N go ... go               N times go
                      y = -   ... -   s_1 ... s_N             - is -100
        repeat-copy:  x = s_1 ... s_N xR go ... go            R N + 1 times go
                      y = -   ... -   -  s_1 ... s_N (R times) end

    R is drawn from 1 to `repeats`; the token of R is S + R, and that of the end S + repeats + 1.
    Shorter sequences go on with "go" and labels that do not count.

    Args:
        many: number of sequences, M.
        length: N.
        symbols: S, number of different symbols.
        repeats: the largest R; None for `copy`.
        generator: of the random numbers.

    Returns:
        x and y, int64 (M, L): L is 2 N; with repeats, N + 2 + N `repeats`.

    Raises:
        InputError: a number below 1.
    """
    least = {"length": length, "repeats": 1 if repeats is None else repeats, "symbols": symbols}
    if min(many, *least.values()) < 1:
        raise InputError(
            f"copies({', '.join(f'{k}={v}' for k, v in least.items())}): give 1 or more"
        )
    read = torch.randint(symbols, (many, length), generator=generator)
    unlabelled = torch.full((many, length), IGNORED)
    if repeats is None:
        go = torch.full((many, length), symbols)
        return torch.cat([read, go], 1), torch.cat([unlabelled, read], 1)
    times = torch.randint(1, repeats + 1, (many, 1), generator=generator)
    go = torch.full((many, length * repeats + 1), symbols)
    place = torch.arange(length * repeats + 1)
    written = torch.cat([read.repeat(1, repeats), torch.full((many, 1), IGNORED)], 1)
    written = torch.where(place < length * times, written, IGNORED)
    written = torch.where(place == length * times, symbols + repeats + 1, written)
    x = torch.cat([read, symbols + times, go], 1)
    return x, torch.cat([unlabelled, unlabelled[:, :1], written], 1)
