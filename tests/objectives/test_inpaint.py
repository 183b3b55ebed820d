"""Inpaint: holes that are the same everywhere, the masked loss, what it refuses."""

from __future__ import annotations

import networks
import pytest
import torch
from networks import assert_same, grads
from torch import Tensor, nn

from layerwise import Batch, Blocks, InputError, cut, heads, models, rules
from layerwise.objectives import Activity, Inpaint, Site
from layerwise.objectives.inpaint import Holes, _drawn
from layerwise.report.pictures import reconstructions


def pixelwise(in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
    return nn.Conv2d(in_shape[0], out_shape[0], 1)


def test_the_middle() -> None:
    x = torch.ones(1, 1, 4, 6)
    assert Holes()(x)[0, 0].tolist() == [
        [1, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 1, 1],
        [1, 0, 0, 0, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]
    assert Holes() == Holes() != Holes(4)


def test_one_step_by_hand() -> None:
    """4x4 pixels of 1, the middle 2x2 of 3. The block passes on a = 1 times the pixels, so 0 in the
    hole; the decoder adds c = 1 to d = 2 times them: 1 in the hole, 3 elsewhere, which nobody asks.

        loss    mean over the hole of (3 - 1)^2 = 4;  d/dc = -2 (3 - 1) = -4;  d/dd = d/da = 0
    """
    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    x[..., 1:3, 1:3] = 3
    parts = [nn.Conv2d(1, 1, 1, bias=False), nn.Sequential(nn.Flatten(), nn.Linear(16, 2))]
    rule = rules.Greedy(Blocks([p.double() for p in parts], example=x), Inpaint(pixelwise))  # type: ignore
    nn.init.ones_(rule.blocks[0].weight)  # type: ignore[arg-type]
    decoder = rule.objectives[0].decoder
    nn.init.constant_(decoder.weight, 2)
    nn.init.constant_(decoder.bias, 1)
    report = rule.backward(x, torch.tensor([0]))
    assert report.local_losses[0].item() == 4
    assert decoder.bias.grad.item() == -4
    assert decoder.weight.grad.item() == rule.blocks[0].weight.grad.item() == 0
    target, shown = reconstructions(rule, x, torch.tensor([0]))[0]
    assert torch.equal(target, x)
    assert torch.equal(shown, torch.ones_like(x))


@pytest.mark.parametrize("region", ["center", "random"])
def test_naive(region: str) -> None:
    """Pixel by pixel, on a network without BatchNorm."""
    x, y = torch.randn(3, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2])
    block = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh())
    last = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    blocks = Blocks([block.double(), last.double()], example=x)
    rule = rules.Greedy(blocks, Inpaint(pixelwise, region))  # type: ignore[arg-type]
    report = rule.backward(x, y)
    objective = rule.objectives[0]
    mask = objective.holes.mask(x)
    with torch.no_grad():
        output = objective.decoder(block(x * ~mask))
    errors = [
        ((x[n, c, i, j] - output[n, c, i, j]) ** 2).item()
        for n in range(3)
        for c in range(2)
        for i in range(8)
        for j in range(8)
        if mask[n, 0, i, j]
    ]
    assert report.local_losses[0].item() == pytest.approx(sum(errors) / len(errors), rel=1e-12)


def test_holes_depend_on_the_image_alone() -> None:
    """Not on the batch around it, its memory format, the random state, or who asks."""
    x = torch.randn(16, 3, 16, 16)
    masks = Holes(3).mask(x)
    torch.manual_seed(99)
    assert torch.equal(Holes(3).mask(x.contiguous(memory_format=torch.channels_last)), masks)
    assert torch.equal(Holes(3).mask(x[5:7]), masks[5:7])
    assert torch.equal(Holes(3).mask(x.flip(0)), masks.flip(0))
    assert not torch.equal(Holes(3).mask(x.flip(3)), masks)


def test_holes_lie_anywhere() -> None:
    """Squares of a quarter of the side, 1 to `number` of them in area; every pixel has its turn."""
    masks = Holes(2).mask(torch.randn(400, 1, 8, 8))
    area = masks.sum((1, 2, 3))
    assert area.min() >= 4
    assert area.max() == 8
    share = masks.float().mean(0)[0]
    assert share.min() > 0
    assert share[0, 0] < share[3, 3]  # a corner lies in one place's square alone
    drawn = _drawn(torch.randn(2000, 1, 4, 4), 2) % 7
    counts = torch.stack([(drawn == k).sum(0) for k in range(7)])
    assert (counts - 2000 / 7).abs().max() < 80  # 5 standard deviations of a fair draw
    both = (drawn[:, 0] * 7 + drawn[:, 1]).bincount(minlength=49)
    assert (both - 2000 / 49).abs().max() < 33


