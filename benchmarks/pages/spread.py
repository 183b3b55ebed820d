"""Several measurements as one cell of a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def mean(found: Sequence[float], places: int) -> str:
    """Mean ± standard deviation; the mean alone if there is one measurement."""
    spread = f" ± {statistics.stdev(found):.{places}f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.{places}f}{spread}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Median of the rounds' ratios, with the lowest and the highest."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
