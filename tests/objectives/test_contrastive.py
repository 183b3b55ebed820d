"""SupervisedContrastive, NTXent, InfoNCE: their equations, by hand, naively, by other libraries."""

from __future__ import annotations

import math

import networks
import pytest
import torch
from networks import assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Batch, Blocks, InputError, cut, heads, models, rules
from layerwise.objectives import (
    CLAPP,
    CLAPP2D,
    Activity,
    BarlowTwins,
    InfoNCE,
    NTXent,
    Site,
    SupervisedContrastive,
)
from layerwise.objectives.contrast import contrast, matched

PROJECTOR = heads.Projector(dim=4, width=5)


def _on_circle(*degrees: float) -> Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angle.cos(), angle.sin()], 1)


def naive(z: Tensor, group: list[int], temperature: float) -> Tensor:
    """Khosla et al. 2020, eq. 2, point by point."""
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        friends = [p for p in others if group[p] == group[i]]
        if not friends:
            continue
        total = sum(torch.exp(z[i] @ z[a] / temperature) for a in others)
        log_p = [torch.log(torch.exp(z[i] @ z[p] / temperature) / total) for p in friends]
        losses.append(-sum(log_p) / len(friends))
    return sum(losses) / len(losses)


def test_contrast_by_hand() -> None:
    """Points at 0, 60 and 180 degrees; similarities 1/2 (0, 1), -1 (0, 2), -1/2 (1, 2). The first
    two are one group, temperature 1/2:

        point 0    -log (e^1 / (e^1 + e^-2)) = log (1 + e^-3)
        point 1    -log (e^1 / (e^1 + e^-1)) = log (1 + e^-2)
        point 2    has no other of its group, and is left out of the mean
    """
    z = _on_circle(0, 60, 180)
    got = contrast(z, torch.tensor([0, 0, 1]), 0.5)
    wanted = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(-2))) / 2
    assert got.item() == pytest.approx(wanted, rel=1e-14)
    assert contrast(z, torch.arange(3), 0.5).item() == 0.0


def test_matched_by_hand() -> None:
    """Similarities of (0, 90) with (0, 90) degrees are 1 and 0: log (1 + e^-1/tau)."""
    got = matched(_on_circle(0, 90), _on_circle(0, 90), 0.5)
    assert got.item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-14)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_contrast_is_the_equation(temperature: float) -> None:
    group = [0, 1, 0, 2, 1, 0, 3]
    z = F.normalize(torch.randn(7, 3, dtype=torch.float64), dim=1).requires_grad_()
    (wanted,) = torch.autograd.grad(naive(z, group, temperature), z)
    (got,) = torch.autograd.grad(contrast(z, torch.tensor(group), temperature), z)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)


def test_a_low_temperature_is_finite() -> None:
    """exp(1 / 0.001) would not be."""
    z = F.normalize(torch.randn(8, 3), dim=1).requires_grad_()
    loss = contrast(z, torch.arange(4).repeat(2), 0.001)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("views", [1, 2, 3])
def test_supervised_contrastive_is_naive(views: int) -> None:
    """On the outputs of every block, one sample at a time; and what the gradient of that is."""
    case = networks.plain_cnn(torch.float64)
    rule = rules.Greedy(case.blocks, SupervisedContrastive(PROJECTOR, temperature=0.2))
    y = torch.tensor([0, 1, 0, 2, 1, 0])
    x = torch.randn(views * 6, *case.x.shape[1:], dtype=torch.float64)
    report = rule.backward(x, y)
    got = grads(rule)
    rule.zero_grad()
    _naively(rule, x, [*y.tolist()] * views, report, 0.2)
    wanted = grads(rule)
    assert_close({n: got[n] for n in wanted}, wanted, atol=1e-12)


@pytest.mark.parametrize("views", [2, 3])
def test_nt_xent_is_naive(views: int) -> None:
    case = networks.plain_cnn(torch.float64)
    rule = rules.Greedy(case.blocks, NTXent(PROJECTOR))
    x = torch.randn(views * 6, *case.x.shape[1:], dtype=torch.float64)
    report = rule.backward(x, case.y)
    got = grads(rule)
    rule.zero_grad()
    _naively(rule, x, list(range(6)) * views, report, 0.5)
    wanted = grads(rule)
    assert_close({n: got[n] for n in wanted}, wanted, atol=1e-12)


