"""A paused forward: its contexts and the rule's stay apart, and no trace of it stays behind."""

import contextlib
import functools
import gc
import threading
import weakref

import pytest
import torch
from forwards import Layers, X, Y, in_order, network, nothing_stays
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from layerwise import InputError, cut, rules


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

    @pytest.mark.skipif(
        torch.__version__ < "2.12",
        reason="a checkpoint that begins adds a node, as if the one before it continued",
    )
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
        for net in (model, other):
            if net is other:
                other.forward = lambda x: other.last(other.second(other.first(x)))
            chain = cut(net, at=["second", "last"], example=X)
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


def test_a_cpp_error_at_another_depth():
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
