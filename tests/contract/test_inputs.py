"""Every rule on networks that are called with more than one tensor."""

from __future__ import annotations

from typing import Any

import networks
import pytest
import torch
from networks import ALL_RULES, CLASSES, assert_same, grads
from torch import Tensor, nn

from layerwise import InputError, cut, rules
from layerwise.inputs import chosen_rows, first_rows, first_views

# They change the image.
IMAGES_ONLY = ("forward_forward", "forward_forward_hard", "pepita", "pepita_recomputed")


def gain_of(image: Tensor) -> Tensor:
    return image[:, :1, :1, :1] + 0.5


class Cnn(nn.Module):
    """Every block's output but the last one's is multiplied by a gain for each sample, which is an
    input or made of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2))
        self.third = nn.Sequential(nn.Flatten(), nn.Linear(4 * 4 * 4, CLASSES))

    def forward(self, image: Tensor, gain: Tensor | None = None) -> Tensor:
        gain = gain_of(image) if gain is None else gain
        h = self.second(gain * self.first(image))
        return self.third(gain * h)


def stepped(name: str, named: bool) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
    torch.manual_seed(0)
    x, y = torch.rand(4, 2, 8, 8, dtype=torch.float64), torch.randint(CLASSES, (4,))
    model = Cnn().double()
    # Not in the order of the forward.
    inputs: Any = {"gain": gain_of(x), "image": x} if named else x
    rule = ALL_RULES[name](cut(model, at=["second", "third"], example=inputs))
    torch.manual_seed(1)
    rule.backward(inputs, y)
    return grads(rule), rule.eval().exits(inputs)


@pytest.mark.parametrize("name", ALL_RULES)
def test_a_second_input_is_what_the_network_would_make_itself(name: str) -> None:
    if name in IMAGES_ONLY:
        with pytest.raises(InputError, match=r"^(ForwardForward|PEPITA): "):
            stepped(name, named=True)
        return
    (got, exits), (wanted, wanted_exits) = stepped(name, True), stepped(name, False)
    assert_same(got, wanted)
    for scores, same in zip(exits, wanted_exits, strict=True):
        assert (scores is None and same is None) or torch.equal(scores, same)


def test_the_rules_that_change_the_image_are_there() -> None:
    assert set(IMAGES_ONLY) <= set(networks.ALL_RULES)


class Text(nn.Module):
    """Tokens and a mask of those that count."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(7, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.last(torch.tanh(self.second(self.first(input_ids))).mean(1))


def test_heads_of_later_stages_read_the_mask() -> None:
    """A stage that has only later blocks is given the inputs, where its heads read a mask."""
    ids = torch.randint(7, (4, 5))
    for inputs, wanted in (({"input_ids": ids, "attention_mask": ids > 2}, True), (ids, False)):
        rule = rules.DGL(cut(Text(), at=["second", "last"], example=inputs))
        assert rule.reads_input([1]) == wanted


def test_inputs_that_samples_share_are_not_split() -> None:
    """A mask (6, 6) of 6 of 8 samples has no rows, as the whole batch and an example show."""
    x, mask = torch.randn(8, 6, 3), torch.ones(6, 6).tril()
    few, whole = first_rows((x, mask), 6)
    assert torch.equal(few, x[:6])
    assert whole is mask
    part, wrong = chosen_rows((few, mask), torch.tensor([4, 1]))
    assert torch.equal(part, x[[4, 1]])
    assert torch.equal(wrong, mask[[4, 1]])  # nothing shows it
    for example in ((x, mask), (x[:2], mask)):
        part, whole = chosen_rows((few, mask), torch.tensor([4, 1]), example)
        assert torch.equal(part, x[[4, 1]])
        assert whole is mask
    named, by_name = {"x": few, "mask": mask}, {"x": x, "mask": mask}
    assert chosen_rows(named, slice(2, 3), by_name)["mask"] is mask


class Mixes(nn.Module):
    """Tokens (B, 3, 4), mixed by weights (3, 3) that the samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.second(torch.tanh(mask @ self.first(x)).flatten(1))


def test_the_first_tensor_has_the_samples() -> None:
    """A mask of 3 rows, given first, is not taken for 8 samples: the error names it."""
    x, mask, y = torch.randn(8, 3, 4), torch.ones(3, 3).tril(), torch.arange(8) % CLASSES
    rule = rules.DGL(cut(Mixes(), at=["second"], example={"x": x[:2], "mask": mask}))
    with pytest.raises(InputError, match=r"got 3 inputs \(rows of 'mask', which comes first\) for"):
        rule.backward({"mask": mask, "x": x}, y)
    assert torch.equal(first_views({"x": x, "mask": mask}, y[:4])["x"], x[:4])
    for labels in (y, y[:2]):
        with pytest.raises(InputError, match=f"comes first\\) for {len(labels)} labels"):
            first_views({"mask": mask, "x": x}, labels)
