"""NoProp: every block learns by itself to denoise the label, given the input."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.batch import Batch
from layerwise.blocks import Blocks
from layerwise.denoising import Chain, Error, Vectors, noised
from layerwise.errors import InputError
from layerwise.models.denoisers import Denoiser
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rule import ForwardRule, Needs, differentiate


class NoProp(ForwardRule):
    """NoProp-DT: denoiser t learns to tell the label's clean vector u_y from a noisy one and the
    image, whatever the other blocks do.

    Li, Teh & Pascanu 2025 (arXiv:2503.24322), eq. 8. With T denoisers u_t, noise eps ~ N(0, I), and
    SNR(t) = alpha^_t / (1 - alpha^_t) of the network's schedule (`models.noprop_cnn`):

        z_t    = sqrt(alpha^_t) u_y + sqrt(1 - alpha^_t) eps             drawn anew for every block
        loss_t = eta / 2 (SNR(t) - SNR(t - 1)) mean_b |u_t(z_{t-1}, x) - u_y|^2
        loss   = CE(readout(z_T), y)                                     the classifier's

    which are the terms of eq. 8 with its expectation over t written out; its divergence of z_0 from
    pure noise is 0, as alpha^_0 is. `forward` is inference: from z_0, through all denoisers. The
    step's report has the class scores of inference; it runs on beside the training, on the same
    features of the image. The last block's reported loss is that of inference, others' is loss_t.

    A denoiser's gradient depends on its own weights, the images and the labels alone, and not on
    how the chain is cut into blocks: with one block it is still NoProp, not backpropagation.

    Deviations: all denoisers take one step together, where algorithm 1 visits one after the other
    and trains readout and vectors with each; learned vectors are the rule's, and what a denoiser
    answers with are vectors of its own.

    Args:
        blocks: `models.noprop_cnn`, cut between its modules.
        eta: weight of the denoisers' losses; under Adam it matters for learned vectors alone.
        learned: whether the labels' vectors u_y are learned, from every block's loss; else they are
            the unit vectors, or where their number is not that of classes random orthogonal ones.
        criterion: of class scores and labels, a scalar; the readout's.

    Raises:
        InputError: the network is no chain of denoisers; an eta that is not positive.
    """

    def __init__(
        self,
        blocks: Blocks,
        eta: float = 0.1,
        learned: bool = False,
        criterion: Criterion = cross_entropy,
    ):
        if not eta > 0:
            raise InputError(f"NoProp(eta={eta}): give more than 0, such as 0.1")
        super().__init__(blocks)
        self._chain = Chain("NoProp", blocks, Denoiser, "models.noprop_cnn")
        if any(denoiser.after[1] == 0 for mine in self._chain.of for denoiser in mine):
            raise InputError(
                "NoProp(blocks): what a denoiser gives is to have no noise, so its weight would be "
                "infinite; take models.noprop_cnn"
            )
        self.eta, self.criterion = eta, criterion
        last = len(blocks) - 1
        for k in range(last):
            self.objectives[str(k)] = Error()
        self.objectives[str(last)] = Vectors(self._chain.readout, learned)
        if learned:  # every block's loss moves them
            self.needs = Needs.FORWARD | Needs.READOUT

    def local_backward(self, i: int, h: Tensor, batch: Batch) -> Tensor:
        last = i == len(self.blocks) - 1
        vectors = self._vectors(last, batch)
        u = vectors[batch.y]  # (B, E)
        h = h.detach()
        loss = report = u.new_zeros(())
        for denoiser in self._chain.of[i]:
            x, z = denoiser.unpack(h)
            features = denoiser.features(x)
            error = denoiser.estimate(features, noised(u, denoiser.before)) - u
            weight = self.eta * (_snr(denoiser.after) - _snr(denoiser.before))
            loss = loss + weight * self.objectives[str(i)](error, batch)
            with torch.no_grad():  # inference, beside the training
                h = denoiser.step(denoiser.estimate(features, z), x, z)
            del features, error
        also: list[tuple[Tensor, Tensor]] = []
        if last:
            readout = self._chain.readout
            loss = loss + self.criterion(readout(noised(u, self._chain.last.after)), batch.y)
            with torch.no_grad():
                h = readout(h)
                report = self.criterion(h, batch.y)
            batch.predicted(h)
            also = [(vectors, own.grad) for own in batch.along if own.grad is not None]
        else:
            report = loss
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


def _snr(levels: tuple[float, float]) -> float:
    signal, noise = levels
    return (signal / noise) ** 2