def _naively(rule: rules.Greedy, x: Tensor, group: list[int], report, temperature: float) -> None:
    hs = list(x[:, None])
    for i, block in enumerate(list(rule.blocks)[:-1]):
        hs = [block(h.detach()) for h in hs]
        z = torch.cat([rule.objectives[i].projector(h) for h in hs])
        loss = naive(z, group, temperature)
        torch.testing.assert_close(report.local_losses[i], loss.detach(), rtol=1e-11, atol=0)
        loss.backward()


def _apart(z: Tensor) -> tuple[Tensor, ...]:
    return tuple(z.chunk(2))


def test_nt_xent_is_lightlys() -> None:
    loss = pytest.importorskip("lightly.loss")
    z = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    theirs = loss.NTXentLoss(temperature=0.3)(*z.chunk(2))
    ours = contrast(F.normalize(z, dim=1), torch.arange(6).repeat(2), 0.3)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    (a,), (b,) = torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["SupConLoss", "NTXentLoss"])
def test_pytorch_metric_learnings(name: str) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    group = torch.arange(6).repeat(2) // (2 if name == "SupConLoss" else 1)
    theirs = getattr(losses, name)(temperature=0.3)(z, group)
    ours = contrast(F.normalize(z, dim=1), group, 0.3)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    (a,), (b,) = torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


# ---------------------------------------------------------------- InfoNCE


def _info_nce(steps: int, skip: int, negatives: int | None = None, grid: int | None = 4) -> tuple:
    case = networks.plain_cnn(torch.float64)
    rule = rules.Greedy(case.blocks, InfoNCE(grid, steps, skip, negatives))
    return case, rule


def test_info_nce_by_hand() -> None:
    """One image of two rows and one column: block x -> a x with a = 1 gives z = 1 and 2; W_1 = 1/2.
    The row below row 0 is predicted, told apart from row 0 itself: log f is z W z_0 = 1 for the
    right one and 1/2 for the other.

        loss = log (1 + e^-1/2);    with q = 1 / (1 + e^1/2), d loss / d log f = -q, q
        d/dW = -q 2 1 + q 1 1 = -q;  d/da: log f = a^2 2 W and a^2 W: -q 2 + q = -q
    """
    parts = [nn.Conv2d(1, 1, 1, bias=False), nn.Sequential(nn.Flatten(), nn.Linear(2, 2))]
    x = torch.tensor([[[[1.0], [2.0]]]], dtype=torch.float64)
    blocks = Blocks([part.double() for part in parts], example=x)
    rule = rules.Greedy(blocks, InfoNCE(grid=None, steps=1))
    nn.init.ones_(blocks[0].weight)
    W = rule.objectives[0].predict_below[0].weight
    nn.init.constant_(W, 0.5)
    report = rule.backward(x, torch.tensor([0]))
    q = 1 / (1 + math.exp(0.5))
    assert report.local_losses[0].item() == pytest.approx(math.log(1 + math.exp(-0.5)), rel=1e-14)
    assert W.grad.item() == pytest.approx(-q, rel=1e-13)
    assert blocks[0].weight.grad.item() == pytest.approx(-q, rel=1e-13)


@pytest.mark.parametrize(("steps", "skip"), [(1, 0), (3, 0), (3, 1)])
def test_info_nce_is_naive(steps: int, skip: int) -> None:
    """Löwe et al. 2019, eq. 4 and 5, patch by patch; 8x8 positions averaged two by two."""
    case, rule = _info_nce(steps, skip)
    report = rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    h = case.x
    for i, block in enumerate(list(rule.blocks)[:-1]):
        h = block(h.detach())
        side = h.shape[-1] // 4
        z = {
            (b, r, c): h[b, :, side * r : side * (r + 1), side * c : side * (c + 1)].mean((1, 2))
            for b in range(len(h))
            for r in range(4)
            for c in range(4)
        }
        of_k = []
        for k, W in zip(range(skip + 1, steps + 1), rule.objectives[i].predict_below, strict=True):
            losses = []
            for (b, r, c), context in z.items():
                if r + k < 4:
                    f = {at: torch.exp(patch @ (W.weight @ context)) for at, patch in z.items()}
                    losses.append(-torch.log(f[b, r + k, c] / sum(f.values())))
            of_k.append(torch.stack(losses).mean())
        loss = torch.stack(of_k).mean()
        torch.testing.assert_close(report.local_losses[i], loss.detach(), rtol=1e-10, atol=0)
        loss.backward()
    wanted = grads(rule)
    assert_close({n: got[n] for n in wanted}, wanted, atol=1e-11)


