"""The direct global gradient: its limits, and that both ways of mixing are the same."""

from __future__ import annotations

import copy

import networks
import pytest
import torch
from networks import NETWORKS, SMALL_HEAD, assert_close, assert_same, grads

from layerwise import rules


@pytest.mark.parametrize("network", NETWORKS)
def test_without_weight_it_is_dgl(network: str) -> None:
    """Bit for bit: gradients, buffers, what is reported and the random state."""
    case = NETWORKS[network](dropout=0.3)
    rule = rules.DirectGlobal(case.blocks, 0.0, SMALL_HEAD)
    dgl = rules.DGL(copy.deepcopy(case.blocks), head=SMALL_HEAD)
    dgl.load_state_dict(rule.state_dict())
    start = torch.get_rng_state()
    for _ in range(2):
        wanted = dgl.backward(case.x, case.y)
    end = torch.get_rng_state()
    torch.set_rng_state(start)
    for _ in range(2):
        report = rule.backward(case.x, case.y)
    assert torch.equal(torch.get_rng_state(), end)
    assert_same(grads(rule), grads(dgl))
    assert_same(dict(rule.named_buffers()), dict(dgl.named_buffers()))
    for got, other in zip(report.local_losses, wanted.local_losses, strict=True):
        assert torch.equal(got, other)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_gradient_is_linear_in_the_weight(network: str) -> None:
    """Mixing at the scores is mixing what each part alone gives the block: the two ways of saying
    "half of the local gradient, half of the last head's" do not differ."""
    case = NETWORKS[network](torch.float64)
    rule = rules.DirectGlobal(case.blocks, 0.0, SMALL_HEAD).eval()
    found = {}
    for w in (0.0, 0.3, 1.0):
        rule.last_gradient_weight = w
        rule.zero_grad()
        rule.backward(case.x, case.y)
        found[w] = grads(rule)
    mixed = {n: 0.7 * found[0.0][n] + 0.3 * found[1.0][n] for n in found[0.3]}
    assert_close(found[0.3], mixed, atol=1e-14)


def test_blocks_hear_of_the_end_but_not_of_each_other() -> None:
    """The last block's weights change the first's gradient, through the error alone; the second
    head's do not."""
    case = networks.cnn(torch.float64)
    rule = rules.DirectGlobal(case.blocks, 0.5, SMALL_HEAD).eval()

    def first() -> torch.Tensor:
        rule.zero_grad()
        rule.backward(case.x, case.y)
        return torch.cat([p.grad.flatten() for p in rule.parameters_of(0)])

    before = first()
    with torch.no_grad():
        for p in rule.objectives[1].parameters():
            p.add_(0.1)
    assert torch.equal(first(), before)
    with torch.no_grad():
        for p in rule.blocks[-1].parameters():
            p.add_(torch.randn_like(p))
    assert not torch.equal(first(), before)


@pytest.mark.parametrize("w", [-0.1, 1.1])
def test_bad_weight(w: float) -> None:
    with pytest.raises(ValueError, match="last_gradient_weight"):
        rules.DirectGlobal(networks.mlp().blocks, w)
