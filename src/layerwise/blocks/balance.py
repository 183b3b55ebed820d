"""Where to cut so that the blocks have about equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

Balance = Literal["flops", "memory"]


def partition(costs: Sequence[int], parts: int) -> list[int]:
    """Divide costs into contiguous, non-empty parts of about equal sum; where each part begins.

    The largest part is as small as possible. Among the divisions with such a largest part, the one
    with the least sum of squares is taken, and among these the one with smaller earlier parts.

    Args:
        costs: non-negative integers.
        parts: at least 1 and at most `len(costs)`.

    Returns:
        `parts` increasing indices, the first of them 0.
    """
    assert 1 <= parts <= len(costs)
    before = [0, *accumulate(costs)]  # before[i]: the sum of the first i costs
    limit = _smallest_limit(costs, parts)

    # least[j]: the least sum of squares of k parts, each within `limit`, of the first j costs; None
    # if there are no such parts. begins[k - 1][j]: where the last of these parts begins.
    n = len(costs)
    least: list[int | None] = [0] + [None] * n
    begins: list[list[int]] = []
    for k in range(1, parts + 1):
        now: list[int | None] = [None] * (n + 1)
        begin = [0] * (n + 1)
        for j in range(k, n + 1):
            for i in range(j - 1, k - 2, -1):
                cost = before[j] - before[i]
                if cost > limit:
                    break
                up_to_i, best = least[i], now[j]
                if up_to_i is not None and (best is None or up_to_i + cost**2 <= best):
                    now[j], begin[j] = up_to_i + cost**2, i
        least = now
        begins.append(begin)

    starts, j = [], n
    for begin in reversed(begins):
        j = begin[j]
        starts.append(j)
    return starts[::-1]


def _smallest_limit(costs: Sequence[int], parts: int) -> int:
    """The smallest possible sum of the largest part, by bisection."""
    low, high = max(costs), sum(costs)
    while low < high:
        middle = (low + high) // 2
        if _parts_needed(costs, middle) <= parts:
            high = middle
        else:
            low = middle + 1
    return low


def _parts_needed(costs: Sequence[int], limit: int) -> int:
    """The least number of parts, each with a sum of at most `limit`."""
    needed, filled = 1, 0
    for cost in costs:
        if filled + cost > limit:
            needed, filled = needed + 1, 0
        filled += cost
    return needed
