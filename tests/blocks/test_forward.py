"""Blocks behave as the network's own forward does: random numbers, modes, attributes, buffers,
hooks and contexts; in order and by themselves; and no trace of a forward stays behind."""

import contextlib
import copy
import functools
import gc
import random
import threading
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from layerwise import InputError, cut, rules
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
CASES = pytest.mark.parametrize("name", NETWORKS)


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


@CASES
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


def test_uncounted_layers_are_layers():
    """PyTorch does not count the FLOPs of an LSTM's kernel."""
    model, inputs = network("LSTMs")
    assert cut(model, "all", example=inputs).names == ("embed", "second", "last")


def test_an_end_without_parameters_is_no_block():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
            self.register_buffer("adjacency", torch.rand(4, 4))

        def forward(self, x):
            return self.adjacency @ self.last(torch.relu(self.adjacency @ self.first(x)))

    model = Graph()
    chain = cut(model, "all", example=X)
    assert chain.names == ("first", "last")
    rules.DGL(chain).backward(X, Y)
    assert all(p.grad is not None for p in model.parameters())


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


class TestContexts:
    def test_the_rules_grad_mode_wins(self):
        model, inputs = network("buffers")
        chain = cut(model, "all", example=inputs)
        with chain.passes(inputs) as passes:
            with torch.no_grad():
                h = passes.run(0, inputs)
                assert not h.requires_grad
            h = passes.run(1, h)
            assert h.requires_grad
            with torch.no_grad():
                assert not passes.run(2, h).requires_grad
        assert torch.is_grad_enabled()

    def test_autocast_of_the_forward_is_not_the_rules(self):
        class Mixed(Layers):
            def forward(self, x):
                with torch.autocast("cpu", torch.bfloat16):
                    return super().forward(x).float()

        chain = cut(Mixed(), "all", example=X)
        with chain.passes(X) as passes:
            h = passes.run(0, X)
            assert h.dtype == torch.bfloat16
            assert not torch.is_autocast_enabled("cpu")
            assert passes.run(1, h).dtype == torch.bfloat16
            assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled("cpu")

    def test_autocast_of_the_rule(self):
        chain = cut(Layers(), "all", example=X)
        with chain.passes(X) as passes:
            with torch.autocast("cpu", torch.bfloat16):
                h = passes.run(0, X)
            assert h.dtype == torch.bfloat16
            assert passes.run(1, h.float()).dtype == torch.float32

    def test_heads_are_not_computed_again_for_a_checkpoint(self):
        """A forward that is paused within a checkpoint sets the checkpoint's hooks aside."""

        class Inner(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.act, self.b = nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)

            def forward(self, x):
                return self.b(self.act(self.a(x)))

        class Whole(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second, self.last = Inner(), Inner(), nn.Linear(6, 3)

            def forward(self, x):
                h = checkpoint(self.first, x, use_reentrant=False)
                return self.last(checkpoint(self.second, h, use_reentrant=False))

        model, other = Whole(), Whole()
        other.load_state_dict(model.state_dict())
        for network in (model, other):
            if network is other:
                other.forward = lambda x: other.last(other.second(other.first(x)))
            chain = cut(network, at=["second", "last"], example=X)
            with chain.passes(X) as passes:
                h = passes.run(0, X)
                assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
                h.square().exp().sum().backward()
                h = passes.run(1, h.detach())
                h.square().exp().sum().backward()
                passes.run(2, h.detach()).sum().backward()
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)

    def test_a_block_does_not_begin_within_a_checkpoint(self):
        class Whole(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

            checkpoints = True

            def both(self, x):
                return self.b(torch.tanh(self.a(x)))

            def forward(self, x):
                return (
                    checkpoint(self.both, x, use_reentrant=False)
                    if self.checkpoints
                    else self.both(x)
                )

        model = Whole()
        with pytest.raises(InputError, match="Whole has 0 cut points"):
            cut(model, 2, example=X)
        model.checkpoints = False
        chain = cut(model, 2, example=X)
        model.checkpoints = True
        with chain.passes(X) as passes:
            h = passes.run(0, X)
            with pytest.raises(InputError, match="begins within an activation checkpoint"):
                passes.run(1, h.detach())

    def test_a_reentrant_checkpoint_is_refused(self):
        class Whole(Layers):
            reentrant = False

            def forward(self, x):
                if not self.reentrant:
                    return super().forward(x)
                return checkpoint(super().forward, x.requires_grad_(), use_reentrant=True)

        model = Whole()
        chain = cut(model, 2, example=X)
        model.reentrant = True
        with pytest.raises(InputError, match="give it use_reentrant=False"):
            rules.DGL(chain).backward(X.clone(), Y)
        assert torch.is_grad_enabled()
        assert nothing_stays(model)


class TestEnds:
    def test_an_error_in_the_rule_unwinds_the_forward(self):
        left = []

        class Careful(Layers):
            def forward(self, x):
                try:
                    with torch.autocast("cpu", torch.bfloat16):
                        return super().forward(x)
                finally:
                    left.append(True)

            def between(self, h, k):
                return h.float()

        model = Careful()
        rule = rules.DGL(cut(model, "all", example=X))
        left.clear()

        def fail(k):
            raise KeyError(k)

        with pytest.raises(KeyError):
            rule.backward(X, Y, on_block=fail)
        assert left == [True]
        assert not torch.is_autocast_enabled("cpu")
        assert nothing_stays(model)
        rule.backward(X, Y)

    def test_an_error_in_the_forward(self):
        class Fails(Layers):
            fails = False

            def between(self, h, k):
                if self.fails and k == 1:
                    raise RuntimeError("no luck")
                return h

        model = Fails()
        rule = rules.DGL(cut(model, "all", example=X))
        model.fails = True
        with pytest.raises(RuntimeError, match="no luck"):
            rule.backward(X, Y)
        assert nothing_stays(model)
        model.fails = False
        rule.backward(X, Y)

    def test_layers_left_out_at_random(self):
        class Drops(nn.Module):
            left_out = ()

            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
                self.last = nn.Linear(6, 3)

            def forward(self, x):
                for k, layer in enumerate(self.layers):
                    if k not in self.left_out:
                        x = torch.tanh(layer(x))
                return self.last(x)

        model = Drops()
        rule = rules.DGL(cut(model, "all", example=X))
        model.left_out = (1, 2)
        with torch.no_grad():
            assert torch.equal(in_order(rule.blocks, X), model(X))
        rule.backward(X, Y)
        assert [layer.weight.grad is not None for layer in model.layers] == [
            True,
            False,
            False,
            True,
        ]

    def test_threads_go_their_own_way(self):
        model, inputs = network("table")
        chain = cut(model, "all", example=inputs).eval()
        expected, found = model(inputs), []

        def run():
            for _ in range(20):
                found.append(torch.equal(in_order(chain, inputs), expected))

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        with chain.passes(inputs) as passes:
            passes.run(0, inputs)
            assert torch.equal(model(inputs), expected)  # a call while another forward is paused
        for thread in threads:
            thread.join()
        assert found == [True] * 80
        assert nothing_stays(model)

    def test_several_passes_side_by_side(self):
        chain = cut(Layers(), "all", example=X).eval()
        a, b = torch.randn(3, 6), torch.randn(5, 6)
        with chain.passes(a) as passes:
            h, g = passes.run(0, a), passes.run(0, b, stream=1)
            g, h = passes.run(1, g, stream=1), passes.run(1, h)
            again = passes.again(1, torch.tanh(h))
            assert torch.equal(passes.run(2, h), chain(a))
            assert torch.equal(passes.run(2, g, stream=1), chain(b))
        assert again.shape == (3, 6)


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


class TestRefusals:
    def refused(self, model, match, example=X):
        with pytest.raises(InputError, match=match) as caught:
            cut(model, 2, example=example)
        assert "\n" not in str(caught.value)

    def test_wrapped_networks(self):
        self.refused(nn.DataParallel(Layers()), "model.module")
        self.refused(torch.compile(Layers()), "compile its blocks")

    def test_torchscript(self):
        with pytest.warns(FutureWarning):
            scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)))
        self.refused(scripted, "TorchScript")

    def test_parameters_that_are_not_there(self):
        self.refused(nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 3)), "run the network on a batch")
        self.refused(Layers().to("meta"), r"to_empty\(device=...\)")

    def test_lazy_after_its_first_run(self):
        model = nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 3))
        model(X)
        assert len(cut(model, 2, example=X)) == 2


