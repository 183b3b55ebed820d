"""Objectives of whole pipelines, by hand: BarlowTwins, CLAPP, CLAPP2D, Distill; CPC's context."""

from __future__ import annotations

import copy
import math

import networks
import pytest
import torch
from networks import assert_close, grads
from torch import Tensor, nn

from layerwise import Batch, Blocks, InputError, heads, rules
from layerwise.objectives import (
    CLAPP,
    CLAPP2D,
    Activity,
    BarlowTwins,
    Classify,
    Distill,
    InfoNCE,
    Site,
)
from layerwise.objectives.barlow_twins import twins
from layerwise.objectives.info_nce import RowContext

F64 = torch.float64


# ---------------------------------------------------------------- CPC's context


@pytest.mark.parametrize("row", [0, 2, 4])
def test_context_sees_no_later_row(row: int) -> None:
    """The gradient of a row's context with respect to later rows is exactly 0. With two layers it
    sees two rows up, and two columns to each side."""
    context = RowContext(16, 2)
    z = torch.randn(8, 16, 5, 9, requires_grad=True)
    (found,) = torch.autograd.grad(context(z)[:, :, row, 4].square().sum(), z)
    seen = found.abs().sum((0, 1)) > 0
    wanted = torch.zeros(5, 9, dtype=torch.bool)
    wanted[max(0, row - 2) : row + 1, 2:7] = True
    assert torch.equal(seen, wanted)


def test_predictions_never_see_their_target() -> None:
    """In every direction, a prediction of a patch k away has no gradient to it or what lies
    beyond."""
    objective = InfoNCE(grid=None, steps=1, context=2, directions=4)
    objective.place(Site(0, 2, (3, 4, 4), (3, 4, 4), (3, 4, 4), (2,)))
    z = torch.randn(1, 4, 4, 3, requires_grad=True)
    whole = slice(None)
    ends = [((3, whole), (0, 0)), ((0, whole), (3, 0)), ((whole, 0), (0, 3)), ((whole, 3), (0, 0))]
    for direction, (far, near) in enumerate(ends):
        turns = (0, 2, 1, 3)[direction]
        context = objective.context_of(direction, z.rot90(turns, (1, 2)))[:, :3]
        (found,) = torch.autograd.grad(context.square().sum(), z)
        assert not found[(0, *far)].any(), direction
        assert found[(0, *near)].any(), direction


def test_four_directions_are_four_turned_grids() -> None:
    """The loss is the mean of the losses of one direction on the grid, turned, with the same
    weights."""
    site = Site(0, 2, (3, 4, 4), (3, 4, 4), (3, 4, 4), (2,))
    every, one = InfoNCE(None, 2, context=1, directions=4), InfoNCE(None, 2, context=1)
    every.place(site)
    one.place(site)
    h, y = torch.randn(5, 3, 4, 4), torch.zeros(5, dtype=torch.long)
    found = []
    for direction, turns in enumerate((0, 2, 1, 3)):
        one.contexts[0] = every.contexts[direction]
        one.predict_below = every.predict_below[2 * direction : 2 * direction + 2]
        found.append(one(Activity(h.rot90(turns, (2, 3))), Batch(h, y)))
    torch.testing.assert_close(every(Activity(h), Batch(h, y)), torch.stack(found).mean())


# ---------------------------------------------------------------- BarlowTwins


def test_barlow_twins_by_hand() -> None:
    """Four samples; the features of view 1 are (1, 1, -1, -1) and (1, -1, 1, -1), of view 2 the
    first again, and (1, -1, -1, 1). All have mean 0 and variance 1 (1.00001 with the epsilon).

        C = ((1, 0), (0, 0)),    L = 0 + 1 + lambda 0 = 1
        with the views' features exchanged in view 2: C = ((0, 1), (0, 0)), L = 1 + 1 + lambda
    """
    a = torch.tensor([1.0, 1, -1, -1], dtype=F64)
    b, c = torch.tensor([1.0, -1, 1, -1], dtype=F64), torch.tensor([1.0, -1, -1, 1], dtype=F64)
    first = torch.stack([a, b], 1)
    z, turned = (torch.cat([first, torch.stack(v, 1)]) for v in ((a, c), (c, a)))
    assert twins(z, 0.5).item() == pytest.approx(1, abs=1e-4)
    assert twins(turned, 0.5).item() == pytest.approx(2.5, abs=1e-4)
    assert twins(torch.cat([first, first]), 0.5).item() == pytest.approx(0, abs=1e-8)


def test_barlow_twins_is_lightlys() -> None:
    loss = pytest.importorskip("lightly.loss")
    z = torch.randn(16, 5, dtype=F64, requires_grad=True)
    theirs, ours = loss.BarlowTwinsLoss(0.02)(*z.chunk(2)), twins(z, 0.02)
    torch.testing.assert_close(ours, theirs)
    (a,), (b,) = torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_barlow_twins_reads_features_of_any_length() -> None:
    objective = BarlowTwins(heads.Projector(dim=3, layers=0, pool=None))
    objective.place(Site(0, 2, (4,), (4,), (4,), (2,)))
    assert [type(m).__name__ for m in objective.projector] == ["Linear"]
    with pytest.raises(InputError, match="at least 0"):
        BarlowTwins(redundancy=-1.0)


