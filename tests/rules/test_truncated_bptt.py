"""Backpropagation through windows of time: by hand, limits, a naive implementation, resuming."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from networks import assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, InputError, cut, models, rules
from layerwise.heads import Synthesizer
from layerwise.labels import IGNORED

CLASSES, ROWS, STEPS = 5, 4, 6
X = torch.randint(CLASSES, (ROWS, STEPS))
Y = torch.randint(CLASSES, (ROWS, STEPS))


class Linear(nn.Module):
    """M(s) = m s: a synthesizer of one number."""

    def __init__(self, factor: float):
        super().__init__()
        self.m = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, s: Tensor, y: Tensor | None = None) -> Tensor:
        return self.m * s


class Given(nn.Module):
    """Returns a given gradient, whatever the state is."""

    def __init__(self, gradient: Tensor):
        super().__init__()
        self.gradient = gradient

    def forward(self, s: Tensor, y: Tensor | None = None) -> Tensor:
        return self.gradient


def network(layers: int = 2, width: int = 3) -> nn.Module:
    return models.lstm((STEPS,), CLASSES, layers=layers, width=width).double()


def blocks_of(net: nn.Module) -> Blocks:
    return cut(net, blocks=1, example=X[:2])


def some(shape: tuple[int, ...], classes: int | None) -> nn.Module:
    """A synthesizer that is not zero at the start."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(shape[0], 4), nn.Tanh(), nn.Linear(4, shape[0]))


