"""Generated bits whose label is a Boolean function of them: a parity, or a tree of gates.

Bits are pixels of 0 or 255, which are -1 and +1 in a batch; a sample is a row of them, (1, 1, n).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layerwise.arguments import at_least, checks_arguments
from layerwise.data.images import Images
from layerwise.data.sources.digits import digits as load_digits
from layerwise.data.splits import TEST_SEED, TEST_SHARE, Parts
from layerwise.errors import InputError, choices

# A gate's value for the inputs 00, 01, 10 and 11.
GATES = {
    "and": (0, 0, 0, 1),
    "or": (0, 1, 1, 1),
    "nand": (1, 1, 1, 0),
    "nor": (1, 0, 0, 0),
    "xor": (0, 1, 1, 0),
    "xnor": (1, 0, 0, 1),
}
TEST = 10_000  # samples of the test part
MOST_BITS = 24  # of a function that is enumerated
MOST_BYTES = 1 << 32  # of a training part


@checks_arguments
def parity(
    bits: int = 128,
    relevant: int = 5,
    bias: float = 0.5,
    equal: float = 0.0,
    samples: int = 100_000,
    seed: int = 0,
) -> Parts:
    """Random bits; the label says whether the number of ones among the first few is odd.

    With `bias` 0.5 and `equal` 0 bits are uniform, from which gradient descent cannot learn the
    parity. It can with another bias (Malach & Shalev-Shwartz 2019, arXiv:1910.11923: 128 bits, 5
    relevant, 0.6). With `equal` 0.5 and an odd number of relevant bits it is the distribution of
    Daniely & Malach 2020 (arXiv:2002.07400), from which a network with one hidden layer learns and
    a linear model does not.

    Args:
        bits: number of bits of a sample.
        relevant: number of bits, the first ones, that decide the label.
        bias: probability that a bit is 1.
        equal: share of the samples whose relevant bits are all equal, each value with probability
            1/2.
        samples: number of training samples; the test part has another 10,000.
        seed: of the samples.

    Raises:
        InputError: a number out of range.
    """
    at_least(1, "parity", bits=bits)
    at_least(1, "parity", bits, relevant=relevant)
    at_least(0, "parity", 1, bias=bias, equal=equal)
    generator = _generator("parity", samples, seed, bits)
    x = _random_bits(samples + TEST, bits, bias, generator)
    same = torch.rand(len(x), generator=generator) < equal
    value = torch.randint(2, (len(x), 1), generator=generator, dtype=torch.uint8)
    x[:, :relevant] = torch.where(same[:, None], value, x[:, :relevant])
    return _parts(x, x[:, :relevant].sum(1) % 2, ("even", "odd"))


@checks_arguments
def digit_parity(digits: int = 3, samples: int = 60_000, seed: int = 0) -> Parts:
    """Several of the 8x8 digits side by side; the label says whether their sum is odd.

    Daniely & Malach 2020 (arXiv:2002.07400), section 5, with three digits of MNIST. Deviations: the
    digits are scikit-learn's, and are combined once instead of anew in every epoch. No digit is in
    both the training and the test part.

    Args:
        digits: number of digits in an image.
        samples: number of training samples; the test part has another 10,000.
        seed: of the combinations.

    Raises:
        InputError: a number out of range.
    """
    at_least(1, "digit_parity", 100, digits=digits)
    generator = _generator("digit_parity", samples, seed, 64 * digits)
    whole = load_digits().train
    assert isinstance(whole, Images)
    made = []
    for part, count in zip(whole.cut(TEST_SHARE, TEST_SEED), (samples, TEST), strict=True):
        drawn = torch.randint(len(part), (count, digits), generator=generator)
        rows = part.images[drawn].transpose(1, 2).flatten(2, 3)  # (N, 8, digits 8, 1)
        made.append(Images(rows, part.labels[drawn].sum(1) % 2))
    return Parts(made[0], None, made[1], ("even", "odd"))


@checks_arguments
def circuit(
    depth: int = 3,
    gates: str = "and+or+nand+xor",
    bias: float = 0.5,
    samples: int = 20_000,
    seed: int = 0,
) -> Parts:
    """Random bits; the label is the value of a full binary tree of random gates.

    The targets of Malach & Shalev-Shwartz 2019 (arXiv:1910.11923). `Circuit.drawn` with the same
    depth, gates and seed is the circuit.

    Args:
        depth: levels of gates; there are 2^depth bits.
        gates: kinds of gates, each as likely, joined by "+": and, or, nand, nor, xor, xnor.
        bias: probability that a bit is 1.
        samples: number of training samples; the test part has another 10,000.
        seed: of the gates and of the samples.

    Raises:
        InputError: an unknown gate; a number out of range.
    """
    tree = Circuit.drawn(depth, gates, seed)
    at_least(0, "circuit", 1, bias=bias)
    x = _random_bits(samples + TEST, 2**depth, bias, _generator("circuit", samples, seed, 2**depth))
    return _parts(x, tree(x)[-1][:, 0], ("false", "true"))


@dataclass(frozen=True, eq=False)
class Circuit:
    """A full binary tree of gates over 2^D bits.

    Attributes:
        levels: the gates of each level, from the bits up: names of `GATES`. A gate reads two
            neighbours, and the last level has one gate.
    """

    levels: Sequence[Sequence[str]]

    @classmethod
    def drawn(cls, depth: int, gates: str, seed: int) -> Circuit:
        """Draw every gate from those named in `gates` ("and+or").

        Raises:
            InputError: an unknown gate; a depth outside 1 to 12; a negative seed.
        """
        at_least(1, "circuit", 12, depth=depth)
        generator = _generator("circuit", 1, seed, 1)
        kinds = gates.split("+")
        for kind in kinds:
            if kind not in GATES:
                raise InputError(f"circuit(gates={gates!r}): {kind!r}: {choices(kind, GATES)}")
        sizes = [2**level for level in reversed(range(depth))]
        drawn = [torch.randint(len(kinds), (size,), generator=generator) for size in sizes]
        return cls([[kinds[k] for k in level] for level in drawn])

    def __call__(self, bits: Tensor) -> list[Tensor]:
        """The values of all gates, level by level.

        Args:
            bits: 0 or 1, (N, 2^D), of any integer type.

        Returns:
            int64 (N, G) for each level.
        """
        values, h = [], bits.long()
        for level in self.levels:
            tables_G4 = torch.tensor([GATES[gate] for gate in level])
            h = tables_G4[torch.arange(len(level)), 2 * h[:, ::2] + h[:, 1::2]]
            values.append(h)
        return values


def every_input(bits: int) -> Tensor:
    """All values of `bits` bits, in the order of binary numbers: int64 (2^bits, bits).

    Raises:
        InputError: fewer than 1 or more than 24 bits.
    """
    at_least(1, "every_input", MOST_BITS, bits=bits)
    return torch.arange(2**bits)[:, None] >> torch.arange(bits - 1, -1, -1) & 1


def parities(bits: int, relevant: int | None = None) -> Tensor:
    """The parities of all subsets of the bits, or of those with `relevant` bits.

    Returns:
        float64 (subsets, 2^bits): +1 where the number of ones in the subset is even, otherwise -1,
        for every input in the order of `every_input`.
    """
    sizes = range(bits + 1) if relevant is None else [relevant]
    subsets = [s for size in sizes for s in itertools.combinations(range(bits), size)]
    chosen = torch.zeros(len(subsets), bits, dtype=torch.float64)
    for row, subset in zip(chosen, subsets, strict=True):
        row[list(subset)] = 1
    return 1 - 2 * (chosen @ every_input(bits).double().T % 2)


def _generator(call: str, samples: int, seed: int, width: int) -> torch.Generator:
    """A generator for samples of `width` bytes."""
    at_least(1, call, MOST_BYTES // width, samples=samples)
    at_least(0, call, seed=seed)
    return torch.Generator().manual_seed(seed)


def _random_bits(count: int, bits: int, bias: float, generator: torch.Generator) -> Tensor:
    return torch.empty(count, bits, dtype=torch.uint8).bernoulli_(bias, generator=generator)


def _parts(bits: Tensor, labels: Tensor, classes: tuple[str, str]) -> Parts:
    """All but the last `TEST` samples are the training part."""
    pixels = bits.mul_(255)[:, None, :, None]
    train, test = (
        Images(pixels[part], labels[part].long()) for part in (slice(-TEST), slice(-TEST, None))
    )
    return Parts(train, None, test, classes)