# ---------------------------------------------------------------- CLAPP


def _scaled(objective: CLAPP | CLAPP2D, x: Tensor) -> tuple[rules.Greedy, Tensor]:
    """A rule on two blocks, the first of which multiplies by V; and W."""
    parts = [nn.Conv2d(1, 1, 1, bias=False), nn.Sequential(nn.Flatten(), nn.LazyLinear(2))]
    blocks = Blocks([part.double() for part in parts], example=x[:1])
    rule = rules.Greedy(blocks, objective)
    local = rule.objectives[0]
    return rule, local.predict_below[0].weight if isinstance(local, CLAPP) else local.B.weight


@pytest.mark.parametrize(("W", "wanted"), [(0.1, (1.1, -1, -0.2)), (0.6, (1.6, 1, 1.2))])
def test_clapp_by_hand(W: float, wanted: tuple[float, float, float]) -> None:
    """One image of two rows, x = 1 above 2, and z = V x with V = 1. The row below is predicted; the
    only other patch is the first, so it is n: z = 2, n = 1, c = 1.

        W = 0.1:  L = (1 - 0.2) + (1 + 0.1) = 1.9;  dL/dW = -2 + 1 = -1
                  dL/dV = -W (x_z c + z x_c) + W (x_n c + n x_c) = -0.1 (2 + 2) + 0.1 (1 + 1) = -0.2
        W = 0.6:  2 W > 1, so the fixation is beyond the margin: L = 1.6, dL/dW = 1, dL/dV = 1.2
    """
    x = torch.tensor([[[[1.0], [2.0]]]], dtype=F64)
    rule, weight = _scaled(CLAPP(grid=None, steps=1), x)
    nn.init.ones_(rule.blocks[0].weight)
    nn.init.constant_(weight, W)
    report = rule.backward(x, torch.tensor([0]))
    loss = wanted[0] if W == 0.6 else wanted[0] + 0.8
    assert report.local_losses[0].item() == pytest.approx(loss, rel=1e-12)
    assert weight.grad.item() == pytest.approx(wanted[1], rel=1e-12)
    assert rule.blocks[0].weight.grad.item() == pytest.approx(wanted[2], rel=1e-12)


def test_clapp_is_a_local_rule() -> None:
    """Eq. 6 to 8: dL/dV is a sum over fixations and saccades of gate, lateral prediction, and
    activity before and after the synapse. One layer z = relu(V x)."""
    objective = CLAPP(grid=None, steps=1)
    objective.place(Site(0, 2, (3, 2, 1), (3, 2, 1), (2, 2, 1), (2,)))
    objective.double()
    V = torch.randn(3, 2, dtype=F64, requires_grad=True)
    x = torch.randn(2, 2, dtype=F64)  # rows, inputs
    z = (x @ V.T).relu()
    loss = objective(Activity(z.T[None, :, :, None]), Batch(x[None], torch.tensor([0])))
    (got,) = torch.autograd.grad(loss, V)
    W, (c, after), slope = objective.predict_below[0].weight, z.detach(), (x @ V.T > 0).double()
    wanted = torch.zeros_like(V)
    for sign, of, patch in ((1, 1, after), (-1, 0, c)):  # a fixation; a saccade to the first row
        gate = float(1 - sign * patch @ W @ c > 0)
        to_z, to_c = (W @ c) * slope[of], (W.T @ patch) * slope[0]
        wanted -= sign * gate * (torch.outer(to_z, x[of]) + torch.outer(to_c, x[0]))
    torch.testing.assert_close(got, wanted.detach())


def test_clapp_2d_by_hand() -> None:
    """Two images of one pixel, 1 and 3; second views 2 and 4; V = 1 and B = 0.1. The negative of
    image 1 is image 2, and the other way round.

        L = mean(1 - 0.2, max(0, 1 - 1.2)) + mean(1 + 0.6, 1 + 0.4) = 0.4 + 1.5
        dL/dB = (-2 + 0) / 2 + (6 + 4) / 2 = 4;  dL/dV, c without gradient: (-0.2 + 0) / 2
        + (3 0.2 + 1 0.4) / 2 = 0.4
    """
    x = torch.tensor([1.0, 3, 2, 4], dtype=F64).view(4, 1, 1, 1)
    rule, B = _scaled(CLAPP2D(pool=None), x)
    nn.init.ones_(rule.blocks[0].weight)
    nn.init.constant_(B, 0.1)
    report = rule.backward(x, torch.tensor([0, 1]))
    assert report.local_losses[0].item() == pytest.approx(1.9, rel=1e-12)
    assert B.grad.item() == pytest.approx(4, rel=1e-12)
    assert rule.blocks[0].weight.grad.item() == pytest.approx(0.4, rel=1e-12)


