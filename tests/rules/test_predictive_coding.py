"""Predictive coding: one inference by hand, its limits, and a naive implementation."""

from __future__ import annotations

import copy
import itertools

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, InputError, Rule, rules

"""Three numbers in a row, w = (1, 2, 1), and a loss of half the square; two samples:

    x = 1 with target 1: h1 = 1, h2 = 2, z = 2;    x = 0 with target 0: nought throughout

e3 = z - y, e2 = w2 h1 - h2, e1 = w1 x - h1, of the first sample, and step_size 1/2:

    start:  h1 = 1,   h2 = 2;    e3 = 1,   e2 = 0,    e1 = 0
    1:      h2 = 2 + (0 - 1) / 2 = 1.5;        e3 = 0.5, e2 = 0.5,  e1 = 0
    2:      h2 = 1.5 + (0.5 - 0.5) / 2 = 1.5,  h1 = 1 + (0 - 2 * 0.5) / 2 = 0.5;
                                               e3 = 0.5, e2 = -0.5, e1 = 0.5
    3:      h2 = 1.5 + (-0.5 - 0.5) / 2 = 1,   h1 = 0.5 + (0.5 + 2 * 0.5) / 2 = 1.25;
                                               e3 = 0,   e2 = 1.5,  e1 = -0.25

The gradients are e1 x, e2 h1 and e3 h2, halved by the mean over two samples.

With fixed predictions e3 stays 1 and e2 <- e2 + (1 - e2) / 2, e1 <- e1 + (2 e2 - e1) / 2:

    1:  e2 = 1/2, e1 = 0;    2:  e2 = 3/4, e1 = 1/2;    3:  e2 = 7/8, e1 = 1/4 + 3/4 = 1

and h1 = 1, h2 = 2 in the gradients.

By errors, with step_size 1/4: dL/dh2 = w3 e3 = e3 and dL/dh1 = w2 w3 e3 = 2 e3, so

    1:  e2 = 1/4, e1 = 1/2;                          h1 = 1 - 1/2 = 1/2, h2 = 2 h1 - 1/4 = 3/4,
                                                     e3 = -1/4
    2:  e2 = 1/4 + (-1/4 - 1/4) / 4 = 1/8,  e1 = 1/2 + (-1/2 - 1/2) / 4 = 1/4;
                                                     h1 = 3/4, h2 = 3/2 - 1/8 = 11/8, e3 = 3/8
"""
FIXED, BY_ERRORS = {"fixed_prediction": True}, {"error_based": True}
GOLDEN = [
    (2, 0.5, {}, (0.5, -0.25, 0.75)),
    (3, 0.5, {}, (-0.25, 1.875, 0.0)),
    (2, 0.5, FIXED, (0.5, 0.75, 2.0)),
    (3, 0.5, FIXED, (1.0, 0.875, 2.0)),
    (1, 0.25, BY_ERRORS, (1 / 2, 1 / 8, -3 / 16)),
    (2, 0.25, BY_ERRORS, (1 / 4, 3 / 32, 33 / 64)),
]


def half_square(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).square().sum(1).mean() / 2


def numbers() -> tuple[Blocks, Tensor, Tensor]:
    blocks = [nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(3)]
    for block, w in zip(blocks, (1.0, 2.0, 1.0), strict=True):
        block.weight.data.fill_(w)
    x = torch.tensor([[1.0], [0.0]]).double()
    return Blocks(blocks), x, x.clone()


@pytest.mark.parametrize(("steps", "step_size", "options", "gradients"), GOLDEN)
def test_golden(steps: int, step_size: float, options: dict, gradients: tuple) -> None:
    blocks, x, y = numbers()
    rule = rules.PredictiveCoding(blocks, steps, step_size, criterion=half_square, **options)
    report = rule.backward(x, y)
    for block, wanted in zip(blocks, gradients, strict=True):
        assert block.weight.grad.item() == pytest.approx(wanted / 2, abs=1e-15)
    assert report.loss.item() == 0.25
    assert report.logits.tolist() == [[2.0], [0.0]]


