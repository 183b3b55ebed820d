"""Rules in which every block learns separately to denoise a vector that stands for the label."""

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
from layerwise.objectives import Activity, Objective
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion
from layerwise.rules.base import Done, LocalRule, Needs, differentiate
from layerwise.rules.base.checks import checked


class DenoisingRule(LocalRule):
    """The base class of rules for networks of denoisers that end in a linear classifier
    (`models.denoisers`).

    Every denoiser minimises its own loss on newly drawn noisy versions z of the vector u_y of the
    label y. The classifier minimises the criterion on such vectors with the noise that is left
    after the last denoiser:

        z = signal u_y + noise eps,    eps ~ N(0, I)

    For soft labels, u_y is the mean of the classes' vectors, weighted by their probabilities.
    Samples whose label does not count are left out.

    Training a block needs nothing from the block before. Only for the class scores in the step's
    report, inference runs alongside training, on the same features of the image and without a
    graph. The last block's reported loss is that of inference.

    Args:
        blocks: such a network, cut between its modules.
        kind: the class of denoisers that the rule trains.
        remedy: the network to use instead, for errors.
        learned: whether the labels' vectors are parameters, which the losses of all blocks train;
            otherwise they are unit vectors or, if the number of features is not that of classes,
            random orthogonal ones.
        criterion: the classifier's loss: a function of class scores and labels that returns a
            scalar.

    Raises:
        InputError: another kind of network.
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
        self.criterion = criterion
        self._denoisers, self._readout = (
            denoisers,
            (readout,),
        )  # not registered again: the blocks have them
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
            denoiser: the denoiser.
            features: the image's features, as `denoiser.features` gives them.
            u: the labels' vectors, (B, E).
            labels: the labels of the batch, (B,), or probabilities, (B, C).
        """

    def local_step(self, k: int, h: Any, batch: Batch, copy: Tensor | None = None) -> Done:
        """Make block k's step. If the labels' vectors are learned, their gradient from all blocks
        except the last is summed in a copy that travels from block to block, so that it reaches
        `.grad` at once.

        Args:
            k, h, batch: as in `LocalRule.local_step`.
            copy: the copy of the labels' vectors, (classes, E), from the block before.
        """
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


class Vectors(Objective):
    """The last block's objective: the criterion, together with the labels' vectors.

    Args:
        readout: the linear classifier, which reads such vectors.
        learned: whether the vectors are parameters; otherwise they are a buffer.
        criterion: a function of class scores and labels that returns a scalar.

    Attributes:
        vectors: the labels' vectors, (classes, E).
    """

    vectors: Tensor

    def __init__(self, readout: nn.Linear, learned: bool, criterion: Criterion):
        super().__init__()
        self._criterion = (criterion,)  # not registered: it is the rule's
        classes, size = readout.out_features, readout.in_features
        vectors = torch.empty(classes, size, dtype=torch.float64)
        nn.init.eye_(vectors) if classes == size else nn.init.orthogonal_(vectors)
        vectors = vectors.to(readout.weight.device, readout.weight.dtype)
        if learned:
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)

    @property
    def reads_input(self) -> bool:
        return False

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        (criterion,) = self._criterion
        return criterion(activity.output, batch.labels)


def distance(error: Tensor, labels: Tensor) -> Tensor:
    """Half the squared length of errors, (B, E): the mean over the samples whose label counts,
    ()."""
    return mean_of_counted(error.square().sum(1), labels) / 2


def noised(u: Tensor, levels: tuple[float | Tensor, float | Tensor]) -> Tensor:
    """A noisy version of vectors u, (B, E): signal u + noise eps. `levels` are signal and noise."""
    signal, noise = levels
    return signal * u + noise * torch.randn_like(u)


def _parts(
    call: str, blocks: Blocks, kind: type[Denoiser], remedy: str
) -> tuple[Sequence[Sequence[Denoiser]], nn.Linear]:
    """The denoisers of every block, and the linear classifier after the last."""
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
            f"{call}(blocks): trains a network of denoisers, each of which reads the image and the "
            f"output of the denoiser before, with a linear classifier at the end; take {remedy}, "
            "cut between its modules"
        )
    return found, readout
