"""The bytes that `LiveBytes` follows, against counts by hand."""

import pytest
import torch
from torch import nn

from layerwise import models
from layerwise.costs import LiveBytes

FLOAT = 4  # bytes


def test_one_linear_layer():
    # B=3, I=5, O=7. Alive at once, in floats: h 21; loss 1; d loss 1; dW 35. No bias, and the
    # input wants no gradient. d h = expand(d loss) is a view, which dW = dh^T x reads as it is.
    layer, x = nn.Linear(5, 7, bias=False), torch.randn(3, 5)
    with LiveBytes(layer.parameters()) as live:
        h = layer(x)
        assert live.now == FLOAT * 21
        loss = h.sum()
        loss.backward()
        assert live.now == FLOAT * (21 + 1 + 35)
        del h, loss
        assert live.now == FLOAT * 35
        layer.zero_grad()
        assert live.now == 0
    peak = live.peak()
    assert (peak.activations, peak.gradients, peak.optimizer) == (FLOAT * 23, FLOAT * 35, 0)
    assert peak.bytes == FLOAT * (21 + 1 + 1 + 35)
    assert live.peak("activations").bytes == FLOAT * 23
    assert live.peak("gradients").bytes == FLOAT * 35


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_a_chain_keeps_every_layers_input(layers):
    # h_1 .. h_{K-1} are the next layers' inputs, saved for dW; h_K is held by its name.
    width, batch = 8, 4
    chain = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    with LiveBytes(chain.parameters()) as live:
        h = chain(torch.randn(batch, width))
        born = live.now - FLOAT * batch * width  # less the batch, which was made inside
        assert born == FLOAT * layers * batch * width
        with torch.no_grad():
            chain(h)
        assert live.now - FLOAT * batch * width == born


def test_a_block_at_a_time_keeps_one_layer():
    # In floats, of layer k at its backward: h_{k-1} 32 (not layer 1's, the baseline's), h_k 32,
    # loss and d loss 2, then dW 64 and db 8, stepped and freed before layer k+1.
    width, batch, layers = 8, 4, 5
    chain = [nn.Linear(width, width) for _ in range(layers)]
    x = torch.randn(batch, width)
    with LiveBytes(p for layer in chain for p in layer.parameters()) as live:
        h = x
        for layer in chain:
            h = layer(h.detach())
            h.sum().backward()
            layer.zero_grad()
        del h
        assert live.now == 0
    assert live.peak().bytes <= FLOAT * (32 + 32 + 32 + 2 + 64 + 8)
    assert live.peak("gradients").bytes == FLOAT * (64 + 8)


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(lambda: models.resnet20(width=0.25), id="resnet20"),
        pytest.param(lambda: models.vgg8b(width=1 / 16), id="vgg8b"),
        pytest.param(lambda: models.vit(layers=2, width=16, heads=2), id="vit"),
    ],
)
def test_what_is_alive_after_the_forward_is_what_autograd_saved(network):
    network = network()
    x = torch.randn(2, 3, 32, 32)
    before = {t.untyped_storage().data_ptr() for t in [x, *network.parameters()]}
    before |= {t.untyped_storage().data_ptr() for t in network.buffers()}
    saved = {}

    def pack(t):
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with LiveBytes() as live, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = network(x)
        pack(out)
        assert live.now == sum(n for at, n in saved.items() if at not in before)


def test_views_and_work_in_place_are_not_new():
    x = torch.randn(4, 4)
    with LiveBytes() as live:
        x.view(2, 8).t().add_(1)
        assert live.now == 0
        y = x + 1
        views = [y[0], y.detach(), y.relu_()]
        assert live.now == FLOAT * 16
        del y
        assert live.now == FLOAT * 16
        del views
        assert live.now == 0


def test_a_storage_that_grows():
    with LiveBytes() as live:
        x = torch.empty(0)
        torch.add(torch.ones(3), 1, out=x)
        assert live.now == FLOAT * 3


def test_gradients_and_optimizer_state_are_told_apart():
    layer = nn.Linear(5, 7, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), momentum=0.9, fused=True)

    def step():
        layer(torch.ones(3, 5)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def state():
        return [optimizer.state[layer.weight]["momentum_buffer"]]

    step()
    with LiveBytes(layer.parameters()) as live:
        live.count("optimizer", state())
        step()
    # dW and its momentum 35 floats each; h, loss, d loss and the batch 21 + 1 + 1 + 15.
    peak = live.peak()
    assert (peak.optimizer, peak.gradients) == (FLOAT * 35, FLOAT * 35)
    assert peak.activations <= FLOAT * 38
    assert live.now == FLOAT * 35


def test_state_made_inside_and_gradients_kept():
    layer = nn.Linear(5, 7, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), momentum=0.9)
    layer(torch.ones(3, 5)).sum().backward()
    with LiveBytes(layer.parameters()) as live:
        assert live.now == FLOAT * 35
        optimizer.step()
        live.count("optimizer", [optimizer.state[layer.weight]["momentum_buffer"]])
    assert live.peak("gradients").bytes == FLOAT * 35
    assert live.peak("optimizer").bytes == FLOAT * 35


def test_no_hook_is_left_behind():
    layer = nn.Linear(2, 2)
    with LiveBytes(layer.parameters()):
        pass
    assert not layer.weight._post_accumulate_grad_hooks
