"""One block after the other: what is trained, what is frozen, what does not run."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import networks
import pytest
import torch
from networks import NETWORKS, assert_same, grads
from torch import Tensor
from torch.nn import functional as F

from layerwise import heads, objectives, rules


def _rule(case: networks.Case) -> rules.Sequential:
    return rules.Sequential(case.blocks, objectives.Classify(networks.SMALL_HEAD))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_phase_trains_one_block_on_frozen_ones(network: str) -> None:
    """Against the same made by hand: blocks before in eval mode, those after never called."""
    case = NETWORKS[network](torch.float64, dropout=0.3)
    rule = _rule(case)
    for phase in range(len(case.blocks)):
        rule.begin(phase)
        other = copy.deepcopy(rule)
        rng = torch.get_rng_state()
        calls: list[int] = []
        handles = [
            block.register_forward_hook(lambda *_, i=i, calls=calls: calls.append(i))
            for i, block in enumerate(rule.blocks)
        ]
        report = rule.backward(case.x, case.y)
        for handle in handles:
            handle.remove()
        assert calls == list(range(phase + 1))

        torch.set_rng_state(rng)
        other.blocks.train()
        h = case.x
        with torch.no_grad():
            for block in list(other.blocks)[:phase]:
                h = block.eval()(h)
        h = other.blocks[phase](h)
        scores = other.objectives[phase].predict(h)
        loss = F.cross_entropy(scores, case.y)
        loss.backward()
        assert_same(grads(rule), grads(other))
        assert_same(dict(rule.named_buffers()), dict(other.named_buffers()))
        assert torch.equal(report.local_losses[phase], loss.detach())
        assert torch.equal(report.logits, scores.detach())
        trained = [loss is not None for loss in report.local_losses]
        assert trained == [i == phase for i in range(len(case.blocks))]
        rule.zero_grad()


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_leave_the_others_alone(optimizer: str) -> None:
    """Also those that have momentum: block k, its statistics and its head move in phase k only."""
    case = networks.cnn()
    rule = _rule(case)
    opt = OPTIMIZERS[optimizer](rule.parameters())

    def state() -> list[dict[str, Tensor]]:
        parts = [[rule.blocks[i], *rule.auxiliary(i)] for i in range(len(rule.blocks))]
        return [
            {f"{k}.{n}": t.clone() for k, m in enumerate(part) for n, t in m.state_dict().items()}
            for part in parts
        ]

    for phase in range(len(rule.blocks)):
        rule.begin(phase)
        for _ in range(3):
            before = state()
            opt.zero_grad()
            rule.backward(case.x, case.y)
            opt.step()
            moved = [
                any(not torch.equal(a[n], b[n]) for n in a)
                for a, b in zip(before, state(), strict=True)
            ]
            assert moved == [i == phase for i in range(len(rule.blocks))]


def test_modes() -> None:
    """Blocks before the active one are never in train mode; `eval` and `train` keep it so."""
    case = networks.cnn()
    rule = _rule(case)
    for phase in (0, 2, 1, 3):
        rule.begin(phase)
        for mode in (False, True):
            rule.train(mode)
            assert rule.training is mode
            for i, block in enumerate(rule.blocks):
                assert all(m.training is (mode and i >= phase) for m in block.modules())


def test_phases() -> None:
    case = networks.cnn()
    assert list(_rule(case).phases(8)) == [2, 2, 2, 2]
    assert list(_rule(case).phases(10)) == [3, 3, 2, 2]
    with pytest.raises(ValueError, match=r"3 epochs for 4 blocks.*give --epochs 4 or more"):
        _rule(case).phases(3)
    some = rules.Sequential(case.blocks, [None, objectives.Classify(heads.Linear()), None])
    assert list(some.phases(3)) == [2, 1]
    assert some.active == 1
    some.begin(1)
    assert some.active == 3
    assert list(rules.DGL(case.blocks).phases(7)) == [7]


def test_each_block_learns_in_its_phase() -> None:
    case = networks.mlp()
    rule = _rule(case)
    opt = torch.optim.SGD(rule.parameters(), lr=0.3, momentum=0.9)
    for phase in range(3):
        rule.begin(phase)
        losses = []
        for _ in range(15):
            opt.zero_grad()
            losses.append(float(rule.backward(case.x, case.y).local_losses[phase]))
            opt.step()
        assert losses[-1] < 0.8 * losses[0]


def test_objectives_that_do_not_predict() -> None:
    case = networks.mlp()
    rule = rules.Sequential(case.blocks, networks.MeanSquare())
    report = rule.backward(case.x, case.y)
    assert torch.equal(report.logits, case.blocks[0](case.x))
    assert all(scores is None for scores in report.local_logits)
    assert [n for n, _ in itertools.groupby(grads(rule), lambda n: n.split(".")[1])] == ["0"]
