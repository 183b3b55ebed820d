"""Pictures hold the pixels that they say, of the blocks that they name."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from layerwise import cut, models, rules
from layerwise.objectives import Objective
from layerwise.report import pictures
from layerwise.report.pictures import (
    Pictures,
    draw_filters,
    draw_reconstructions,
    one_below_another,
)

GAP, TITLE = pictures.GAP, pictures.TITLE


class Halved(Objective):
    """The input at half its contrast, whatever the block gives."""

    def forward(self, activity, batch):
        return activity.output.mean()

    def illustrate(self, activity, batch):
        return batch.x, batch.x / 2


def cell(picture: np.ndarray, row: int, column: int, side: tuple[int, int]) -> np.ndarray:
    top = TITLE + GAP + row * (side[0] + GAP)
    left = GAP + column * (side[1] + GAP)
    return picture[top : top + side[0], left : left + side[1]]


def test_targets_above_predictions_below_pixel_for_pixel():
    target = torch.rand(8, 1, 8, 10)
    prediction = torch.rand(8, 1, 4, 5)  # of another resolution
    drawn = draw_reconstructions({0: (target, prediction)}, ("conv1",), epoch=3)
    (picture,) = drawn.values()
    assert picture.dtype == np.uint8
    height, width = 8 * 10, 10 * 8  # whole multiples, at least 80
    assert picture.shape == (TITLE + 2 * height + 3 * GAP, 8 * width + 9 * GAP, 3)
    for b in range(8):
        for row, images in enumerate((target, prediction)):
            shown = cell(picture, row, b, (height, width))
            assert (shown == shown[..., :1]).all()  # grey
            h, w = images.shape[-2:]
            square = shown[..., 0].reshape(h, height // h, w, width // w)
            wanted = (images[b, 0] * 255).round().to(torch.uint8).numpy()
            assert (square == wanted[:, None, :, None]).all()


def test_three_channels_are_colours_and_large_images_stay_as_they_are():
    target = torch.rand(2, 3, 96, 96)
    picture = draw_reconstructions({1: (target, target)}, ("a", "b"), 1)["block-1"]
    shown = cell(picture, 1, 1, (96, 96))
    wanted = (target[1] * 255).round().to(torch.uint8).permute(1, 2, 0)
    assert np.array_equal(shown, wanted.numpy())


def test_a_long_name_is_not_cut_off():
    image = torch.rand(1, 1, 8, 8)
    short, long = (
        draw_reconstructions({0: (image, image)}, (name,), 1)["block-0"] for name in ("a", "a" * 99)
    )
    assert long.shape[1] > short.shape[1] + 99
    assert (long[:, -GAP:] == 255).all()


@pytest.mark.parametrize(
    ("blocks", "chosen"),
    [([], []), ([4], [4]), ([0, 1], [0, 1]), ([0, 2, 3], [0, 2, 3]), (range(7), [0, 3, 6])],
)
def test_first_middle_and_last(blocks, chosen):
    image = torch.rand(1, 1, 4, 4)
    drawn = draw_reconstructions(dict.fromkeys(blocks, (image, image)), "abcdefg", 1)
    assert list(drawn) == [f"block-{i}" for i in chosen]


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_each_filter_from_its_least_to_its_greatest(channels):
    conv = nn.Conv2d(channels, 20, 5)
    picture = draw_filters(nn.Sequential(nn.Identity(), conv, nn.Conv2d(20, 4, 3)), "")
    side = 5 * 8
    assert picture.shape == (TITLE + 2 * side + 3 * GAP, 16 * side + 17 * GAP, 3)
    for k in (0, 19):
        weight = conv.weight[k].detach()
        if channels != 3:
            weight = weight.mean(0, keepdim=True).expand(3, -1, -1)
        scaled = (weight - weight.min()) / (weight.max() - weight.min())
        shown = cell(picture, k // 16, k % 16, (side, side))
        wanted = (scaled * 255).round().permute(1, 2, 0).numpy()
        assert np.abs(shown[4::8, 4::8].astype(int) - wanted).max() <= 1
        assert (shown.min(), shown.max()) == (0, 255)


def test_a_constant_filter_can_be_drawn():
    conv = nn.Conv2d(3, 2, 3)
    nn.init.zeros_(conv.weight)
    assert cell(draw_filters(conv, ""), 0, 0, (42, 42)).max() == 0


def test_pictures_one_below_another():
    wide, tall = np.zeros((2, 9, 3), np.uint8), np.ones((5, 3, 3), np.uint8)
    both = one_below_another([wide, tall])
    assert both.shape == (2 + GAP + 5 + GAP, 9, 3)
    assert np.array_equal(both[:2], wide)
    assert np.array_equal(both[2 + GAP : 7 + GAP, :3], tall)
    assert (both[2 : 2 + GAP] == 255).all()
    assert (both[2 + GAP :, 3:] == 255).all()


@pytest.mark.parametrize(
    "network",
    [
        nn.ReLU(),
        nn.Linear(3, 4),
        nn.Conv2d(3, 4, 1),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
        nn.Conv1d(3, 4, 3),
    ],
)
def test_no_filters_to_see(network):
    assert draw_filters(network, "") is None


def test_files_and_loggers_get_the_same_on_the_scale_of_the_images():
    """White is 2 and black is -2 to this network; a prediction at half the contrast is grey."""
    x = torch.full((8, 1, 8, 8), -2.0)
    x[:, :, :, 4:] = 2.0
    x[:, :, 0, 0] = 9.0  # beyond white
    network = models.basic_cnn((1, 8, 8), channels=4, kernel_size=3, hidden=8)
    rule = rules.Greedy(cut(network, blocks=4, example=x), Halved()).eval()
    files, logged = {}, {}
    draw = Pictures(
        x,
        torch.zeros(8, dtype=torch.long),
        lambda images: (images + 2) / 4,
        files.__setitem__,
        [lambda name, image, epoch: logged.update({(name, epoch): image})],
    )
    draw(3, rule)
    names = ("block-0", "block-1", "block-2", "filters")
    assert list(files) == [f"pictures/epoch-003-{name}.png" for name in names]
    assert list(logged) == [(f"pictures/{name}", 3) for name in names]
    for content, image in zip(files.values(), logged.values(), strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), image)
    picture = logged["pictures/block-0", 3]
    target, prediction = (cell(picture, row, 7, (80, 80))[..., 0] for row in (0, 1))
    assert (target[0, 0], target[20, 20], target[20, 60]) == (255, 0, 255)
    assert (prediction[20, 20], prediction[20, 60]) == (64, 191)
