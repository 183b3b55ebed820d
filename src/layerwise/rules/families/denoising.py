"""Rules under which every block learns by itself to denoise a vector that stands for the label."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.labels import mean_of_counted, rows_of
from layerwise.models.denoisers import Denoiser
from layerwise.objectives import Objective
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion
from layerwise.rules.base import ForwardRule, Needs, differentiate


class DenoisingRule(ForwardRule):
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

    draws = True

    def __init__(
        self,
        blocks: Blocks,
        kind: type[Denoiser],
        remedy: str,
        learned: bool,
        criterion: Criterion,
    ):
        super().__init__(blocks)
        # Not registered: they are the blocks' own.
        self._denoisers, self._readout = _parts(type(self).__name__, blocks, kind, remedy)
        chain = [denoiser for mine in self._denoisers for denoiser in mine]
        self._start, self._end = chain[0].before, chain[-1].after
        self.criterion = criterion
        last = len(blocks) - 1
        for k in range(last):
            self.objectives[str(k)] = Distance()
        self.objectives[str(last)] = Vectors(self._readout[0], learned)
        if learned:
            self.needs = Needs.FORWARD | Needs.READOUT

    @abstractmethod
    def denoising_loss(
        self, denoiser: Denoiser, features: Tensor, u: Tensor, distance: Objective, batch: Batch
    ) -> Tensor:
        """A denoiser's loss, (), mean over the batch.

        Args:
            denoiser: which.
            features: of the image, as it reads them.
            u: the labels' vectors, (B, E).
            distance: of the errors, (B, E): half their squares, mean over the batch.
            batch: the step's.
        """

    def local_backward(self, i: int, h: Tensor, batch: Batch) -> Tensor:
        last = i == len(self.blocks) - 1
        vectors = self._vectors(last, batch)
        u = rows_of(vectors, batch.y)
        distance = self._objective(i)
        assert distance is not None
        h, loss = h.detach(), u.new_zeros(())
        for denoiser in self._denoisers[i]:
            x, z = denoiser.unpack(h)
            features = denoiser.features(x)
            loss = loss + self.denoising_loss(denoiser, features, u, distance, batch)
            with torch.no_grad():
                h = denoiser.step(denoiser.estimate(features, z), x, z)
            del features
        report, also = loss, []
        if last:
            readout = self._readout[0]
            loss = loss + self.criterion(readout(noised(u, self._end)), batch.y)
            with torch.no_grad():
                h = readout(h)
                report = self.criterion(h, batch.y)
            batch.predicted(h)
            also = [(vectors, own.grad) for own in batch.along if own.grad is not None]
        differentiate(loss, batch.scale, also=also)
        batch.finish(i, report)
        return h.detach()

    def _vectors(self, last: bool, batch: Batch) -> Tensor:
        """The labels' vectors, (classes, E). What blocks before the last give of their gradient is
        added up in a copy, so that it reaches `.grad` in one piece."""
        objective = self._objective(len(self.blocks) - 1)
        assert isinstance(objective, Vectors)
        vectors = objective.vectors
        if last or not vectors.requires_grad:
            return vectors
        if not batch.along:
            batch.along = (vectors.detach().requires_grad_(),)
        return batch.along[0]


class Distance(Objective):
    """Of a denoiser's errors, (B, E): half their squares, mean over the samples whose label
    counts."""

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        return mean_of_counted(h.square().sum(1), batch.y) / 2

    @property
    def reads_input(self) -> bool:
        return False


class Vectors(Distance):
    """Also has the labels' vectors, (classes, E).

    Args:
        readout: that takes such vectors.
        learned: whether they are parameters.
    """

    vectors: Tensor

    def __init__(self, readout: nn.Linear, learned: bool):
        super().__init__()
        classes, size = readout.out_features, readout.in_features
        vectors = torch.empty(classes, size, dtype=torch.float64)
        nn.init.eye_(vectors) if classes == size else nn.init.orthogonal_(vectors)
        vectors = vectors.to(readout.weight.device, readout.weight.dtype)
        if learned:
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)


def noised(u: Tensor, levels: tuple[float | Tensor, float | Tensor]) -> Tensor:
    """signal u + noise eps, (B, E)."""
    signal, noise = levels
    return signal * u + noise * torch.randn_like(u)


def _parts(
    call: str, blocks: Blocks, kind: type[Denoiser], remedy: str
) -> tuple[Sequence[Sequence[Denoiser]], tuple[nn.Linear]]:
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
    return found, (readout,)
