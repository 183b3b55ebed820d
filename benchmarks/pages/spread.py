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
    return median([a / b for a, b in zip(ours, theirs, strict=True)])


def median(found: Sequence[float]) -> str:
    """Median, with the lowest and the highest."""
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