def backprop(case: networks.Case) -> dict[str, Tensor]:
    rule = rules.Backprop(copy.deepcopy(case.blocks))
    rule.backward(case.x, case.y)
    return grads(rule)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("network", NETWORKS)
def test_fixed_predictions_are_backprop(network: str, steps: int) -> None:
    """With step_size 1, once the error has come to the first block, and ever after."""
    case = NETWORKS[network](torch.float64, dropout=0.2)
    rng = torch.get_rng_state()
    wanted = backprop(case)
    torch.set_rng_state(rng)
    steps += len(case.blocks) - 1
    rule = rules.PredictiveCoding(case.blocks, steps, 1.0, fixed_prediction=True)
    rule.backward(case.x, case.y)
    assert_close(grads(rule), wanted, atol=1e-14)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_error_as_it_arrives_is_backprops(network: str) -> None:
    """Zero-divergence inference learning (Song et al. 2020): with step_size 1 block k's gradient
    after K - k steps. Blocks before it have none yet."""
    case = NETWORKS[network](torch.float64, dropout=0.2)
    rng = torch.get_rng_state()
    wanted = backprop(case)
    last = len(case.blocks) - 1
    rule = rules.PredictiveCoding(case.blocks, last, 1.0)
    for steps in range(last + 1):
        rule.steps = steps
        rule.zero_grad()
        torch.set_rng_state(rng)
        rule.backward(case.x, case.y)
        got = grads(rule)
        here = f"blocks.{last - steps}."
        assert_close(
            {n: g for n, g in got.items() if n.startswith(here)},
            {n: g for n, g in wanted.items() if n.startswith(here)},
            atol=1e-13,
        )
        before = [g for n, g in got.items() if int(n.split(".")[1]) < last - steps]
        assert all(g.abs().max() < 1e-13 for g in before)


@pytest.mark.parametrize("network", ["mlp", "plain_cnn"])
def test_small_errors_are_backprops(network: str) -> None:
    """A loss of a millionth: its gradient tends to a millionth of backpropagation's."""
    case = getattr(networks, network)(torch.float64)
    wanted = backprop(case)
    rule = rules.PredictiveCoding(
        case.blocks, 150, 0.2, criterion=lambda z, y: 1e-6 * F.cross_entropy(z, y)
    )
    rule.backward(case.x, case.y)
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert_close({n: 1e6 * g for n, g in grads(rule).items()}, wanted, atol=1e-4 * largest)


def naive(rule: Rule, x: Tensor, y: Tensor, steps: int, eta: float) -> list[Tensor]:
    """The gradient of the energy as it is written, by activities and then by weights."""
    blocks = list(rule.blocks)
    h = [x]
    for block in blocks[:-1]:
        h.append(block(h[-1]).detach())

    def energy() -> Tensor:
        found = len(x) * F.cross_entropy(blocks[-1](h[-1]), y)
        for k in range(1, len(blocks)):
            found = found + (h[k] - blocks[k - 1](h[k - 1])).square().sum() / 2
        return found

    for _ in range(steps):
        h = [h[0], *(a.detach().requires_grad_() for a in h[1:])]
        pulls = torch.autograd.grad(energy(), h[1:])
        h = [h[0], *((a - eta * g).detach() for a, g in zip(h[1:], pulls, strict=True))]
    found = torch.autograd.grad(energy() / len(x), list(rule.blocks.parameters()))
    return list(found)