def two(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A recipe whose module takes the labels, too."""

    class Two(nn.Module):
        def __init__(self, *given: object):
            super().__init__()
            self.inner = make(*given)

        def forward(self, s: Tensor, y: Tensor | None = None) -> Tensor:
            return self.inner(s)

    return Two


def flat(state: list[tuple[Tensor, Tensor]]) -> Tensor:
    """(B, S): of every layer h, then c."""
    return torch.cat([part[0] for pair in state for part in pair], 1)


def unflat(state: Tensor, layers: int = 2, width: int = 3) -> list[tuple[Tensor, Tensor]]:
    parts = [part[None].contiguous() for part in state.split(width, 1)]
    return [(parts[2 * k], parts[2 * k + 1]) for k in range(layers)]


def cross(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), y.flatten())


def test_one_step_by_hand() -> None:
    """h_t = relu(w x_t + u h_{t-1}), o_t = v h_t with w = v = 1, u = 1/2; M(h) = h / 10.

    x = 1, 2 | 3 and y = 0, 2, 4: h = 1, 2.5, 4.25, and o - y = 1, .5, .25. L = sum (o - y)^2 / 6.
    Window 1 ends with d^ = .25, so dh_2 = .5/3 + .25 = 5/12 and dh_1 = 1/3 + 5/24 = 13/24. In
    window 2 dh_3 = .25/3 = 1/12.
        dw = 13/24 + 2 (5/12) + 3/12 = 39/24         du = 1 (5/12) + 2.5/12 = 15/24
        dv = (1 + .5 2.5 + .25 4.25) / 3 = 53/48
    M's target is u dh_3 = 1/24: dm = 2 (1/4 - 1/24) 2.5 = 25/24.
    """

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(1, 1, nonlinearity="relu", bias=False, batch_first=True)
            self.out = nn.Linear(1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0])

    net = Network().double()
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), (1.0, 0.5, 1.0), strict=True):
            parameter.fill_(value)
    x = torch.tensor([[[1.0], [2.0], [3.0]]], dtype=torch.float64)
    y = torch.tensor([[[0.0], [2.0], [4.0]]], dtype=torch.float64)
    rule = rules.TruncatedBPTT(
        Blocks([net], example=x),
        window=2,
        synthetic=1.0,
        synthesizer=lambda shape, classes: Linear(0.1),
        criterion=lambda o, y: (o - y).square().mean() / 2,
    )
    report = rule.backward(x, y)
    got = [p.grad.item() for p in (*net.parameters(), rule.synthesizer.m)]
    assert got == pytest.approx([39 / 24, 15 / 24, 53 / 48, 25 / 24], rel=1e-13)
    assert report.loss.item() == pytest.approx((1 + 0.25 + 0.0625) / 6)
    assert report.logits.flatten().tolist() == [1.0, 2.5, 4.25]


def test_a_perfect_synthesizer_is_bptt_bit_for_bit() -> None:
    """Over two windows. The second is read by a copy of the network, so that the weights' gradient
    is a sum over windows, as the rule adds it up."""
    net = network()
    other = copy.deepcopy(net)
    scores, state = net(X[:, :3], ())
    between = flat(state)
    first = cross(scores, Y[:, :3]) * 0.5
    second = cross(other(X[:, 3:], unflat(between))[0], Y[:, 3:]) * 0.5
    (true,) = torch.autograd.grad(second, between, retain_graph=True)
    (first + second).backward()
    later = grads(other)
    wanted = {name: gradient + later[name] for name, gradient in grads(net).items()}
    net.zero_grad()
    rule = rules.TruncatedBPTT(
        blocks_of(net), 3, synthetic=1.0, synthesizer=lambda *_: Given(ROWS * true)
    )
    report = rule.backward(X, Y)
    assert_same(grads(net), wanted)
    assert torch.equal(report.loss, (first + second).detach())
    # Both are the gradient of the whole sequence at once.
    net.zero_grad()
    rules.Backprop(blocks_of(net)).backward(X, Y)
    assert_close(grads(net), wanted)


@pytest.mark.parametrize("synthetic", [0.0, 1.0])
def test_a_zero_synthesizer_is_truncated_bptt_bit_for_bit(synthetic: float) -> None:
    """The default synthesizer is zero at the start; its last layer learns at once."""
    net = network()
    state = ()
    for t in range(0, STEPS, 2):
        scores, state = net(X[:, t : t + 2], state)
        (cross(scores, Y[:, t : t + 2]) * (1 / 3)).backward()
        state = [(h.detach(), c.detach()) for h, c in state]
    wanted = grads(net)
    net.zero_grad()
    rule = rules.TruncatedBPTT(blocks_of(net), 2, synthetic=synthetic)
    rule.backward(X, Y)
    assert_same(grads(net), wanted)
    if synthetic:
        assert rule.synthesizer.rest[-1].weight.grad.abs().sum() > 0


def naive(
    net: nn.Module, synthesizer: nn.Module, x: Tensor, y: Tensor, window: int, factor: float
) -> dict[str, Tensor]:
    """The equations, with one autograd call for every gradient: no window's graph reaches
    another's, and the state's gradient is computed apart from the weights'."""
    names = dict(net.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in names.items()}
    learned = [torch.zeros_like(p) for p in synthesizer.parameters()]
    count = int((y != IGNORED).sum())
    state, last = torch.zeros(len(x), 12, dtype=torch.float64), x.shape[1] - window
    for t in range(0, x.shape[1], window):
        state = state.detach().requires_grad_()
        scores, after = net(x[:, t : t + window], unflat(state))
        each = F.cross_entropy(
            scores.flatten(0, 1), y[:, t : t + window].flatten(), reduction="none"
        ).view(len(x), -1)
        end = flat(after)
        ahead = factor * synthesizer(end.detach()).detach() if t < last else torch.zeros_like(end)
        of_row = each.sum(1) * len(x) / count + (ahead * end).sum(1)  # of a sequence's own loss
        found = torch.autograd.grad(of_row.mean(), list(names.values()), retain_graph=True)
        for name, gradient in zip(names, found, strict=True):
            total[name] += gradient
        if t:
            target = torch.stack(
                [
                    torch.autograd.grad(of, state, retain_graph=True)[0][b]
                    for b, of in enumerate(of_row)
                ]
            )
            error = (synthesizer(state.detach()) - target).square().mean()
            for kept, gradient in zip(
                learned, torch.autograd.grad(error, list(synthesizer.parameters())), strict=True
            ):
                kept += gradient
        state = end
    keys = [f"synthesizer.inner.{name}" for name, _ in synthesizer.named_parameters()]
    return total | dict(zip(keys, learned, strict=True))


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_against_a_naive_implementation_over_three_windows(factor: float) -> None:
    """The labels of the first window and half of those of the second do not count."""
    net = network()
    y = Y.clone()
    y[:, :2] = IGNORED
    y[1:3, 2:4] = IGNORED
    rule = rules.TruncatedBPTT(blocks_of(net), 2, synthetic=factor, synthesizer=two(some))
    wanted = naive(net, some((12,), None).double(), X, y, 2, factor)
    report = rule.backward(X, y)
    got = {n.removeprefix("blocks.model."): g for n, g in grads(rule).items()}
    assert_close(got, wanted)
    torch.testing.assert_close(report.loss, cross(net(X), y).detach())
    torch.testing.assert_close(report.logits, net(X).detach())


def test_a_window_without_labels_learns_from_the_synthetic_gradient_alone() -> None:
    net = network()
    none = torch.full_like(Y, IGNORED)
    rule = rules.TruncatedBPTT(blocks_of(net), carry=True, synthetic=1.0)
    rule.backward(X, none)
    assert all(not g.any() for g in grads(net).values())
    net.zero_grad()
    _, after = net(X, ())
    state = flat(after)
    rule = rules.TruncatedBPTT(
        blocks_of(net),
        carry=True,
        synthetic=0.5,
        synthesizer=lambda *_: Given(torch.full_like(state, 0.2)),
    )
    (0.5 * 0.2 * state.sum(1)).mean().backward()
    wanted = grads(net)
    net.zero_grad()
    rule.backward(X, none)
    assert_close({n: g for n, g in grads(net).items() if "classifier" not in n}, wanted)


def test_windows_in_one_call_and_in_several() -> None:
    """Weights do not change between the calls. A call's loss is the mean over its own labels."""
    net = network()
    rule = rules.TruncatedBPTT(blocks_of(net), 2, synthetic=0.5, synthesizer=two(some))
    rule.backward(X, Y)
    wanted = grads(rule)
    rule.zero_grad()
    rule.window = None
    for t in range(0, STEPS, 2):
        rule.carry = t < STEPS - 2
        rule.backward(X[:, t : t + 2], Y[:, t : t + 2], scale=lambda loss: loss / 3)
    assert_close(
        {n: g for n, g in grads(rule).items() if "synth" not in n},
        {n: g for n, g in _thirds(net, wanted).items() if "synth" not in n},
    )
    assert rule.state is None


def _thirds(net: nn.Module, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """In several calls the synthetic gradient is that of a call's own loss, which is three times as
    large, and the scale divides it, too."""
    rule = rules.TruncatedBPTT(blocks_of(net), 2, synthetic=0.5, synthesizer=two(some))
    for parameter in rule.synthesizer.inner[2].parameters():
        parameter.data /= 3
    net.zero_grad()
    rule.backward(X, Y)
    return grads(rule)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.RNN(CLASSES, 3, 2, batch_first=True),
        lambda: nn.GRU(CLASSES, 3, batch_first=True),
        lambda: nn.LSTM(CLASSES, 4, 2, batch_first=True, proj_size=3),
    ],
)
def test_any_recurrent_layer(make: Callable[[], nn.RNNBase]) -> None:
    """Truncated by hand with the layer's own state."""
    layer, out = make().double(), nn.Linear(3, CLASSES).double()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = layer, out

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.layer(F.one_hot(x, CLASSES).double())[0])

    net = Network()
    state = None
    for t in (0, 3):
        h, state = layer(F.one_hot(X[:, t : t + 3], CLASSES).double(), state)
        (cross(out(h), Y[:, t : t + 3]) / 2).backward()
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
    wanted = grads(net)
    net.zero_grad()
    rule = rules.TruncatedBPTT(Blocks([net], example=X[:2]), 3, synthetic=1.0)
    rule.backward(X, Y)
    assert_close(grads(net), wanted)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_blocks_do_not_matter() -> None:
    net = network()
    together = rules.TruncatedBPTT(blocks_of(net), 2, synthetic=1.0, synthesizer=two(some))
    together.backward(X, Y)
    wanted = grads(net)
    net.zero_grad()
    blocks = cut(net, at=["layers.1", "classifier"], example=X[:2])
    apart = rules.TruncatedBPTT(blocks, 2, synthetic=1.0, synthesizer=two(some))
    report = apart.backward(X, Y)
    assert_same(grads(net), wanted)
    assert [loss is None for loss in report.local_losses] == [True, True, False]


