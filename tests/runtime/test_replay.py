"""Which batch a stage trains on while it waits."""

from __future__ import annotations

from layerwise.runtime.replay import Replay


def test_least_used_then_newest() -> None:
    """a | a b: b, the newer of two unused is taken first only where both were used as often."""
    replay: Replay[str] = Replay(3)
    replay.put("a")
    assert [replay.take() for _ in range(2)] == ["a", "a"]  # a was used twice
    replay.put("b")
    assert [replay.take() for _ in range(2)] == ["b", "b"]  # 0 and 1 uses are less than 2
    assert [replay.take() for _ in range(2)] == ["b", "a"]  # equal: the newest, then the other
    replay.put("c")
    replay.put("d")  # a is gone
    assert len(replay) == 3
    assert [replay.take() for _ in range(7)] == ["d", "c", "d", "c", "d", "c", "d"]