def naive_by_errors(rule: Rule, x: Tensor, y: Tensor, steps: int, eta: float) -> list[Tensor]:
    """The energy of the errors e = h - f(h) is minimised, and that of the activities then
    differentiated by the weights."""
    *blocks, last = rule.blocks
    e = [torch.zeros_like(h) for h in itertools.accumulate(blocks, lambda h, f: f(h), initial=x)][
        1:
    ]

    def activities(e: list[Tensor]) -> list[Tensor]:
        h = [x]
        for block, error in zip(blocks, e, strict=True):
            h.append(block(h[-1]) + error)
        return h

    for _ in range(steps):
        e = [a.detach().requires_grad_() for a in e]
        energy = len(x) * F.cross_entropy(last(activities(e)[-1]), y)
        pulls = torch.autograd.grad(energy + sum(a.square().sum() for a in e) / 2, e)
        e = [a - eta * g for a, g in zip(e, pulls, strict=True)]
    h = [a.detach() for a in activities(e)]
    energy = len(x) * F.cross_entropy(last(h[-1]), y)
    for k, block in enumerate(blocks):
        energy = energy + (h[k + 1] - block(h[k])).square().sum() / 2
    return list(torch.autograd.grad(energy / len(x), list(rule.blocks.parameters())))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_errors_against_a_naive_implementation(network: str, steps: int) -> None:
    case = NETWORKS[network](torch.float64)
    rule = rules.PredictiveCoding(case.blocks, steps, 0.3, error_based=True)
    rule.backward(case.x, case.y)
    wanted = naive_by_errors(rule, case.x, case.y, steps, 0.3)
    for p, g in zip(rule.blocks.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, g, atol=1e-12, rtol=1e-10)


def test_errors_and_activities_have_the_same_minimum() -> None:
    """A network of linear blocks, where the energy has one minimum."""
    torch.manual_seed(0)
    parts = [nn.Linear(a, b).double() for a, b in ((6, 5), (5, 4), (4, 3))]
    x, y = torch.randn(7, 6).double(), torch.randint(0, 3, (7,))
    found = []
    for error_based in (False, True):
        rule = rules.PredictiveCoding(Blocks(parts), 120, 0.4, error_based=error_based)
        rule.zero_grad()
        rule.backward(x, y)
        found.append(grads(rule))
    assert_close(found[1], found[0], atol=1e-10)
    assert found[0]["blocks.0.weight"].abs().max() > 1e-3


@pytest.mark.parametrize("network", ["mlp", "plain_cnn"])
def test_a_small_step_of_the_errors_is_backprops(network: str) -> None:
    """The gradient, over the step size, tends to backpropagation's; the last block's needs no
    division, and the first block's is exact."""
    case = getattr(networks, network)(torch.float64)
    wanted = backprop(case)
    last = f"blocks.{len(case.blocks) - 1}."
    apart = []
    for eta in (1e-4, 1e-5):
        rule = rules.PredictiveCoding(copy.deepcopy(case.blocks), 1, eta, error_based=True)
        rule.backward(case.x, case.y)
        got = {n: g if n.startswith(last) else g / eta for n, g in grads(rule).items()}
        first = [n for n in got if n.startswith("blocks.0.")]
        assert_close({n: got[n] for n in first}, {n: wanted[n] for n in first}, atol=1e-14)
        apart.append(max(float((got[n] - g).abs().max()) for n, g in wanted.items()))
    assert apart[1] < 1e-5
    assert apart[1] / apart[0] == pytest.approx(0.1, rel=0.05)


def test_the_loss_reaches_other_blocks_through_their_errors_alone() -> None:
    """A step too small for single precision: errors stay 0, and the last block alone learns."""
    case = networks.mlp()
    wanted = backprop(case)
    rule = rules.PredictiveCoding(case.blocks, 1, 1e-60, error_based=True)
    rule.backward(case.x, case.y)
    for name, gradient in grads(rule).items():
        own = name.startswith("blocks.2.")
        assert torch.equal(gradient, wanted[name] if own else torch.zeros_like(gradient))


@pytest.mark.parametrize("network", NETWORKS)
def test_against_a_naive_implementation(network: str) -> None:
    case = NETWORKS[network](torch.float64)
    rule = rules.PredictiveCoding(case.blocks, 4, 0.3)
    rule.backward(case.x, case.y)
    wanted = naive(rule, case.x, case.y, 4, 0.3)
    for p, g in zip(rule.blocks.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, g, atol=1e-12, rtol=1e-10)


