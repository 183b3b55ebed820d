"""Backpropagation with gradients that are a step old: by hand, in one process and in stages."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import networks
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from layerwise import Blocks, InputError, rules
from layerwise.objectives.batch import nothing
from layerwise.rules.delayed_gradient import correct_delay
from layerwise.runs.released import is_released
from layerwise.runtime import LayerParallel, Serial, StepOptions, check_rule

STEPS = 5


def _square(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.5 * (scores - y).square().mean()


def _scalar(delay: int) -> tuple[rules.DelayedGradient, torch.nn.Parameter]:
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(layer.weight, 1.0)
    return rules.DelayedGradient(Blocks([layer]), delay=delay, criterion=_square), layer.weight


# The network is w x, its loss (w x - y)^2 / 2 with the gradient (w x - y) x; the rate is 0.1.
# Batches: x = 1, then x = 2, then x = 1; y = 0. From w0 = 1:
#   call 0: g0 = (1 * 1) * 1 = 1 at w0; nothing is due, w1 = 1
#   call 1: g1 = (1 * 2) * 2 = 4 at w1 = 1; g0 is due, w2 = 1 - 0.1 = 0.9
#   call 2 (x = 1): g2 = 0.9 at w2; g1 is due, w3 = 0.9 - 0.4 = 0.5
# Without a delay: w1 = 0.9; g1 = 0.9 * 4 = 3.6, w2 = 0.54; g2 = 0.54, w3 = 0.486.
# With error feedback the updates are d0 = -0.1, d1 = -0.4: w2 = 1 - 0.1 - 0.1 = 0.8; g2 = 0.8;
#   w3 = 0.8 - 0.4 - (0.4 - 0.1) = 0.1.
@pytest.mark.parametrize(
    ("delay", "corrected", "wanted"),
    [
        (0, False, [0.9, 0.54, 0.486]),
        (1, False, [1.0, 0.9, 0.5]),
        (1, True, [1.0, 0.8, 0.1]),
    ],
)
def test_by_hand(delay: int, corrected: bool, wanted: list[float]) -> None:
    rule, w = _scalar(delay)
    optimizer = torch.optim.SGD(rule.parameters(), 0.1)
    if corrected:
        correct_delay(optimizer)
    found = []
    for x in (1.0, 2.0, 1.0):
        rule.backward(torch.tensor([[x]]).double(), torch.zeros(1, 1).double())
        optimizer.step()
        optimizer.zero_grad()
        found.append(w.item())
    assert found == pytest.approx(wanted, abs=1e-12)


# As above with two calls a step, x = 1 then x = 2, each loss halved, and the rate 0.1. From w0 = 1:
#   calls 0, 1: 0.5 and 2 at w0; only the first is due, w1 = 1 - 0.05 = 0.95
#   calls 2, 3: 0.475 and 1.9 at w1; due are the 2 at w0 and the 0.475 at w1, w2 = 0.95 - 0.2475
def test_two_calls_a_step_by_hand() -> None:
    rule, w = _scalar(1)
    found = []
    for _ in range(2):
        for x in (1.0, 2.0):
            sample = torch.tensor([[x]]).double()
            rule.backward(sample, 0 * sample, scale=lambda loss: loss / 2)
        w.data -= 0.1 * w.grad
        w.grad = None
        found.append(w.item())
    assert found == pytest.approx([0.95, 0.7025], abs=1e-12)


def test_a_layer_that_is_unfrozen_later() -> None:
    """Its first gradient comes a call later, as those of the others do."""
    layers = [nn.Linear(1, 1, bias=False).double() for _ in range(2)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1.0)
    rule = rules.DelayedGradient(Blocks(layers), criterion=_square)
    first = layers[0].weight.requires_grad_(False)
    x = torch.ones(1, 1).double()
    rule.backward(x, 0 * x)
    first.requires_grad_()
    rule.backward(2 * x, 0 * x)
    assert first.grad is None
    assert layers[1].weight.grad.item() == 1
    rule.backward(x, 0 * x)
    assert first.grad.item() == 4


def test_error_feedback_of_muon() -> None:
    """The optimizer's own update and its change: after steps with the updates d0 and d1,
    w = w0 + 2 d0 + (2 d1 - d0)."""
    torch.manual_seed(0)
    plain, corrected = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    start = plain.weight.detach().clone()
    corrected.load_state_dict(plain.state_dict())
    gradients, updates = torch.randn(2, 4, 4), []
    for layer in (plain, corrected):
        optimizer = torch.optim.Muon(layer.parameters(), 0.1, weight_decay=0.0)
        if layer is corrected:
            correct_delay(optimizer)
        for gradient in gradients:
            before = layer.weight.detach().clone()
            layer.weight.grad = gradient.clone()
            optimizer.step()
            updates.append(layer.weight.detach() - before)
    torch.testing.assert_close(corrected.weight.detach(), start + updates[0] + 2 * updates[1])


def test_gradients_are_added_to_those_that_are_there() -> None:
    rule, w = _scalar(1)
    x, y = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    w.grad = torch.full_like(w, 7.0)
    rule.backward(x, y)
    assert w.grad.item() == 7
    rule.backward(2 * x, y)
    assert w.grad.item() == 8
    with pytest.raises(InputError, match="delay=-1"):
        rules.DelayedGradient(rule.blocks, delay=-1)
    with pytest.raises(InputError, match="no error to correct"):
        rules.DelayedGradient(rule.blocks, delay=0, error_feedback=True)
    with pytest.raises(InputError, match="with --replicas 1 and without --replay"):
        check_rule(rule, 1, replicas=2)  # before a run folder is made


def _rule(delay: int, accumulate: int) -> tuple[rules.DelayedGradient, list, int]:
    torch.manual_seed(0)
    case = networks.cnn(dropout=0.3)
    data = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS * accumulate):
        x = torch.randn(case.x.shape, generator=generator)
        data.append((x, torch.randint(networks.CLASSES, (6,), generator=generator)))
    return rules.DelayedGradient(case.blocks, delay=delay), data, accumulate


def _train(runtime: Serial | LayerParallel, data: list, accumulate: int) -> dict:
    rule = runtime.rule
    # A fused step does not count in a tensor's version, so that no stage can tell one by it.
    sgd = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True)
    optimizers = {i: sgd(rule.parameters_of(i)) for i in runtime.blocks}

    def step(i: int) -> None:
        optimizers[i].step()
        optimizers[i].zero_grad()

    losses = []
    for t, (x, y) in enumerate(data):
        completes = t % accumulate == accumulate - 1
        options = StepOptions(
            on_block=step if completes else nothing,
            before_block=lambda k, t=t: torch.manual_seed(100 * t + k),
            completes=completes,
        )
        losses.append(runtime.backward(x, y, options).loss)
    state = {p for o in optimizers.values() for p in o.state}
    assert state <= {p for i in runtime.blocks for p in rule.parameters_of(i)}
    return {
        "weights": {
            f"{i}.{k}": p.detach().clone()
            for i in runtime.blocks
            for k, p in enumerate(rule.parameters_of(i))
        },
        "losses": losses,
    }


def _held(rule: nn.Module) -> int:
    """Bytes of the memory that the rule's parameters hold."""
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in rule.parameters()}
    return sum(held.values())


