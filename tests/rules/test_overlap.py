"""Overlapping units: which losses reach which blocks, and what is alive meanwhile."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import networks
import pytest
import torch
from networks import NETWORKS, MeanSquare, assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, Rule, heads, objectives, rules
from layerwise.runtime.layer_parallel import check_rule


def _classify() -> objectives.Objective:
    return objectives.Classify(networks.SMALL_HEAD)


def _rule(blocks: Blocks, each: Any, overlap: int, independent: float, every: int = 1) -> Any:
    """Overlap, or with independent losses HPFF."""
    if independent:
        return rules.HPFF(blocks, each, overlap, independent, every=every)
    return rules.Overlap(blocks, each, overlap, every=every)


def test_one_step_by_hand() -> None:
    """Three blocks of one weight, h = a x: a = (2, 3, 5), x = 1 gives h = (2, 6, 30).

    Losses are h^2, of blocks 1 and 2. With overlap 1:

        unit 1:  d 36 / da_1 = 2 * 6 * 2 = 24,     d 36 / da_0 = 2 * 6 * 3 * 1 = 36
        unit 2:  d 900 / da_2 = 2 * 30 * 6 = 360,  d 900 / da_1 = 2 * 30 * 5 * 2 = 600

    so block 1 gets 24 + 600. With independent = 1/4, block 0's own loss h^2 = 4 has the gradient 4
    and weighs 1/4; block 1's second loss is like its first, so its own part is 24 as before; units
    weigh 3/4 as far as they reach back:

        a_0: (1/4) 4 + (3/4) 36 = 28,   a_1: 24 + (3/4) 600 = 474,   a_2: 360
    """
    for independent, wanted, losses in (
        (0.0, (36.0, 624.0, 360.0), (None, 36.0, 900.0)),
        (0.25, (28.0, 474.0, 360.0), (1.0, 36.0, 900.0)),
    ):
        blocks = [nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(3)]
        for block, a in zip(blocks, (2.0, 3.0, 5.0), strict=True):
            block.weight.data.fill_(a)
        x = torch.ones(1, 1, dtype=torch.float64)
        each = [MeanSquare() for _ in range(3)]
        rule = _rule(Blocks(blocks, example=x), each, 1, independent)
        report = rule.backward(x, torch.zeros(1, dtype=torch.long))
        assert tuple(block.weight.grad.item() for block in blocks) == wanted
        assert tuple(v and v.item() for v in report.local_losses) == losses


def _naive(
    rule: rules.Overlap, x: Tensor, y: Tensor, m: int, w: float, s: int
) -> dict[str, Tensor]:
    """A graph of its own for every loss, from the input of the first block it reaches."""
    inputs = [x]
    for block in rule.blocks:
        inputs.append(block(inputs[-1]).detach())
    last = len(rule.blocks) - 1
    names = {p: n for n, p in rule.named_parameters()}
    total: dict[str, Tensor] = {}

    def add(start: int, k: int, weight: float, loss: Callable[[Tensor], Tensor]) -> None:
        h = inputs[start]
        for block in list(rule.blocks)[start : k + 1]:
            h = block(h)
        wanted = list(rule.parameters())
        found = torch.autograd.grad(weight * loss(h), wanted, allow_unused=True)
        for p, g in zip(wanted, found, strict=True):
            if g is not None:
                total[names[p]] = total.get(names[p], 0) + g

    def of(objective: Any) -> Callable[[Tensor], Tensor]:
        return lambda h: F.cross_entropy(objective.predict(h), y)

    for k in range(last + 1):
        ends = k == last or (k >= m and (k - m) % s == 0)
        if ends:
            add(max(0, k - m), k, 1 - w, of(rule.objectives[k]))
        if w:
            alone = rule.objectives if not ends or k == last else rule.independents
            add(k, k, w, of(alone[k]))
    return total


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("overlap", "every"), [(0, 1), (1, 1), (2, 1), (1, 2), (2, 2), (2, 3)])
@pytest.mark.parametrize("independent", [0.0, 0.25])
def test_against_a_graph_for_every_loss(
    network: str, overlap: int, every: int, independent: float
) -> None:
    case = NETWORKS[network](torch.float64)
    rule = _rule(case.blocks, _classify(), overlap, independent, every).eval()
    rule.backward(case.x, case.y)
    wanted = _naive(rule, case.x, case.y, overlap, independent, every)
    assert_close(grads(rule), wanted, atol=1e-11)


def _same_step(rule: Rule, other: Rule, case: networks.Case) -> None:
    """Gradients under equal names, buffers and random numbers, bit for bit."""
    blocks = copy.deepcopy(rule.blocks.state_dict())
    rng = torch.get_rng_state()
    rule.backward(case.x, case.y)
    got = grads(rule), {n: b.clone() for n, b in rule.named_buffers()}
    after = torch.get_rng_state()
    rule.zero_grad()
    other.zero_grad()
    other.blocks.load_state_dict(blocks)
    torch.set_rng_state(rng)
    other.backward(case.x, case.y)
    assert torch.equal(torch.get_rng_state(), after)
    assert_same(got[0], grads(other))
    assert_same(got[1], dict(other.named_buffers()))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("options", [(0, 0.0), (2, 1.0)])
def test_windows_of_one_block_are_greedy(network: str, options: dict[str, Any]) -> None:
    case = NETWORKS[network](dropout=0.3)
    rule = _rule(case.blocks, _classify(), *options)
    greedy = rules.Greedy(case.blocks, _classify())
    greedy.load_state_dict(rule.state_dict())
    _same_step(rule, greedy, case)


@pytest.mark.parametrize("network", ["cnn", "transformer"])
def test_units_that_share_nothing_are_greedy_on_larger_blocks(network: str) -> None:
    """Chunked local updates: the graph of a chunk is gone before the next one starts."""
    case = NETWORKS[network](torch.float64)
    rule = rules.Overlap(case.blocks, _classify(), 1, every=2)
    parts = list(copy.deepcopy(case.blocks))
    chunks = [nn.Sequential(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
    greedy = rules.Greedy(Blocks(chunks, example=case.x), _classify())
    mine = [*rule.blocks.parameters(), *rule.objectives.parameters()]
    its = [*greedy.blocks.parameters(), *greedy.objectives.parameters()]
    with torch.no_grad():
        for p, q in zip(mine, its, strict=True):
            q.copy_(p)
    rule.backward(case.x, case.y)
    greedy.backward(case.x, case.y)
    for p, q in zip(mine, its, strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-11, rtol=0)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("more", [-1, 0, 5])
def test_a_window_of_all_blocks_is_backprop(network: str, more: int) -> None:
    case = NETWORKS[network](dropout=0.3)
    rule = rules.Overlap(case.blocks, _classify(), len(case.blocks) + more)
    assert list(rule.objectives) == [len(case.blocks) - 1]
    _same_step(rule, rules.Backprop(case.blocks), case)


@pytest.mark.parametrize("overlap", [0, 1, 2, 3])
def test_a_loss_reaches_its_window_and_no_further(overlap: int) -> None:
    """Other weights of unit k's head move the gradients of blocks k - m to k, of no other."""
    case = networks.transformer()
    rule = rules.Overlap(case.blocks, _classify(), overlap)
    rule.backward(case.x, case.y)
    last = len(case.blocks) - 1
    for k in range(overlap, last):
        other = copy.deepcopy(rule)
        other.zero_grad()
        with torch.no_grad():
            for p in other.objectives[k].parameters():
                p.add_(torch.randn_like(p))
        other.backward(case.x, case.y)
        moved = [
            any(
                not torch.equal(a.grad, b.grad)
                for a, b in zip(mine.parameters(), its.parameters(), strict=True)
            )
            for mine, its in zip(rule.blocks, other.blocks, strict=True)
        ]
        assert moved == [k - overlap <= j <= k for j in range(last + 1)]


