"""Random input works or is refused in one line; `make fuzz` runs longer."""

from __future__ import annotations

import pytest
from fuzz import KINDS_OF_CASES, fuzz, report


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS_OF_CASES)
def test_a_moment(kind):
    ended, failures = fuzz(0.6, seed=3, processes=False, kinds=(kind,))
    assert not failures, report(3, failures[0])
    assert {of for of, _ in ended} == {kind}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 8))
def test_minutes(seed):
    ended, failures = fuzz(120, seed=seed)
    assert not failures, report(seed, failures[0])
    assert ended
