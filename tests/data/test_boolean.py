"""Generated bits: their label is the function asked for, and so is their distribution."""

from __future__ import annotations

import pytest
import torch

from layerwise import data
from layerwise.data.sources import boolean
from layerwise.data.sources.boolean import Circuit, circuit, digit_parity, every_input, parity
from layerwise.data.sources.digits import digits


def _bits(images: data.Images) -> torch.Tensor:
    return images.images[:, 0, :, 0].long() // 255


def test_parity() -> None:
    """Bits are 1 with the probability asked for, and the label counts the first three."""
    parts = parity(bits=6, relevant=3, bias=0.7, samples=20_000)
    bits = _bits(parts.train)
    assert bits.shape == (20_000, 6)
    assert bits.double().mean(0).sub(0.7).abs().max() < 0.015
    assert torch.equal(parts.train.labels, bits[:, 0] ^ bits[:, 1] ^ bits[:, 2])
    assert len(parts.test) == boolean.TEST
    batch, _ = next(data.Loader(parts.train, 100, train=False).epoch(0))
    assert batch.unique().tolist() == [-1, 1]


def test_parity_of_a_mixture() -> None:
    """Half of the samples have equal relevant bits, and so has a quarter of the others by chance:
    5/8. The label is then the bit: its correlation with the first bit is 1/2 (0 if uniform)."""
    bits = _bits((parts := parity(bits=6, relevant=3, equal=0.5, samples=20_000)).train)
    equal = (bits[:, :3] == bits[:, :1]).all(1)
    assert equal.double().mean().item() == pytest.approx(5 / 8, abs=0.02)
    assert torch.equal(parts.train.labels[equal], bits[equal, 0])
    signs, label = 2 * bits.double() - 1, 2 * parts.train.labels.double() - 1
    assert (signs * label[:, None]).mean(0).tolist() == pytest.approx([0.5] * 3 + [0] * 3, abs=0.03)


def test_parity_of_digits() -> None:
    """The digits of the training part come from its own share of all digits."""
    parts = digit_parity(digits=2, samples=50)
    whole = digits().train
    train, test = whole.cut(0.2, 0)
    known = {bytes(i.numpy()): int(y) for i, y in zip(train.images, train.labels, strict=True)}
    for image, label in zip(parts.train.images, parts.train.labels, strict=True):
        pair = [bytes(half.contiguous().numpy()) for half in image.split(8, 1)]
        assert sum(known[one] for one in pair) % 2 == label
    assert parts.test.images.shape == (boolean.TEST, 8, 16, 1)
    assert parts.test.images[:, :, :8].flatten(1).unique(dim=0).shape[0] <= len(test)


def test_circuit_by_hand() -> None:
    """(a and b) xor (c or d), for all 16 inputs."""
    tree, bits = Circuit([["and", "or"], ["xor"]]), every_input(4)
    first, last = tree(bits)
    a, b, c, d = bits.unbind(1)
    assert torch.equal(first, torch.stack([a & b, c | d], 1))
    assert torch.equal(last[:, 0], (a & b) ^ (c | d))


def test_circuit_data() -> None:
    """The label is the drawn circuit's value; every kind of gate is drawn."""
    parts, tree = circuit(depth=4, samples=100, seed=3), Circuit.drawn(4, "and+or+nand+xor", 3)
    assert torch.equal(tree(_bits(parts.train))[-1][:, 0], parts.train.labels)
    assert {gate for level in tree.levels for gate in level} == {"and", "or", "nand", "xor"}


def test_by_name() -> None:
    splits = data.load("parity:bits=9,relevant=2,samples=200", validation=0.0)
    assert (splits.shape, len(splits.train), splits.classes) == ((1, 1, 9), 200, ("even", "odd"))
    assert data.load("hierarchical:side=2,seed=1").shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("parity:bit=3", "'bit': did you mean 'bits'?"),
        ("parity:bits=x", "bits=x: give a whole number"),
        ("parity:bias=2", r"parity\(bias=2.0\): give at most 1"),
        ("parity:relevant=129", r"parity\(relevant=129\): give at most 128"),
        ("circuit:gates=and+nor+maybe", r"'maybe': there is: and, nand, nor, or, xnor, xor"),
        ("circuit:depth=0", r"circuit\(depth=0\): give at least 1"),
        ("parity:samples=99999999", r"parity\(samples=99999999\): give at most 33554432"),
        ("hierarchical:side=0", r"hierarchical\(side=0\): give at least 1"),
        ("views:features=5", r"views\(features=5\): give an even number"),
        ("views:noise=0", r"views\(noise=0.0\): give a positive number"),
    ],
)
def test_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(name)
