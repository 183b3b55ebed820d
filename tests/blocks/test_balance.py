from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from layerwise.blocks.balance import partition


def largest(costs, starts):
    ends = [*starts[1:], len(costs)]
    return max(sum(costs[i:j]) for i, j in zip(starts, ends, strict=True))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.data())
def test_no_division_has_a_smaller_largest_part(costs, data):
    parts = data.draw(st.integers(1, len(costs)))
    starts = partition(costs, parts)
    assert starts[0] == 0
    assert len(starts) == parts
    assert starts == sorted(set(starts))
    every = ([0, *inner] for inner in combinations(range(1, len(costs)), parts - 1))
    assert largest(costs, starts) == min(largest(costs, s) for s in every)


def test_ties_are_broken_towards_equal_parts():
    # The 10 is the largest part in any case; the rest is divided as equally as possible.
    assert partition([10, 1, 1, 1, 1], 3) == [0, 1, 3]


def test_all_parts():
    assert partition([3, 1, 2], 3) == [0, 1, 2]
    assert partition([3, 1, 2], 1) == [0]
