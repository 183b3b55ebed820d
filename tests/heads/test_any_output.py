"""Heads for videos, maps, sequences with padding, and one-dimensional convolutions."""

from __future__ import annotations

import copy
from collections import UserDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Batch, Blocks, InputError, heads, objectives, rules
from layerwise.blocks import ChannelsLastShape
from layerwise.heads import Head
from layerwise.heads.head import OfTokens, PoolTokens, padding_mask
from layerwise.heads.layout import OneNumber, Sequences, channels_first
from layerwise.inputs import applied

RECIPES = pytest.mark.parametrize("recipe", [heads.Linear(), heads.MLP(width=5)], ids=str)


# Videos.


@RECIPES
def test_videos_are_averaged_to_two_by_two_by_two(recipe: Head) -> None:
    h = torch.randn(5, 3, 4, 6, 8)
    head = recipe((3, 4, 6, 8), (7,))
    pooled = F.avg_pool3d(h, (2, 3, 4)).flatten(1)
    tail = nn.Sequential(*[m for m in head if not isinstance(m, nn.AdaptiveAvgPool3d)])
    torch.testing.assert_close(head(h), tail(pooled))
    assert head(h).shape == (5, 7)


@RECIPES
def test_videos_with_channels_last(recipe: Head) -> None:
    """The head equals that of (C, F, H, W)."""
    h = torch.randn(5, 3, 4, 6, 6)
    first, last = recipe((3, 4, 6, 6), (7,)), recipe(ChannelsLastShape((4, 6, 6, 3)), (7,))
    last.load_state_dict(dict(zip(last.state_dict(), first.state_dict().values(), strict=True)))
    torch.testing.assert_close(last(h.permute(0, 2, 3, 4, 1)), first(h))


def test_few_frames_stay() -> None:
    head = heads.Linear()((3, 1, 6, 8), (7,))
    assert head[-1].in_features == 3 * 1 * 2 * 2
    assert heads.Linear(pool=None)((3, 2, 2, 2), (7,))[-1].in_features == 24


# A label for every pixel.


def test_pixels_by_hand() -> None:
    """Bilinear interpolation makes one channel twice as wide: rows (0, 4) become (0, 1, 3, 4)."""
    head = heads.Linear()((1, 2, 2), (2, 2, 4))
    convolution = head[0]
    convolution.weight.data, convolution.bias.data = torch.ones(2, 1, 1, 1), torch.tensor([0, 1.0])
    got = head(torch.tensor([[[[0.0, 4.0], [4.0, 8.0]]]]))
    first = [[0, 1, 3, 4], [4, 5, 7, 8]]
    assert got.tolist() == [[first, [[value + 1 for value in row] for row in first]]]


@pytest.mark.parametrize("last", [False, True])
@RECIPES
def test_pixels_of_images(recipe: Head, last: bool) -> None:
    h = torch.randn(5, 3, 6, 6)
    shape = ChannelsLastShape((6, 6, 3)) if last else (3, 6, 6)
    head = recipe(shape, (7, 12, 18))
    got = head(h.permute(0, 2, 3, 1) if last else h)
    z = h
    convolutions = [m for m in head if isinstance(m, nn.Conv2d)]
    for k, m in enumerate(convolutions):
        z = torch.einsum("bchw,dc->bdhw", z, m.weight[:, :, 0, 0]) + m.bias[:, None, None]
        z = z.relu() if k < len(convolutions) - 1 else z
    wanted = F.interpolate(z, (12, 18), mode="bilinear")
    torch.testing.assert_close(got, wanted)
    # Images of another size are scaled by the same factors.
    other = torch.randn(2, 8, 4, 3) if last else torch.randn(2, 3, 8, 4)
    assert head(other).shape == (2, 7, 16, 12)


@RECIPES
def test_pixels_of_videos(recipe: Head) -> None:
    head = recipe((3, 2, 4, 4), (7, 4, 8, 8))
    assert head(torch.randn(2, 3, 2, 4, 4)).shape == (2, 7, 4, 8, 8)
    same = recipe((3, 2, 4, 4), (7, 2, 4, 4))
    assert not [m for m in same if type(m).__name__ == "Maps"]


def test_without_bias() -> None:
    head = heads.Linear(bias=False)((3, 4, 4), (7, 8, 8))
    assert [p.shape for p in head.parameters()] == [(7, 3, 1, 1)]


@RECIPES
@pytest.mark.parametrize("shape", [(6,), (9, 6), (3, 2, 4, 4)])
def test_pixels_of_what_is_no_map(recipe: Head, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"class scores for every pixel, but a block gives") as e:
        recipe(shape, (7, 8, 8))
    assert "\n" not in str(e.value)


# Sequences with padding.


