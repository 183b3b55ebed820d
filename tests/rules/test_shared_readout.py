"""One readout for all blocks: whose gradient it gets, and what blocks see of it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from networks import NETWORKS, assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, rules
from layerwise.runtime.layer_parallel import check_rule

LN2 = math.log(2)


@pytest.mark.parametrize("shared", [True, False])
def test_one_step_by_hand(shared: bool) -> None:
    """The network of test_golden: x = (1, -1), (0, 0) with labels 1, 0; W1 = [[2, 1], [1, 0]],
    W2 = [[0, ln 2], [3, -3]].

    Without normalisation block 1's scores are the network's own, W2 h1. So W1 has the gradient of
    backpropagation, [[-1, 1], [(ln 2)/3 + 1, -(ln 2)/3 - 1]], and both losses give W2 the same,
    [[1/3, 1/3], [-1/3, -1/3]]: twice that, or once where the readout learns from the last alone.
    """
    parts = [nn.Linear(2, 2, bias=False, dtype=torch.float64) for _ in range(2)]
    parts[0].weight.data = torch.tensor([[2.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    parts[1].weight.data = torch.tensor([[0.0, LN2], [3.0, -3.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    rule = rules.SharedReadout(Blocks(parts, example=x), False, shared)
    assert list(dict(rule.named_parameters())) == ["blocks.0.weight", "blocks.1.weight"]
    report = rule.backward(x, torch.tensor([1, 0]))
    first = torch.tensor([[-1.0, 1.0], [LN2 / 3 + 1, -LN2 / 3 - 1]], dtype=torch.float64)
    second = torch.tensor([[1 / 3, 1 / 3], [-1 / 3, -1 / 3]], dtype=torch.float64)
    torch.testing.assert_close(parts[0].weight.grad, first, atol=1e-14, rtol=0)
    torch.testing.assert_close(parts[1].weight.grad, (1 + shared) * second, atol=1e-14, rtol=0)
    assert torch.equal(report.local_losses[0], report.local_losses[1])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shared", [True, False])
def test_one_graph_with_stopped_gradients(network: str, shared: bool) -> None:
    """The sum of all losses, detached between the blocks."""
    case = NETWORKS[network](torch.float64)
    rule = rules.SharedReadout(case.blocks, shared_gradient=shared)
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    (*_, linear) = (m for m in case.blocks[-1].modules() if isinstance(m, nn.Linear))
    h, total = case.x, torch.zeros((), dtype=torch.float64)
    for k, block in enumerate(case.blocks):
        h = block(h.detach())
        z = h
        if k < len(case.blocks) - 1:
            v = rule.objectives[k].features(h)
            v = (v - v.mean(-1, keepdim=True)) / (
                v.var(-1, unbiased=False, keepdim=True) + 1e-5
            ).sqrt()
            weight, bias = linear.weight, linear.bias
            z = v @ (weight if shared else weight.detach()).T + (bias if shared else bias.detach())
        total = total + F.cross_entropy(z, case.y)
    total.backward()
    assert_close(got, grads(rule), atol=1e-11)


class _Embed(nn.Module):
    """Tokens and positions."""

    def __init__(self, vocabulary: int, length: int, width: int):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.token(x) + self.position(torch.arange(x.shape[1], device=x.device))


class _Causal(nn.Module):
    """A transformer layer that looks back."""

    def __init__(self, width: int):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            width, 2, 2 * width, 0.0, batch_first=True, norm_first=True
        )

    def forward(self, h: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1], device=h.device)
        return self.layer(h, src_mask=mask.to(h.dtype), is_causal=True)


def _gpt() -> tuple[Blocks, Tensor, Tensor]:
    torch.manual_seed(0)
    parts = [
        nn.Sequential(_Embed(11, 8, 16), _Causal(16)),
        _Causal(16),
        nn.Sequential(_Causal(16), nn.LayerNorm(16), nn.Linear(16, 11, bias=False)),
    ]
    start = torch.randint(0, 11, (12, 1))
    sequence = (start + torch.arange(9)) % 11  # each token is the one before it plus 1
    return Blocks(parts, example=sequence[:2, :-1]), sequence[:, :-1], sequence[:, 1:]


def test_a_language_model() -> None:
    """No block has parameters of its own but its layers; every one of them learns to predict."""
    blocks, x, y = _gpt()
    rule = rules.SharedReadout(blocks)
    assert set(rule.parameters()) == set(blocks.parameters())
    assert [e.shape for e in rule.exits(x)] == [(12, 8, 11)] * 3
    opt = torch.optim.AdamW(rule.parameters(), lr=0.01)
    for _ in range(60):
        opt.zero_grad()
        report = rule.backward(x, y)
        opt.step()
    assert all(loss < 0.3 for loss in report.local_losses)
    rule.eval()
    assert (rule(x).argmax(-1) == y).all()


def test_a_copy_reads_its_own_readout() -> None:
    blocks, x, y = _gpt()
    rule = rules.SharedReadout(blocks)
    other = copy.deepcopy(rule)
    other.blocks[2][2].weight.data.zero_()
    assert not other.exits(x)[0].any()
    assert rule.exits(x)[0].any()
    rule.backward(x, y)
    assert not grads(other)


def test_a_frozen_readout_stays() -> None:
    blocks, x, y = _gpt()
    rule = rules.SharedReadout(blocks)
    rule.backward(x, y)
    wanted = grads(rule)
    rule.zero_grad()
    blocks[2][2].requires_grad_(False)
    rule.backward(x, y)
    del wanted["blocks.2.2.weight"]
    assert_same(grads(rule), wanted)


def test_bad_input() -> None:
    x = torch.zeros(2, 3, 4, 4)
    convs = [nn.Conv2d(3, 3, 3, padding=1), nn.Sequential(nn.Conv2d(3, 5, 4), nn.Flatten())]
    with pytest.raises(ValueError, match=r"no nn.Linear that gives the class scores"):
        rules.SharedReadout(Blocks(convs, example=x))
    blocks, _, _ = _gpt()
    with pytest.raises(ValueError, match="SharedReadout needs forward and readout information"):
        check_rule(rules.SharedReadout(blocks), 2)