# ---------------------------------------------------------------- Distill


def _classifier(bias: tuple[float, float]) -> nn.Linear:
    """Class scores `bias`, whatever the input."""
    net = nn.Linear(1, 2).double()
    nn.init.zeros_(net.weight)
    net.bias.data = torch.tensor(bias, dtype=F64)
    return net


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distill_by_hand(temperature: float) -> None:
    """The teacher's scores are (tau log 3, 0), so its probabilities are (3/4, 1/4); the student's
    are (1/2, 1/2).

        L = tau^2 (3/4 log (3/2) + 1/4 log (1/2));    dL/db = tau ((1/2, 1/2) - (3/4, 1/4))
    """
    student = Blocks([_classifier((0, 0))], example=torch.zeros(1, 1, dtype=F64))
    teacher = _classifier((temperature * math.log(3), 0))
    rule = rules.Greedy(student, Distill(teacher, temperature=temperature))
    report = rule.backward(torch.ones(4, 1, dtype=F64), torch.tensor([0, 1, -100, 1]))
    loss = temperature**2 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert report.loss.item() == pytest.approx(loss, rel=1e-12)
    wanted = torch.tensor([-0.25, 0.25], dtype=F64) * temperature
    torch.testing.assert_close(student[0].bias.grad, wanted, rtol=1e-12, atol=0)
    assert teacher.bias.grad is None
    assert len(list(rule.parameters())) == 2


def test_a_student_that_equals_the_teacher_has_no_gradient() -> None:
    case = networks.plain_cnn(F64, blocks=1)
    net = case.blocks[0]
    rule = rules.Greedy(case.blocks, Distill(copy.deepcopy(net), temperature=3.0))
    report = rule.backward(case.x, case.y)
    assert report.loss.item() == 0
    assert all(g.abs().max() < 1e-15 for g in grads(rule).values())


def test_distill_on_unlabelled_samples_with_labels_for_the_others() -> None:
    """0.3 Classify + 0.7 Distill on samples without a label, on the last block's own output, is the
    sum of both on the parts of the batch."""
    case = networks.plain_cnn(F64)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(128, networks.CLASSES)).double().train()
    y = torch.tensor([0, -100, 2, -100, -100, 1])
    head = heads.Linear()
    both = 0.3 * Classify(head) + 0.7 * Distill(teacher, head, 2.0, unlabelled_only=True)
    rule = rules.Greedy(case.blocks, both)
    rule.backward(case.x, y)
    last = list(rule.blocks[2].parameters())
    got = [p.grad.clone() for p in last]
    labelled = y >= 0
    z = case.blocks(case.x)
    t = teacher(case.x)[~labelled].detach() / 2
    apart = nn.functional.kl_div(
        (z[~labelled] / 2).log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True
    )
    loss = 0.3 * nn.functional.cross_entropy(z[labelled], y[labelled]) + 0.7 * 4 * apart
    wanted = torch.autograd.grad(loss, last)
    assert_close(dict(enumerate(got)), dict(enumerate(wanted)), atol=1e-12)


def test_all_blocks_share_a_teacher_in_eval_mode() -> None:
    case, seen = networks.plain_cnn(), []

    class Teacher(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(self.training)
            return x.new_zeros(len(x), networks.CLASSES)

    rule = rules.Greedy(case.blocks, Distill(Teacher(), heads.Linear())).train()
    for _ in range(2):
        rule.backward(case.x, case.y)
    assert seen == [False, False]  # one pass for each step
    assert rule.exits(case.x)[0].shape == (len(case.x), networks.CLASSES)
    with pytest.raises(InputError, match="give a trained network"):
        Distill()
    with pytest.raises(InputError, match=r"Distill\(teacher=3\): give a network or null"):
        Distill(3)  # type: ignore[arg-type]
    other = Distill(nn.Sequential(nn.Flatten(), nn.Linear(128, 7)))
    with pytest.raises(InputError, match=r"class scores \(6, 7\)"):
        rules.Greedy(networks.plain_cnn(blocks=1).blocks, other).backward(case.x, case.y)


def test_images_without_labels() -> None:
    """They give no gradient of a supervised loss, and count in objectives without labels."""
    case = networks.plain_cnn(F64)
    y = torch.tensor([0, -100, 2, -100, -100, 1])
    found = []
    for make in (lambda: Classify(heads.Linear()), lambda: InfoNCE(grid=4, steps=1)):
        x = case.x.clone().requires_grad_()
        objective = rules.Greedy(networks.plain_cnn(F64).blocks, make()).objectives[0]
        objective(Activity(case.blocks[0](x)), Batch(x, y)).backward()
        found.append(x.grad.flatten(1).any(1))
    assert torch.equal(found[0], y >= 0)
    assert found[1].all()
