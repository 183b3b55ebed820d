"""The asynchronous schedule that `benchmarks/asynchronous.py` plays by a clock."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layerwise.data import Augment, Images, Loader

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def asynchronous(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import asynchronous

    return asynchronous


def _loader() -> Loader:
    torch.manual_seed(0)
    images = Images(
        torch.randint(256, (64, 8, 8, 1), dtype=torch.uint8), torch.randint(3, (64,)).long()
    )
    return Loader(images, 8, augment=Augment(), train=True, channels_last=True)


def _trained(asynchronous, durations: list[float], replay: int, epochs: int = 1):
    loader = _loader()
    torch.manual_seed(1)
    rule = asynchronous.network((1, 8, 8), 3, 4)
    return rule, asynchronous.train(rule, loader, epochs, durations, replay)


def test_equally_fast_stages_are_the_serial_loop(asynchronous) -> None:
    """In the first pass: every batch is used once, in order. Bit for bit."""
    rule, used = _trained(asynchronous, [1.0, 1.0, 1.0], replay=4)
    assert used == [8, 8, 8]
    torch.manual_seed(1)
    serial = asynchronous.network((1, 8, 8), 3, 4)
    optimizer = torch.optim.SGD(serial.parameters(), asynchronous.LR, momentum=0.9)
    factor = asynchronous.OneCycle().factor(8, 8)
    for step, (x, y) in enumerate(_loader().epoch(0)):
        optimizer.zero_grad()
        serial.backward(x, y)
        optimizer.param_groups[0]["lr"] = asynchronous.LR * factor(step)
        optimizer.step()
    for (name, weight), other in zip(
        rule.state_dict().items(), serial.state_dict().values(), strict=True
    ):
        assert torch.equal(weight, other), name


@pytest.mark.parametrize(
    ("durations", "replay", "used"),
    [
        # Stage 2 begins at 4, when the first output comes. Its 8 steps begin at 4 to 11, and the
        # second output comes at 8. Stage 3 follows at 5.
        ([4.0, 1.0, 1.0], 4, [8, 2, 2]),
        # Output i reaches stage 3 at i + 2. Its steps begin at 2, 6, 10, ...: it takes 0, then 4 of
        # 1 to 4, then 7, 6 and 5 of 4 to 7, and these once more.
        ([1.0, 1.0, 4.0], 4, [8, 8, 5]),
        ([1.0, 1.0, 4.0], 1, [8, 8, 3]),
    ],
)
def test_slow_stages(asynchronous, durations: list[float], replay: int, used: list[int]) -> None:
    assert _trained(asynchronous, durations, replay)[1] == used