def test_drawn_negatives() -> None:
    """As many as there are, drawn: never the patch itself, all others alike. With equal f of all,
    the loss is the logarithm of how many there are to choose from."""
    case, rule = _info_nce(1, 0, negatives=7)
    for objective in list(rule.objectives.children())[:-1]:
        nn.init.zeros_(objective.predict_below[0].weight)
    report = rule.backward(case.x, case.y)
    assert report.local_losses[0].item() == pytest.approx(math.log(8), rel=1e-12)

    objective = InfoNCE(negatives=50_000)
    patches = torch.eye(4, dtype=torch.float64)
    # log f is nought but for the right patch and patch 3: their logarithm counts how often.
    loss = objective.told_apart(
        torch.tensor([[0.0, 50.0, 0.0, 40.0]], dtype=torch.float64), patches, torch.tensor([1])
    )
    share = (math.exp(loss.item()) - 1) * math.exp(10) / 50_000
    assert share == pytest.approx(1 / 3, abs=0.01)  # a third of the draws; deviation 0.002


def test_negatives_are_drawn_from_the_trainers_numbers() -> None:
    def once(seed: int) -> Tensor:
        torch.manual_seed(0)
        case, rule = _info_nce(2, 0, negatives=3)
        torch.manual_seed(seed)
        return rule.backward(case.x, case.y).local_losses[0]

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))


# ---------------------------------------------------------------- all of them

ALL = {
    "SupervisedContrastive": (lambda: SupervisedContrastive(PROJECTOR, 0.5), 1),
    "SupervisedContrastive, two views": (lambda: SupervisedContrastive(PROJECTOR, 0.5), 2),
    "NTXent": (lambda: NTXent(PROJECTOR), 2),
    "InfoNCE": (lambda: InfoNCE(grid=4, steps=2), 1),
    "InfoNCE, drawn": (lambda: InfoNCE(grid=4, steps=2, negatives=5), 1),
    "InfoNCE, context": (lambda: InfoNCE(grid=4, steps=2, context=2, directions=4), 1),
    "CLAPP": (lambda: CLAPP(grid=4, steps=2), 1),
    "CLAPP2D": (CLAPP2D, 2),
    "BarlowTwins": (lambda: BarlowTwins(PROJECTOR), 2),
}


@pytest.mark.parametrize("name", ALL)
def test_isolation(name: str) -> None:
    """Block 0's gradient does not depend on block 1."""
    make, views = ALL[name]

    def first_block(factor: float) -> dict[str, Tensor]:
        torch.manual_seed(1)
        case = networks.plain_cnn()
        rule = rules.Greedy(case.blocks, make())
        for p in rule.parameters_of(1):
            p.data.mul_(factor)
        x = torch.randn(views * 6, *case.x.shape[1:])
        torch.manual_seed(2)
        rule.backward(x, case.y)
        return {n: g for n, g in grads(rule).items() if n.startswith(("blocks.0", "objectives.0"))}

    assert len(first_block(1.0)) > 1
    assert_same(first_block(1.0), first_block(3.0))


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("Supervised")])
def test_labels_are_not_read(name: str) -> None:
    make, views = ALL[name]
    case = networks.plain_cnn()
    rule = rules.Greedy(case.blocks, make())
    x = torch.randn(views * 6, *case.x.shape[1:])
    found = []
    for y in (case.y, (case.y + 1) % networks.CLASSES):
        rule.zero_grad()
        torch.manual_seed(3)
        report = rule.backward(x, y)
        found.append({n: g for n, g in grads(rule).items() if not n.startswith("blocks.2.")})
        assert report.local_logits[:-1] == (None, None)
    assert_same(*found)


