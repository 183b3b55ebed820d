"""`on_block`: a block's parameters may be stepped and its gradients freed before the next runs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import networks
import pytest
import torch
from networks import LOCAL_RULES, NETWORKS, WHOLE_RULES, assert_same, grads
from torch import nn

from layerwise import LocalRule, Rule, rules

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}

# All graphs are there before the first is differentiated, and the last ones are the smallest.
FROM_THE_LAST = (
    rules.Backprop,
    rules.DelayedGradient,
    rules.DirectFeedbackAlignment,
    rules.DirectGlobal,
    rules.DifferenceTargetPropagation,
    rules.LDRL,
)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", WHOLE_RULES)
def test_called_once_per_block_when_its_gradient_is_complete(network: str, name: str) -> None:
    case = NETWORKS[network]()
    rule = WHOLE_RULES[name](case.blocks)
    order: list[int] = []
    seen: dict[int, list[torch.Tensor]] = {}

    def on_block(i: int) -> None:
        order.append(i)
        seen[i] = [p.grad.clone() for p in rule.parameters_of(i)]

    torch.manual_seed(1)
    rule.backward(case.x, case.y, on_block=on_block)
    forward = list(range(len(rule.blocks)))
    assert order == (forward[::-1] if isinstance(rule, FROM_THE_LAST) else forward)
    for i in forward:
        for at_call, p in zip(seen[i], rule.parameters_of(i), strict=True):
            assert torch.equal(at_call, p.grad)
    got = grads(rule)
    rule.zero_grad()
    torch.manual_seed(1)
    rule.backward(case.x, case.y)
    assert_same(got, grads(rule))


@pytest.mark.parametrize(
    ("network", "optimizer"), [*((network, "sgd") for network in NETWORKS), ("mlp", "adamw")]
)
@pytest.mark.parametrize("name", WHOLE_RULES)
def test_stepping_per_block_is_stepping_once(network: str, name: str, optimizer: str) -> None:
    case = NETWORKS[network](dropout=0.2)
    rule = WHOLE_RULES[name](case.blocks)
    torch.manual_seed(0)  # the same again, which is made faster than copied
    other = WHOLE_RULES[name](NETWORKS[network](dropout=0.2).blocks)
    rng = torch.get_rng_state()

    whole = OPTIMIZERS[optimizer](rule.parameters())
    for _ in range(2):
        whole.zero_grad()
        rule.backward(case.x, case.y)
        whole.step()

    torch.set_rng_state(rng)
    parts = [OPTIMIZERS[optimizer](other.parameters_of(i)) for i in range(len(other.blocks))]
    local = name in LOCAL_RULES

    def on_block(i: int) -> None:
        if local:  # at most one block's gradients exist at any time
            for k in range(len(other.blocks)):
                assert (k == i) == all(p.grad is not None for p in other.parameters_of(k))
                assert (k != i) == all(p.grad is None for p in other.parameters_of(k))
        parts[i].step()
        parts[i].zero_grad(set_to_none=True)

    for _ in range(2):
        other.backward(case.x, case.y, on_block=on_block)
    assert not grads(other)
    assert_same(dict(other.named_parameters()), dict(rule.named_parameters()))
    assert_same(dict(other.named_buffers()), dict(rule.named_buffers()))


@pytest.mark.parametrize("name", LOCAL_RULES)
def test_local_step_alone_is_the_step(name: str) -> None:
    """A runtime may call `local_step` itself: one block's input in, the next block's out."""
    from layerwise import Batch, Done, Report

    case = networks.cnn()
    rule = LOCAL_RULES[name](case.blocks)
    assert isinstance(rule, LocalRule)
    other = copy.deepcopy(rule)
    report = rule.backward(case.x, case.y)
    batch = Batch(case.x, case.y)
    batch.passes = other.blocks.passes(case.x)
    done = Done(case.x)
    for k in range(len(other.blocks)):
        assert not any(p.grad is not None for p in other.parameters_of(k))
        done = other.local_step(k, done.out, batch, *done.carry)
        batch.done(k, done.loss, done.scores)
        assert not done.out.requires_grad
        assert all(p.grad is not None for p in other.parameters_of(k))
    assert_same(grads(other), grads(rule))
    again = Report.of(batch, done.out, len(other.blocks))
    assert torch.equal(again.logits, report.logits)
    for a, b in zip(again.local_losses, report.local_losses, strict=True):
        assert torch.equal(a, b)


def test_an_exception_leaves_no_trace_in_the_next_step() -> None:
    case = networks.cnn()
    rule: Rule = WHOLE_RULES["dgl"](case.blocks)

    def fail(i: int) -> None:
        if i == 1:
            raise KeyboardInterrupt

    for m in rule.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()
    with pytest.raises(KeyboardInterrupt):
        rule.backward(case.x, case.y, on_block=fail)
    rule.zero_grad()
    other = copy.deepcopy(rule)
    rule.backward(case.x, case.y)
    other.backward(case.x, case.y)
    assert_same(grads(rule), grads(other))
