"""Curriculum learning: training on easy samples first, then on all."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from layerwise.data.fingerprint import Fingerprint
from layerwise.data.splits import Splits
from layerwise.errors import InputError


class Curriculum:
    """Chooses the easiest samples at first, and more and more samples as training goes on.

    Curriculum learning with a fixed exponential pacing (Hacohen & Weinshall 2019,
    arXiv:1904.03626), as Bakhtiarnia, Zhang & Iosifidis 2021 (arXiv:2104.10461) train early exits
    with it. Samples are ordered by a score of their difficulty: the loss of a network that
    was trained before ("transfer scoring"), which `layerwise evaluate RUN --split train --losses
    true` writes. Batch i since the start of training draws from the easiest

        share(i) = min(1, start * increase^floor(i / every))

    of the samples. With increase = 1 / start this is single-step pacing: the share `start` of the
    samples, and all of them after `every` batches. With start = 1 it is plain training, bit for
    bit.

    Deviation: within an epoch, the admitted samples come in the epoch's random order and repeat, so
    that all are used equally often; the papers draw every batch independently.

    Args:
        scores: one for every sample of the training set, in its order, (N,); a small score means
            an easy sample.
        start: share of the samples that training begins with, in (0, 1].
        increase: factor by which the share grows, 1 or more.
        every: number of batches between two increases.
        anti: start with the hardest samples instead (anti-curriculum).

    Raises:
        InputError: an option is out of its range; the scores are not one finite number per sample.
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
        if scores.dim() != 1 or scores.is_complex() or not scores.isfinite().all():
            raise InputError(
                f"Curriculum(scores): got {tuple(scores.shape)}; give one finite number per sample"
            )
        self.start, self.increase, self.every, self.anti = start, increase, every, anti
        order = scores.double().argsort(stable=True, descending=anti)
        # For each sample, the number of samples before it in that order.
        self.rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))

    def __len__(self) -> int:
        return len(self.rank)

    def count(self, batch: int) -> int:
        """The number of samples that batch number `batch`, counted over all epochs, draws from."""
        steps = batch // self.every
        try:
            share = min(1.0, self.start * self.increase**steps)
        except OverflowError:
            share = 1.0
        return max(1, round(share * len(self)))

    def batch(self, order: Tensor, number: int, first: int, size: int) -> Tensor:
        """The samples of a batch, (size,).

        Args:
            order: all samples in the order of the epoch, (N,).
            number: of the batch, counted from the start of training.
            first: number of the epoch's samples before the batch.
            size: of the batch.
        """
        admitted = order[self.rank[order] < self.count(number)]
        return admitted[torch.arange(first, first + size) % len(admitted)]


def read_scores(path: str | Path, splits: Splits | None = None) -> Tensor:
    """Read the scores, (N,), from a file that `layerwise evaluate --losses true` wrote.

    Args:
        path: of the file.
        splits: the data whose training samples the scores will order; checked against what the
            file says about its samples.

    Raises:
        InputError: the file does not exist or holds something else; its samples are others.
    """
    try:
        if not Path(path).is_file():  # opening a pipe would wait for ever
            raise OSError("it is not a file")
        with safe_open(path, "pt") as file:
            names, about = set(file.keys()), (file.metadata() or {}).get("samples")
            scores = file.get_tensor("losses")
            labels = file.get_tensor("labels") if "labels" in names else None
        samples = json.loads(about) if about else {}
        of_data = Fingerprint.from_dict(samples) if about else None
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise InputError(
            f"--curriculum.scores {path}: cannot be read; give the file that `layerwise evaluate "
            "RUN --split train --losses true` wrote"
        ) from error
    if (split := samples.get("split", "train")) != "train":
        raise InputError(
            f"--curriculum.scores {path}: the scores are of the {split} split; give those that "
            "`layerwise evaluate RUN --split train --losses true` wrote"
        )
    if splits is None:
        return scores
    if labels is not None and not torch.equal(labels, getattr(splits.train, "labels", labels)):
        raise InputError(
            f"--curriculum.scores {path}: the scores are of other images, or in another order; "
            "give those of a run with the same data and --seed, which chooses the validation images"
        )
    if of_data and (difference := of_data.changed_training(Fingerprint.of(splits))) is not None:
        raise InputError(
            f"--curriculum.scores {path}: the scores are of other data than {splits.name}: "
            f"{difference}; give those of a run with the same data and --seed"
        )
    return scores
