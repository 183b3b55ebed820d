"""Ways to close the gap on a residual network: what the rows of the table compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def residual_gap(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import residual_gap

    return residual_gap


def test_decorrelation_by_hand(residual_gap) -> None:
    """Two patches z = (1, 1) and (1, -1): C is 0 and the diagonal is (1, 1), so R stays. Two
    patches (1, 2), R = I: C = [[0, 2], [2, 0]], V = diag(0, 3)."""
    layer = residual_gap.Decorrelated(nn.Conv2d(2, 1, 1, bias=False), rate=0.1, whiten=0.5)
    layer(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).view(2, 2, 1, 1))
    layer.learn()
    assert torch.equal(layer.mix, torch.eye(2))
    layer(torch.tensor([[1.0, 2.0], [1.0, 2.0]]).view(2, 2, 1, 1))
    layer.learn()
    change = 0.5 * torch.tensor([[0.0, 2.0], [2.0, 0.0]]) + 0.5 * torch.tensor([[0.0, 0], [0, 3.0]])
    torch.testing.assert_close(layer.mix, torch.eye(2) - 0.1 * change)


def test_decorrelation_ends_with_uncorrelated_patches(residual_gap) -> None:
    torch.manual_seed(0)
    layer = residual_gap.Decorrelated(nn.Conv2d(3, 2, 3, padding=1, bias=False), rate=0.05)
    smooth = 3 * F.avg_pool2d(torch.randn(4, 3, 20, 20), 3, 1)

    def correlated() -> float:
        x = F.unfold(smooth, 3).transpose(1, 2).flatten(0, 1) @ layer.mix.T
        moments = x.T @ x / len(x)
        return (moments - moments.diag().diag()).abs().mean().item()

    before = correlated()
    for _ in range(300):
        layer(smooth)
        layer.learn()
    assert correlated() < 0.2 * before


def test_the_output_is_that_of_the_decorrelated_patch(residual_gap) -> None:
    torch.manual_seed(0)
    layer = residual_gap.Decorrelated(nn.Conv2d(2, 5, 3, stride=2, padding=1, bias=False), 0.1)
    layer.mix.copy_(torch.randn(18, 18))
    x = torch.randn(2, 2, 6, 6)
    z = layer.mix @ F.unfold(x, 3, padding=1, stride=2)
    wanted = (layer.weight.flatten(1) @ z).view(2, 5, 3, 3)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", [0, 1])
def test_heads_of_half_the_batch(residual_gap, first: int) -> None:
    """The gradient is that of the mean loss of every second sample, in eval mode, where samples do
    not mix."""
    torch.manual_seed(0)
    way, x, y = residual_gap.HalfHeads(pool=2), torch.randn(4, 3, 32, 32), torch.arange(4)
    way.rule.eval()
    way.first = first
    way.step(x, y, y)
    stem = next(way.network.parameters())
    found, stem.grad = stem.grad.clone(), None
    h = way.blocks.outputs(x)[0]
    objective = way.rule.objectives[0]
    F.cross_entropy(objective.head.head(h[first::2]), y[first::2]).backward()
    torch.testing.assert_close(found, stem.grad)


def test_averaged_heads(residual_gap) -> None:
    """A head's copy of a layer starts as the layer, and after a step is 0.9 of itself and 0.1 of
    the layer; it is not trained."""
    way = residual_gap.Averaged(momentum=0.9, depth=1)
    ours, mean = way.pairs[0]
    assert torch.equal(ours, mean)
    assert not mean.requires_grad
    before = mean.clone()
    with torch.no_grad():
        ours += 1
    way.stepped()
    torch.testing.assert_close(mean, before + 0.1)


def test_soft_targets_by_hand(residual_gap) -> None:
    """Image 3 is of class 1, and was predicted as 1/2 and 1/2 of classes 0 and 1: with a share of
    0.4 the target is 0.2, 0.8. Image 5 was not predicted yet: the target is its label."""
    way = residual_gap.SoftTargets(share=0.4)
    way.labels[3], way.labels[5] = 1, 2
    way.predicted[3, :2] = 0.5
    scores = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    logs = scores.log_softmax(1)
    wanted = -(0.2 * logs[0, 0] + 0.8 * logs[0, 1] + logs[1, 2]) / 2
    torch.testing.assert_close(way._loss(scores, torch.tensor([3, 5])), wanted)


def test_every_second_step_is_backpropagation(residual_gap) -> None:
    torch.manual_seed(0)
    way, x, y = residual_gap.Realigned(every=2), torch.randn(4, 3, 32, 32), torch.arange(4)
    stem = next(way.network.parameters())
    way.rule.eval()

    def gradient(step) -> torch.Tensor:
        way.network.zero_grad()
        step(x, y)
        return stem.grad.clone()

    local = gradient(way.rule.backward)
    whole = gradient(lambda x, y: F.cross_entropy(way.network(x), y).backward())
    steps = [gradient(lambda x, y: way.step(x, y, y)) for _ in range(4)]
    for found, wanted in zip(steps, [local, whole, local, whole], strict=True):
        assert torch.equal(found, wanted)
    assert not torch.equal(local, whole)


def test_a_block_with_the_image(residual_gap) -> None:
    """The image is averaged to the size of the input, encoded and added to it."""
    torch.manual_seed(0)
    block = residual_gap.WithImage(nn.Conv2d(5, 6, 1), channels=5)
    h, image = torch.randn(2, 5, 4, 4), torch.randn(2, 3, 8, 8)
    wanted = block.block(h + block.encoder(F.avg_pool2d(image, 2)))
    torch.testing.assert_close(block(h, image), wanted)
