"""Decoupled neural interfaces: every block learns from a synthetic gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.heads import Synthesizer
from layerwise.heads.layout import channels_first
from layerwise.heads.synthesizer import InputSynthesizer
from layerwise.objectives import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Done, LocalRule, Needs, differentiate


class DNI(LocalRule):
    """Decoupled neural interfaces: every block learns from a predicted (synthetic) gradient of its
    output.

    Jaderberg et al. 2017 (arXiv:1608.05343), section 2. Block k has a synthesizer M_k. L_b is the
    loss of sample b, c is its label, and sg[] stops the gradient:

        d^_k = M_k(h_k [, c])                         predicts dL_b / dh_k
        grad_k = mean over b of d^_k dh_k / d f_k     block k, without waiting
        d_k = d^_{k+1} dh_{k+1} / dh_k                the target, through block k+1 alone
        loss_k = mean (d^_k - sg[d_k])^2              M_k; of the last block, d_K = dL_b / dh_K

    Every block except the last reports the loss of its synthesizer. If the synthesizers are
    perfect, it is backpropagation; with one block it is backpropagation, too.

    Deviations: by default, synthesizers predict the gradient of a sample's own loss instead of the
    batch mean's, so that what they learn does not depend on the batch size, and their error is a
    mean over elements. `target="batch"` is the common implementation.

    Args:
        blocks: the network's blocks, made with an example input, from which the synthesizers take
            their shapes.
        synthesizer: the recipe of the synthesizer of every block except the last.
        context: whether synthesizers also read the labels (cDNI).
        synthetic_inputs: whether each block's input is predicted from the network's input, which
            removes the forward lock (section 2.3). Block k then learns on h^_{k-1} = I_{k-1}(x),
            and I_{k-1} learns to predict the output of block k-1. `forward` is still the network
            itself.
        update_probability: the probability that a block is updated in a step, in (0, 1] (section
            3.3). A block that is not updated only passes its output on, and the synthesizer before
            it is not updated either.
        target: whose loss has the gradient that synthesizers predict. "sample": each sample's own.
            "batch": the mean over the batch; predictions are smaller by the batch size B, and
            loss_k is the sum of the squared errors of all elements, divided by B.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            the mean over the batch, a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example; a probability
            outside (0, 1]; with `context`, a network that does not give scores of at least two
            classes for each sample or token; in `backward` with `context`, labels that are neither
            class numbers nor one number for each class.
    """

    needs = Needs.FORWARD | Needs.NEXT

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        synthesizer: Synthesizer = Synthesizer(),
        context: bool = False,
        synthetic_inputs: bool = False,
        update_probability: float = 1.0,
        target: Literal["sample", "batch"] = "sample",
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, criterion=criterion)
        if not 0 < update_probability <= 1:
            raise InputError(
                f"DNI(update_probability={update_probability}): give more than 0, at most 1"
            )
        if target not in ("sample", "batch"):
            raise InputError(f"DNI(target={target!r}): give sample or batch")
        input_shape, shapes = blocks.known_shapes("DNI", "no synthesizer can be made")
        self.recipe, self.context, self.target = synthesizer, context, target
        self.update_probability = update_probability
        classes = _classes(blocks) if context else None
        between = shapes[:-1]
        self.synthesizers = nn.ModuleList(synthesizer(shape, classes) for shape in between)
        self.inputs = nn.ModuleList(
            InputSynthesizer()(input_shape, shape) for shape in between if synthetic_inputs
        )
        self.moved(0, self.synthesizers)
        self.moved(0, self.inputs)

    def auxiliary(self, k: int) -> list[nn.Module]:
        # Block k also trains the network that predicts its input.
        predictor = self.inputs[k - 1 : k] if k else []
        return [*super().auxiliary(k), *self.synthesizers[k : k + 1], *predictor]

    def reads_input(self, blocks: Iterable[int]) -> bool:
        return bool(self.inputs) or super().reads_input(blocks)

    def local_step(self, k: int, h: Any, batch: Batch) -> Done:
        updated = self.update_probability == 1 or bool(torch.rand(()) < self.update_probability)
        if not updated:
            with torch.no_grad():
                h = batch.run(k, self._input(k, h, batch))
                if k < len(self.blocks) - 1:
                    return Done(h)
                loss, scores = self.loss(k, Activity(h), batch)
                return Done(h, loss, scores)
        before = self._input(k, h, batch, learns=True)
        h = batch.run(k, before, keep=k > 0)
        if k == len(self.blocks) - 1:
            loss, scores = self.loss(k, Activity(h), batch)
            differentiate(loss, batch.scale)
            return Done(h.detach(), loss.detach(), scores, back=_taken(before))
        # Its graph is kept for `learn` if the next block is sure to be updated.
        with torch.set_grad_enabled(self.update_probability == 1):
            synthetic = self._synthesize(k, h, batch)  # d^_k
        # mean_b d^_k dh_k / d f_k
        differentiate(h, batch.scale, synthetic.detach() / self._losses(h))
        kept = synthetic if synthetic.requires_grad else None
        return Done(h.detach(), back=_taken(before), kept=kept)

    def learn(self, k: int, done: Done, back: Tensor, batch: Batch) -> Tensor:
        """Synthesizer k learns d_k, the gradient that block k+1 found for its input."""
        h = done.out
        synthetic = self._synthesize(k, h, batch) if done.kept is None else done.kept
        d = back.to(torch.promote_types(h.dtype, torch.float32))
        d = d.mul_(self._losses(h) / batch.scaled_one(d))  # d_k; nobody else reads it
        if self.target == "batch":
            loss = F.mse_loss(synthetic.to(d.dtype), d, reduction="sum") / len(h)
        else:
            loss = F.mse_loss(synthetic.to(d.dtype), d)
        differentiate(loss, batch.scale)
        return loss

    def _losses(self, h: Tensor) -> int:
        """The number of losses whose mean is differentiated, if a prediction is of one loss."""
        return len(h) if self.target == "sample" else 1

    def _synthesize(self, k: int, h: Tensor, batch: Batch) -> Tensor:
        return self.synthesizers[k](h.detach(), batch.labels if self.context else None)

    def _input(self, k: int, h: Any, batch: Batch, learns: bool = False) -> Any:
        """The input of block k.

        If the block learns, the network that predicts its input learns here, too. The input of
        every block except the first is then a leaf, whose gradient the synthesizer before learns.
        """
        if k == 0:
            return h
        if self.inputs:
            given = self.inputs[k - 1](batch.x)
            if learns:
                differentiate(F.mse_loss(given, h.to(given.dtype)), batch.scale)
            h = given
        return h.detach().requires_grad_(learns)


def _taken(leaf: Any) -> Tensor | None:
    """The gradient of a block's input; None for the network's inputs."""
    return leaf.grad if isinstance(leaf, Tensor) else None


def _classes(blocks: Blocks) -> int:
    """The number of classes whose labels a synthesizer reads."""
    _, (*_, scores) = blocks.known_shapes("DNI", "no synthesizer can be made")
    maps = len(scores) > 2 or channels_first(list(blocks), scores)
    if not scores or maps or scores[-1] < 2:
        raise InputError(
            f"DNI(context=True): the network gives scores of {scores} for a sample; synthesizers "
            "can read labels only if scores are (classes,) or (tokens, classes); leave context out"
        )
    return scores[-1]
