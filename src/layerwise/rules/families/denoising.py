"""Rules under which every block learns by itself to denoise a vector that stands for the label."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.labels import mean_of_counted, rows_of
from layerwise.models.denoisers import Denoiser
from layerwise.objectives import Activity, Classify
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion
from layerwise.rules.base import Done, LocalRule, Needs, differentiate
from layerwise.rules.base.checks import checked


class DenoisingRule(LocalRule):
    """A rule for networks of denoisers with a linear classifier behind (`models.denoisers`).

    Labels are class numbers; of soft ones u_y is the mean of the classes' vectors, weighed so. A
    sample whose label does not count asks nothing of a denoiser. Every denoiser minimises its own
    loss on noisy vectors of the labels, drawn anew, and the
    classifier's readout the criterion on what the last denoiser is to give:

        z = signal u_y + noise eps,    eps ~ N(0, I)

    No block needs what the one before gives, but for the class scores of inference in the step's
    report: they pass through beside the training, on the same features of the image, and without a
    graph. The last block's reported loss is that of inference.

    Args:
        blocks: such a network, cut between its modules.
        kind: of denoiser that the rule trains.
        remedy: the network to take instead, for errors.
        learned: whether the labels' vectors are parameters that every block's loss moves; else they
            are unit vectors, or where there are not as many features as classes random orthogonal
            ones.
        criterion: of class scores and labels, a scalar; the readout's.

    Raises:
        InputError: the network is something else.
    """

    stochastic = True

    def __init__(
        self,
        blocks: Blocks,
        kind: type[Denoiser],
        remedy: str,
        learned: bool,
        criterion: Criterion,
    ):
        call = type(self).__name__
        denoisers, readout = _parts(call, checked(call, blocks), kind, remedy)
        before = [None] * (len(blocks) - 1)
        super().__init__(blocks, [*before, Vectors(readout, learned, criterion)])
        self._denoisers, self._readout = denoisers, (readout,)  # not registered: they are elsewhere
        chain = [denoiser for mine in denoisers for denoiser in mine]
        self._start, self._end = chain[0].before, chain[-1].after
        if learned:
            self.needs = Needs.FORWARD | Needs.READOUT

    @property
    def vectors(self) -> Tensor:
        """The labels' vectors, (classes, E)."""
        objective = self.objectives[len(self.blocks) - 1]
        assert isinstance(objective, Vectors)
        return objective.vectors

    @abstractmethod
    def denoising_loss(
        self, denoiser: Denoiser, features: Tensor, u: Tensor, labels: Tensor
    ) -> Tensor:
        """A denoiser's loss, (), mean over the batch.

        Args:
            denoiser: which.
            features: of the image, as the denoiser reads them.
            u: the labels' vectors, (B, E).
            labels: of the batch.
        """

    def local_step(self, k: int, h: Any, batch: Batch, copy: Tensor | None = None) -> Done:
        """Where the vectors learn, their gradient from the blocks before the last is summed in a
        copy, which travels from block to block, so that it reaches `.grad` in one piece."""
        last = k == len(self.blocks) - 1
        vectors = self.vectors
        if vectors.requires_grad and not last:
            copy = vectors.detach().requires_grad_() if copy is None else copy
        u = rows_of(vectors if last or copy is None else copy, batch.labels)
        loss = u.new_zeros(())
        for denoiser in self._denoisers[k]:
            x, z = denoiser.unpack(h)
            features = denoiser.features(x)
            loss = loss + self.denoising_loss(denoiser, features, u, batch.labels)
            with torch.no_grad():
                h = denoiser.step(denoiser.estimate(features, z), x, z)
            del features
        if not last:
            differentiate(loss, batch.scale)
            return Done(h.detach(), loss.detach(), carry=() if copy is None else (copy,))
        readout = self._readout[0]
        classified, _ = self.loss(k, Activity(readout(noised(u, self._end))), batch)
        sums = [] if copy is None or copy.grad is None else [(vectors, copy.grad)]
        differentiate(loss + classified, batch.scale, also=sums)
        with torch.no_grad():
            scores = readout(h)
            inference, _ = self.loss(k, Activity(scores), batch)
        return Done(scores, inference, scores)


class Vectors(Classify):
    """The last block's objective, the criterion, which also has the labels' vectors, (classes, E).

    Args:
        readout: the linear layer that takes such vectors.
        learned: whether they are parameters.
        criterion: of class scores and labels, a scalar.
    """

    vectors: Tensor

    def __init__(self, readout: nn.Linear, learned: bool, criterion: Criterion):
        super().__init__(criterion=criterion)
        classes, size = readout.out_features, readout.in_features
        vectors = torch.empty(classes, size, dtype=torch.float64)
        nn.init.eye_(vectors) if classes == size else nn.init.orthogonal_(vectors)
        vectors = vectors.to(readout.weight.device, readout.weight.dtype)
        if learned:
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)


def distance(error: Tensor, labels: Tensor) -> Tensor:
    """Half the squares of errors, (B, E), summed over E: the mean over the samples whose label
    counts, ()."""
    return mean_of_counted(error.square().sum(1), labels) / 2


def noised(u: Tensor, levels: tuple[float | Tensor, float | Tensor]) -> Tensor:
    """signal u + noise eps, (B, E)."""
    signal, noise = levels
    return signal * u + noise * torch.randn_like(u)


def _parts(
    call: str, blocks: Blocks, kind: type[Denoiser], remedy: str
) -> tuple[Sequence[Sequence[Denoiser]], nn.Linear]:
    """Every block's denoisers, and the linear layer behind the last."""
    found = [[m for m in block.modules() if isinstance(m, kind)] for block in blocks]
    chain = [denoiser for mine in found for denoiser in mine]
    within = {p for denoiser in chain for p in denoiser.parameters()}
    others = {
        m for m in blocks.modules() if any(p not in within for p in m.parameters(recurse=False))
    }
    readout = others.pop() if len(others) == 1 else None
    whole = chain and chain[0].first and chain[-1].last
    if not whole or not isinstance(readout, nn.Linear) or readout not in blocks[-1].modules():
        raise InputError(
            f"{call}(blocks): trains a network of denoisers, each given the image and what the one "
            f"before made of the label, with a linear classifier; take {remedy}, cut between its "
            "modules"
        )
    return found, readout
