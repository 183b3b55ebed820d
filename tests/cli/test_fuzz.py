"""Random input works or is refused in one line; `make fuzz` runs longer."""

from __future__ import annotations

import pytest
from fuzz import fuzz, report

QUICK = ("options", "config", "arguments", "network", "rule", "labels")


def test_ten_seconds():
    ended, failures = fuzz(10, seed=3, processes=False, kinds=QUICK)
    assert not failures, report(3, failures[0])
    assert ended


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 8))
def test_minutes(seed):
    ended, failures = fuzz(120, seed=seed)
    assert not failures, report(seed, failures[0])
    assert ended