def _stage(rank: int, folder: str, starts: list[int], cases: list[tuple[int, int]]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), len(starts))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(starts))
    found = {}
    for delay, accumulate in cases:
        rule, data, accumulate = _rule(delay, accumulate)
        whole = _held(rule)
        stage = LayerParallel(rule, starts)
        own = {p for i in stage.blocks for p in rule.parameters_of(i)}
        others = [p for p in rule.parameters() if p not in own]
        if not stage.leader:  # nothing but its own weights, and one number for each other one
            assert all(is_released(p) for p in others if p.numel() > 1)
            bytes_ = sum(p.numel() * p.element_size() for p in own)
            assert bytes_ <= _held(rule) <= bytes_ + 4 * len(others) < whole
        found[delay, accumulate] = _train(stage, data, accumulate)
        assert all(p.grad is None for p in others)
        stage.close()
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("starts", "cases"),
    [
        ([0, 2], [(0, 1), (1, 1)]),
        pytest.param([0, 1, 2], [(0, 1), (1, 1), (2, 1), (2, 2), (3, 1)], marks=pytest.mark.slow),
    ],
)
def test_stages_are_the_serial_loop(
    starts: list[int], cases: list[tuple[int, int]], tmp_path: Path
) -> None:
    """Bit for bit, with dropout, for delays that stages wait with and for those that they do not;
    the stages before the last hold only their own weights."""
    mp.set_forkserver_preload(["layerwise", "torchvision"])
    mp.start_processes(
        _stage, (str(tmp_path), starts, cases), len(starts), start_method="forkserver"
    )
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(starts))]
    for case in cases:
        rule, data, accumulate = _rule(*case)
        wanted = _train(Serial(rule), data, accumulate)
        got: dict[str, torch.Tensor] = {}
        for of_rank in found:
            got |= of_rank[case]["weights"]
        networks.assert_same(got, wanted["weights"])
        for a, b in zip(found[-1][case]["losses"], wanted["losses"], strict=True):
            assert torch.equal(a, b)
