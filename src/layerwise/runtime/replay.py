"""Batches that a stage trains on again while nothing new has arrived."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Replay(Generic[T]):
    """The newest batches, and how often each was used.

    Belilovsky et al. 2020 (arXiv:1901.08164), algorithm 2 and section 4.3: a layer that is faster
    than the one before it uses batches again. The least used batch is taken first, and among
    equally used ones the newest.

    Args:
        size: number of batches that are kept; the oldest is dropped first.
    """

    def __init__(self, size: int):
        self.size = size
        self._batches: list[tuple[T, int]] = []  # oldest first

    def __len__(self) -> int:
        return len(self._batches)

    def put(self, batch: T) -> None:
        """Keep a batch that has arrived."""
        self._batches = [*self._batches, (batch, 0)][-self.size :]

    def take(self) -> T:
        """The newest of the least used batches; it then counts as used once more."""
        least = min(uses for _, uses in self._batches)
        newest = max(k for k, (_, uses) in enumerate(self._batches) if uses == least)
        batch, _ = self._batches[newest]
        self._batches[newest] = (batch, least + 1)
        return batch
