"""Optimizer groups and schedules, by value."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

from layerwise.errors import InputError
from layerwise.trainer.learning_rate import LearningRate
from layerwise.trainer.optim import (
    SGD,
    AdamW,
    Constant,
    Cosine,
    Muon,
    OfFunction,
    OfScheduler,
    OneCycle,
    Step,
)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.LayerNorm(2)
    )


@pytest.mark.parametrize("recipe", [SGD(weight_decay=0.3), AdamW(weight_decay=0.3)])
def test_norms_and_biases_do_not_decay(recipe):
    net = network()
    decayed, others = recipe(net.parameters()).param_groups
    assert decayed["weight_decay"] == 0.3
    assert others["weight_decay"] == 0.0
    assert {id(p) for p in decayed["params"]} == {id(net[0].weight), id(net[3].weight)}
    ids = {id(p) for group in (decayed, others) for p in group["params"]}
    assert ids == {id(p) for p in net.parameters()}


def test_options_reach_torch():
    sgd = SGD(lr=0.2, momentum=0.7, nesterov=False, weight_decay=0.0)(network().parameters())
    assert isinstance(sgd, torch.optim.SGD)
    group = sgd.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.2, 0.7, False)
    assert SGD().__call__(network().parameters()).param_groups[0]["nesterov"] is True
    assert SGD(momentum=0.0)(network().parameters()).param_groups[0]["nesterov"] is False
    adamw = AdamW(lr=0.02, beta1=0.8, beta2=0.9)(network().parameters())
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["betas"] == (0.8, 0.9)
    assert adamw.param_groups[0]["lr"] == 0.02


def test_frozen_parameters_are_left_out():
    net = network()
    net[0].requires_grad_(False)
    ids = {id(p) for group in SGD()(net.parameters()).param_groups for p in group["params"]}
    assert id(net[0].weight) not in ids
    assert id(net[3].weight) in ids


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGD(lr=0.0),
        lambda: SGD(lr=math.nan),
        lambda: SGD(momentum=1.0),
        lambda: SGD(weight_decay=-1.0),
        lambda: AdamW(lr=-1.0),
        lambda: AdamW(lr=math.inf),
        lambda: AdamW(beta1=1.0),
        lambda: AdamW(beta2=-0.1),
        lambda: AdamW(weight_decay=-0.1),
        lambda: Constant(warmup=-1.0),
        lambda: Cosine(final=-1.0),
        lambda: Step(at=(1.5,)),
        lambda: Step(gamma=0.0),
        lambda: OneCycle(up=1.0),
        lambda: OneCycle(start=-1.0),
    ],
)
def test_values_that_make_no_sense(make):
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)


STEPS, PER_EPOCH = 100, 10


def test_constant():
    factor = Constant(warmup=2.0).factor(STEPS, PER_EPOCH)
    # 20 steps of warm-up: (step + 1) / 21, so that step 20 is the first with the whole rate.
    assert factor(0) == 1 / 21
    assert factor(9) == 10 / 21
    assert factor(19) == 20 / 21
    assert [factor(step) for step in (20, 57, 99)] == [1, 1, 1]
    assert Constant().factor(STEPS, PER_EPOCH)(0) == 1


def test_cosine():
    factor = Cosine(final=0.2).factor(STEPS, PER_EPOCH)
    assert factor(0) == 1
    assert factor(25) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert factor(50) == pytest.approx(0.6)
    assert factor(100) == pytest.approx(0.2)
    warmed = Cosine(warmup=1.0).factor(110, PER_EPOCH)
    assert warmed(4) == 5 / 11
    assert warmed(10) == 1
    assert warmed(60) == pytest.approx(0.5)


def test_step():
    factor = Step(at=(0.5, 0.75), gamma=0.1).factor(STEPS, PER_EPOCH)
    assert [factor(step) for step in (0, 49)] == [1, 1]
    assert [factor(step) for step in (50, 74)] == pytest.approx([0.1, 0.1])
    assert [factor(step) for step in (75, 99)] == pytest.approx([0.01, 0.01])
    # Shares are of the training after the warm-up: of steps 20 to 120, half is at 70.
    warmed = Step(at=(0.5,), warmup=2.0).factor(120, PER_EPOCH)
    assert warmed(0) == 1 / 21
    assert [warmed(69), warmed(70)] == [1, pytest.approx(0.1)]


def test_one_cycle():
    factor = OneCycle(up=0.2, start=0.1, final=0.01).factor(STEPS, PER_EPOCH)
    assert factor(0) == pytest.approx(0.1)
    assert factor(10) == pytest.approx(0.55)  # half of a cosine's way from 0.1 to 1
    assert factor(20) == pytest.approx(1.0)
    assert factor(60) == pytest.approx(0.505)  # half the way from 1 to 0.01
    assert factor(100) == pytest.approx(0.01)
    assert max(factor(step) for step in range(101)) == pytest.approx(1.0)
    # The same curve as torch's own, which takes the peak for its unit.
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        1.0,
        101,
        pct_start=0.21,
        div_factor=10,
        final_div_factor=10,
        cycle_momentum=False,
    )
    for step in range(100):
        assert factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=0.02)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("schedule", [Constant(3.0), Cosine(3.0), Step(warmup=3.0), OneCycle()])
def test_a_training_shorter_than_its_warm_up(schedule):
    factor = schedule.factor(5, 5)
    assert all(0 < factor(step) <= 1 for step in range(5))


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_parameter_may_get_its_first_gradient_late(nesterov):
    """As torch's own loop over the parameters does it, which the fused kernel does not."""
    recipe = SGD(lr=0.1, momentum=0.5, nesterov=nesterov, weight_decay=0.25)
    ours = [nn.Parameter(torch.ones(2, 2)) for _ in range(3)]
    theirs = [nn.Parameter(torch.ones(2, 2)) for _ in range(3)]
    optimizers = (
        recipe(ours),
        torch.optim.SGD(
            theirs, lr=0.1, momentum=0.5, nesterov=nesterov, weight_decay=0.25, foreach=False
        ),
    )
    for trained in ([0], [0, 1], [2], [0, 1, 2]):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for i in trained:
                parameters[i].grad = torch.full((2, 2), 1.0 + i)
            optimizer.step()
            optimizer.zero_grad()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other)


