"""Where to cut so that the blocks cost about the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

Balance = Literal["flops", "memory"]


def partition(costs: Sequence[int], parts: int) -> list[int]:
    """Where each of `parts` contiguous, non-empty parts of `costs` begins.

    The largest part is as small as it can be; among the divisions for which it is, the parts are
    as equal as they can be (least sum of squares), and then the earlier parts are the smaller.

    Args:
        costs: non-negative integers.
        parts: at least 1 and at most `len(costs)`.

    Returns:
        `parts` increasing indices, the first of them 0.
    """
    assert 1 <= parts <= len(costs)
    before = [0, *accumulate(costs)]  # before[i]: the cost of all that comes before i
    limit = _smallest_limit(costs, parts)

    # least[j]: the least sum of squares with which the first j costs make k parts within `limit`,
    # and where the last of these parts begins.
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
    low, high = max(costs), sum(costs)
    while low < high:
        middle = (low + high) // 2
        if _parts_needed(costs, middle) <= parts:
            high = middle
        else:
            low = middle + 1
    return low


def _parts_needed(costs: Sequence[int], limit: int) -> int:
    needed, filled = 1, 0
    for cost in costs:
        if filled + cost > limit:
            needed, filled = needed + 1, 0
        filled += cost
    return needed