def test_blocks_share_the_view_and_the_mask() -> None:
    case = networks.plain_cnn()
    rule = rules.Greedy(case.blocks, Inpaint(region="random"))
    rows: list[int] = []
    for block in rule.blocks:
        block.register_forward_pre_hook(lambda _, h: rows.append(len(h[0])))
    rule.backward(case.x, case.y)
    assert rows == [12, 12, 6]


def _of_block_1(rule: rules.Greedy) -> dict[str, Tensor]:
    found = grads(rule).items()
    return {n: g for n, g in found if n.startswith(("blocks.1.", "objectives.1."))}


def test_a_stage_alone_finds_the_same_holes() -> None:
    """Block 1 trained from block 0's output and a batch of its own, as in another process, with
    other random numbers drawn between: the gradient of the serial loop, bit for bit."""
    case = networks.plain_cnn()
    rule = rules.Greedy(case.blocks, Inpaint(region="random"))
    rule.backward(case.x, case.y)
    wanted = _of_block_1(rule)
    rule.zero_grad()
    first, second = Batch(case.x, case.y), Batch(case.x.clone(), case.y)
    for batch in (first, second):
        batch.passes = rule.blocks.passes(batch.x)
    done = rule.local_step(0, rule.first_input(first), first)
    torch.rand(100)
    rule.local_step(1, done.out, second)
    got = _of_block_1(rule)
    assert_same(got, wanted)
    assert wanted


def test_smaller_output_averages_image_and_holes() -> None:
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    objective = Inpaint(heads.Same())
    objective.place(Site(0, 2, (4, 4, 4), (4, 4, 4), (1, 8, 8), (3,)))
    objective.double()
    batch = Batch(x, torch.tensor([0, 1]))
    activity = Activity(x, views={Holes(): torch.randn(2, 4, 4, 4).double()})
    target, mask, output = objective._decoded(activity, batch)
    assert output.shape == target.shape == (2, 1, 4, 4)
    torch.testing.assert_close(target, x.view(2, 1, 4, 2, 4, 2).mean((3, 5)))
    wanted = ((target - output)[:, :, 1:3, 1:3]).square().mean()  # the middle of both
    assert mask.sum() == 8
    torch.testing.assert_close(objective(activity, batch), wanted)


def _site(*input_shape: int) -> Site:
    return Site(0, 2, (6,), (6,), input_shape, (3,))


REFUSED = {
    "region": (lambda: Inpaint(region="left"), r"Inpaint\(region='left'\): .*center"),  # type: ignore
    "holes": (lambda: Inpaint(region="random", holes=0), r"Inpaint\(holes=0\): give at least 1"),
    "no image": (lambda: Inpaint().place(_site(7, 5)), r"\(7, 5\) .* not an image \(C, H, W\)"),
    "the class": (lambda: Inpaint(heads.Same), r"got the class Same; give a recipe"),  # type: ignore
}


@pytest.mark.parametrize("asked", REFUSED)
def test_refusals_are_one_line(asked: str) -> None:
    call, message = REFUSED[asked]
    with pytest.raises(InputError, match=message) as e:
        call()
    assert "\n" not in str(e.value)


def test_the_loss_reads_no_pixels_outside() -> None:
    x: Tensor = torch.randn(4, 3, 16, 16)
    model = models.vgg8c((3, 16, 16), width=0.125, hidden=32)
    rule = rules.Greedy(cut(model, at=["conv3", "fc"], example=x), Inpaint())
    mask = Holes().mask(x)
    assert mask.float().mean() == 0.25
    changed = Batch(torch.where(mask, x, x + 1), torch.zeros(4, dtype=torch.long))
    batch = Batch(x, changed.labels)
    batch.passes = rule.blocks.passes(x)
    _, activity = rule.run(0, rule.first_input(batch), batch)
    objective = rule.objectives[0].eval()
    assert torch.equal(objective(activity, batch), objective(activity, changed))
