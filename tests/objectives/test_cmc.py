"""CMC: the equation, its pairs, the views it asks for, what it refuses."""

from __future__ import annotations

import math

import networks
import pytest
import torch
from networks import assert_close, assert_same, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Batch, Blocks, InputError, heads, rules
from layerwise.objectives import CMC, Activity, Rotation, Site
from layerwise.objectives.cmc import Part

PROJECTOR = heads.Projector(dim=4, width=5)


def _case(dtype: torch.dtype = torch.float64) -> networks.Case:
    parts: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh()),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 4 * 4, networks.CLASSES)),
    ]
    x, y = torch.randn(6, 3, 8, 8).to(dtype), torch.randint(networks.CLASSES, (6,))
    blocks = Blocks([part.to(dtype) for part in parts], example=x[:2])
    return networks.Case(blocks, x, y, True)


def test_parts_by_hand() -> None:
    """Of (1, 0, 0), (1, 1, 1) and (0.5, 0.25, 0): Y = 0.299, 1 and 0.29625."""
    x = torch.tensor([[1.0, 0, 0], [1, 1, 1], [0.5, 0.25, 0]], dtype=torch.float64)[
        :, :, None, None
    ]
    wanted = {
        "luminance": [[0.299] * 3, [1.0] * 3, [0.29625] * 3],
        "chrominance": [[-0.45, -1.333, 0.0], [0.0] * 3, [-0.44575, -0.3875, 0.0]],
        "green": [[0.0] * 3, [1.0] * 3, [0.25] * 3],
    }
    for name, rows in wanted.items():
        got = Part(name)(x)[:, :, 0, 0]
        torch.testing.assert_close(got, torch.tensor(rows, dtype=torch.float64), rtol=0, atol=1e-12)
    # What brightens all channels alike leaves the colours.
    torch.testing.assert_close(Part("chrominance")(x + 0.3), Part("chrominance")(x))


class _AsItIs(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h


def test_two_views_by_hand() -> None:
    """Two images; the first view's points at 0 and 90 degrees, the second's at 0 and 180;
    temperature 1. Similarities, row by row: (1, -1) and (0, 0).

        first finds second     log (1 + e^-2), log 2
        second finds first     log (1 + e^-1); -1 among (-1, 0): the right one is 0: log (1 + e^-1)

    and the sum of both directions' means.
    """

    def one(x: Tensor) -> Tensor:
        return x

    def other(x: Tensor) -> Tensor:
        return -x

    objective = CMC(lambda shape: _AsItIs(), 1.0, split=(one, other))  # type: ignore[arg-type]
    objective.place(Site(0, 2, (2,), (2,), (2,), (2,)))
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    batch = Batch(first, torch.tensor([0, 1]))
    activity = Activity(first, views={one: first, other: second})
    wanted = (math.log(1 + math.exp(-2)) + math.log(2)) / 2 + math.log(1 + math.exp(-1))
    assert objective(activity, batch).item() == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize(
    ("split", "core", "pairs"),
    [
        (("luminance", "chrominance"), None, [(0, 1)]),
        (("red", "green", "blue"), None, [(0, 1), (0, 2), (1, 2)]),
        (("red", "green", "blue", "luminance"), 1, [(0, 1), (1, 2), (1, 3)]),
    ],
)
def test_naive(split: tuple[str, ...], core: int | None, pairs: list[tuple[int, int]]) -> None:
    """One image and one view at a time; no BatchNorm, so the batch does not matter."""
    case = _case()
    rule = rules.Greedy(case.blocks, CMC(PROJECTOR, 0.2, split, core))
    report = rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    hs = [[Part(name)(x[None]) for x in case.x] for name in split]
    for i, block in enumerate(list(rule.blocks)[:-1]):
        hs = [[block(h.detach()) for h in view] for view in hs]
        objective = rule.objectives[i]
        z = [
            [project(h)[0] for h in view]
            for project, view in zip(objective.projectors, hs, strict=True)
        ]
        loss = torch.zeros((), dtype=torch.float64)
        for v, w in [*pairs, *((w, v) for v, w in pairs)]:
            for n in range(6):
                f = [torch.exp(z[v][n] @ z[w][m] / 0.2) for m in range(6)]
                loss = loss - torch.log(f[n] / sum(f)) / 6
        loss.backward()
        torch.testing.assert_close(report.local_losses[i], loss.detach(), rtol=1e-11, atol=0)
    wanted = grads(rule)
    assert_close({n: got[n] for n in wanted}, wanted, atol=1e-12)


def test_labels_and_later_blocks_are_not_read() -> None:
    def first_block(factor: float, shift: int) -> dict[str, Tensor]:
        torch.manual_seed(1)
        case = _case()
        rule = rules.Greedy(case.blocks, CMC(PROJECTOR))
        for p in rule.parameters_of(1):
            p.data.mul_(factor)
        rule.backward(case.x, (case.y + shift) % networks.CLASSES)
        return {n: g for n, g in grads(rule).items() if n.startswith(("blocks.0", "objectives.0"))}

    assert len(first_block(1.0, 0)) > 4
    assert_same(first_block(1.0, 0), first_block(3.0, 1))


def test_blocks_share_views_with_other_objectives() -> None:
    case = _case()
    rule = rules.Greedy(case.blocks, [CMC(PROJECTOR) + Rotation(turns=(0, 2)), CMC(PROJECTOR)])
    rows: list[int] = []
    for block in rule.blocks:
        block.register_forward_pre_hook(lambda _, h: rows.append(len(h[0])))
    rule.backward(case.x, case.y)
    assert rows == [4 * 6, 3 * 6, 6]


@pytest.mark.parametrize("way", ["plain", "bf16", "channels_last"])
def test_the_loss_falls(way: str) -> None:
    case = _case(torch.float32)
    rule = rules.Greedy(case.blocks, CMC())
    losses = networks.losses_of_training(rule, case.x, case.y, way)
    assert (losses[-1] < losses[0]).all()


def test_bf16_similarities_are_not_rounded() -> None:
    case = _case(torch.float32)
    rule = rules.Greedy(case.blocks, CMC())
    z = F.normalize(torch.randn(6, 8), dim=1)
    objective = rule.objectives[0]
    objective.projectors = nn.ModuleList([_AsItIs(), _AsItIs()])
    batch, activity = Batch(case.x, case.y), Activity(z, views=dict.fromkeys(objective.views, z))
    plain = objective(activity, batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(objective(activity, batch), plain)


REFUSED = {
    "one": (lambda: CMC(split=("red",)), "give two or more different views"),
    "twice": (lambda: CMC(split=("red", "red")), "give two or more different views"),
    "unknown": (lambda: CMC(split=("luminanc", "red")), "did you mean 'luminance'"),
    "core": (lambda: CMC(core=2), r"CMC\(core=2\): give the number of a view, 0 to 1"),
    "temperature": (lambda: CMC(temperature=0), r"CMC\(temperature=0\): give more than 0"),
    "the class": (lambda: CMC(heads.Projector), r"give a recipe: Projector\(\)"),
    "grey": (
        lambda: CMC().place(Site(0, 2, (6, 8, 8), (6, 8, 8), (1, 8, 8), (3,))),
        r"the network takes \(1, 8, 8\) .* which has no luminance; give images \(3, H, W\)",
    ),
}


@pytest.mark.parametrize("asked", REFUSED)
def test_refusals_are_one_line(asked: str) -> None:
    call, message = REFUSED[asked]
    with pytest.raises(InputError, match=message) as e:
        call()
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 250
