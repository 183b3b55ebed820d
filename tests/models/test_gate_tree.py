"""A tree of neural gates computes a circuit when its weights are set by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerwise import cut, models
from layerwise.data.sources.boolean import GATES, Circuit, every_input

CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))


def set_by_hand(network: nn.Sequential, circuit: Circuit) -> None:
    """Unit c of a gate, relu(c1 x1 + c2 x2 - 1), is 1 at corner c of (+-1, +-1) and 0 at the other
    three; its output weight is the gate's value there. So the gate gives exactly +-1."""
    with torch.no_grad():
        for level, gates in zip(network, circuit.levels, strict=False):
            hidden, _, out = level[-3:]
            hidden.weight.copy_(torch.tensor(CORNERS * len(gates)).view(-1, 2, 1, 1))
            hidden.bias.fill_(-1)
            tables = [2 * torch.tensor(GATES[gate]) - 1 for gate in gates]
            out.weight.copy_(torch.stack(tables).view(-1, 4, 1, 1))
            out.bias.zero_()
        network.classifier[1].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        network.classifier[1].bias.zero_()


@pytest.mark.parametrize("seed", [0, 1])
def test_computes_a_known_circuit(seed: int) -> None:
    """All gates, for all 256 inputs, exactly."""
    circuit = Circuit.drawn(3, "and+or+nand+nor+xor+xnor", seed)
    network = models.gate_tree((1, 1, 8), 2, width=4)
    set_by_hand(network, circuit)
    x = every_input(8)
    values = circuit(x)
    h = (2 * x - 1).float().view(-1, 1, 1, 8)
    for level, wanted in zip(network, values, strict=False):
        h = level(h)
        assert torch.equal(h.flatten(1), 2.0 * wanted - 1)
    assert torch.equal(network.classifier(h).argmax(1), values[-1][:, 0])


def test_a_gate_reads_two_neighbours() -> None:
    network, x = models.gate_tree((2, 2, 2), 2, width=3), torch.randn(1, 2, 2, 2)
    moved = network.level1(x.view(1, 8).index_fill(1, torch.tensor([5]), 7.0).view_as(x))
    assert (moved != network.level1(x)).flatten(1).tolist() == [[False, False, True, False]]
    blocks = cut(network, at=["level2", "level3"], example=x)
    assert blocks.names == ("level1", "level2", "level3")


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"6 inputs are not the leaves .* give 2, 4, 8"):
        models.gate_tree((1, 2, 3))