def test_what_cannot_be_stepped_alone_is_refused():
    for kind in (torch.optim.LBFGS, torch.optim.SparseAdam):
        with pytest.raises(InputError, match=f"optimizer {kind.__name__}: it cannot step with a"):
            OfFunction.of(kind)
    with pytest.raises(InputError, match="tuple index out of range"):
        OfFunction.of(functools.partial(torch.optim.Adam, betas=(0.8,)))


def test_muon_of_matrices_and_adamw_of_the_rest():
    """Two steps, also by themselves, from a checkpoint, and of one parameter at a time."""

    def parameters():
        torch.manual_seed(0)
        return [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))]

    def steps(optimizers, given, count=2):
        for n in range(count):
            for p in given:
                p.grad = torch.full_like(p, n + 1.0) * torch.arange(p.numel()).view_as(p)
            for optimizer in optimizers:
                optimizer.step()
        return [p.detach() for p in given]

    matrix, vector = parameters()
    apart = [
        torch.optim.Muon([matrix], lr=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([vector], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    expected = steps(apart, [matrix, vector])
    whole = parameters()
    torch.testing.assert_close(steps([Muon(0.01)(whole)], whole), expected, rtol=0, atol=0)
    first, again = parameters(), parameters()
    before, after = Muon(0.01)(first), Muon(0.01)(again)
    steps([before], first, 1)
    for p, q in zip(again, first, strict=True):
        p.data.copy_(q)
    after.load_state_dict(before.state_dict())
    for p in again:
        p.grad = torch.full_like(p, 2.0) * torch.arange(p.numel()).view_as(p)
    after.step()
    torch.testing.assert_close([p.detach() for p in again], expected, rtol=0, atol=0)
    assert isinstance(Muon()([matrix]), torch.optim.Muon)


@pytest.mark.parametrize("each", ["epoch", "step"])
def test_schedulers_of_pytorch(each):
    """The learning rates are those of PyTorch's own loop, also absolute ones."""
    make = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=5, eta_min=0.05)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler, rates = make(optimizer), []
    for _ in range(3):
        for _ in range(2):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if each == "step":
                scheduler.step()
        if each == "epoch":
            scheduler.step()
    rate = LearningRate(0.2, OfScheduler(make, each), [3], 2)
    assert [rate.at(step) for step in range(6)] == pytest.approx(rates, rel=1e-12)
