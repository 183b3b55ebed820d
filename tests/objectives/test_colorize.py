"""Colorize: colours, the two losses, the view, what it refuses."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch
from torch import Tensor, nn

from layerwise import Batch, Blocks, InputError, heads, rules
from layerwise.objectives import Activity, Colorize, Normalization, Site
from layerwise.objectives.colorize import Grey, gamut, rarity, shares
from layerwise.objectives.colour import grey, to_lab, to_rgb
from layerwise.report.pictures import reconstructions

F64 = torch.float64
UNIT = Normalization((0.0,), (1.0,))

# sRGB and its Lab under D65, as colour tables have it.
KNOWN = {
    "red": ((1, 0, 0), (53.2408, 80.0925, 67.2032)),
    "green": ((0, 1, 0), (87.7347, -86.1827, 83.1793)),
    "blue": ((0, 0, 1), (32.2970, 79.1875, -107.8602)),
    "white": ((1, 1, 1), (100, 0, 0)),
    "grey": ((0.466326, 0.466326, 0.466326), (50, 0, 0)),
    "black": ((0, 0, 0), (0, 0, 0)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_lab(name: str) -> None:
    rgb, lab = (torch.tensor(v, dtype=F64)[None, :, None, None] for v in KNOWN[name])
    torch.testing.assert_close(to_lab(rgb), lab, atol=1e-3, rtol=0)


def test_there_and_back() -> None:
    rgb = torch.rand(4, 3, 5, 5, dtype=F64)
    torch.testing.assert_close(to_rgb(to_lab(rgb)), rgb, atol=1e-6, rtol=0)  # sRGB's knee
    flat = to_lab(grey(rgb))
    torch.testing.assert_close(flat[:, 0], to_lab(rgb)[:, 0], atol=1e-4, rtol=0)
    assert flat[:, 1:].abs().max() < 1e-4  # the matrix is given in seven digits


def test_the_view_is_normalised_as_the_images() -> None:
    normalization = Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    rgb = torch.rand(2, 3, 4, 4)
    seen = Grey(normalization)(normalization(rgb))
    torch.testing.assert_close(normalization.undo(seen), grey(rgb))
    assert Grey(UNIT) == Grey(Normalization((0.0,), (1.0,))) != Grey(normalization)


def test_regression_by_hand() -> None:
    """One red and one blue pixel; the head gives (a, b) = 110 (w_0, w_1) times the pixel's grey, g.

    With grey values g of the lightness of red and blue, errors e = w g - ab / 110 and loss
    mean(e^2) over two pixels and two channels; d/dw_c = sum over pixels of e g / 2.
    """
    x = torch.tensor([[[[1.0, 0]], [[0, 0]], [[0, 1.0]]]], dtype=F64)  # 1x2 pixels
    parts = [nn.Conv2d(3, 1, 1, bias=False), nn.Sequential(nn.Flatten(), nn.Linear(2, 2))]
    objective = Colorize(lambda i, o: nn.Conv2d(1, o[0], 1, bias=False), normalization=UNIT)  # type: ignore
    rule = rules.Greedy(Blocks([p.double() for p in parts], example=x), objective)
    rule.blocks[0].weight.data.fill_(1 / 3)  # type: ignore[union-attr]
    head = rule.objectives[0].head
    head.weight.data = torch.tensor([1.0, 2.0], dtype=F64).view(2, 1, 1, 1)
    report = rule.backward(x, torch.tensor([0]))

    colours = [(80.0925, 67.2032), (79.1875, -107.8602)]
    luminance = [0.2126729, 0.0721750]
    g = [1.055 * y ** (1 / 2.4) - 0.055 for y in luminance]
    errors = [[w * g[p] - colours[p][c] / 110 for p in (0, 1)] for c, w in ((0, 1.0), (1, 2.0))]
    loss = sum(e * e for row in errors for e in row) / 4
    assert report.local_losses[0].item() == pytest.approx(loss, rel=1e-5)
    wanted = [sum(row[p] * g[p] for p in (0, 1)) / 2 for row in errors]
    assert head.weight.grad.flatten().tolist() == pytest.approx(wanted, rel=1e-5)


def test_bins() -> None:
    """Every colour's nearest bin is one of them; none is further than any colour can be."""
    bins = {tuple(b) for b in gamut().tolist()}
    assert (0, 0) in bins
    for h in range(0, 360, 20):
        for s in (0.3, 1.0):
            rgb = torch.tensor(colorsys.hsv_to_rgb(h / 360, s, 0.8), dtype=F64)
            a, b = to_lab(rgb[None, :, None, None])[0, 1:, 0, 0].tolist()
            assert (round(a / 10) * 10.0, round(b / 10) * 10.0) in bins
    assert (-110, -110) not in bins
    assert all(max(map(abs, b)) <= 110 for b in bins)