def test_the_loss_scale_scales_every_gradient() -> None:
    net = network()
    rule = rules.TruncatedBPTT(blocks_of(net), 2, synthetic=1.0, synthesizer=two(some))
    rule.backward(X, Y)
    wanted = {name: 1024 * gradient for name, gradient in grads(rule).items()}
    rule.zero_grad()
    rule.backward(X, Y, scale=lambda loss: 1024 * loss)
    assert_same(grads(rule), wanted)


def test_mixed_precision() -> None:
    net = network().float()
    rule = rules.TruncatedBPTT(blocks_of(net), 2, synthetic=1.0)
    optimizer = torch.optim.Adam(rule.parameters(), 0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(rule.backward(X, Y).loss.item())
        optimizer.step()
    assert losses[-1] < losses[0]


def trained(rule: rules.TruncatedBPTT, steps: range, optimizer: torch.optim.Optimizer) -> None:
    for step in steps:
        torch.manual_seed(step)
        tokens = torch.randint(CLASSES, (ROWS, 4))
        optimizer.zero_grad()
        rule.backward(tokens[:, :-1], tokens[:, 1:])
        optimizer.step()


def test_the_state_is_part_of_the_checkpoint() -> None:
    """Six steps, and three steps in another object after three: the same bits."""

    def made() -> tuple[rules.TruncatedBPTT, torch.optim.Optimizer]:
        rule = rules.TruncatedBPTT(blocks_of(copy.deepcopy(net)), carry=True, synthetic=1.0)
        rule.synthesizer.load_state_dict(synthesizer)
        return rule, torch.optim.SGD(rule.parameters(), 0.5)

    net = network()
    synthesizer = Synthesizer(layers=1, batch_norm=False)((12,), None).double().state_dict()
    whole, optimizer = made()
    trained(whole, range(6), optimizer)
    first, optimizer = made()
    trained(first, range(3), optimizer)
    assert first.state_dict()["_extra_state"].shape == (ROWS, 12)
    second, optimizer = made()
    second.load_state_dict(first.state_dict())
    trained(second, range(3, 6), optimizer)
    assert_same(second.state_dict(), whole.state_dict())
    second.restart()
    assert second.state is None


def test_evaluation_carries_the_state_and_begins_anew() -> None:
    net = network()
    rule = rules.TruncatedBPTT(cut(net, at=["layers.1"], example=X[:2]), carry=True).eval()
    whole = net(X)
    for _ in range(2):
        parts = [rule.exits(X[: ROWS - t // 4, t : t + 2])[-1] for t in range(0, STEPS, 2)]
        for t, part in zip(range(0, STEPS, 2), parts, strict=True):
            torch.testing.assert_close(part, whole[: ROWS - t // 4, t : t + 2])
        rule.eval()
    assert rule.state is None


def test_bad_calls() -> None:
    net = network()
    plain = Blocks([nn.Linear(2, 2)])
    for call, said in (
        (lambda: rules.TruncatedBPTT(blocks_of(net), 0), "window=0"),
        (lambda: rules.TruncatedBPTT(blocks_of(net), synthetic=1.5), "synthetic=1.5"),
        (lambda: rules.TruncatedBPTT(plain, 2), "no recurrent layer"),
        (
            lambda: rules.TruncatedBPTT(Blocks([nn.LSTM(2, 2, bidirectional=True)]), carry=True),
            "bidirectional",
        ),
        (
            lambda: rules.TruncatedBPTT(blocks_of(net), 2).backward(X, Y[:, :3]),
            r"a label for every step, \(B, L\)",
        ),
        (
            lambda: rules.TruncatedBPTT(blocks_of(net), 2).backward((X, X), Y),
            "inputs of tuple of 2; windows are cut from one tensor",
        ),
        (lambda: Blocks([net], example=(X, X)), r"example=\): got tuple of 2; blocks given by"),
    ):
        with pytest.raises(InputError, match=said):
            call()
    rule = rules.TruncatedBPTT(blocks_of(net), carry=True)
    rule.backward(X[:2], Y[:2])
    with pytest.raises(InputError, match="got 4 sequences, and the call before had 2"):
        rule.backward(X, Y)
    rule.restart()
    rule.backward(X, Y)


def test_a_layer_that_is_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(CLASSES, CLASSES, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(self.rnn(F.one_hot(x, CLASSES).float())[0])[0]

    rule = rules.TruncatedBPTT(Blocks([Twice()], example=X[:2]), 2)
    with pytest.raises(InputError, match=r"\[2\] times"):
        rule.backward(X, Y)
