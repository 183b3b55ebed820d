"""From easy samples to all."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from layerwise.errors import InputError


class Curriculum:
    """Training on the easiest samples first, on ever more of them as training goes on.

    Curriculum learning with a fixed exponential pacing (Hacohen & Weinshall 2019,
    arXiv:1904.03626), as Bakhtiarnia, Zhang & Iosifidis 2021 (arXiv:2104.10461) train early exits
    with it. Samples are ordered by a score of their difficulty: the loss of a network trained
    before ("transfer scoring"), which `layerwise evaluate RUN --split train --losses true` writes.
    Batch i since the start of training draws from the easiest

        share(i) = min(1, start * increase^floor(i / every))

    of them. With increase = 1 / start that is the single-step pacing: the easiest `start`, and all
    after `every` batches. With start = 1 it is plain training, bit for bit.

    Deviation: within an epoch the samples that are admitted come in the epoch's random order, over
    and over, each as often as the others; the papers draw every batch independently.

    Args:
        scores: of every sample of the training set in its order, (N,); small is easy.
        start: share of the samples that training begins with, in (0, 1].
        increase: by how much the share is multiplied, 1 or more.
        every: after how many batches.
        anti: the hardest first (anti-curriculum).

    Raises:
        InputError: an option out of its range; scores that are not one finite number per sample.
    """

    def __init__(
        self,
        scores: Tensor,
        start: float = 0.04,
        increase: float = 1.9,
        every: int = 100,
        anti: bool = False,
    ):
        if not 0 < start <= 1:
            raise InputError(f"Curriculum(start={start}): give a share of the samples in (0, 1]")
        if increase < 1:
            raise InputError(f"Curriculum(increase={increase}): give a factor of 1 or more")
        if every < 1:
            raise InputError(f"Curriculum(every={every}): give 1 batch or more")
        if scores.dim() != 1 or not scores.isfinite().all():
            raise InputError(
                f"Curriculum(scores): got {tuple(scores.shape)}; give one finite number per sample"
            )
        self.start, self.increase, self.every, self.anti = start, increase, every, anti
        order = scores.double().argsort(stable=True, descending=anti)
        # Of each sample, how many come before it.
        self.rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))

    def __len__(self) -> int:
        return len(self.rank)

    def count(self, batch: int) -> int:
        """How many samples batch number `batch` of the whole training draws from."""
        steps = batch // self.every
        try:
            share = min(1.0, self.start * self.increase**steps)
        except OverflowError:
            share = 1.0
        return max(1, round(share * len(self)))

    def batch(self, order: Tensor, number: int, first: int, size: int) -> Tensor:
        """The samples of a batch, (size,).

        Args:
            order: all samples, (N,), as they come in the epoch.
            number: of the batch since the start of training.
            first: how many samples of the epoch were before the batch.
            size: of the batch.
        """
        admitted = order[self.rank[order] < self.count(number)]
        return admitted[torch.arange(first, first + size) % len(admitted)]


def read_scores(path: str | Path, labels: Tensor | None = None) -> Tensor:
    """The scores in a file that `layerwise evaluate --losses true` wrote, (N,).

    Args:
        path: of the file.
        labels: of the samples that they are to order, (N,).

    Raises:
        InputError: there is no such file, or it is another; it tells of samples with other labels.
    """
    try:
        found = load_file(path)
        scores, scored = found["losses"], found.get("labels")
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(
            f"--curriculum.scores {path}: cannot be read; give what `layerwise evaluate RUN "
            "--split train --losses true` wrote"
        ) from error
    if scored is not None and labels is not None and not torch.equal(scored, labels.cpu()):
        raise InputError(
            f"--curriculum.scores {path}: they are of other images, or in another order; give "
            "those of a run on the same data and --seed, by which validation images are chosen"
        )
    return scores
