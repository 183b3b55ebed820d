"""Small networks whose forwards do unusual things, and ways to run them, for tests/blocks."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from layerwise.blocks.intercept import Intercepted

X = torch.randn(4, 6)
Y = torch.tensor([0, 1, 2, 0])


class Layers(nn.Module):
    """Three linear layers; tests override `between` to do something between them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def between(self, h, k):
        return h

    def forward(self, x):
        h = self.between(self.a(x), 0)
        h = self.between(self.b(torch.tanh(h)), 1)
        return self.c(torch.tanh(h))


class PythonsNumbers(Layers):
    def between(self, h, k):
        return h * (random.random() if self.training else 0.5)


class ItemsNumbers(Layers):
    def between(self, h, k):
        return h * (torch.rand(1).item() if self.training else 0.5)


class NoiseUnderIsinstance(Layers):
    def between(self, h, k):
        if isinstance(h, torch.Tensor) and self.training:
            h = h + torch.randn_like(h)
        return h


class FunctionalDropout(Layers):
    def between(self, h, k):
        return F.dropout(h, 0.5, self.training)


class Counter(Layers):
    def __init__(self):
        super().__init__()
        self.register_buffer("counter", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6))

    def between(self, h, k):
        if self.training:
            self.counter.add_(1)
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return h - self.mean


class OldWeightNorm(Layers):
    def __init__(self):
        super().__init__()
        with pytest.warns(FutureWarning):
            self.b = nn.utils.weight_norm(self.b)


class NewWeightNorm(Layers):
    def __init__(self):
        super().__init__()
        self.b = nn.utils.parametrizations.weight_norm(self.b)


class Hooked(Layers):
    def __init__(self):
        super().__init__()
        self.b.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
        self.b.register_forward_hook(lambda module, args, out: 2 * out)


class Checkpointed(Layers):
    def forward(self, x):
        h = checkpoint(self.a, x, use_reentrant=False)
        h = checkpoint(lambda h: torch.tanh(self.b(h)), h, use_reentrant=False)
        return self.c(h)


class SeveralArguments(Layers):
    def forward(self, x, scale=None, *, shift=0.0):
        h = torch.tanh(self.a(x)) * scale
        return self.c(torch.tanh(self.b(h) * scale + shift))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mid = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(torch.tanh(self.mid(self.embed(x))).mean(1))


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        return self.last(x)


class Table(nn.Module):
    """A table that depends on parameters alone is read in every layer."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        bias = torch.exp(self.table(torch.arange(6))).mean(0)
        for layer in self.layers:
            x = torch.tanh(layer(x) + bias)
        return x


class LSTMs(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.first, self.second = (nn.LSTM(6, 6, batch_first=True) for _ in range(2))
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        h, _ = self.first(self.embed(x))
        h, _ = self.second(h)
        return self.last(h[:, -1])


TOKENS = torch.randint(9, (4, 5))
NETWORKS = {
    "python's random numbers": (PythonsNumbers, X),
    "random numbers read by the host": (ItemsNumbers, X),
    "noise": (NoiseUnderIsinstance, X),
    "functional dropout": (FunctionalDropout, X),
    "buffers": (Counter, X),
    "old weight norm": (OldWeightNorm, X),
    "new weight norm": (NewWeightNorm, X),
    "hooks": (Hooked, X),
    "activation checkpoints": (Checkpointed, X),
    "several arguments": (SeveralArguments, (X, torch.rand(4, 1))),
    "named arguments": (
        SeveralArguments,
        {"x": X, "scale": torch.rand(4, 1), "shift": 0.5},
    ),
    "tied": (Tied, TOKENS),
    "repeated": (Repeated, X),
    "table": (Table, X),
    "LSTMs": (LSTMs, TOKENS),
}


def network(name):
    build, inputs = NETWORKS[name]
    torch.manual_seed(5)
    return build(), inputs


def plain(model, inputs):
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def seed():
    torch.manual_seed(3)
    random.seed(3)


def in_order(chain, inputs, detached=False):
    """The class scores, block after block."""
    h = inputs
    with chain.passes(inputs) as passes:
        for k in range(len(chain)):
            h = passes.run(k, h.detach() if detached and k else h)
    return h


def nothing_stays(model):
    return not any(
        type(module.__dict__.get("_compiled_call_impl")) is Intercepted
        for module in model.modules()
    )
