"""Networks whose blocks are called directly, without a paused forward."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import assert_same, grads
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from layerwise import InputError, cut, models, rules
from layerwise.blocks import passes
from layerwise.blocks.stretches import Stretches

X, Y = torch.randn(6, 2, 8, 8), torch.randint(3, (6,))


def nested() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.Dropout(0.5), nn.Sequential(nn.Conv2d(4, 4, 3))),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


class Scaled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.fixture
def forwards(monkeypatch):
    """The number of forwards that were paused so far."""
    made = []
    begin = passes.PausedForward.__init__

    def init(self, *given):
        made.append(self)
        begin(self, *given)

    monkeypatch.setattr(passes.PausedForward, "__init__", init)
    return made


def step(blocks, rule=rules.DGL):
    torch.manual_seed(1)
    made = rule(blocks)
    torch.manual_seed(2)
    report = made.backward(X, Y)
    return {"logits": report.logits, **grads(made), **dict(made.named_buffers())}


@pytest.mark.parametrize("rule", [rules.DGL, rules.ForwardForward, rules.DNI, rules.PEPITA])
@pytest.mark.parametrize(
    "network",
    [nested, lambda: models.resnet20((2, 8, 8), 3, width=0.25)],
    ids=["nested", "resnet20"],
)
def test_bits_of_a_paused_forward(network, rule, forwards, monkeypatch):
    blocks = cut(network(), "all", example=X)
    same = copy.deepcopy(blocks)
    forwards.clear()
    direct = step(blocks, rule)
    assert not forwards
    monkeypatch.setattr(Stretches, "is_sequential", lambda _: False)
    assert_same(direct, step(same, rule))
    assert forwards


def test_what_else_a_network_does_is_not_left_out(forwards):
    """A hook, a forward of its own, another layer: also if it comes after the cut."""
    network = nested()
    blocks = cut(network, "all", example=X)
    assert blocks.is_sequential()
    seen = []
    for module in (network, network[1]):
        handle = module.register_forward_hook(lambda *_: seen.append(1))
        step(blocks)
        assert seen.pop()
        assert not seen
        handle.remove()
    with register_module_forward_hook(lambda module, *_: seen.append(module)):
        step(blocks)
    assert network in seen
    assert network[1] in seen
    network.forward = lambda x: 2 * nn.Sequential.forward(network, x)
    before = step(blocks)["logits"]
    del network.forward
    assert torch.equal(before, 2 * step(blocks)["logits"])
    assert blocks.is_sequential()
    network[1][1] = seen_layer = nn.Dropout(0.5)
    seen_layer.register_forward_hook(lambda *_: seen.append(seen_layer))
    assert not blocks.is_sequential()
    seen.clear()
    step(blocks)
    assert seen == [seen_layer]
    network[1][2] = nn.Sequential(nn.Conv2d(4, 4, 3))
    with pytest.raises(InputError, match="no longer in the network; cut it again"):
        step(blocks)


def test_a_subclass_runs_its_own_forward(forwards):
    plain = nested()
    scaled = Scaled(*copy.deepcopy(plain))
    assert not cut(scaled, "all", example=X).is_sequential()
    a = step(cut(plain, "all", example=X))["logits"]
    b = step(cut(scaled, "all", example=X))["logits"]
    assert torch.equal(2 * a, b)


def test_a_hook_on_a_block_sees_it():
    blocks = cut(nested(), "all", example=X)
    seen = []
    blocks[1].register_forward_hook(lambda block, given, out: seen.append(out.shape))
    step(blocks)
    assert seen == [torch.Size((6, *blocks.shapes[1]))]
