"""Rotation: the equation, the views it asks for, what it refuses."""

from __future__ import annotations

import math

import networks
import pytest
import torch
from networks import assert_close, assert_same, grads
from torch import Tensor, nn

from layerwise import Blocks, InputError, cut, heads, models, rules
from layerwise.objectives import Classify, Rotation, Site
from layerwise.objectives.rotation import Turned


def test_turned_counter_clockwise() -> None:
    x = torch.tensor([[[[1, 2], [3, 4]]]])
    assert Turned(1)(x)[0, 0].tolist() == [[2, 4], [1, 3]]
    assert Turned(2)(x)[0, 0].tolist() == [[4, 3], [2, 1]]
    assert Turned(3)(x)[0, 0].tolist() == [[3, 1], [4, 2]]
    assert Turned(1) == Turned(1) != Turned(2)
    assert len({Turned(1), Turned(1), Turned(2)}) == 2


def test_one_step_by_hand() -> None:
    """x = [[1, 2], [3, 4]] and half a turn of it, [[4, 3], [2, 1]]. The block gives a = 1 times the
    pixels; the head scores 0 for no turn and s = w . pixels, w = (1, 0, 0, 0), for half a turn:
    s = 1 and 4.

        loss    (log(1 + e^1) + log(1 + e^-4)) / 2
        d/ds    p / 2 for the image as it is, -(1 - q) / 2 for the turned one, p = sigmoid(1),
                q = sigmoid(4)
        d/dw    the sum over both of d/ds times the pixels; d/da the sum of d/ds times s
    """
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)
    parts = [nn.Conv2d(1, 1, 1, bias=False), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))]
    blocks = Blocks([part.double() for part in parts], example=x)
    rule = rules.Greedy(blocks, Rotation(heads.Linear(pool=None), turns=(0, 2)))
    nn.init.ones_(rule.blocks[0].weight)  # type: ignore[arg-type]
    linear = rule.objectives[0].head[-1]
    nn.init.zeros_(linear.bias)
    linear.weight.data = torch.tensor([[0.0] * 4, [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    report = rule.backward(x, torch.tensor([0]))

    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-4))
    loss = (math.log(1 + math.e) + math.log(1 + math.exp(-4))) / 2
    as_it_is, turned = p / 2, -(1 - q) / 2
    assert report.local_losses[0].item() == pytest.approx(loss, rel=1e-14)
    assert rule.blocks[0].weight.grad.item() == pytest.approx(as_it_is + 4 * turned, rel=1e-13)
    w = [as_it_is * a + turned * b for a, b in zip((1, 2, 3, 4), (4, 3, 2, 1), strict=True)]
    assert linear.weight.grad[1].tolist() == pytest.approx(w, rel=1e-13)
    assert report.local_logits[0] is None  # it tells no classes


@pytest.mark.parametrize("turns", [(0, 1, 2, 3), (0, 2), (0, 3, 1)])
def test_naive(turns: tuple[int, ...]) -> None:
    """One image and one rotation at a time; no BatchNorm, so the batch does not matter."""
    case = networks.plain_cnn(torch.float64)
    rule = rules.Greedy(case.blocks, Rotation(heads.MLP(width=7), turns))
    report = rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()

    hs = {(n, q): Turned(q)(x[None]) for n, x in enumerate(case.x) for q in turns}
    for i, block in enumerate(list(rule.blocks)[:-1]):
        loss = torch.zeros((), dtype=torch.float64)
        for (n, q), h in hs.items():
            hs[n, q] = block(h.detach())
            log_p = rule.objectives[i].head(hs[n, q])[0].log_softmax(0)
            loss = loss - log_p[turns.index(q)] / len(hs)
        loss.backward()
        torch.testing.assert_close(report.local_losses[i], loss.detach(), rtol=1e-13, atol=0)
    wanted = grads(rule)
    assert_close({n: got[n] for n in wanted}, wanted, atol=1e-14)


def test_labels_are_not_read() -> None:
    case = networks.cnn()
    rule = rules.Greedy(case.blocks, Rotation())
    rule.eval()
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    rule.backward(case.x, (case.y + 1) % networks.CLASSES)
    again = grads(rule)
    own = [n for n in got if not n.startswith("blocks.3.")]
    assert_same({n: got[n] for n in own}, {n: again[n] for n in own})
    assert rule.exits(case.x)[:-1] == (None, None, None)


def test_isolation() -> None:
    """Block 0's gradient does not depend on block 1, which sees the same views."""

    def first_block(factor: float) -> dict[str, Tensor]:
        torch.manual_seed(1)
        case = networks.cnn()
        rule = rules.Greedy(case.blocks, Rotation())
        for p in rule.parameters_of(1):
            p.data.mul_(factor)
        rule.backward(case.x, case.y)
        return {n: g for n, g in grads(rule).items() if n.startswith(("blocks.0", "objectives.0"))}

    assert first_block(1.0)
    assert_same(first_block(1.0), first_block(3.0))


def test_blocks_share_their_views() -> None:
    """Each block runs once, on as many rows as are asked for at it or after it."""
    case = networks.plain_cnn(blocks=3)
    given = [Rotation(), Rotation(turns=(0, 2)), Classify()]
    rule = rules.Greedy(case.blocks, given)
    rows: list[int] = []
    for block in rule.blocks:
        block.register_forward_pre_hook(lambda _, h: rows.append(len(h[0])))
    rule.backward(case.x, case.y)
    assert rows == [4 * 6, 2 * 6, 6]


def test_state_dict() -> None:
    case = networks.plain_cnn()
    one, other = (rules.Greedy(networks.plain_cnn().blocks, Rotation()) for _ in range(2))
    other.load_state_dict(one.state_dict())
    one.backward(case.x, case.y)
    other.backward(case.x, case.y)
    assert_same(grads(one), grads(other))


@pytest.mark.parametrize("way", ["plain", "bf16", "channels_last"])
def test_the_loss_falls(way: str) -> None:
    x, y = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    model = models.vgg8c((3, 16, 16), width=0.125, hidden=32)
    blocks = cut(model, at=["conv3", "fc"], example=x)
    rule = rules.Greedy(blocks, 0.5 * Classify(heads.MLP()) + 0.5 * Rotation(heads.Conv()))
    losses = networks.losses_of_training(rule, x, y, way)
    assert (losses[-1] < losses[0]).all()


def _site(*input_shape: int) -> Site:
    return Site(0, 2, (6,), (6,), input_shape, (3,))


def test_half_turns_of_any_image() -> None:
    objective = Rotation(turns=(0, 2))
    objective.place(_site(3, 4, 8))
    assert objective.views == (Turned(2),)


def _built_twice() -> None:
    objective = Rotation()
    for _ in range(2):
        objective.place(_site(3, 8, 8))


REFUSED = {
    **{
        f"turns {turns}": (
            lambda turns=turns: Rotation(turns=turns),
            r"Rotation\(turns=.*\): give at least two different numbers .* 0 first",
        )
        for turns in [(), (0,), (1, 2), (1, 0), (0, 0), (0, 1, 1), (0, 4), (0, -1)]
    },
    "the class": (
        lambda: Rotation(heads.MLP),  # type: ignore[arg-type]
        r"Rotation\(head=\.\.\.\): got the class MLP; give a recipe: MLP\(\)",
    ),
    "no image": (
        lambda: Rotation().place(_site(7, 5)),
        r"Rotation: the network takes \(7, 5\) .* not an image \(C, H, W\)",
    ),
    "not square": (
        lambda: Rotation().place(_site(3, 4, 8)),
        r"Rotation\(turns=\(0, 1, 2, 3\)\): the network takes 4x8 .* give turns=\(0, 2\)",
    ),
    "two rules": (_built_twice, r"Rotation: this objective already has its auxiliary network"),
}


@pytest.mark.parametrize("asked", REFUSED)
def test_refusals_are_one_line(asked: str) -> None:
    call, message = REFUSED[asked]
    with pytest.raises(InputError, match=message) as e:
        call()
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 250