class _Held:
    """Stands in for a tensor that autograd saved, so that its life can be watched."""

    def __init__(self, tensor: Tensor, block: int):
        self.tensor, self.block = tensor, block


@pytest.mark.parametrize(("overlap", "every"), [(0, 1), (1, 1), (2, 1), (3, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("independent", [0.0, 0.25])
def test_only_the_windows_graphs_are_alive(overlap: int, every: int, independent: float) -> None:
    """When block k starts, graphs of blocks that a loss still to come reaches are alive and of no
    other; each block runs once."""
    case = networks.transformer()
    rule = _rule(case.blocks, _classify(), overlap, independent, every)
    alive: weakref.WeakSet[_Held] = weakref.WeakSet()
    found: list[set[int]] = []
    running = itertools.count()
    now = -1

    def start(*_: object) -> None:
        nonlocal now
        found.append({held.block for held in alive})
        now = next(running)

    def pack(tensor: Tensor) -> _Held:
        held = _Held(tensor, now)
        alive.add(held)
        return held

    handles = [block.register_forward_pre_hook(start) for block in rule.blocks]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        rule.backward(case.x, case.y)
    for handle in handles:
        handle.remove()
    count = len(rule.blocks)
    ends = {*range(overlap, count, every), count - 1}
    wanted = [
        {j for j in range(k) if any(k <= end <= j + overlap for end in ends)} for k in range(count)
    ]
    assert found == wanted
    assert not alive


def test_a_block_that_starts_in_place() -> None:
    """The block before still needs its output."""
    x, y = torch.randn(4, 6), torch.randint(0, 3, (4,))
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        parts = [
            nn.Sequential(nn.Linear(6, 5), nn.Sigmoid()),
            nn.Sequential(nn.ReLU(inplace=inplace), nn.Linear(5, 4), nn.Sigmoid()),
            nn.Sequential(nn.ReLU(inplace=inplace), nn.Linear(4, 3)),
        ]
        rule = rules.Overlap(Blocks(parts, example=x), objectives.Classify(heads.Linear()))
        rule.backward(x, y)
        found.append(grads(rule))
    assert_same(*found)


def test_frozen_blocks_let_gradients_pass() -> None:
    case = networks.transformer(torch.float64)
    rule = rules.Overlap(case.blocks, _classify(), 2)
    rule.backward(case.x, case.y)
    wanted = grads(rule)
    rule.zero_grad()
    rule.blocks[1].requires_grad_(False)
    rule.backward(case.x, case.y)
    assert_close(grads(rule), {n: g for n, g in wanted.items() if not n.startswith("blocks.1.")})


READING: dict[str, Callable[[], objectives.Objective]] = {
    "before_the_pooling": lambda: objectives.Reconstruct(heads.Bilinear()),
    "other_views": lambda: objectives.Rotation(heads.Linear()),
}


@pytest.mark.parametrize("name", READING)
def test_objectives_that_read_more_than_the_output(name: str) -> None:
    case = networks.cnn(torch.float64)

    def each() -> list[objectives.Objective]:
        return [READING[name](), READING[name](), _classify()]

    rule, greedy = rules.Overlap(case.blocks, each(), 0), rules.Greedy(case.blocks, each())
    greedy.load_state_dict(rule.state_dict())
    _same_step(rule, greedy, case)
    wider = rules.HPFF(networks.cnn().blocks, each(), 1, 0.5)
    wider.backward(case.x.float(), case.y)
    assert grads(wider).keys() == dict(wider.named_parameters()).keys()


@pytest.mark.parametrize("way", ["plain", "bf16"])
def test_all_losses_fall(way: str) -> None:
    case = networks.mlp()
    rule = rules.HPFF(case.blocks, _classify(), 1, 0.25)
    losses = networks.losses_of_training(rule, case.x, case.y, way)
    assert all(losses[-1] < losses[0])


def test_bad_input() -> None:
    blocks = networks.mlp().blocks
    with pytest.raises(ValueError, match=r"Overlap\(overlap=-1\): give 0 or more"):
        rules.Overlap(blocks, _classify(), -1)
    with pytest.raises(ValueError, match=r"independent=1.5\): give a weight in \[0, 1\]"):
        rules.HPFF(blocks, _classify(), 1, 1.5)
    with pytest.raises(ValueError, match=r"every=3\): .* give 1 to 2, or a larger overlap"):
        rules.Overlap(blocks, _classify(), 1, every=3)
    with pytest.raises(ValueError, match="Overlap needs forward and backward information"):
        check_rule(rules.Overlap(blocks, _classify()), 2)
