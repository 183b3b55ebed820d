"""Every augmentation against a plain reference, one image at a time."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from layerwise.data import Augment, Loader
from layerwise.data.augment import ATTEMPTS
from layerwise.data.pixels import (
    Normalize,
    boxes,
    crop_flip,
    cutout,
    jitter,
    pad,
    resized_crop,
    turn_hue,
)
from layerwise.errors import InputError

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("shape", [(8, 8, 3), (5, 9, 1)])
def test_pad_is_torchs(noise, mode, shape):
    images = noise(4, *shape).images
    expected = F.pad(
        images.permute(0, 3, 1, 2).float(),
        (3, 3, 3, 3),
        mode="constant" if mode == "zeros" else mode,
    )
    assert torch.equal(pad(images, 3, mode).permute(0, 3, 1, 2).float(), expected)


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 3), (6, 10, 3), (7, 5, 1)])
def test_crop_and_flip_are_the_slices_of_each_image(noise, height, width, channels):
    margin, images = 2, noise(30, height, width, channels).images
    index = torch.randint(30, (16,), generator=generator())
    draw = Augment(crop=margin, flip=True).draw(16, (channels, height, width), generator(1))
    padded = pad(images, margin, "zeros")
    got = crop_flip(padded, index, draw.corner, draw.flip, (height, width))
    for b in range(16):
        top, left = draw.corner[b].tolist()
        expected = padded[index[b], top : top + height, left : left + width]
        if draw.flip[b]:
            expected = torch.flip(expected, [1])
        assert torch.equal(got[b], expected)


def test_a_circular_crop_is_a_rolled_image(noise):
    """Nothing of the image is lost, so a shifted image can be predicted at every pixel."""
    images = noise(6).images
    corner = torch.tensor([[0, 0], [0, 4], [4, 1], [2, 2], [3, 4], [1, 0]])
    got = crop_flip(pad(images, 2, "circular"), torch.arange(6), corner, None, (8, 8))
    for image, (top, left), crop in zip(images, corner.tolist(), got, strict=True):
        assert torch.equal(crop, image.roll((2 - top, 2 - left), (0, 1)))


def test_crop_in_the_middle_is_the_image(noise):
    images = noise(5).images
    corner = torch.full((5, 2), 2)
    got = crop_flip(pad(images, 2, "zeros"), torch.arange(5), corner, None, (8, 8))
    assert torch.equal(got, images)


def test_flip_alone_is_torch_flip(noise):
    images = noise(5).images
    got = crop_flip(images, torch.arange(5), None, torch.ones(5, dtype=torch.bool), (8, 8))
    assert torch.equal(got, torch.flip(images, [2]))


def test_flips_are_even_and_offsets_uniform():
    draw = Augment(flip=True, crop=2).draw(50_000, (3, 8, 8), generator())
    # 50,000 fair coins: standard deviation of the share 0.0022
    assert abs(draw.flip.float().mean().item() - 0.5) < 0.01
    cell = draw.corner[:, 0] * 5 + draw.corner[:, 1]
    count = torch.bincount(cell, minlength=25)
    assert len(count) == 25
    # 2,000 expected in each of the (2 * 2 + 1)^2 places, standard deviation 44
    assert (count - 2000).abs().max() < 220
    # A flip says nothing about the place.
    flipped = torch.bincount(cell[draw.flip], minlength=25) / count
    assert (flipped - 0.5).abs().max() < 0.06


def test_two_images_of_one_batch_are_drawn_apart():
    draw = Augment(flip=True, crop=4, cutout=4).draw(64, (3, 32, 32), generator())
    assert len(draw.corner.unique(dim=0)) > 30
    assert 0 < draw.flip.sum() < 64
    assert len(draw.centre.unique(dim=0)) > 50


def test_cutout_sets_its_square_to_zero_and_nothing_else():
    x = torch.ones(3, 2, 8, 8)
    got = cutout(x, torch.tensor([[4, 4], [0, 7], [3, 0]]), 4)
    expected = torch.ones(3, 2, 8, 8)
    expected[0, :, 2:6, 2:6] = 0  # rows 4 - 2 to 4 + 1
    expected[1, :, :2, 5:] = 0  # cut off at the corner
    expected[2, :, 1:5, :2] = 0
    assert torch.equal(got, expected)


def test_cutout_of_odd_side_is_centred():
    got = cutout(torch.ones(1, 1, 7, 7), torch.tensor([[3, 3]]), 3)
    assert got.sum() == 49 - 9
    assert got[0, 0, 2:5, 2:5].sum() == 0


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_ends_are_exact(channels, channels_last):
    images = torch.zeros(2, 4, 4, channels, dtype=torch.uint8)
    images[1] = 255
    mean = std = (127.5,) * channels
    x = Normalize(mean, std, (4, 4), CPU, channels_last).bytes(images)
    assert x.dtype == torch.float32
    assert x.shape == (2, channels, 4, 4)
    assert torch.equal(x[0], torch.full_like(x[0], -1))
    assert torch.equal(x[1], torch.ones_like(x[1]))


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalise_is_one_formula_in_both_layouts(noise, channels_last):
    images = noise(4, 5, 6).images
    mean, std = (10.0, 20.0, 30.0), (3.0, 5.0, 7.0)
    x = Normalize(mean, std, (5, 6), CPU, channels_last).bytes(images)
    plain = images.permute(0, 3, 1, 2).float()
    expected = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.equal(x, expected)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert x.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20)])
def test_resized_crop_is_interpolate_of_each_box(noise, height, width):
    images = noise(24, height, width).images
    draw = Augment(resized_crop=True, flip=True).draw(24, (3, height, width), generator())
    box = boxes(draw.box, height, width, (0.08, 1.0), (3 / 4, 4 / 3))
    got = resized_crop(images, box, draw.flip)
    assert len(box.unique(dim=0)) > 20
    for b in range(24):
        top, left, tall, wide = box[b].tolist()
        image = images[b].permute(2, 0, 1).float()
        expected = tv.resized_crop(image, top, left, tall, wide, [height, width], antialias=True)
        expected = expected.flip(2) if draw.flip[b] else expected
        torch.testing.assert_close(got[b], expected, atol=2e-3, rtol=0)  # of 255


def test_the_whole_image_as_box_changes_nothing(noise):
    images = noise(3, 8, 8).images
    box = torch.tensor([[0, 0, 8, 8]] * 3)
    assert torch.equal(resized_crop(images, box, None), images.permute(0, 3, 1, 2).float())


def test_resized_crop_ignores_autocast(noise):
    images, box = noise(3).images, torch.tensor([[1, 2, 5, 4]] * 3)
    plain = resized_crop(images, box, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resized_crop(images, box, None), plain)


def test_boxes_follow_torchvisions_distribution():
    count, side = 4000, 32
    uniform = torch.rand(count, 2 * ATTEMPTS + 2, generator=generator())
    got = boxes(uniform, side, side, (0.08, 1.0), (3 / 4, 4 / 3)).double()
    torch.manual_seed(0)
    image = torch.zeros(3, side, side)
    expected = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    ).double()
    # Means of 4,000 draws, standard deviation of a side about 6: 0.1 each, so 0.5 is 3.5 sigma.
    torch.testing.assert_close(got.mean(0), expected.mean(0), atol=0.5, rtol=0)
    torch.testing.assert_close(got.std(0), expected.std(0), atol=0.4, rtol=0)
    top, left, tall, wide = got.unbind(1)
    assert top.min() >= 0
    assert left.min() >= 0
    assert (top + tall).max() <= side
    assert (left + wide).max() <= side


def test_a_box_that_never_fits_is_the_central_one():
    # 10 x 100: a box of at least 900 pixels is 26 high or more, even at ratio 4/3.
    uniform = torch.full((1, 2 * ATTEMPTS + 2), 0.9)
    got = boxes(uniform, 10, 100, (0.9, 1.0), (3 / 4, 4 / 3))
    wide = round(10 * 4 / 3)
    assert got.tolist() == [[0, (100 - wide) // 2, 10, wide]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"normalize": "standart"}, "did you mean 'standard'?"),
        ({"pad_mode": "mirror"}, "there is: circular, reflect, zeros"),
        ({"crop": 0}, "1 pixel or more"),
        ({"cutout": -3}, "1 pixel or more"),
        ({"crop": 4, "resized_crop": True}, "only one of them"),
        ({"scale": (0.5, 0.1)}, "smallest <= largest"),
        ({"ratio": (0.0, 1.0)}, "smallest <= largest"),
        ({"mean": (0.5,)}, "both or neither"),
        ({"mean": (0.5,), "std": (0.5,)}, "normalize='standard'"),
        ({"mean": (0.5,), "std": (0.0,), "normalize": "standard"}, "above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(InputError) as error:
        Augment(**options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        (Augment(crop=9), "at most 8"),
        (Augment(crop=8, pad_mode="reflect"), "at most 7"),
        (Augment(crop=9, pad_mode="circular"), "at most 8"),
        (Augment(cutout=9), "at most 8"),
        (Augment(normalize="standard", mean=(0.5,), std=(0.5,)), "3 channels"),
    ],
)
def test_what_the_images_are_too_small_for_is_refused(augment, said):
    with pytest.raises(InputError, match=said):
        augment.check((3, 8, 10))


JITTER = (0.8, 0.8, 0.8, 0.2)


def test_jitter_is_torchvisions_one_image_at_a_time(noise):
    x = noise(16).images.permute(0, 3, 1, 2).float()
    draw = Augment(jitter=JITTER, jitter_probability=1.0).draw(16, (3, 8, 8), generator(2))
    got = jitter(x, draw.jitter, hue=True)
    for b in range(16):
        brightness, contrast, saturation, hue = draw.jitter[b].tolist()
        one = tv.adjust_brightness(x[b] / 255, brightness)
        one = tv.adjust_contrast(one, contrast)
        one = tv.adjust_saturation(one, saturation)
        one = tv.adjust_hue(one, hue)
        torch.testing.assert_close(got[b] / 255, one, atol=2e-4, rtol=0)


def test_hue_goes_around_the_circle():
    """A third of a turn takes red to green and green to blue; greys have no hue."""
    red, green, blue = ([255.0 * (c == k) for c in range(3)] for k in range(3))
    x = torch.tensor([red, green, [90.0, 90.0, 90.0], [255.0, 255.0, 0.0]])[:, :, None, None]
    third = torch.full((4, 1, 1), 1 / 3)
    wanted = [green, blue, [90.0] * 3, [0.0, 255.0, 255.0]]
    got = turn_hue(x, third)[:, :, 0, 0]
    torch.testing.assert_close(got, torch.tensor(wanted), atol=1e-3, rtol=0)
    assert torch.equal(turn_hue(x, torch.zeros(4, 1, 1)), x)


def test_jitter_draws():
    augment = Augment(jitter=(0.8, 0.4, 2.0, 0.2), jitter_probability=0.8, grey=0.2)
    draw = augment.draw(20_000, (3, 4, 4), generator(0))
    same = (draw.jitter == torch.tensor([1.0, 1.0, 1.0, 0.0])).all(1)
    # Shares of 20,000: standard deviation 0.0028
    assert abs(same.float().mean().item() - 0.2) < 0.015
    assert abs(draw.grey.float().mean().item() - 0.2) < 0.015
    changed = draw.jitter[~same]
    low, high = changed.amin(0), changed.amax(0)
    torch.testing.assert_close(low, torch.tensor([0.2, 0.6, 0.0, -0.2]), atol=2e-3, rtol=0)
    torch.testing.assert_close(high, torch.tensor([1.8, 1.4, 3.0, 0.2]), atol=2e-3, rtol=0)
    mean = changed[:, [0, 1, 3]].mean(0)
    torch.testing.assert_close(mean, torch.tensor([1.0, 1.0, 0.0]), atol=0.02, rtol=0)


def test_colours_are_changed_before_normalisation_and_after_the_crop(noise):
    images = noise(8)
    augment = Augment(flip=True, jitter=JITTER, jitter_probability=1.0, grey=0.5)
    loader = Loader(images, 8, train=True, augment=augment, seed=2)
    order = torch.randperm(8, generator=loader._generator(0, 0))
    draw = augment.draw(8, (3, 8, 8), loader._generator(0, 1))
    ((x, _),) = loader.epoch(0)
    plain = images.images[order].permute(0, 3, 1, 2).float()
    plain = torch.where(draw.flip[:, None, None, None], plain.flip(-1), plain)
    coloured = jitter(plain, draw.jitter, hue=True)
    for b in range(8):
        one = tv.rgb_to_grayscale(coloured[b], 3) if draw.grey[b] else coloured[b]
        torch.testing.assert_close(x[b], (one - 127.5) / 127.5, atol=1e-5, rtol=0)
    assert 0 < draw.grey.sum() < 8


def test_what_there_was_before_is_drawn_as_before(noise):
    """Further augmentations come after the others' random numbers."""
    before = Augment(flip=True, crop=2, cutout=3)
    after = Augment(flip=True, crop=2, cutout=3, jitter=JITTER, grey=0.5)
    a, b = (augment.draw(6, (3, 8, 8), generator(1)) for augment in (before, after))
    assert all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True) if x is not None)


