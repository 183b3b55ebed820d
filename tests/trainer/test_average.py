"""The moving average of a rule whose weights are partly in another process."""

from __future__ import annotations

import networks
import torch

from layerwise import rules
from layerwise.runs.released import is_released, release
from layerwise.trainer.checkpoint import load_held
from layerwise.trainer.stepper import Average


def test_weights_of_other_processes_have_no_average() -> None:
    """A copy of a released parameter would take memory, and its place in the average."""
    rule = rules.Backprop(networks.cnn().blocks)
    release(rule.parameters_of(0))
    average, held = Average(rule, 0.75), rule.parameters_of(1)[0]
    first = held.detach().clone()
    average.update_parameters(rule)
    with torch.no_grad():
        held += 1
    average.update_parameters(rule)
    copy = average.module
    assert all(map(is_released, (p for p in copy.parameters_of(0) if p.numel() > 1)))
    torch.testing.assert_close(copy.parameters_of(1)[0].detach(), first + 0.25)


def test_a_checkpoint_gives_a_process_the_averages_of_its_own_blocks() -> None:
    rule = rules.Backprop(networks.cnn().blocks)
    saved = {name: t + 1 for name, t in Average(rule, 0.75).state_dict().items()}
    release(rule.parameters_of(0))
    average = Average(rule, 0.75)
    load_held(average, saved)
    assert average.n_averaged == 1
    for name, p in average.module.named_parameters():
        assert is_released(p) or torch.equal(p, saved[f"module.{name}"]), name
    own = average.module.parameters_of(1)
    assert own
    assert not any(map(is_released, own))
