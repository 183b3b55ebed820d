"""BatchNorm whose statistics replicas share; the sharing itself needs accelerators."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import nn

from layerwise import objectives, rules
from layerwise.cli import main
from layerwise.runtime.batchnorm import share_statistics


def test_the_same_modules_weights_and_names() -> None:
    """The model's, the blocks', and those of a block that is run in two parts; in one process
    nothing else changes."""
    torch.manual_seed(0)
    case = networks.cnn()
    rule = rules.Greedy(case.blocks, objectives.Reconstruct())
    norms = [m for m in case.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    state, kept = rule.state_dict(), {n: t.clone() for n, t in rule.state_dict().items()}
    x, y = case.x, case.y
    rule.backward(x, y)
    wanted = networks.grads(rule)
    after = {n: t.clone() for n, t in rule.state_dict().items()}
    rule.load_state_dict(kept)
    for p in rule.parameters():
        p.grad = None

    share_statistics(rule, None)
    assert all(type(m) is nn.SyncBatchNorm for m in norms)
    assert rule.state_dict().keys() == state.keys()
    assert all(
        a.data_ptr() == b.data_ptr()
        for a, b in zip(rule.state_dict().values(), state.values(), strict=True)
    )
    rule.backward(x, y)
    networks.assert_same(networks.grads(rule), wanted)
    networks.assert_same(rule.state_dict(), after)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--sync_batchnorm true: there is one replica"),
        ("--stages 1 --replicas 2", "--sync_batchnorm true: torch shares BatchNorm's statistics"),
    ],
)
def test_bad_input(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = f"train --model mlp --epochs 1 --device cpu --sync_batchnorm true {options}"
    assert main(arguments.split()) == 2
    assert message in capsys.readouterr().err
