"""Where a rule is backpropagation, it is so bit for bit: gradients, buffers and random state."""

from __future__ import annotations

import copy
import functools
from typing import Any

import networks
import pytest
import torch
from networks import MeanSquare, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, InputError, Rule, cut, heads, objectives, rules

ONE_BLOCK = {
    "dgl": lambda blocks: rules.DGL(blocks, num_classes=networks.CLASSES),
    "dgl_mlp_sr": lambda blocks: rules.DGL(blocks, head=heads.MLPSR()),
    "greedy": lambda blocks: rules.Greedy(blocks, []),
    "greedy_copies": lambda blocks: rules.Greedy(blocks, MeanSquare()),
    "greedy_given": lambda blocks: rules.Greedy(blocks, [objectives.Classify()]),
    "dni": rules.DNI,
    "cdni_unlocked": lambda blocks: rules.DNI(blocks, context=True, synthetic_inputs=True),
    "deep_supervision": rules.DeepSupervision,
    "difference_target_propagation": rules.DifferenceTargetPropagation,
    "ldrl": rules.LDRL,
    "direct_feedback_alignment": rules.DirectFeedbackAlignment,
    "direct_random_target_projection": rules.DirectRandomTargetProjection,
    "forward_forward": rules.ForwardForward,
    "forward_forward_hard": lambda blocks: rules.ForwardForward(blocks, hard=True),
    "forward_forward_by_goodness": lambda blocks: rules.ForwardForward(blocks, by_goodness=True),
    "direct_global": rules.DirectGlobal,
    "aug_local": rules.AugLocal,
    "last_block": rules.LastBlock,
    "local_critic": rules.LocalCritic,
    "local_forward_gradient": lambda blocks: rules.LocalForwardGradient(blocks, MeanSquare()),
    "man": rules.MAN,
    "pepita": rules.PEPITA,
    "pepita_recomputed": lambda blocks: rules.PEPITA(blocks, recompute=True),
    "sgr": rules.SGR,
    "equilibrium_propagation": rules.EquilibriumPropagation,
    "predictive_coding": rules.PredictiveCoding,
    "fixed_prediction": lambda blocks: rules.PredictiveCoding(blocks, fixed_prediction=True),
    "error_based": lambda blocks: rules.PredictiveCoding(blocks, error_based=True),
    "mono_forward": rules.MonoForward,
    "shared_readout": rules.SharedReadout,
    "sequential": lambda blocks: rules.Sequential(blocks, []),
    "overlap": lambda blocks: rules.Overlap(blocks, []),
    "hpff": lambda blocks: rules.HPFF(blocks, [], independent=0.25),
    "backprop": rules.Backprop,
    "backprop_checkpointed": lambda blocks: rules.Backprop(blocks, checkpoint=True),
}
_there = {type(make(networks.mlp(blocks=1).blocks)).__name__ for make in ONE_BLOCK.values()}
ONE_BLOCK |= {
    name: functools.partial(networks.made, getattr(rules, name))
    for name in rules.__all__
    if name not in _there | networks.NOT_BACKPROPAGATION
}


class _Two(nn.Module):
    """A plain network with a rule's own parameter names, to compare under equal keys."""

    def __init__(self, blocks: Blocks):
        super().__init__()
        self.blocks = copy.deepcopy(blocks)