def masked(lengths: list[int], tokens: int, left: bool = False) -> Tensor:
    mask = torch.arange(tokens) < torch.tensor(lengths).unsqueeze(1)
    return (mask.flip(1) if left else mask).long()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("pool", [1, 2, 3, 5])
def test_padding_is_left_out(pool: int, left: bool) -> None:
    """A row of n tokens and padding has the same scores as its n tokens without padding."""
    lengths, tokens = [1, 2, 3, 4, 5, 6, 7, 9], 9
    h = torch.randn(len(lengths), tokens, 6, dtype=torch.float64)
    mask = masked(lengths, tokens, left)
    h[mask == 0] = float("nan")
    head = heads.Linear(pool=pool)((tokens, 6), (4,)).double()
    got = head(h, {"attention_mask": mask})
    for row, n in enumerate(lengths):
        alone = h[row : row + 1, tokens - n :] if left else h[row : row + 1, :n]
        torch.testing.assert_close(got[row : row + 1], head(alone))


def test_padding_by_hand() -> None:
    """The tokens 1, 3, 5 and padding have the means (1 + 3) / 2 and (3 + 5) / 2."""
    pool = PoolTokens(2)
    h = torch.tensor([[[1.0], [3.0], [5.0], [100.0]]])
    assert pool(h, torch.tensor([[True, True, True, False]])).tolist() == [[[2.0, 4.0]]]
    assert pool(h, torch.zeros(1, 4, dtype=torch.bool)).tolist() == [[[0.0, 0.0]]]


def test_padding_has_no_gradient() -> None:
    h = torch.randn(2, 5, 6, requires_grad=True)
    mask = masked([3, 5], 5)
    head = heads.MLP(width=5)((5, 6), (4,))
    head(h, {"attention_mask": mask}).square().sum().backward()
    assert not h.grad[mask == 0].any()
    assert h.grad[mask == 1].any(-1).all()


def test_without_padding_bits_stay() -> None:
    h = torch.randn(3, 5, 6)
    head = heads.MLP(width=5)((5, 6), (4,))
    plain = nn.Sequential(nn.AdaptiveAvgPool1d(2), *list(head)[1:])
    wanted = plain(h.transpose(1, 2))
    for inputs in (None, h, (h,), {"x": h}):
        assert torch.equal(head(h, inputs), wanted)
    assert torch.equal(head(h), wanted)
    assert list(head.state_dict()) == ["2.weight", "2.bias", "4.weight", "4.bias"]
    torch.testing.assert_close(head(h, {"attention_mask": torch.ones(3, 5)}), wanted)


def test_which_mask_is_meant() -> None:
    h, mask = torch.randn(3, 5, 6), masked([1, 2, 3], 5)
    assert torch.equal(padding_mask({"attention_mask": mask}, h), mask.bool())
    assert torch.equal(padding_mask(UserDict(attention_mask=mask.float()), h), mask.bool())
    for inputs in (None, mask, (mask,), {}, {"attention_mask": None}, {"mask": mask}):
        assert padding_mask(inputs, h) is None
    for other in (masked([1, 2, 3], 7), masked([1, 2], 5), mask[:, None, None]):
        assert padding_mask({"attention_mask": other}, h) is None
    assert padding_mask({"attention_mask": mask}, h[:, :, 0]) is None


def test_heads_that_read_inputs_are_given_them() -> None:
    class Reads(nn.Module):
        reads_inputs = True

        def forward(self, h: Tensor, inputs: object) -> object:
            return inputs

    assert applied(Reads(), torch.zeros(1), "inputs") == "inputs"
    assert applied(nn.Identity(), torch.zeros(1), "inputs") == 0
    assert isinstance(heads.Linear()((5, 6), (4,)), OfTokens)
    assert type(heads.Linear()((3, 8, 8), (4,))) is nn.Sequential


def test_an_objective_hands_the_inputs_on() -> None:
    objective = objectives.Classify(heads.Linear()) + 0.0 * objectives.Classify(heads.Linear())
    objective.place(objectives.Site(0, 2, (5, 6), (5, 6), (5,), (4,)))
    h, y, mask = torch.randn(3, 5, 6), torch.tensor([0, 1, 2]), masked([2, 5, 3], 5)
    batch = Batch(h, y)
    batch.inputs = {"attention_mask": mask}
    loss = objective(objectives.Activity(h), batch)
    scores = objective.predict(h, batch.inputs)
    torch.testing.assert_close(loss, F.cross_entropy(scores, y))
    assert not torch.allclose(scores, objective.predict(h))
    alone = objective.predict(h[:1, :2])
    torch.testing.assert_close(scores[:1], alone)


