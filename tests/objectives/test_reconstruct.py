"""Reconstruct: the equation, what it reads, what it refuses."""

from __future__ import annotations

import math

import networks
import pytest
import torch
from networks import assert_close, assert_same, grads
from torch import Tensor, nn

from layerwise import Batch, Blocks, InputError, cut, heads, models, rules
from layerwise.heads import Bilinear, Decoder, Same, Transposed
from layerwise.objectives import Activity, Classify, Normalization, Reconstruct, Site
from layerwise.report.pictures import reconstructions


def pixelwise(in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
    """The smallest decoder: a 1x1 convolution without bias."""
    return nn.Conv2d(in_shape[0], out_shape[0], 1, bias=False)


def _tiny(**options: object) -> tuple[rules.Greedy, Tensor]:
    """x = [[1, 2], [3, 4]]; the block doubles it (a = 2), the decoder copies it (d = 1)."""
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)
    parts = [nn.Conv2d(1, 1, 1, bias=False), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))]
    objective = Reconstruct(pixelwise, **options)  # type: ignore[arg-type]
    rule = rules.Greedy(Blocks([part.double() for part in parts], example=x), objective)
    nn.init.constant_(rule.blocks[0].weight, 2.0)  # type: ignore[arg-type]
    nn.init.constant_(rule.objectives[0].decoder.weight, 1.0)  # type: ignore[union-attr]
    return rule, x


# Prediction P = d a x = [[2, 4], [6, 8]].
#
# Target x: P - x = [[1, 2], [3, 4]].
#   l2: mean(1, 4, 9, 16) = 7.5;  d/da = mean(2 (P - x) d x) = 2 * 7.5 = 15;  d/dd = 2 * 15 = 30
#   l1: mean(1, 2, 3, 4) = 2.5;   d/da = mean(sign d x) = 2.5;                d/dd = 5
# Rolled by 1 both ways: [[4, 3], [2, 1]], so P - t = [[-2, 1], [4, 7]].
#   l2: mean(4, 1, 16, 49) = 17.5;  d/da = 2 mean(-2, 2, 12, 28) = 20;        d/dd = 40
#   l1: mean(2, 1, 4, 7) = 3.5;     d/da = mean(-1, 2, 3, 4) = 2;             d/dd = 4
@pytest.mark.parametrize(
    ("distance", "shift", "loss", "block", "decoder"),
    [
        ("l2", None, 7.5, 15.0, 30.0),
        ("l1", None, 2.5, 2.5, 5.0),
        ("l2", (1, 1), 17.5, 20.0, 40.0),
        ("l1", (1, 1), 3.5, 2.0, 4.0),
        ("l1", (0, 0), 2.5, 2.5, 5.0),
    ],
)
def test_one_step_by_hand(
    distance: str, shift: tuple[int, int] | None, loss: float, block: float, decoder: float
) -> None:
    rule, x = _tiny(distance=distance, shift=shift)
    report = rule.backward(x, torch.tensor([0]))
    assert report.local_losses[0].item() == pytest.approx(loss, rel=1e-14)
    assert report.local_logits[0] is None
    assert rule.blocks[0].weight.grad.item() == pytest.approx(block, rel=1e-14)
    assert rule.objectives[0].decoder.weight.grad.item() == pytest.approx(decoder, rel=1e-14)


def test_rolls_around_the_edges() -> None:
    """Down and to the right; what leaves at one edge enters at the other."""
    rule, x = _tiny(shift=(1, 1))
    (target, prediction) = reconstructions(rule, x, torch.tensor([0]))[0]
    assert target[0, 0].tolist() == [[4, 3], [2, 1]]
    assert prediction[0, 0].tolist() == [[2, 4], [6, 8]]


def _pixels(blocks: int, shift: tuple[int, int], last: bool = False) -> list[int]:
    x = torch.zeros(1, 1, 4, 4)
    parts = [nn.Conv2d(1, 1, 1) for _ in range(blocks)]
    given = [Reconstruct(pixelwise, shift=shift) for _ in range(blocks - (not last))]
    rule = rules.Greedy(Blocks(parts, example=x), given)
    return [o.pixels for o in rule.objectives.children() if isinstance(o, Reconstruct)]


def test_shifts_grow_linearly() -> None:
    """5 + 11 i / 5 is 5, 7.2, 9.4, 11.6, 13.8, 16."""
    assert _pixels(7, (5, 16)) == [5, 7, 9, 12, 14, 16]
    assert _pixels(7, (5, 16), last=True) == [5, 7, 9, 12, 14, 16, 16]
    assert _pixels(2, (5, 16)) == [5]
    assert _pixels(2, (5, 16), last=True) == [5, 16]
    assert _pixels(3, (5, 16)) == [5, 16]
    assert _pixels(4, (0, 1)) == [0, 1, 1]  # a half goes up
    assert _pixels(4, (0, -1)) == [0, 0, -1]
    assert _pixels(4, (3, 0)) == [3, 2, 0]


