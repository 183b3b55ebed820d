"""An exit as a network of its own: exported, traced, compiled, saved."""

import pytest
import torch
from torch import nn

from layerwise import cut, rules
from layerwise.analysis.exits import Exit

X = torch.randn(4, 5, 8)


class Encoder(nn.Module):
    """Layers, and a parameter and a buffer that belong to no layer."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.register_buffer("scale", torch.full((), 0.5))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(4)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x, mask=None):
        h = torch.cat([self.token.expand(len(x), -1, -1), x], 1) * self.scale
        for layer in self.layers:
            h = layer(h) if mask is None else layer(h, src_key_padding_mask=mask)
        return self.head(h[:, 0])


@pytest.fixture
def rule():
    torch.manual_seed(0)
    return rules.DGL(cut(Encoder(), 4, example=X)).eval()


@pytest.mark.parametrize("i", range(4))
def test_an_exported_exit(rule, i):
    small = Exit(rule, i).eval()
    program = torch.export.export(small, (X,))
    torch.testing.assert_close(program.module()(X), rule.exits(X)[i])
    layers = {name.split("layers.")[1][0] for name in program.state_dict if "layers." in name}
    parts = {name for name in small.state_dict() if "linear1.weight" in name}
    used = {m for block in rule.blocks.stretches[: i + 1] for m in block.modules()}
    wanted = [k for k, layer in enumerate(rule.blocks.model.layers) if layer in used]
    assert len(parts) == len(wanted)
    assert not layers & {str(k) for k in range(4) if k not in wanted}
    products = sum("linear" in str(node.target) for node in program.graph.nodes)
    assert products >= 2 * len(wanted)


def test_an_exit_traced_and_compiled(rule):
    small, wanted = Exit(rule, 1).eval(), rule.exits(X)[1]
    with pytest.warns():
        traced = torch.jit.trace(small, (X,), check_trace=False)
    torch.testing.assert_close(traced(X), wanted)
    compiled = torch.compile(small, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), wanted)
    torch._dynamo.reset()


def test_later_blocks_do_not_run(rule):
    def fail(*_):
        raise AssertionError("it ran")

    small = Exit(rule, 1).eval()
    for layer in rule.blocks.model.layers[3:]:
        layer.register_forward_hook(fail)
    assert torch.equal(small(X), small(x=X))


def test_modes(rule):
    small = Exit(rule, 1)
    small.train()
    assert rule.blocks.model.training
    assert not torch.equal(small(X), small(X))
    small.eval()
    assert not rule.blocks.model.training
    assert torch.equal(small(X), small(X))