def test_sequences_of_changing_length() -> None:
    """The head averages the two halves of a sequence, so it learns from batches of any length."""
    parts = [nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 5)]

    class Mean(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h.mean(1)

    blocks = Blocks([*parts, Mean()], example=torch.randn(2, 7, 6))
    rule = rules.DGL(blocks)
    for tokens in (1, 2, 5, 7, 12):
        x, y = torch.randn(3, tokens, 6), torch.randint(0, 5, (3,))
        report = rule.backward(x, y)
        h = parts[0](x).transpose(1, 2)
        head = rule.objectives[0].head
        wanted = F.cross_entropy(head[1:](F.adaptive_avg_pool1d(h, 2)), y)
        torch.testing.assert_close(report.local_losses[0], wanted.detach())


# One-dimensional convolutions.


def test_what_tells_features_of_convolutions() -> None:
    conv, linear, norm = nn.Conv1d(2, 3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)
    assert channels_first([nn.Sequential(conv, norm)], (3, 8))
    assert channels_first([conv, nn.ReLU(), norm], (3, 8))
    assert channels_first([linear, nn.Sequential(conv)], (3, 3))
    assert not channels_first([conv], (8, 3))  # transposed
    assert not channels_first([conv], (3, 8, 8))
    assert not channels_first([conv, linear], (3, 8))
    assert not channels_first([nn.Conv2d(2, 3, 3)], (3, 8))
    assert not channels_first([nn.ReLU()], (3, 8))


def audio(end: list[nn.Module]) -> Blocks:
    parts = [
        nn.Sequential(nn.Conv1d(1, 4, 3, stride=2, padding=1), nn.Tanh()),
        nn.Sequential(nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.BatchNorm1d(6)),
        nn.Sequential(*end),
    ]
    return Blocks(parts, example=torch.randn(2, 1, 16))


def test_audio_is_averaged_over_time() -> None:
    """The head of (D, T) equals that of the tokens (T, D), and takes any length."""
    blocks = audio([nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 5)])
    rule = rules.DGL(blocks, head=heads.Linear())
    for k, features in enumerate((4, 6)):
        head = rule.objectives[k].head
        assert isinstance(head, Sequences)
        assert head.head[-1].in_features == 2 * features
        for length in (1, 3, 8):
            h = torch.randn(3, features, length)
            pooled = F.adaptive_avg_pool1d(h, 2).flatten(1)
            torch.testing.assert_close(head(h), head.head[-1](pooled))
    rule.backward(torch.randn(3, 1, 24), torch.tensor([0, 1, 2]))


def test_scores_of_a_convolution_at_every_time() -> None:
    """Scores (classes, T) from features (D, T / 2): a linear layer, then interpolation."""
    blocks = audio([nn.ConvTranspose1d(6, 5, 8, stride=4, padding=2)])
    assert blocks.shapes[-1] == (5, 16)
    rule = rules.DGL(blocks, head=heads.Linear())
    head = rule.objectives[0].head
    h = torch.randn(3, 4, 8)
    linear = head.head[-1]
    z = torch.einsum("bdt,cd->bct", h, linear.weight) + linear.bias[:, None]
    torch.testing.assert_close(head(h), F.interpolate(z, 16, mode="linear"))
    x, y = torch.randn(3, 1, 16), torch.randint(0, 5, (3, 16))
    report = rule.backward(x, y)
    assert all(scores.shape == (3, 5, 16) for scores in report.local_logits)
    assert report.local_losses[1].isfinite()


def test_a_recipe_that_reads_no_tokens_refuses_them() -> None:
    blocks = audio([nn.Conv1d(6, 5, 3, padding=1)])
    with pytest.raises(InputError, match=r"AugLocal|LaterLayers") as error:
        rules.AugLocal(blocks)
    assert "rules.DGL" in str(error.value)


def test_a_head_of_other_classes_is_refused() -> None:
    """A user's head gives (B, T, 4), and the network 3 classes; the labels would fit."""
    parts = [nn.Linear(6, 5), nn.Linear(5, 3)]
    x, y = torch.randn(2, 7, 6), torch.randint(0, 3, (2, 7))

    def wide(in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
        return nn.Linear(in_shape[-1], 4)

    rule = rules.DGL(Blocks(parts, example=x), head=wide)
    with pytest.raises(InputError, match=r"for 4 classes, but the network gives \(7, 3\)"):
        rule.backward(x, y)


# One number for each sample.


@RECIPES
@pytest.mark.parametrize("shape", [(6,), (5, 6), (3, 4, 4)])
def test_one_number(recipe: Head, shape: tuple[int, ...]) -> None:
    objective = objectives.Classify(recipe, F.mse_loss)
    objective.place(objectives.Site(0, 2, shape, shape, shape, ()))
    assert isinstance(objective.head, OneNumber)
    h = torch.randn(3, *shape)
    got = objective.predict(h)
    assert torch.equal(got, copy.deepcopy(objective.head.head)(h).squeeze(1))
    assert got.shape == (3,)