def test_target_is_averaged_to_the_decoders_resolution() -> None:
    """8x8 to 4x4: means of 2x2, after the shift."""
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    parts = [nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 2, 1)]
    blocks = Blocks([part.double() for part in parts], example=x)
    rule = rules.Greedy(blocks, Reconstruct(Same(), shift=(3, 3)))
    target, prediction = reconstructions(rule, x, torch.zeros(2))[0]
    rolled = torch.cat([x[:, :, -3:], x[:, :, :-3]], 2)
    rolled = torch.cat([rolled[..., -3:], rolled[..., :-3]], 3)
    torch.testing.assert_close(target, rolled.view(2, 3, 4, 2, 4, 2).mean((3, 5)))
    assert prediction.shape == (2, 3, 4, 4)


@pytest.mark.parametrize("before", [True, False])
def test_reads_before_or_after_the_pooling(before: bool) -> None:
    x, y = torch.randn(4, 2, 8, 8, dtype=torch.float64), torch.randint(3, (4,))
    first = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2))
    last = nn.Sequential(nn.Flatten(), nn.Linear(80, 3))
    blocks = Blocks([first.double(), last.double()], example=x)
    rule = rules.Greedy(blocks, Reconstruct(before_pooling=before))
    decoder = rule.objectives[0].decoder
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in decoder) == (0 if before else 1)
    report = rule.backward(x, y)
    got = grads(rule)

    rule.zero_grad()
    h = first[:2](x) if before else first(x)
    loss = (decoder(h) - x).square().mean()
    loss.backward()
    assert torch.equal(report.local_losses[0], loss.detach())
    last = [n for n, _ in rule.named_parameters() if n.startswith("blocks.1.")]
    assert_same({n: g for n, g in got.items() if n not in last}, grads(rule))


@pytest.mark.parametrize("network", ["mlp", "cnn", "resnet", "transformer"])
@pytest.mark.parametrize("decoder", [Transposed(), Bilinear()], ids=lambda d: type(d).__name__)
def test_on_every_kind_of_network(network: str, decoder: Decoder) -> None:
    """Every block reconstructs; the output of each decoder is an image of the input's size."""
    case = networks.NETWORKS[network]()
    rule = rules.Greedy(case.blocks, Reconstruct(decoder))
    rule.backward(case.x, case.y)
    assert grads(rule).keys() == dict(rule.named_parameters()).keys()
    pictures = reconstructions(rule, case.x, case.y)
    assert list(pictures) == list(range(len(case.blocks) - 1))
    for target, prediction in pictures.values():
        assert torch.equal(target, case.x)
        assert prediction.shape == case.x.shape
    assert rule.exits(case.x)[:-1] == (None,) * (len(case.blocks) - 1)


def test_isolation() -> None:
    """What a block learns depends neither on labels nor on blocks after it."""

    def first_block(disturb: bool) -> dict[str, Tensor]:
        torch.manual_seed(1)
        case = networks.cnn()
        rule = rules.Greedy(case.blocks, Reconstruct())
        if disturb:
            for p in [*rule.parameters_of(1), *rule.parameters_of(3)]:
                p.data.mul_(3.0)
            case.y = (case.y + 1) % networks.CLASSES
        rule.backward(case.x, case.y)
        return {n: g for n, g in grads(rule).items() if n.startswith(("blocks.0", "objectives.0"))}

    assert_same(first_block(True), first_block(False))
    assert first_block(False)


def test_a_sum_adds_the_gradients() -> None:
    case = networks.cnn(torch.float64)
    rule = rules.Greedy(case.blocks, 0.5 * Classify(heads.Linear()) + 0.5 * Reconstruct())
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    block, terms = rule.blocks[0], rule.objectives[0].terms
    h = block[0][:-1](case.x) if isinstance(block[0][-1], nn.MaxPool2d) else block(case.x)
    batch, activity = Batch(case.x, case.y), Activity(block(case.x), before_pooling=h)
    (0.5 * terms[0](activity, batch) + 0.5 * terms[1](activity, batch)).backward()
    wanted = grads(rule)
    assert_close({n: got[n] for n in wanted}, wanted, atol=1e-13)


def test_state_dict() -> None:
    def rule() -> rules.Greedy:
        return rules.Greedy(networks.cnn().blocks, Reconstruct(shift=(1, 2)))

    one, other = rule(), rule()
    x, y = networks.cnn().x, torch.zeros(6, dtype=torch.long)
    assert any(".decoder." in key for key in one.state_dict())
    other.load_state_dict(one.state_dict())
    one.backward(x, y)
    other.backward(x, y)
    assert_same(grads(one), grads(other))


@pytest.mark.parametrize("decoder", [Transposed(), Bilinear(), Same()], ids=lambda d: str(d)[:4])
@pytest.mark.parametrize("way", ["plain", "bf16", "channels_last"])
def test_the_loss_falls(decoder: Decoder, way: str) -> None:
    x, y = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    model = models.vgg8c((3, 16, 16), width=0.125, hidden=32)
    blocks = cut(model, at=["conv2", "conv3", "conv4", "conv5"], example=x)
    rule = rules.Greedy(blocks, 0.5 * Classify(heads.MLP()) + 0.5 * Reconstruct(decoder))
    losses = networks.losses_of_training(rule, x, y, way)
    assert all(loss.dtype == torch.float32 for loss in losses)
    assert (losses[-1] < losses[0]).all()


