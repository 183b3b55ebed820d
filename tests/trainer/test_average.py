"""The moving average of a rule whose weights are partly in another process."""

from __future__ import annotations

import networks
import torch

from layerwise import rules
from layerwise.runs.released import is_released, release
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
