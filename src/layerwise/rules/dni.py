"""Decoupled neural interfaces: synthetic gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.blocks import Blocks
from layerwise.blocks.inplace import starts_in_place
from layerwise.errors import InputError
from layerwise.heads import Synthesizer
from layerwise.heads.layout import channels_first
from layerwise.heads.synthesizer import InputSynthesizer
from layerwise.objectives import Classify
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import ForwardRule, differentiate


class DNI(ForwardRule):
    """Decoupled neural interfaces: every block learns from a predicted gradient of its output.

    Jaderberg et al. 2017 (arXiv:1608.05343), section 2. L_b is the loss of sample b, c its label:

        d^_k = M_k(h_k [, c])                         predicts dL_b / dh_k
        grad_k = mean over b of d^_k dh_k / d f_k     block k, without waiting
        d_k = d^_{k+1} dh_{k+1} / dh_k                the target, through block k+1 alone
        loss_k = mean (d^_k - sg[d_k])^2              M_k; of the last block, d_K = dL_b / dh_K

    The reported loss of a block but the last is that of its synthesizer. A perfect synthesizer, and
    one block, make it backpropagation.

    Deviations: synthesizers predict the gradient of a sample's own loss, not of the batch's mean,
    so that what they learn does not depend on the batch size; their error is a mean over elements.

    Args:
        blocks: the network, made with an example.
        synthesizer: of every boundary.
        context: give synthesizers the labels (cDNI).
        synthetic_inputs: predict each block's input from the network's, which removes the forward
            lock (section 2.3): block k learns on h^_{k-1} = I_{k-1}(x), and I_{k-1} to give what
            block k-1 gave. `forward` is the network itself.
        update_probability: of each block, in each step, to be updated (section 3.3). A block that
            is left out only passes its output on; the synthesizer before it is left out with it.
        criterion: of class scores and labels, a scalar, mean over the batch.

    Raises:
        InputError: shapes between the blocks are not known; a probability outside (0, 1]; with
            `context`, a network that does not give scores of two classes or more for a sample or
            a token.
    """

    sends_back = True

    def __init__(
        self,
        blocks: Blocks,
        synthesizer: Synthesizer = Synthesizer(),  # noqa: B008 (frozen)
        context: bool = False,
        synthetic_inputs: bool = False,
        update_probability: float = 1.0,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks)
        if not 0 < update_probability <= 1:
            raise InputError(
                f"DNI(update_probability={update_probability}): give more than 0, at most 1"
            )
        input_shape, shapes = blocks.known_shapes("DNI", "no synthesizer can be made")
        self.recipe, self.context = synthesizer, context
        self.update_probability = update_probability
        self.objectives[str(len(blocks) - 1)] = Classify(criterion=criterion)
        classes = _classes(blocks) if context else None
        between = shapes[:-1]
        self.synthesizers = nn.ModuleList(synthesizer(shape, classes) for shape in between)
        self.inputs = nn.ModuleList(
            InputSynthesizer()(input_shape, shape) for shape in between if synthetic_inputs
        )
        weight = self._weight(0)
        if weight is not None:
            self.synthesizers.to(weight.device, weight.dtype)
            self.inputs.to(weight.device, weight.dtype)

    def auxiliary(self, i: int) -> list[nn.Module]:
        # Block i trains what predicts its own input.
        predictor = self.inputs[i - 1 : i] if i else []
        return [*super().auxiliary(i), *self.synthesizers[i : i + 1], *predictor]

    def reads_input(self, blocks: Iterable[int]) -> bool:
        return bool(self.inputs) or super().reads_input(blocks)

    def local_backward(self, i: int, h: Tensor, batch: Batch) -> Tensor:
        """Block i's step: its detached input in, its detached output out.

        What it finds of its input's gradient waits in `batch.targets` for `learn`.
        """
        block, last = self.blocks[i], len(self.blocks) - 1
        updated = self.update_probability == 1 or bool(torch.rand(()) < self.update_probability)
        before = self._before(i, h, batch, updated)
        with torch.set_grad_enabled(updated):
            h = batch.run(i, before.clone() if i and starts_in_place(block) else before)
        if i == last:
            with torch.set_grad_enabled(updated):
                loss = self.objectives[str(i)](h, batch)
            batch.finish(i, loss)
            if updated:
                differentiate(loss, batch.scale)
        elif updated:
            # Its graph waits for the next block, where that is sure to come by.
            with torch.set_grad_enabled(self.update_probability == 1):
                synthetic = self._synthesize(i, h, batch)
            differentiate(h, batch.scale, synthetic.detach() / len(h))
            if synthetic.requires_grad:
                batch.synthetic[i] = synthetic
        if i and before.grad is not None:
            batch.targets[i - 1] = before.grad
        return h.detach()

    def learn(self, i: int, h: Tensor, batch: Batch) -> None:
        """Synthesizer i's step towards the gradient that block i+1 found for its input h."""
        target, synthetic = batch.targets.pop(i, None), batch.synthetic.pop(i, None)
        if target is None:  # block i+1 was left out
            return
        if synthetic is None:
            synthetic = self._synthesize(i, h, batch)
        one = batch.scale(torch.ones((), device=h.device))
        target = target.to(torch.promote_types(h.dtype, torch.float32)) * (len(h) / one)
        loss = F.mse_loss(synthetic.to(target.dtype), target)
        differentiate(loss, batch.scale)
        batch.finish(i, loss)

    def _synthesize(self, i: int, h: Tensor, batch: Batch) -> Tensor:
        return self.synthesizers[i](h.detach(), batch.y if self.context else None)

    def _before(self, k: int, h: Tensor, batch: Batch, updated: bool) -> Tensor:
        """Block k's input, a leaf that takes the gradient its synthesizer is to learn."""
        if k == 0:
            return h
        if self.inputs:
            with torch.set_grad_enabled(updated):
                given = self.inputs[k - 1](batch.x)
            if updated:
                differentiate(F.mse_loss(given, h.to(given.dtype)), batch.scale)
            h = given
        return h.detach().requires_grad_(updated)


def _classes(blocks: Blocks) -> int:
    """How many classes there are, of which a synthesizer is given the labels."""
    _, (*_, scores) = blocks.known_shapes("DNI", "no synthesizer can be made")
    maps = len(scores) > 2 or channels_first(list(blocks), scores)
    if not scores or maps or scores[-1] < 2:
        raise InputError(
            f"DNI(context=True): the network gives scores of {scores} for a sample; synthesizers "
            "are given the labels where scores are (classes,) or (tokens, classes): leave context "
            "out"
        )
    return scores[-1]
