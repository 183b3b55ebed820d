"""Local critics: a naive implementation, the limit, what reaches whom."""

from __future__ import annotations

import networks
import pytest
import torch
from networks import NETWORKS, SMALL_HEAD, assert_close, grads
from torch import Tensor
from torch.nn import functional as F

from layerwise import rules


@pytest.mark.parametrize("network", NETWORKS)
def test_against_a_naive_implementation(network: str) -> None:
    case = NETWORKS[network](torch.float64)
    rule = rules.LocalCritic(case.blocks, SMALL_HEAD)
    report = rule.backward(case.x, case.y)
    got = grads(rule)
    names = {p: n for n, p in rule.named_parameters()}
    wanted: dict[str, Tensor] = {}
    h, losses = case.x, []
    for i, block in enumerate(rule.blocks):
        h = block(h.detach())
        each = F.cross_entropy(rule.objectives[i].predict(h), case.y, reduction="none")
        parameters = list(block.parameters())
        found = torch.autograd.grad(each.mean(), parameters, retain_graph=True)
        wanted |= {names[p]: g for p, g in zip(parameters, found, strict=True)}
        losses.append(each)
    for i, each in enumerate(losses[:-1]):
        parameters = list(rule.objectives[i].parameters())
        error = sum((each[b] - losses[i + 1][b].item()).abs() for b in range(len(each)))
        found = torch.autograd.grad(error / len(each), parameters)
        wanted |= {names[p]: g for p, g in zip(parameters, found, strict=True)}
    assert_close(got, wanted)
    for loss, each in zip(report.local_losses, losses, strict=True):
        torch.testing.assert_close(loss, each.mean().detach())


def test_blocks_learn_as_in_dgl() -> None:
    """What differs is what the heads learn."""
    case = networks.cnn(torch.float64)
    rule = rules.LocalCritic(case.blocks, SMALL_HEAD)
    rule.backward(case.x, case.y)
    blocks = grads(rule.blocks)
    heads = grads(rule.objectives)
    dgl = rules.DGL(case.blocks, head=SMALL_HEAD)
    dgl.load_state_dict(rule.state_dict())
    rule.zero_grad()
    dgl.backward(case.x, case.y)
    assert_close(blocks, grads(dgl.blocks))
    assert any(not torch.allclose(g, heads[n]) for n, g in grads(dgl.objectives).items())


def test_a_critic_that_is_right_has_no_gradient() -> None:
    """The critics are the blocks that follow: in eval mode their losses are the network's."""
    case = networks.plain_cnn(torch.float64)
    parts = list(case.blocks)
    following = iter([torch.nn.Sequential(*parts[1:]), torch.nn.Sequential(*parts[2:])])
    rule = rules.LocalCritic(case.blocks, lambda a, b: next(following))
    batch_loss = rule.backward(case.x, case.y)
    for loss in batch_loss.local_losses:
        torch.testing.assert_close(loss, batch_loss.loss)
    # Each block has the network's own gradient, and no critic adds to it.
    got = grads(rule)
    rule.zero_grad()
    F.cross_entropy(case.model(case.x), case.y).backward()
    assert_close(got, grads(rule), atol=1e-14)


def test_blocks_hear_of_no_later_block() -> None:
    case = networks.transformer(torch.float64)
    rule = rules.LocalCritic(case.blocks, SMALL_HEAD)

    def of_first() -> tuple[Tensor, Tensor]:
        rule.zero_grad()
        rule.backward(case.x, case.y)
        parts = rule.blocks[0], rule.objectives[0]
        return tuple(torch.cat([p.grad.flatten() for p in part.parameters()]) for part in parts)

    block, critic = of_first()
    with torch.no_grad():
        for p in rule.parameters_of(1):
            p.mul_(3)
    again = of_first()
    assert torch.equal(again[0], block)
    assert not torch.equal(again[1], critic)  # its target is another


def test_criterion_of_single_samples() -> None:
    def smooth(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=0.3)

    case = networks.mlp(torch.float64)
    rule = rules.LocalCritic(case.blocks, SMALL_HEAD, smooth)
    got = rule._each(scores := torch.randn(6, 3).double(), case.y)
    wanted = F.cross_entropy(scores, case.y, label_smoothing=0.3, reduction="none")
    torch.testing.assert_close(got, wanted)
    tokens, labels = torch.randn(2, 5, 3).double(), torch.randint(0, 3, (2, 5))
    each = rules.LocalCritic(case.blocks)._each(tokens, labels)
    wanted = F.cross_entropy(tokens.mT, labels, reduction="none").mean(1)
    torch.testing.assert_close(each, wanted)