def test_classification_naive() -> None:
    """Pixel by pixel, bin by bin."""
    x = torch.rand(2, 3, 4, 4, dtype=F64)
    parts = [nn.Conv2d(3, 5, 1), nn.Sequential(nn.Flatten(), nn.Linear(80, 3))]
    blocks = Blocks([p.double() for p in parts], example=x)
    options = {"kind": "classify", "rebalance": True, "normalization": UNIT}
    rule = rules.Greedy(blocks, Colorize(heads.Same(layers=1), **options))  # type: ignore[arg-type]
    rule.eval()
    report = rule.backward(x, torch.tensor([0, 1]))

    with torch.no_grad():
        scores = rule.objectives[0].head(blocks[0](grey(x))).log_softmax(1)
    bins, lab = gamut().tolist(), to_lab(x)
    losses, nearest, p = [], [], [0.0] * len(bins)
    for n in range(2):
        for i in range(4):
            for j in range(4):
                a, b = lab[n, 1:, i, j].tolist()
                square = [(a - c) ** 2 + (b - d) ** 2 for c, d in bins]
                order = sorted(range(len(bins)), key=square.__getitem__)[:5]
                share = [math.exp(-square[q] / 50) for q in order]
                share = [s / sum(share) for s in share]
                for s, q in zip(share, order, strict=True):
                    p[q] += s / 32
                nearest.append(order[0])
                losses.append(-sum(s * scores[n, q, i, j].item() for s, q in zip(share, order)))  # noqa: B905
    w = [1 / (p[q] / 2 + 0.5 / len(bins)) for q in nearest]
    wanted = sum(v * loss for v, loss in zip(w, losses, strict=True)) / sum(w)
    assert report.local_losses[0].item() == pytest.approx(wanted, rel=1e-6)


def test_rare_colours_count_more() -> None:
    """Three pixels of one bin, one of another, of two bins: p = 3/4, 1/4 and w ~ 8/5, 8/3."""
    near = torch.tensor([[0], [0], [0], [1]])
    w = rarity(near, torch.ones(4, 1, dtype=F64), 2)
    assert w.mean().item() == pytest.approx(1)
    assert (w[3] / w[0]).item() == pytest.approx(5 / 3)


def test_a_colour_on_a_bin_is_mostly_its() -> None:
    """Its four neighbours at distance 10 have exp(-100 / 50) each."""
    near, share = shares(torch.zeros(1, 2, dtype=F64), gamut())
    total = 1 + 4 * math.exp(-2)
    assert gamut()[near[0, 0]].tolist() == [0, 0]
    assert share[0].tolist() == pytest.approx([1 / total] + [math.exp(-2) / total] * 4)


@pytest.mark.parametrize("kind", ["regress", "classify"])
def test_pictures_keep_the_lightness(kind: str) -> None:
    x = torch.rand(2, 3, 8, 8)
    parts = [nn.Conv2d(3, 5, 2, stride=2), nn.Sequential(nn.Flatten(), nn.Linear(80, 3))]
    rule = rules.Greedy(Blocks(parts, example=x), Colorize(kind=kind, normalization=UNIT))  # type: ignore
    rule.eval()
    target, shown = reconstructions(rule, x, torch.tensor([0, 1]))[0]
    assert torch.equal(target, x)
    assert shown.shape == x.shape
    assert shown.min() >= 0
    assert shown.max() <= 1
    if kind == "regress":  # a head that gives no colour shows the grey image
        for p in rule.objectives[0].parameters():
            nn.init.zeros_(p)
        _, shown = reconstructions(rule, x, torch.tensor([0, 1]))[0]
        torch.testing.assert_close(shown, grey(x), atol=1e-4, rtol=0)


def test_colours_reach_the_block_by_the_loss_alone() -> None:
    """Two images of the same lightness give the block the same view."""
    lab = torch.tensor([[60.0, 20, 10], [60.0, -15, 5]], dtype=F64)[:, :, None, None]
    rgb = to_rgb(lab.expand(2, 3, 4, 4))
    seen = Grey(UNIT)(rgb)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-6, rtol=0)
    assert (rgb[0] - rgb[1]).abs().max() > 0.1


def _site(*input_shape: int) -> Site:
    return Site(0, 2, (6, 4, 4), (6, 4, 4), input_shape, (3,))


REFUSED = {
    "kind": (lambda: Colorize(kind="guess"), r"Colorize\(kind='guess'\): .*regress"),  # type: ignore
    "rebalance": (lambda: Colorize(rebalance=True), "kind='regress' has no bins to weight"),
    "grey images": (lambda: Colorize().place(_site(1, 8, 8)), r"\(1, 8, 8\) .* not a colour image"),
    "std": (lambda: Normalization((0.5,), (0.0,)), "every std above 0"),
    "the class": (lambda: Colorize(heads.Same), r"got the class Same; give a recipe"),  # type: ignore
    "channels": (lambda: Normalization((0, 0), (1, 1)).undo(torch.zeros(1, 3, 2, 2)), "3 channels"),
}


@pytest.mark.parametrize("asked", REFUSED)
def test_refusals_are_one_line(asked: str) -> None:
    call, message = REFUSED[asked]
    with pytest.raises(InputError, match=message) as e:
        call()
    assert "\n" not in str(e.value)


def test_the_loss_reads_the_view() -> None:
    """With a block that passes pixels on, the loss is that of the grey image's pixels."""
    x: Tensor = torch.rand(2, 3, 4, 4, dtype=F64)
    objective = Colorize(lambda i, o: nn.Conv2d(3, o[0], 1), normalization=UNIT)  # type: ignore
    objective.place(Site(0, 2, (3, 4, 4), (3, 4, 4), (3, 4, 4), (3,)))
    objective.double()
    batch = Batch(x, torch.tensor([0, 1]))
    activity = Activity(x, views={objective.views[0]: grey(x)})
    wanted = (objective.head(grey(x)) - to_lab(x)[:, 1:] / 110).square().mean()
    torch.testing.assert_close(objective(activity, batch), wanted)