def test_autocast_compares_in_float32() -> None:
    rule, x = _tiny()
    rule.float()
    x = x.float() / 3  # not exact in bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        target, prediction = reconstructions(rule, x, torch.tensor([0]))[0]
        loss = rule.backward(x, torch.tensor([0])).local_losses[0]
    assert torch.equal(target, x)
    assert prediction.dtype == loss.dtype == torch.float32
    assert torch.equal(prediction, prediction.bfloat16().float())
    torch.testing.assert_close(loss, (prediction - x).square().mean())


def _site(input_shape: tuple[int, ...]) -> Site:
    return Site(0, 2, (6,), (6,), input_shape, (3,))


REFUSED = {
    "the class": (
        lambda: Reconstruct(Bilinear),  # type: ignore[arg-type]
        r"Reconstruct\(decoder=\.\.\.\): got the class Bilinear; give a recipe: Bilinear\(\)",
    ),
    "another distance": (
        lambda: Reconstruct(distance="l3"),  # type: ignore[arg-type]
        r"Reconstruct\(distance='l3'\): there is: bce, l1, l2",
    ),
    "one shift": (
        lambda: Reconstruct(shift=(5,)),  # type: ignore[arg-type]
        r"Reconstruct\(shift=\(5,\)\): give two whole numbers of pixels",
    ),
    "a number for a shift": (
        lambda: Reconstruct(shift=5),  # type: ignore[arg-type]
        r"Reconstruct\(shift=5\): give 2 values",
    ),
    "half pixels": (
        lambda: Reconstruct(shift=(0.5, 1)),  # type: ignore[arg-type]
        r"Reconstruct\(shift=\(0\.5, 1\)\): give 2 values",
    ),
    "no image": (
        lambda: Reconstruct().place(_site((7, 5))),
        r"Reconstruct: the network takes \(7, 5\) .* not an image \(C, H, W\)",
    ),
    "a vector for Same": (
        lambda: Reconstruct(Same()).place(_site((3, 8, 8))),
        r"heads\.Same: a block gives \(6,\)",
    ),
    "whole numbers": (
        lambda: _tiny()[0].objectives[0](Activity(torch.zeros(1)), Batch(torch.ones(1).byte(), H)),
        r"Reconstruct: the network's input is torch\.uint8, .* images\.float\(\) / 255",
    ),
    "two rules": (
        lambda: _tiny()[0].objectives[0].place(_site((3, 8, 8))),  # type: ignore[operator]
        r"Reconstruct: this objective already has its auxiliary network",
    ),
}
H = torch.zeros(1)


@pytest.mark.parametrize("asked", REFUSED)
def test_refusals_are_one_line(asked: str) -> None:
    call, message = REFUSED[asked]
    with pytest.raises(InputError, match=message) as e:
        call()  # type: ignore[no-untyped-call]
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 250


def test_bce_by_hand() -> None:
    """Images normalised by (x - 1/2) / (1/4): pixels -2, -1, 1, 2 were 0, 1/4, 3/4, 1. The decoder
    gives d a x = x as logits, d = 1.

        loss      mean of log(1 + e^z) - t z
        d/da      mean of (sigmoid(z) - t) x
    """
    x = torch.tensor([[[[-2.0, -1.0], [1.0, 2.0]]]], dtype=torch.float64)
    parts = [nn.Conv2d(1, 1, 1, bias=False), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))]
    objective = Reconstruct(pixelwise, "bce", normalization=Normalization((0.5,), (0.25,)))
    rule = rules.Greedy(Blocks([p.double() for p in parts], example=x), objective)
    nn.init.ones_(rule.blocks[0].weight)  # type: ignore[arg-type]
    nn.init.ones_(rule.objectives[0].decoder.weight)  # type: ignore[union-attr]
    report = rule.backward(x, torch.tensor([0]))
    pixels, were = (-2, -1, 1, 2), (0, 0.25, 0.75, 1)
    loss = sum(math.log(1 + math.exp(z)) - t * z for z, t in zip(pixels, were, strict=True)) / 4
    block = sum((1 / (1 + math.exp(-z)) - t) * z for z, t in zip(pixels, were, strict=True)) / 4
    assert report.local_losses[0].item() == pytest.approx(loss, rel=1e-14)
    assert rule.blocks[0].weight.grad.item() == pytest.approx(block, rel=1e-13)
    target, shown = reconstructions(rule, x, torch.tensor([0]))[0]
    torch.testing.assert_close(target, x)
    torch.testing.assert_close(shown, (x.sigmoid() - 0.5) / 0.25)  # on the scale of the images


def test_bce_cuts_off_what_no_image_has() -> None:
    normalization = Normalization((0.5,), (0.5,))
    assert normalization.undo(torch.tensor([[[[-3.0, -1, 0, 1, 3]]]])).flatten().tolist() == [
        0, 0, 0.5, 1, 1,
    ]  # fmt: skip
