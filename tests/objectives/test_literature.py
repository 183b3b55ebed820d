"""What every local objective of the literature keeps to."""

from __future__ import annotations

from collections.abc import Callable

import networks
import pytest
import torch
from networks import assert_close, assert_same, grads
from torch import Tensor

from layerwise import cut, heads, models, rules
from layerwise.objectives import (
    Classify,
    Colorize,
    Inpaint,
    KernelSeparation,
    Objective,
    PredictProjection,
    Reconstruct,
    SimilarityMatching,
)

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "sim": SimilarityMatching,
    "predsim": lambda: 0.01 * Classify(heads.Linear(features=64)) + 0.99 * SimilarityMatching(),
    "sim-bpf": lambda: SimilarityMatching(convolve=False, features=256, projection=16),
    "pred-bpf": lambda: PredictProjection(projection=16, features=64),
    "infopro": lambda: (
        (5, 0.5) * Reconstruct(heads.Bilinear(channels=12), "bce")
        + (0.25, 1) * Classify(heads.Conv(channels=8))
    ),
    "colorize": Colorize,
    "colorize bins": lambda: Colorize(kind="classify", rebalance=True),
    "inpaint": Inpaint,
    "inpaint random": lambda: Inpaint(region="random"),
    "alignment": KernelSeparation,
    "contrastive": lambda: KernelSeparation("contrastive"),
    "negative": lambda: KernelSeparation("l2", negative_only=True),
}
WITHOUT_LABELS = ("colorize", "colorize bins", "inpaint", "inpaint random")


def _rule(name: str, dtype: torch.dtype = torch.float32) -> tuple[rules.Greedy, Tensor, Tensor]:
    torch.manual_seed(1)
    x, y = torch.randn(8, 3, 16, 16, dtype=dtype) / 2, torch.arange(8) % 3
    model = models.vgg8c((3, 16, 16), 10, width=1 / 16, hidden=32).to(dtype)
    blocks = cut(model, at=["conv3", "conv5", "fc"], example=x)
    return rules.Greedy(blocks, OBJECTIVES[name]()), x, y


def _first(rule: rules.Greedy) -> dict[str, Tensor]:
    """The gradients of block 0 and its head."""
    own = {id(p) for p in rule.parameters_of(0)}
    names = [n for n, p in rule.named_parameters() if id(p) in own]
    return {n: g for n, g in grads(rule).items() if n in names}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_isolation(name: str) -> None:
    """Block 0's gradient does not depend on the blocks after it."""
    wanted = None
    for factor in (1.0, 3.0):
        rule, x, y = _rule(name)
        for i in (1, 2, 3):
            for p in rule.parameters_of(i):
                p.data.mul_(factor)
        rule.backward(x, y)
        got = _first(rule)
        assert got
        assert all(g.isfinite().all() for g in got.values())
        assert any(g.any() for n, g in got.items() if n.startswith("blocks"))
        if wanted is not None:
            assert_same(got, wanted)
        wanted = got


@pytest.mark.parametrize("name", WITHOUT_LABELS)
def test_labels_are_not_read(name: str) -> None:
    rule, x, y = _rule(name)
    rule.eval()
    rule.backward(x, y)
    got = grads(rule)
    rule.zero_grad()
    rule.backward(x, (y + 1) % 10)
    last = {id(p) for p in rule.parameters_of(3)}
    names = [n for n, p in rule.named_parameters() if id(p) not in last]
    own = {n: g for n, g in grads(rule).items() if n in names}
    assert_same({n: got[n] for n in own}, own)
    assert rule.exits(x)[:-1] == (None, None, None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_float64_and_the_rows_of_a_batch(name: str) -> None:
    """A sample's place in the batch does not matter."""
    rule, x, y = _rule(name, torch.float64)
    rule.backward(x, y)
    got = grads(rule)
    assert {g.dtype for g in got.values()} == {torch.float64}
    rule.zero_grad()
    order = torch.tensor([3, 1, 7, 0, 2, 6, 4, 5])
    rule.backward(x[order], y[order])
    assert_close(grads(rule), got, atol=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_scale(name: str) -> None:
    """What is differentiated is scaled, what is reported is not."""
    rule, x, y = _rule(name)
    report = rule.backward(x, y)
    got = grads(rule)
    rule.zero_grad()
    scaled = rule.backward(x, y, scale=lambda loss: 1024 * loss)
    assert_close({n: g / 1024 for n, g in grads(rule).items()}, got, atol=1e-5)
    for a, b in zip(report.local_losses, scaled.local_losses, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_state_dict(name: str) -> None:
    one, x, y = _rule(name)
    other, _, _ = _rule(name)
    for p in other.parameters():
        p.data.add_(0.1)
    other.load_state_dict(one.state_dict())
    one.backward(x, y)
    other.backward(x, y)
    assert_same(grads(one), grads(other))


@pytest.mark.parametrize("way", ["plain", "bf16", "channels_last"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_falls(name: str, way: str) -> None:
    rule, x, y = _rule(name)
    losses = torch.stack(networks.losses_of_training(rule, x, y, way, lr=0.01))
    assert losses.isfinite().all()
    assert (losses[-1, :-1] < losses[0, :-1]).all()