@given(
    st.integers(0, 2**16), st.lists(st.integers(1, 5), min_size=2, max_size=5), st.integers(0, 3)
)
@settings(max_examples=20, deadline=None)
def test_random_chains(seed: int, widths: list[int], more: int) -> None:
    torch.manual_seed(seed)
    pairs = list(itertools.pairwise([*widths, 3]))
    parts = [nn.Sequential(nn.Linear(a, b), nn.Tanh()).double() for a, b in pairs]
    x, y = torch.randn(4, widths[0]).double(), torch.randint(0, 3, (4,))
    steps = len(parts) - 1 + more
    rule = rules.PredictiveCoding(Blocks(parts), steps, 0.2)
    rule.backward(x, y)
    for p, g in zip(rule.blocks.parameters(), naive(rule, x, y, steps, 0.2), strict=True):
        torch.testing.assert_close(p.grad, g, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("options", [{}, FIXED, BY_ERRORS])
def test_statistics_move_once_and_masks_stay(options: dict) -> None:
    """As in one forward pass: buffers, and the random state after it."""
    case = networks.cnn(dropout=0.3)
    other = copy.deepcopy(case.blocks)
    rng = torch.get_rng_state()
    other(case.x)
    after = torch.get_rng_state()
    torch.set_rng_state(rng)
    rules.PredictiveCoding(case.blocks, 5, 0.1, **options).backward(case.x, case.y)
    assert torch.equal(torch.get_rng_state(), after)
    assert_same(dict(case.blocks.named_buffers()), dict(other.named_buffers()))


def test_one_graph_at_a_time() -> None:
    """When a block starts, no other one's graph is there."""
    case = networks.plain_cnn()
    rule = rules.PredictiveCoding(case.blocks, 3, 0.1)
    alive: set[int] = set()
    counts: list[int] = []

    class Held:
        def __init__(self, tensor: Tensor):
            self.tensor = tensor.detach()  # an output would keep its own graph alive
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    for block in rule.blocks:
        block.register_forward_pre_hook(lambda *_: counts.append(len(alive)))
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        rule.backward(case.x, case.y)
    # 3 forward; then per step as far as the error has come: 0, 2 and 2; 3 for the weights.
    assert counts == [0] * (3 + 1 + 2 + 3 - 1 + 2)


def test_a_block_that_changes_its_input() -> None:
    parts = [nn.Linear(6, 5), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3))]
    x, y = torch.randn(4, 6), torch.randint(0, 3, (4,))
    for options in ({}, FIXED, BY_ERRORS):
        rule = rules.PredictiveCoding(Blocks(parts), 3, 0.1, **options)
        rule.backward(x, y)
        got = grads(rule)
        rule.zero_grad()
        parts[1][0].inplace = False
        rule.backward(x, y)
        assert_same(got, grads(rule))
        rule.zero_grad()
        parts[1][0].inplace = True


def test_bad_input() -> None:
    blocks = networks.mlp().blocks
    for make in (rules.PredictiveCoding, rules.EquilibriumPropagation):
        name = make.__name__
        with pytest.raises(InputError, match=rf"{name}\(steps=1\): .* 3 blocks; give at least 2"):
            make(blocks, steps=1)
        with pytest.raises(InputError, match=rf"{name}\(step_size=0\): give more than 0") as e:
            make(blocks, step_size=0)
        assert "\n" not in str(e.value)
    for options, message in (
        ({"steps": 0, **BY_ERRORS}, r"\(steps=0\): give at least 1"),
        ({**FIXED, **BY_ERRORS}, "give one of them"),
    ):
        with pytest.raises(InputError, match=message):
            rules.PredictiveCoding(blocks, **options)
    with pytest.raises(InputError, match=r"EquilibriumPropagation\(beta=-1\): give more than 0"):
        rules.EquilibriumPropagation(blocks, beta=-1)