def _compare(rule: Rule, case: networks.Case, steps: int = 2) -> None:
    plain = _Two(case.blocks)
    start = torch.get_rng_state()
    for _ in range(steps):
        loss = F.cross_entropy(nn.Sequential(*plain.blocks)(case.x), case.y)
        loss.backward()
    end = torch.get_rng_state()

    torch.set_rng_state(start)
    for _ in range(steps):
        report = rule.backward(case.x, case.y)
    assert torch.equal(torch.get_rng_state(), end)
    assert torch.equal(report.loss, loss.detach())
    assert_same(grads(rule), grads(plain))
    buffers = dict(plain.named_buffers())
    assert_same(dict(rule.named_buffers()), buffers)
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in plain.modules()):
        tracked = [b for n, b in buffers.items() if n.endswith("num_batches_tracked")]
        assert all(int(b) == steps for b in tracked)
        assert tracked


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ONE_BLOCK)
@pytest.mark.parametrize("network", [*networks.NETWORKS, "mlp_norm"])
def test_one_block_is_backprop(network: str, name: str, training: bool) -> None:
    case = getattr(networks, network)(dropout=0.3, blocks=1)
    assert len(case.blocks) == 1
    rule = ONE_BLOCK[name](case.blocks)
    rule.train(training)
    if training:
        _compare(rule, case)
    else:
        plain = _Two(case.blocks)
        F.cross_entropy(nn.Sequential(*plain.blocks)(case.x), case.y).backward()
        rule.backward(case.x, case.y)
        assert_same(grads(rule), grads(plain))
        assert_same(dict(rule.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.parametrize("checkpoint", [False, True, "selective"])
@pytest.mark.parametrize("network", [*networks.NETWORKS, "mlp_norm"])
def test_blocks_of_backprop_are_plain_pytorch(network: str, checkpoint: Any) -> None:
    case = getattr(networks, network)(dropout=0.3)
    assert len(case.blocks) > 1
    _compare(rules.Backprop(case.blocks, checkpoint=checkpoint), case)


@pytest.mark.parametrize("checkpoint", [False, True, "selective"])
def test_cumulative_batch_norm(checkpoint: Any) -> None:
    """momentum=None averages over all batches: it depends on the number it counts."""
    case = networks.cnn(dropout=0.3)
    for m in case.blocks.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None
    _compare(rules.Backprop(case.blocks, checkpoint=checkpoint), case, steps=3)


def _spectral() -> networks.Case:
    """A network whose buffers move in a forward pass and are part of what it computes."""
    norm = nn.utils.parametrizations.spectral_norm
    parts = [
        nn.Sequential(nn.Flatten(), norm(nn.Linear(6, 5)), nn.Tanh()),
        nn.Sequential(norm(nn.Linear(5, networks.CLASSES))),
    ]
    x, y = torch.randn(6, 1, 2, 3), torch.randint(0, networks.CLASSES, (6,))
    return networks.Case(Blocks(parts), x, y, False)


@pytest.mark.parametrize("checkpoint", [False, True, "selective"])
def test_any_buffer_moves_once(checkpoint: Any) -> None:
    case = _spectral()
    _compare(rules.Backprop(case.blocks, checkpoint=checkpoint), case, steps=3)


def test_checkpoint_of_partly_frozen_statistics() -> None:
    """A BatchNorm in eval mode inside a network in train mode."""
    case = networks.cnn()
    rule = rules.Backprop(case.blocks, checkpoint=True)
    rule.blocks[1].eval()
    plain = _Two(case.blocks)
    F.cross_entropy(nn.Sequential(*plain.blocks)(case.x), case.y).backward()
    rule.backward(case.x, case.y)
    assert_same(grads(rule), grads(plain))
    assert_same(dict(rule.named_buffers()), dict(plain.named_buffers()))


def test_checkpoint_keeps_less() -> None:
    """Between forward and backward only the blocks' inputs are kept."""
    kept: dict[bool, int] = {}
    for checkpoint in (False, True):
        case = networks.resnet()
        rule = rules.Backprop(case.blocks, checkpoint=checkpoint)
        saved: list[Tensor] = []

        def pack(t: Tensor, saved: list[Tensor] = saved) -> Tensor:
            saved.append(t)
            return t

        counted: list[int] = []

        def scale(loss: Tensor, saved: list[Tensor] = saved, n: list[int] = counted) -> Tensor:
            n.append(sum(t.numel() for t in saved))  # the forward pass is over
            return loss

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            rule.backward(case.x, case.y, scale=scale)
        kept[checkpoint] = counted[0]
    assert kept[True] < kept[False] / 5


def test_selective_checkpoint_of_layers_in_place() -> None:
    """What it keeps, the layers after it would overwrite."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.ELU(inplace=True), nn.Linear(5, 3))
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    found = []
    for checkpoint in (False, "selective"):
        rule = rules.Backprop(cut(network, blocks=1, example=x), checkpoint=checkpoint)
        rule.zero_grad()
        rule.backward(x, y)
        found.append([p.grad.clone() for p in network.parameters()])
    torch.testing.assert_close(*found)  # in place, ELU's derivative is that of its result
    assert network[1].inplace


class _Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.layer(x))


def test_selective_checkpoint_refuses_functions_in_place() -> None:
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    rule = rules.Backprop(cut(_Overwriting(), blocks=1, example=x), checkpoint="selective")
    with pytest.raises(InputError, match="without in-place functions"):
        rule.backward(x, y)


def test_checkpoint_refuses_a_block_that_changes_its_input() -> None:
    parts = [nn.Linear(6, 5), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3))]
    x, y = torch.randn(4, 6), torch.randint(0, 3, (4,))
    blocks = Blocks(parts, names=["lin", "act"])
    plain = _Two(blocks)
    F.cross_entropy(nn.Sequential(*plain.blocks)(x), y).backward()
    rule = rules.Backprop(blocks)
    rule.backward(x, y)
    assert_same(grads(rule), grads(plain))
    with pytest.raises(ValueError, match=r"block 'act' changes its input in place") as e:
        rules.Backprop(blocks, checkpoint=True).backward(x, y)
    assert "\n" not in str(e.value)


def test_local_rules_take_a_block_that_changes_its_input() -> None:
    """Block 2's in-place ReLU comes after block 1's gradient, and changes no report."""
    parts = [nn.Linear(6, 5), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3))]
    x, y = torch.randn(4, 6), torch.randint(0, 3, (4,))
    rule = rules.DGL(Blocks(parts, example=x))
    rule.backward(x, y)
    got = grads(rule)
    rule.zero_grad()
    h = parts[0](x)
    F.cross_entropy(rule.objectives[0].predict(h), y).backward()
    F.cross_entropy(parts[1](h.detach().clone()), y).backward()
    assert_same(got, grads(rule))


def test_criterion_is_used_by_every_block() -> None:
    """With label smoothing one block is plain PyTorch with label smoothing."""

    def smooth(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=0.3)

    case = networks.mlp()
    plain = _Two(case.blocks)
    smooth(nn.Sequential(*plain.blocks)(case.x), case.y).backward()
    for checkpoint in (False, True):
        rule = rules.Backprop(case.blocks, checkpoint=checkpoint, criterion=smooth)
        rule.zero_grad()
        rule.backward(case.x, case.y)
        assert_same(grads(rule), grads(plain))

    criterion = nn.CrossEntropyLoss(label_smoothing=0.3, weight=torch.tensor([1.0, 2.0, 3.0]))
    dgl = rules.DGL(case.blocks, criterion=criterion)
    report = dgl.backward(case.x, case.y)
    for logits, loss in zip(report.local_logits, report.local_losses, strict=True):
        assert torch.equal(criterion(logits, case.y), loss)
