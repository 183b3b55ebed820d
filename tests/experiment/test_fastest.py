"""The probe that chooses precision and memory format."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from networks import assert_same
from torch import nn

from layerwise import InputError, cut, models, objectives, rules
from layerwise.experiment import fastest as module
from layerwise.experiment.config import complete
from layerwise.experiment.fastest import Fastest, fastest
from layerwise.experiment.prepared import Prepared

CPU = torch.device("cpu")


def rule_of(network: nn.Module, shape: tuple[int, ...]) -> rules.DGL:
    return rules.DGL(cut(network, example=torch.randn(2, *shape)))


@pytest.fixture
def convolutional():
    return rule_of(models.resnet20((3, 8, 8), 10, width=0.25), (3, 8, 8))


def shares(monkeypatch, **of: float) -> None:
    """Let choices take these shares of the time."""

    def share(_, one: Fastest, other: Fastest) -> float:
        return of["bf16" if one.precision != other.precision else "channels_last"]

    monkeypatch.setattr(module, "WORTH_FLOPS", 0)
    monkeypatch.setattr(module._Times, "share", share)


@pytest.mark.parametrize(
    ("of_formats", "of_types", "wanted"),
    [
        (0.8, 0.5, ("bf16", True)),
        (0.8, 2.0, ("32", True)),
        (0.96, 0.94, ("bf16", False)),
        (1.2, math.inf, ("32", False)),
    ],
)
def test_what_is_faster_by_five_percent(of_formats, of_types, wanted, convolutional, monkeypatch):
    shares(monkeypatch, channels_last=of_formats, bf16=of_types)
    found = fastest(convolutional, CPU, 4, 1, "auto", "auto")
    assert (found.precision, found.channels_last) == wanted
    assert f"channels_last takes {of_formats:.2f}" in found.line


def test_what_was_given_is_kept(convolutional, monkeypatch):
    shares(monkeypatch, channels_last=0.5, bf16=0.5)
    given = fastest(convolutional, CPU, 4, 1, "32", False)
    assert given == Fastest("32", False, None)
    found = fastest(convolutional, CPU, 4, 1, "16", "auto")
    assert (found.precision, found.channels_last) == ("16", True)


def test_a_loss_scale_and_delayed_gradients(convolutional):
    late = rules.DelayedGradient(convolutional.blocks)
    with pytest.raises(InputError, match="--precision 16: under DelayedGradient"):
        fastest(late, CPU, 4, 1, "16", False)
    assert fastest(late, CPU, 4, 1, "bf16", False).precision == "bf16"


def test_only_convolutions_have_a_format(monkeypatch):
    shares(monkeypatch, channels_last=0.5, bf16=2.0)
    found = fastest(rule_of(models.mlp((1, 4, 4), 3), (1, 4, 4)), CPU, 4, 1, "auto", "auto")
    assert found.channels_last is False


def test_a_small_network_is_not_measured(convolutional, monkeypatch):
    monkeypatch.setattr(module, "_Times", None)
    assert fastest(convolutional, CPU, 4, 1, "auto", "auto") == Fastest("32", False, None)


def test_the_rule_and_random_numbers_stay(convolutional, monkeypatch):
    """With real steps, in every precision and format."""
    monkeypatch.setattr(module, "WORTH_FLOPS", 0)
    before = copy.deepcopy(convolutional.state_dict())
    random = torch.get_rng_state()
    found = fastest(convolutional, CPU, 4, 1, "auto", "auto")
    assert found.line is not None
    assert_same(convolutional.state_dict(), before)
    assert all(p.grad is None for p in convolutional.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert convolutional.training


class OnlyInSinglePrecision(objectives.Objective):
    def forward(self, activity, batch):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not implemented for 'BFloat16'")
        return activity.output.mean()


def test_what_does_not_run_is_not_chosen(monkeypatch):
    monkeypatch.setattr(module, "WORTH_FLOPS", 0)
    blocks = cut(models.mlp((1, 4, 4), 3), example=torch.randn(2, 1, 4, 4))
    found = fastest(rules.Greedy(blocks, OnlyInSinglePrecision()), CPU, 4, 1, "auto", False)
    assert found.precision == "32"
    assert "bf16 inf" in found.line


def test_the_choice_is_recorded(monkeypatch):
    monkeypatch.setattr(
        "layerwise.experiment.prepared.fastest", lambda *_: Fastest("bf16", True, "why")
    )
    prepared = Prepared.of(complete({"data": {"name": "digits"}, "model": {"name": "basic_cnn"}}))
    assert prepared.config["precision"] == "bf16"
    assert prepared.config["channels_last"] is True
    settings = prepared.experiment.settings
    assert (settings.precision, settings.channels_last) == ("bf16", True)
    assert prepared.fabric.strategy.precision.precision == "bf16-mixed"
    assert prepared.notice == "why"
    again = Prepared.of(prepared.config)
    assert again.config["precision"] == "bf16"
