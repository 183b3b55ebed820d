"""The LSTM network: its size, its equations, its state, and where it is cut."""

from __future__ import annotations

import networks
import pytest
import torch
from networks import assert_close, grads
from torch.nn import functional as F

from layerwise import InputError, cut, heads, models, rules

TOKENS = 7
X = torch.randint(TOKENS, (4, 6))
Y = torch.randint(TOKENS, (4, 6))


def small(**options: int | None) -> torch.nn.Module:
    return models.lstm((6,), TOKENS, **{"layers": 3, "width": 8, **options}).double()


def test_size() -> None:
    """A layer has four gates: 4 D (inputs + D + 2 biases)."""
    d, width = 5, 8
    network = small(embedding=d)
    layers = 4 * width * (d + width + 2) + 2 * 4 * width * (2 * width + 2)
    count = TOKENS * d + layers + (width + 1) * TOKENS
    assert sum(p.numel() for p in network.parameters()) == count
    one_hot = count - TOKENS * d + 4 * width * (TOKENS - d)
    assert sum(p.numel() for p in small().parameters()) == one_hot


def test_a_layer_by_definition() -> None:
    """c = f c + i g and h = o tanh(c), with gates in PyTorch's order i, f, g, o."""
    network = small(layers=1)
    layer = network.layers[0]
    h = c = torch.zeros(4, 8, dtype=torch.float64)
    for t in range(6):
        bias = layer.bias_ih_l0 + layer.bias_hh_l0 + layer.weight_ih_l0.T[X[:, t]]
        i, f, g, o = (bias + h @ layer.weight_hh_l0.T).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        torch.testing.assert_close(network(X)[:, t], network.classifier(h))
    _, ((last_h, last_c),) = network(X, ())
    torch.testing.assert_close(last_h[0], h)
    torch.testing.assert_close(last_c[0], c)


def test_its_state_goes_in_and_out() -> None:
    network = small()
    first, state = network(X[:, :2], ())
    second, state = network(X[:, 2:3], state)
    third, state = network(X[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, second, third], 1), network(X))
    assert [tuple(part.shape) for pair in state for part in pair] == 6 * [(1, 4, 8)]


def test_it_is_cut_between_its_layers() -> None:
    network = small(embedding=5)
    blocks = cut(network, blocks="all", example=X[:2])
    assert blocks.names == ("embedding", "layers.1", "layers.2", "classifier")
    assert blocks.shapes == ((6, 8), (6, 8), (6, 8), (6, TOKENS))
    rules.Backprop(blocks).backward(X, Y)
    got = grads(network)
    network.zero_grad()
    F.cross_entropy(network(X).flatten(0, 1), Y.flatten()).backward()
    assert_close(got, grads(network))
    with pytest.raises(InputError, match="lstm"):
        models.lstm((3, 8, 8), TOKENS)


def test_local_critics_train_a_stack_of_layers() -> None:
    """Lee et al. 2021 (arXiv:2102.01963): layer groups of a recurrent network, divided in depth.
    Every token's loss is predicted, and a group's gradient passes back through time within it."""
    network = small()
    blocks = cut(network, at=["layers.1", "layers.2"], example=X[:2])
    rule = rules.LocalCritic(blocks, heads.MLP(width=5))
    report = rule.backward(X, Y)
    got = grads(rule)
    names = {p: n for n, p in rule.named_parameters()}
    wanted, losses = {}, []
    h = network.embedding(X)
    for k, layer in enumerate(network.layers):
        h, _ = layer(h.detach())
        of_last = k == len(network.layers) - 1
        scores = network.classifier(h) if of_last else rule.objectives[k].predict(h, X)
        each = F.cross_entropy(scores.flatten(0, 1), Y.flatten(), reduction="none").view(4, 6)
        parameters = [*layer.parameters(), *(network.classifier.parameters() if of_last else ())]
        found = torch.autograd.grad(each.mean(), parameters, retain_graph=True)
        wanted |= {names[p]: g for p, g in zip(parameters, found, strict=True)}
        losses.append(each.mean(1))  # of each sequence
    for k, of_sample in enumerate(losses[:-1]):
        parameters = list(rule.objectives[k].parameters())
        error = (of_sample - losses[k + 1].detach()).abs().mean()
        found = torch.autograd.grad(error, parameters)
        wanted |= {names[p]: g for p, g in zip(parameters, found, strict=True)}
    assert_close(got, wanted)
    for loss, each in zip(report.local_losses, losses, strict=True):
        torch.testing.assert_close(loss, each.mean().detach())
    # An earlier layer learns nothing from later ones, however many steps a sequence has.
    network.zero_grad()
    with torch.no_grad():
        network.layers[2].weight_hh_l0.mul_(2)
    rule.backward(X, Y)
    of_first = {n: g for n, g in got.items() if ".layers.0." in n}
    networks.assert_same({n: g for n, g in grads(rule).items() if ".layers.0." in n}, of_first)