def test_grey_images_can_be_brighter(noise):
    images = noise(6, 8, 8, 1)
    augment = Augment(jitter=(0.5, 0.5, 0.0, 0.0), jitter_probability=1.0, normalize="none")
    ((x, _),) = Loader(images, 6, train=True, augment=augment).epoch(0)
    assert x.shape == (6, 1, 8, 8)
    assert x.min() >= 0
    assert x.max() <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"jitter": (0.1, 0.1, 0.1)}, "give brightness, contrast, saturation and hue"),
        ({"jitter": (0.1, 0.1, 0.1, 0.6)}, "the hue at most 0.5"),
        ({"jitter": (-0.1, 0.1, 0.1, 0.1)}, "0 or more"),
        ({"grey": 1.5}, "give a probability"),
        ({"jitter_probability": -1.0}, "give a probability"),
    ],
)
def test_colours_that_cannot_be_changed_so(options, said):
    with pytest.raises(InputError, match=said) as error:
        Augment(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"grey": 0.2}, {"jitter": (0.1, 0.1, 0.1, 0.0)}])
def test_grey_images_have_no_colours(noise, options):
    with pytest.raises(InputError, match="images with 1 channels have no colours"):
        Loader(noise(6, 8, 8, 1), 2, train=True, augment=Augment(**options))
