"""The momentum auxiliary network: its limits, its average, what reaches whom."""

from __future__ import annotations

import copy

import networks
import pytest
import torch
from networks import NETWORKS, SMALL_HEAD, assert_close, assert_same, grads
from torch import nn
from torch.nn import functional as F

from layerwise import Blocks, LocalRule, rules


def _zero(module: nn.Module) -> None:
    for name, buffer in module.named_buffers():
        if "running" not in name:
            buffer.zero_()


def test_without_the_average_it_is_dgl() -> None:
    """With averaged weights 0: DGL with the head (bias, head), bit for bit."""
    case = networks.cnn(dropout=0.0)
    rule = rules.MAN(case.blocks, SMALL_HEAD, momentum=1.0)
    for objective in list(rule.objectives.children())[:-1]:
        if hasattr(objective.head, "average"):
            _zero(objective.head.average)
    made = iter([o.head for o in rule.objectives.children()])

    def head(in_shape: object, out_shape: object) -> nn.Module:
        here = copy.deepcopy(next(made))
        return nn.Sequential(here.bias, here.head) if hasattr(here, "bias") else here

    dgl = rules.DGL(copy.deepcopy(case.blocks), head=head)
    rule.backward(case.x, case.y)
    dgl.backward(case.x, case.y)
    assert_same(grads(rule.blocks), grads(dgl.blocks))
    for i in range(len(case.blocks) - 1):
        ours = [p.grad for p in rule.objectives[i].parameters()]
        theirs = [p.grad for p in dgl.objectives[i].parameters()]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_against_a_naive_implementation(network: str, scaled: bool) -> None:
    case = NETWORKS[network](torch.float64)
    rule = rules.MAN(case.blocks, SMALL_HEAD, scaled=scaled)
    if scaled:
        for objective in rule.objectives.children():
            if hasattr(objective.head, "scale"):
                objective.head.scale.data.fill_(0.7)
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    s = 0.7 if scaled else 1.0
    h, read = case.x, 0
    for i, block in enumerate(case.blocks):
        h = scores = block(h.detach())
        head = getattr(rule.objectives[i], "head", nn.Identity())
        if hasattr(head, "average"):
            read += 1
            s = head.scale if scaled else 1.0
            scores = head.head((2 - s) * head.average(h) + s * head.bias(h))
        else:
            scores = head(h)
        F.cross_entropy(scores, case.y).backward()
    assert read == len(case.blocks) - (2 if network == "transformer" or network == "mlp" else 1)
    assert_close(got, grads(rule), atol=1e-10)


def test_a_scale_of_one_is_unscaled() -> None:
    case = networks.resnet()
    torch.manual_seed(0)
    plain = rules.MAN(copy.deepcopy(case.blocks), SMALL_HEAD)
    torch.manual_seed(0)
    scaled = rules.MAN(copy.deepcopy(case.blocks), SMALL_HEAD, scaled=True)
    plain.backward(case.x, case.y)
    scaled.backward(case.x, case.y)
    found = {n: g for n, g in grads(scaled).items() if not n.endswith("head.scale")}
    assert len(found) == len(grads(scaled)) - 2
    assert_close(found, grads(plain), atol=1e-6, rtol=1e-5)


def test_the_average_starts_as_the_next_blocks_layer_and_is_never_trained() -> None:
    case = networks.cnn()
    rule = rules.MAN(case.blocks, SMALL_HEAD)
    average = rule.objectives[0].head.average
    assert not list(average.parameters())
    assert torch.equal(average[0].weight, case.blocks[1][0][0].weight)
    assert not torch.equal(rule.objectives[0].head.bias[0].weight, average[0].weight)
    rule.backward(case.x, case.y)
    assert not average[0].weight.requires_grad
    assert not torch.equal(average[1].running_mean, torch.zeros(len(average[1].running_mean)))


def test_only_the_average_tells_of_the_next_block() -> None:
    """A step later, and of its first layer alone."""
    torch.manual_seed(0)
    parts = [
        nn.Linear(3, 4),
        nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)),
        nn.Linear(4, 3),
    ]
    x, y = torch.randn(5, 3), torch.randint(0, 3, (5,))
    rule = rules.MAN(Blocks(parts, example=x), momentum=0.9)

    def first() -> torch.Tensor:
        rule.zero_grad()
        rule.backward(x, y)
        return torch.cat([p.grad.flatten() for p in rule.parameters_of(0)])

    before = first()
    with torch.no_grad():  # what is no first layer of the next block
        for p in (
            *parts[1][2].parameters(),
            *rule.parameters_of(2),
            *rule.auxiliary(1)[0].parameters(),
        ):
            p.add_(1)
    assert all(torch.equal(first(), before) for _ in range(3))
    for step in range(3):
        with torch.no_grad():
            for p in parts[1][0].parameters():
                p.add_(1)
        assert torch.equal(first(), before) == (step == 0)


def test_resuming_is_going_on() -> None:
    """Bit for bit, at any step: the average and the weights it has seen are part of the state."""

    def steps(rule: LocalRule, count: int) -> None:
        for _ in range(count):
            rule.zero_grad()
            rule.backward(case.x, case.y)
            with torch.no_grad():
                for p in rule.parameters():
                    p.sub_(0.1 * p.grad)

    case = networks.cnn()
    for done in range(4):
        torch.manual_seed(1)
        whole = rules.MAN(networks.cnn().blocks, SMALL_HEAD, momentum=0.5)
        resumed = rules.MAN(networks.cnn().blocks, SMALL_HEAD, momentum=0.5)
        steps(whole, done)
        resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
        steps(whole, 3)
        steps(resumed, 3)
        assert_same(dict(resumed.state_dict()), dict(whole.state_dict()))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"MAN\(momentum=1.5\): give a share"):
        rules.MAN(networks.mlp().blocks, momentum=1.5)
    with pytest.raises(ValueError, match="give a recipe"):
        rules.MAN(networks.mlp().blocks, networks.heads.MLP)
    with pytest.raises(ValueError, match="a rule takes Blocks"):
        rules.MAN(networks.mlp().model)
