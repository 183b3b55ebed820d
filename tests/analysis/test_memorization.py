"""Random labels, and how many of them are known by heart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from layerwise import Blocks, InputError, data, rules
from layerwise.analysis import memorization
from layerwise.data import Images, Loader
from layerwise.objectives import Classify


class Flip(nn.Module):
    """The class scores the other way round."""

    def forward(self, h: Tensor) -> Tensor:
        return h.flip(1)


def test_by_hand():
    """Pixels are class scores, and the second block's the other way round.

    predicted first   0 1 1 0 1
    label             0 0 1 1 1
    random            - x x x -      one of the three is right; of the second block two.
    """
    pixels = torch.tensor([[9, 0], [0, 9], [0, 9], [9, 0], [0, 9]], dtype=torch.uint8)
    images = Images(pixels[:, None, :, None], torch.tensor([0, 0, 1, 1, 1]))
    random = torch.tensor([False, True, True, True, False])
    blocks = Blocks([nn.Flatten(), Flip()], example=torch.zeros(2, 1, 1, 2))
    rule = rules.Greedy(blocks, Classify())
    loader = Loader(images, 2, train=False)
    assert memorization(rule, loader, random) == pytest.approx((1 / 3, 2 / 3))
    assert memorization(rules.Backprop(blocks), loader, random) == (None, pytest.approx(2 / 3))
    assert all(module.training for module in rule.modules())


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_random_labels(share):
    plain, random = data.load("digits"), data.load("digits", random_labels=share)
    again, other = (data.load("digits", random_labels=share, seed=s) for s in (0, 1))
    assert plain.relabelled is None
    assert int(random.relabelled.sum()) == round(share * len(plain.train))
    same = random.train.labels == plain.train.labels
    assert same[~random.relabelled].all()
    assert same[random.relabelled].double().mean() == pytest.approx(0.1, abs=0.05)  # ten classes
    assert torch.equal(random.train.labels, again.train.labels)
    assert not torch.equal(random.train.labels, other.train.labels)
    assert torch.equal(random.train.images, plain.train.images)
    for part in ("validation", "test"):
        assert torch.equal(getattr(random, part).labels, getattr(plain, part).labels)


def test_a_share_that_is_none():
    with pytest.raises(InputError, match=r"load\(random_labels=1.5\): give a share"):
        data.load("digits", random_labels=1.5)