@pytest.mark.parametrize("way", ["plain", "bf16", "channels_last"])
@pytest.mark.parametrize("name", [name for name in ALL if name != "CLAPP"])  # images are noise
def test_the_loss_falls(name: str, way: str) -> None:
    make, views = ALL[name]
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) // 4
    x = torch.cat([x] + [x + 0.1 * torch.randn_like(x)] * (views - 1))
    blocks = cut(models.vgg8c((3, 16, 16), width=0.125, hidden=32), at=["conv2", "fc"], example=x)
    objective = make()
    if hasattr(objective, "recipe"):
        objective.recipe = heads.Projector()  # so small a one as the others' soon gives one point
    rule = rules.Greedy(blocks, [objective, SupervisedContrastive(temperature=0.5)])
    losses = networks.losses_of_training(rule, x, y, way)
    assert (losses[-1] < losses[0]).all()
    assert all(loss.dtype == torch.float32 for loss in losses)


@pytest.mark.parametrize("name", ["SupervisedContrastive, two views", "NTXent", "InfoNCE"])
def test_autocast_is_near_float32(name: str) -> None:
    """Similarities, and what is divided by the temperature, are not rounded to 8 bits."""
    make, views = ALL[name]
    objective = make()
    objective.place(Site(0, 2, (8, 8, 8), (8, 8, 8), (3, 8, 8), (3,)))
    y = torch.randint(3, (6,))
    h = torch.randn(views * 6, 8, 8, 8)
    batch, activity = Batch(h, y), Activity(h[:6], augmented=h.unflatten(0, (views, 6)))
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(objective(activity, batch))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)
    assert losses[1].dtype == torch.float32


def test_projector() -> None:
    """By hand: length 1; and the equation of its layers."""
    projector = heads.Projector(dim=3, layers=1, width=4, pool=None)((6,)).double()
    h = torch.randn(5, 6, dtype=torch.float64)
    first, _, second, _ = projector
    wanted = second(first(h).relu())
    wanted = wanted / wanted.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(projector(h), wanted, rtol=1e-12, atol=1e-12)
    linear = heads.Projector(layers=0, pool=1)((6, 4, 4))
    assert [type(m).__name__ for m in linear] == [
        "MeanPool2d",
        "Flatten",
        "Linear",
        "Normalized",
    ]
    assert heads.Projector()((10, 7)) is not None  # tokens
    with torch.autocast("cpu", torch.bfloat16):
        assert projector.float()(h.float()).dtype == torch.float32


REFUSED = {
    "temperature": (
        lambda: NTXent(temperature=0.0),
        r"NTXent\(temperature=0.0\): give more than 0",
    ),
    "temperature of the other": (
        lambda: SupervisedContrastive(temperature=-1.0),
        r"SupervisedContrastive\(temperature=-1.0\)",
    ),
    "the class": (lambda: NTXent(heads.Projector), r"give a recipe: Projector\(\)"),
    "skip": (lambda: InfoNCE(steps=1, skip=1), r"InfoNCE\(skip=1, steps=1\): give 0 <= skip"),
    "no step": (lambda: InfoNCE(steps=0), r"InfoNCE\(steps=0\): give at least 1"),
    "dim": (lambda: heads.Projector(dim=0), r"heads.Projector\(dim=0\): give at least 1"),
    "vectors": (
        lambda: InfoNCE().place(Site(0, 2, (7,), (7,), (3, 8, 8), (3,))),
        r"InfoNCE: a block gives \(7,\) .* not feature maps",
    ),
    "tokens": (
        lambda: SupervisedContrastive().place(Site(0, 2, (4, 7), (4, 7), (4,), (4, 3))),
        r"SupervisedContrastive: the network gives \(4, 3\) for each sample",
    ),
    "few rows": (
        lambda: InfoNCE(steps=4).place(Site(1, 3, (5, 8, 8), (5, 8, 8), (3, 8, 8), (3,))),
        r"InfoNCE\(grid=4, steps=4\): block 1 gives 8 rows, a grid of 4, .* at most 3 steps",
    ),
    "one view": (
        lambda: rules.Greedy((case := networks.mlp()).blocks, NTXent()).backward(case.x, case.y),
        r"NTXent: got 1 view of every sample, but compares 2; give --views 2, in Python data",
    ),
}


@pytest.mark.parametrize("asked", REFUSED)
def test_refusals_are_one_line(asked: str) -> None:
    call, message = REFUSED[asked]
    with pytest.raises(InputError, match=message) as e:
        call()
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 250
