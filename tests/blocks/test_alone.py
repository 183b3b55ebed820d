"""Blocks by themselves compute and draw what they do in the network's own forward."""

import random

import numpy as np
import pytest
import torch
from forwards import NETWORKS, Layers, X, Y, network, nothing_stays, seed
from torch import nn

from layerwise import InputError, cut, rules


@pytest.mark.parametrize("name", NETWORKS)
def test_by_itself_is_in_order(name):
    model, inputs = network(name)
    chain = cut(model, "all", example=inputs).eval()
    with torch.no_grad():
        found = chain.outputs(inputs)
        for k in range(1, len(chain)):
            assert torch.equal(chain[k](found[k - 1], inputs), found[k])
    assert nothing_stays(model)


@pytest.mark.parametrize("name", ["noise", "functional dropout", "python's random numbers"])
def test_by_itself_draws_what_in_order_draws(name):
    model, inputs = network(name)
    chain = cut(model, "all", example=inputs).train()
    seed()
    with chain.passes(inputs) as passes:
        h = passes.run(0, inputs)
        state = torch.get_rng_state(), random.getstate()
        expected = passes.run(1, h)
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    assert torch.equal(chain[1](h, inputs), expected)


def test_by_itself_moves_no_other_buffers():
    model, inputs = network("buffers")
    chain = cut(model, "all", example=inputs).train()
    h = chain.outputs(inputs)[0]
    count = model.counter.item()
    chain[2](h, inputs)
    assert model.counter.item() == count


def test_blocks_that_read_the_inputs():
    class Skips(Layers):
        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.c(torch.tanh(self.b(h)) + x)

    model = Skips().eval()
    chain = cut(model, "all", example=X)
    assert [chain.reads_inputs(k) for k in (1, 2)] == [True, False]
    h = chain.outputs(X)
    with pytest.raises(InputError, match=r"reads the network's inputs .* blocks\[1\]\(h, inputs\)"):
        chain[1](h[0])
    assert torch.equal(chain[1](h[0], X), h[1])
    rules.DifferenceTargetPropagation(cut(model, 3, example=X)).backward(X, Y)


def test_a_block_that_does_not_run_by_itself():
    class Hidden(Layers):
        def forward(self, x):
            h = torch.tanh(self.a(x))
            size = h.detach().abs().mean()  # crosses from an earlier block, without a gradient
            return self.c(torch.tanh(self.b(h)) * size)

    chain = cut(Hidden(), "all", example=X)
    rules.DGL(chain).backward(X, Y)
    with pytest.raises(InputError, match="Hidden: block 'b' does not run by itself"):
        rules.DifferenceTargetPropagation(chain).backward(X, Y)
    assert nothing_stays(chain.model)


def test_a_number_that_a_layer_returns():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(6, 6)

        def forward(self, x, mask):
            return torch.relu(self.f(x)), int(mask.sum())

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.b, self.last = Counts(), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x, mask):
            h, n = self.first(x, mask)
            return self.last(torch.relu(self.b(h))) * n

    model = Model().eval()
    chain = cut(model, "all", example=(X, torch.ones(4, 3)))
    other = (X, torch.eye(4)[:, :3])
    found = chain.outputs(other)
    assert torch.equal(chain[2](found[1], other), found[2])


def test_numpys_random_numbers():
    class Noisy(Layers):
        def between(self, h, k):
            return h + torch.from_numpy(np.random.randn(*h.shape)).float()

    model = Noisy().train()
    chain = cut(model, "all", example=X)
    with chain.passes(X) as passes:
        h = passes.run(0, X)
        state = np.random.get_state()
        expected = passes.run(1, h)
    np.random.set_state(state)
    assert torch.equal(chain[1](h), expected)


def test_statistics_of_a_layer_without_parameters():
    model = nn.Sequential(
        nn.BatchNorm1d(6, affine=False), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
    )
    rule = rules.Backprop(cut(model, "all", example=X), checkpoint=True)
    rule.backward(X, Y)
    assert model[0].num_batches_tracked == 1


@pytest.mark.parametrize("rule", [rules.PredictiveCoding, rules.LDRL, rules.DNI])
def test_a_network_in_another_type_than_when_it_was_cut(rule):
    model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3))).double()
    made = rule(cut(model, "all", example=torch.randn(4, 6, dtype=torch.float64))).float()
    made.backward(torch.randn(4, 6), torch.randint(6, (4,)))
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in grads)


def test_a_network_that_takes_another_type_than_its_weights():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            assert x.dtype == torch.float64
            return self.two(self.one(x.float()))

    x = torch.randn(4, 6, dtype=torch.float64)
    cut(Casts(), "all", example=x).check_alone(1)