def test_inference_mode_around():
    with torch.inference_mode():
        model = Layers()
        with pytest.raises(InputError, match="inference"):
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


def test_nothing_is_held_after_a_forward():
    """Neither the network nor its output stays alive once nothing else refers to them."""
    model = Layers()
    chain = cut(model, "all", example=X)
    gave = weakref.ref(in_order(chain, X))
    rules.DGL(chain).backward(X, Y)
    with chain.passes(X) as passes:
        passes.run(0, X)  # and given up
    held = weakref.ref(model)
    del model, chain, passes
    gc.collect()
    assert gave() is None
    assert held() is None


@pytest.mark.parametrize("make", [rules.DGL, lambda b: rules.Backprop(b, checkpoint=True)])
def test_a_steps_graph_goes_without_the_garbage_collector(make):
    kept = []

    class Watches(Layers):
        def between(self, h, k):
            kept.append(weakref.ref(h))
            return h

    rule = make(cut(Watches(), "all", example=X))
    rule.backward(X, Y)
    kept.clear()
    gc.collect()
    gc.disable()
    try:
        rule.backward(X, Y)
        assert kept
        assert all(h() is None for h in kept)
    finally:
        gc.enable()


class TestKinds:
    """Patterns that earlier versions got wrong without an error."""

    def test_a_list_that_layers_add_to(self):
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

    def test_a_number_that_a_layer_returns(self):
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

    def test_statistics_of_a_layer_without_parameters(self):
        model = nn.Sequential(
            nn.BatchNorm1d(6, affine=False), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        )
        rule = rules.Backprop(cut(model, "all", example=X), checkpoint=True)
        rule.backward(X, Y)
        assert model[0].num_batches_tracked == 1

    def test_numpys_random_numbers(self):
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

    def test_in_place_in_train_mode_alone(self):
        class Scales(nn.Module):
            def __init__(self):
                super().__init__()
                self.f = nn.Linear(6, 6)

            def forward(self, h):
                return self.f(h.mul_(1.5) if self.training else h)

        model = nn.Sequential(nn.Linear(6, 6), Scales(), nn.Linear(6, 3))
        assert cut(model, "all", example=X).names == ("0", "2")
        with pytest.raises(InputError, match="changes its input in place"):
            cut(model, at=["1"], example=X)

    def test_a_module_replaced_after_the_cut(self):
        model = Layers()
        chain = cut(model, "all", example=X)
        model.b = nn.Linear(6, 6)
        with pytest.raises(InputError, match="no longer in the network; cut it again"):
            rules.DGL(chain).backward(X, Y)
        inner = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)))
        chain = cut(inner, "all", example=X)
        inner[1][0] = nn.Linear(6, 6)
        assert inner[1][0].weight in set(chain[1].parameters())

    def test_layers_in_another_order(self):
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

    def test_modes_that_the_forward_opens(self):
        class Theirs(TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                return func(*args, **(kwargs or {}))

        class Mine(Theirs):
            pass

        class Opens(Layers):
            def forward(self, x):
                with Theirs():
                    h = torch.tanh(self.b(torch.tanh(self.a(x))))
                return self.c(h)

        chain = cut(Opens(), "all", example=X)
        with chain.passes(X) as passes:
            h = passes.run(0, X)
            assert not _get_current_function_mode_stack()
            with Mine():
                h = passes.run(1, h)
                assert [type(m) for m in _get_current_function_mode_stack()] == [Mine]
            passes.run(2, h)
        assert not _get_current_function_mode_stack()

    def test_a_pass_given_up_within_a_checkpoint(self):
        class Whole(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
                self.last = nn.Linear(6, 3)

            def forward(self, x):
                h = checkpoint(self.a, x, use_reentrant=False)
                return self.last(checkpoint(self.b, h, use_reentrant=False))

        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            with cut(Whole(), "all", example=X).passes(X) as passes:
                passes.run(0, X)
            saved.clear()
            torch.ones(3, requires_grad=True).exp()
            assert saved

    def test_as_many_positions_as_samples(self):
        class Sequence(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Embedding(9, 6)
                self.layers = nn.ModuleList(nn.TransformerEncoderLayer(6, 2, 8) for _ in range(2))
                self.last = nn.Linear(6, 3)

            def forward(self, ids):
                h = self.embed(ids).transpose(0, 1)
                for layer in self.layers:
                    h = layer(h)
                return self.last(h.mean(0))

        model = Sequence()
        for example in (torch.randint(9, (4, 2)), {"ids": torch.randint(9, (4, 4))}):
            chain = cut(model, 2, example=example)
            assert [b.axis for b in chain.boundaries] == [1]

    def test_what_cut_leaves_alone(self):
        class Remembers(Layers):
            def __init__(self):
                super().__init__()
                self.memory, self.generator = torch.zeros(6), torch.Generator().manual_seed(1)
                self.cache = {}

            def between(self, h, k):
                self.memory.mul_(0.5).add_(h.detach().mean(0))
                self.cache[k] = h
                return h + torch.rand(6, generator=self.generator)

        model = Remembers()
        state = model.generator.get_state()
        cut(model, "all", example=X)
        assert not model.memory.any()
        assert not model.cache
        assert torch.equal(model.generator.get_state(), state)
        embedding = nn.Sequential(nn.Embedding(9, 6, max_norm=0.1), nn.Flatten(), nn.Linear(30, 3))
        weight = embedding[0].weight.detach().clone()
        cut(embedding, 1, example=TOKENS)
        assert torch.equal(embedding[0].weight, weight)

    def test_a_cpp_error_at_another_depth(self):
        """PyTorch records the C frames of such an error, also those below a paused forward."""

        class Fails(Layers):
            def between(self, h, k):
                with contextlib.suppress(RuntimeError):
                    torch.mm(h, torch.zeros(5, 5))
                return h

        def deep(levels, then):
            return sorted([0], key=lambda _: deep(levels - 1, then) or 0) if levels else then()

        chain = cut(Fails(), "all", example=X)
        for first in (0, 2, 9):
            for second in (0, 5, 13):
                with chain.passes(X) as passes:
                    given = [X]
                    for k, levels in enumerate((first, second, 1)):
                        at = functools.partial(passes.run, k, given[-1])
                        deep(levels, lambda at=at, to=given: to.append(at()))
