"""Blocks in order behave as the network's own forward: random numbers, modes, attributes, buffers,
hooks, side inputs."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from forwards import (
    NETWORKS,
    FunctionalDropout,
    Layers,
    X,
    Y,
    in_order,
    network,
    nothing_stays,
    plain,
    seed,
)
from torch import nn

from layerwise import InputError, cut, rules

CASES = pytest.mark.parametrize("name", NETWORKS)


@CASES
def test_backpropagation_is_the_plain_loop(name):
    """The same loss, gradients and buffers, and the same random numbers afterwards."""
    model, inputs = network(name)
    chain = cut(model, "all", example=inputs)
    assert len(chain) > 1
    twin = network(name)[0].train()
    model.train()
    seed()
    expected = F.cross_entropy(plain(twin, inputs), Y)
    expected.backward()
    after = torch.rand(()), random.random()
    for run in (
        lambda: rules.Backprop(chain).backward(inputs, Y).loss,
        lambda: F.cross_entropy(in_order(chain, inputs), Y),
    ):
        for buffer in model.buffers():
            buffer.zero_()
        seed()
        model.zero_grad()
        loss = run()
        if loss.requires_grad:
            loss.backward()
        assert torch.equal(loss.detach(), expected.detach())
        assert (torch.rand(()), random.random()) == after
        for (key, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad), key
        for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
            assert torch.equal(ours, theirs)
    assert nothing_stays(model)


@CASES
def test_dgl_reaches_every_parameter(name):
    model, inputs = network(name)
    rule = rules.DGL(cut(model, "all", example=inputs)).train()
    for _ in range(2):
        report = rule.backward(inputs, Y)
    assert all(p.grad is not None for p in model.parameters())
    assert all(torch.isfinite(loss) for loss in report.local_losses)
    assert nothing_stays(model)


def test_what_changes_after_the_cut():
    class Tempered(Layers):
        tau = 1.0

        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.zeros(6))

        def between(self, h, k):
            return h / self.tau + self.shift

    model = Tempered().eval()
    chain = cut(model, "all", example=X)
    model.tau = 0.1
    model.shift = torch.ones(6)
    with torch.no_grad():
        model.b.weight = nn.Parameter(2 * model.b.weight)
        assert torch.equal(chain(X), model(X))
        assert torch.equal(in_order(chain, X), model(X))
        h = chain.outputs(X)
        assert torch.equal(chain[1](h[0]), h[1])
    assert model.b.weight is dict(chain[1].named_parameters())["b.weight"]


@pytest.mark.parametrize("name", ["functional dropout", "noise"])
def test_modes_are_one(name):
    model, inputs = network(name)
    chain = cut(model, "all", example=inputs)
    rule = rules.DGL(chain)

    def draws(run):
        return not torch.equal(run(inputs), run(inputs))

    for owner in (model, rule, chain, model):
        owner.eval()
        assert not draws(model)
        assert not draws(chain)
        assert not draws(rule)
        owner.train()
        assert draws(model)
        assert draws(chain)
        assert draws(rule)


def test_a_copy_follows_its_own_mode():
    chain = cut(FunctionalDropout(), 3, example=X)
    twin = copy.deepcopy(chain).eval()
    assert torch.equal(twin(X), twin(X))
    assert torch.equal(in_order(twin, X), twin(X))
    assert not torch.equal(chain(X), chain(X))
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in chain.parameters()}


def test_no_proxies_stay_behind():
    kept = []

    class Keeps(Layers):
        def between(self, h, k):
            kept.append(h)
            return h

    chain = cut(Keeps(), "all", example=X)
    kept.clear()
    in_order(chain, X)
    assert all(type(h) is torch.Tensor for h in kept)


def test_a_batch_of_another_axis():
    """The sequence axis first, as in PyTorch's transformers by default."""

    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(6, 2, 8) for _ in range(3))
            self.last = nn.Linear(6, 3)

        def forward(self, x):  # (B, T, D)
            h = x.transpose(0, 1)
            for layer in self.layers:
                h = layer(h)
            return self.last(h.mean(0))

    model, x = Sequence().eval(), torch.randn(4, 5, 6)
    chain = cut(model, 3, example=x)
    assert chain.shapes == ((5, 6), (5, 6), (3,))
    found = chain.outputs(x)
    assert found[0].shape == (4, 5, 6)
    assert torch.equal(found[-1], model(x))
    rules.DGL(chain).backward(x, Y)
    assert all(p.grad is not None for p in model.parameters())


def test_inference_mode_around():
    with torch.inference_mode():
        model = Layers()
        with pytest.raises(InputError, match=r"[Ii]nference"):
            cut(model, 2, example=X)
    model = Layers()
    with torch.inference_mode():
        chain = cut(model, 2, example=X.clone())
        assert torch.equal(in_order(chain, X), model(X))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precisions(dtype):
    model = Layers().to(dtype)
    chain = cut(model, "all", example=X.to(dtype))
    rules.DGL(chain).backward(X.to(dtype), Y)
    assert all(p.grad.dtype == dtype for p in model.parameters())


def test_compiled_modules():
    model = Layers().eval()
    chain = cut(model, "all", example=X)
    expected = model(X)
    for module in (model.a, model.b, model.c):
        module.compile(backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(in_order(chain, X), expected)
    rules.DGL(chain).backward(X, Y)
    model.compile(backend="eager")  # the whole network cannot be paused, so it runs uncompiled
    with torch.no_grad():
        torch.testing.assert_close(in_order(chain, X), expected)
    assert len(cut(model, 2, example=X)) == 2
    torch._dynamo.reset()


def test_a_list_that_layers_add_to():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(6, 6)

        def forward(self, h, seen, *, count):
            h = torch.relu(self.f(h))
            seen.append(h.detach().mean())
            count["layers"] += 1
            return h

    class Collects(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Adds() for _ in range(3))
            self.last = nn.Linear(6, 3)

        def forward(self, x):
            seen, count = [], {"layers": 0}
            for layer in self.layers:
                x = layer(x, seen, count=count)
            return self.last(x) * (1 + sum(seen)) * count["layers"]

    model = Collects().eval()
    chain = cut(model, "all", example=X)
    assert len(chain) == 4
    assert torch.equal(in_order(chain, X), model(X))
    report = rules.DGL(chain).backward(X, Y)
    assert torch.equal(report.logits, model(X))


def test_a_module_replaced_after_the_cut():
    model = Layers()
    chain = cut(model, "all", example=X)
    model.b = nn.Linear(6, 6)
    with pytest.raises(InputError, match="no longer in the network; cut it again"):
        rules.DGL(chain).backward(X, Y)
    inner = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)))
    chain = cut(inner, "all", example=X)
    inner[1][0] = nn.Linear(6, 6)
    assert inner[1][0].weight in set(chain[1].parameters())


def test_layers_in_another_order():
    class Shuffled(nn.Module):
        order = (0, 1, 2, 3)

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

        def forward(self, x):
            for k in self.order:
                x = torch.relu(self.layers[k](x))
            return x

    model = Shuffled()
    rule = rules.DGL(cut(model, "all", example=X))
    model.order = (0, 2, 1, 3)
    with pytest.raises(InputError, match="begins after a later one"):
        rule.backward(X, Y)
