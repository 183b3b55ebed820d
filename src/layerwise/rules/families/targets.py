"""Target propagation: blocks learn to reach targets, which go back through learned inverses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.heads import Inverse
from layerwise.heads.head import refuse_class
from layerwise.inputs import detached
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Needs, Rule, differentiate
from layerwise.rules.base.objectives import OfBlocks
from layerwise.rules.calls.again import buffers_as, buffers_of
from layerwise.rules.calls.as_written import as_written
from layerwise.rules.calls.precision import full_precision


class TargetRule(Rule):
    """The base class of difference target propagation. With L_b the loss of sample b, K the last
    block, g_k the inverse of block k, from its output h_k to its input, and t_k the target of h_k:

        t_j     = h_j - beta dL_b/dh_j                 j = K if targets start from the class
                                                       scores, otherwise K-1
        t_{k-1} = h_{k-1} + g_k(t_k) - g_k(h_k)        k = j ... 2
        grad_k  = mean_b d |f_k(sg[h_{k-1}]) - sg[t_k]|^2 / (2 beta) / d f_k,    k < K
        grad_K  = mean_b dL_b / d f_K

    The division by 2 beta gives gradients the size of backpropagation's. They equal
    backpropagation's if dg_k/dh_k is the transpose of df_k/dh_{k-1} and beta -> 0. Inverses that
    are `direct` read the class scores instead of h_k.

    Each rule defines the loss of its inverses. An inverse trains with its block. The reported loss
    of a block, except the last, is that of its inverse, over the draws of noise. Inverses and
    targets are computed in full precision, also under autocast.

    Args:
        blocks: the network, made with an example.
        inverse: recipe of the inverses. Every block has one except the first and, if targets do not
            start from the class scores, the last.
        beta: size of the step from an activation to the first target, along a sample's own
            gradient.
        noise: standard deviation of the noise from which inverses learn.
        samples: number of draws of noise in each step.
        criterion: a function of class scores and labels that returns a scalar, mean over the batch.

    Attributes:
        from_scores: whether targets start from the class scores, so that the last block has an
            inverse; otherwise they start from the last block's input.
        direct: whether an inverse reads the class scores instead of its block's output, so that it
            inverts its block and all later ones.
        inverses: `inverses[k]` is the inverse of block k.
        draw: from a tensor to normal noise in its shape, with standard deviation 1.

    Raises:
        InputError: shapes between the blocks are not known; numbers that are not positive.
    """

    needs = Needs.BACKWARD
    stochastic = True
    from_scores: ClassVar[bool]
    direct: ClassVar[bool] = False

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        inverse: Inverse = Inverse(),
        beta: float = 0.1,
        noise: float = 0.1,
        samples: int = 1,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, criterion=criterion)
        call = type(self).__name__
        refuse_class(inverse, f"{call}(inverse=...)")
        for name, value in {"beta": beta, "noise": noise, "samples": samples}.items():
            if not value > 0:
                raise InputError(f"{call}({name}={value}): give a positive number")
        _, shapes = blocks.known_shapes(call, "no inverse can be made")
        self.beta, self.noise, self.samples = beta, noise, samples
        self.draw: Callable[[Tensor], Tensor] = normal_like
        last = len(blocks) - 1
        self.inverses = OfBlocks[nn.Module]()
        for k in range(1, last + 1 if self.from_scores else last):
            self.inverses[k] = inverse(shapes[last if self.direct else k], shapes[k - 1])
        self.moved(0, self.inverses)

    def auxiliary(self, k: int) -> list[nn.Module]:
        inverse = self.inverses.get(k)
        return [*super().auxiliary(k), *([] if inverse is None else [inverse])]

    @abstractmethod
    def inverse_loss(self, k: int, before: Tensor, h: Tensor, batch: Batch) -> Tensor:
        """The loss of inverse k for one draw of noise, (), mean over the batch.

        Args:
            k: number of the block.
            before: the block's input h_{k-1}, (B, ...).
            h: what the inverse reads: the block's output h_k or the class scores, (B, ...).
            batch: the step's batch.
        """

    def invert(self, k: int, h: Tensor) -> Tensor:
        """g_k(h), in the shape of the block's input, (B, ...), and in the precision of the
        inverse's weights; `h` is what the inverse reads."""
        inverse = self.inverses[k]
        with full_precision(h, inverse) as h:
            return inverse(h)

    @torch.no_grad()
    def again(self, k: int, x: Tensor, batch: Batch) -> Tensor:
        """f_k(x), (B, ...), without a graph; the block's buffers stay as they are."""
        block = self.blocks[k]
        with as_written(block), buffers_as(buffers_of(block)):
            return batch.again(k, x, keep=True)

    def step(self, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        before, outputs = self._forward(batch)
        scores = outputs[last].detach()
        loss, e = self.output_error(scores, batch, batch.scale)
        differentiate(outputs[last], gradient=e)
        of_input = before[last].grad if last and not self.from_scores else e
        assert of_input is not None
        change = self._first_change(of_input, batch)  # t - h of the first target
        found: dict[int, tuple[Tensor, ...]] = {last: (loss, scores)}
        for k in reversed(range(last + 1)):
            h, given = outputs.pop(), detached(before.pop())
            below = self._below(k, h, change)  # with inverse k before its step
            if k < last:
                self._towards(h, change, batch)
            h = h.detach()  # without block k's graph
            if k in self.inverses:
                of_inverse = self._learn(k, given, h, batch)
                found.setdefault(k, (of_inverse,))
            batch.done(k, *found.get(k, ()))
            change = below
        return scores

    def _forward(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Every block's input h_{k-1}, detached, and its output h_k with the block's own graph."""
        last = len(self.blocks) - 1
        before: list[Tensor] = []
        outputs: list[Tensor] = []
        h = batch.inputs
        for k in range(last + 1):
            h = detached(h)
            if 0 < k == last and not self.from_scores:
                h.requires_grad_()
            before.append(h)
            h = batch.run(k, h, keep=k > 0)
            outputs.append(h)
        return before, outputs

    def _towards(self, h: Tensor, change: Tensor, batch: Batch) -> None:
        """Add the gradient of mean_b |h_k - sg[t_k]|^2 / (2 beta), with `change` = t_k - h_k."""
        differentiate(h, batch.scale, -change / (self.beta * len(h)))

    def _first_change(self, gradient: Tensor, batch: Batch) -> Tensor:
        """t_j - h_j of the first target, from its scaled dL/dh_j."""
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        return -self.beta * len(gradient) * gradient / batch.scaled_one(gradient)

    @torch.no_grad()
    def _below(self, k: int, h: Tensor, change: Tensor) -> Tensor:
        """t_{k-1} - h_{k-1} from the change of h, what inverse k reads; the change itself if block
        k has no inverse."""
        if k not in self.inverses:
            return change
        h = h.to(change.dtype)
        return self.invert(k, h + change) - self.invert(k, h)

    def _learn(self, k: int, before: Tensor, h: Tensor, batch: Batch) -> Tensor:
        """Make the step of inverse k; return its loss, (), over the draws of noise."""
        dtype = torch.promote_types(h.dtype, torch.float32)
        losses = []
        for _ in range(self.samples):
            loss = self.inverse_loss(k, before.to(dtype), h.to(dtype), batch) / self.samples
            differentiate(loss, batch.scale)
            losses.append(loss.detach())
        return torch.stack(losses).sum()


def normal_like(h: Tensor) -> Tensor:
    """Standard normal numbers in the shape and memory format of `h`. For channels last,
    `randn_like` draws one number at a time, which takes seven times as long on a CPU."""
    noise = torch.empty_like(h)
    noise.as_strided((h.numel(),), (1,)).normal_()
    return noise
