"""The energy of a network's activities, for predictive coding and equilibrium propagation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from layerwise.arguments import at_least
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.inputs import Inputs, detached
from layerwise.objectives.batch import Batch
from layerwise.rules.base import differentiate, refuse_without_gradients
from layerwise.rules.base.checks import checked
from layerwise.rules.calls.again import Repeatable

# From the network's output to the loss, (), and the class scores or None.
Loss = Callable[[Tensor], tuple[Tensor, Tensor | None]]
Activities = list[Tensor]  # h_0 = x, h_1, ..., h_{K-1}: the input of every block


class Energy:
    """The energy of a batch's activities. With L_b the loss of sample b:

        F_beta(h) = sum_b ( 1/2 sum_{k<K} |h_k - f_k(h_{k-1})|^2 + beta L_b(f_K(h_{K-1})) ),
        h_0 = x

    The constructor makes the feed-forward pass, at which all terms except the last are 0. Blocks
    run again on other activities as the same functions: dropout keeps its masks, and BatchNorm
    updates its running statistics in the feed-forward pass only. One graph of a block exists at a
    time. Activities have at least single precision. Make and use the energy within
    `full_precision`.

    Args:
        batch: the step's batch.
        blocks: the network.
        loss: a function of the network's output: its loss, mean over the batch, and class scores.
        x: what the network is called with.

    Attributes:
        output: the network's output, (B, ...), detached.
        loss: its loss, (), detached.
        scores: the class scores, detached, or None.

    Raises:
        InputError: gradients are off.
    """

    def __init__(self, batch: Batch, blocks: Blocks, loss: Loss, x: Inputs):
        self._batch, self._loss, self._scale = batch, loss, batch.scale
        self._blocks = [Repeatable(batch, blocks, k) for k in range(len(blocks))]
        *before, last = self._blocks
        self._rest: Activities = [detached(x)]  # the activities of the feed-forward pass
        for block in before:  # with gradients on: without them attention uses another kernel
            self._rest.append(block.first(self._rest[-1]).detach())
        self._leaf = detached(self._rest[-1])
        if before:
            self._leaf.requires_grad_()
        out = last.first(self._leaf)
        refuse_without_gradients()
        first, self.scores = loss(out)
        self.output, self.loss = out.detach(), first.detach()
        self._first: Tensor | None = first  # the last block's graph, which the first step needs
        self._pull: Tensor | None = None  # dL_b/dh_{K-1} of the feed-forward pass, (B, ...)

    def relax(self, steps: int, step_size: float, beta: float) -> Activities:
        """The activities after gradient descent on F_beta, which starts at the feed-forward pass
        and updates all activities at the same time:

            h_k <- h_k - step_size dF_beta/dh_k = h_k + step_size (e_k - e_{k+1} df_{k+1}/dh_k)

        with e_k = f_k(h_{k-1}) - h_k for k < K, and e_K = beta dL_b/df_K. In each step the error
        moves back by one block; blocks that it has not reached do not run.

        Args:
            steps: number of steps.
            step_size: step size of the descent.
            beta: weight of the loss.
        """
        last = len(self._blocks) - 1
        h = [self._rest[0], *(wide(tensor.detach()) for tensor in self._rest[1:])]
        for t in range(steps if last else 0):
            pull = beta * (self._pulled() if t == 0 else self._pull_at(h[last]))
            front = max(last - t, 1)
            for k in reversed(range(front, last)):
                below, e = self._predict(k, h)
                h[k + 1] = h[k + 1] + step_size * (e - pull)
                pull = below
            # The block before still has its output of the feed-forward pass: its input is the same.
            h[front] = h[front] + step_size * (self._rest[front] - h[front] - pull)
        return h

    def learn(self, found: Sequence[tuple[float, Activities]]) -> None:
        """Add to `.grad` the mean over `found` of

            1 / (beta B) dF_beta/d theta_k = mean_b (e_k / beta) df_k(h_{k-1})/d theta_k

        in one backward pass for each block.

        Args:
            found: pairs of a beta and the activities that were found with it.
        """
        last = len(self._blocks) - 1
        found = found if last else found[:1]  # with one block all pairs are the same
        for k, block in enumerate(self._blocks):
            wanted = [p for p in block.block.parameters() if p.requires_grad]
            terms: list[tuple[Tensor, Tensor]] = []
            for beta, h in found:
                if k == last:
                    out, self._first = self._first, None
                    out = self._loss_at(h[k]) if out is None else out
                    gradient = torch.full_like(out, 1 / len(found))
                else:
                    out = self._run(k, h[k])
                    gradient = (out.detach() - h[k + 1]) / (beta * len(found) * len(out))
                terms.append((out, gradient.to(out.dtype)))
            (out, gradient), *more = terms
            also = [(o, self._scale(g)) for o, g in more] if wanted else []
            differentiate(out, self._scale, gradient, inputs=wanted, also=also)
            del out, terms, more, also
            self._batch.done(k, *((self.loss, self.scores) if k == last else ()))

    def _run(self, k: int, h: Tensor) -> Tensor:
        """f_k(h), in the precision that the input had in the feed-forward pass."""
        return self._blocks[k](h.to(self._rest[k].dtype) if k else h)

    def _loss_at(self, h: Tensor) -> Tensor:
        loss, _ = self._loss(self._run(len(self._blocks) - 1, h))
        return loss

    def _predict(self, k: int, h: Activities) -> tuple[Tensor, Tensor]:
        """e_k df_k/dh_{k-1} and e_k of a block k that is not the last."""
        leaf = h[k].detach().requires_grad_()
        out = self._run(k, leaf)
        e = out.detach() - h[k + 1]
        return back(out, leaf, e), e

    def _pulled(self) -> Tensor:
        """dL_b/dh_{K-1} of the feed-forward pass, computed once."""
        if self._pull is None:
            assert self._first is not None
            first, self._first = self._first, None
            [self._pull] = of_samples(first, [self._leaf], self._batch)
        return self._pull

    def _pull_at(self, h: Tensor) -> Tensor:
        leaf = h.detach().requires_grad_()
        [pull] = of_samples(self._loss_at(leaf), [leaf], self._batch)
        return pull


def of_samples(
    loss: Tensor, leaves: Sequence[Tensor], batch: Batch, retain: bool = False
) -> list[Tensor]:
    """dL_b/dh, (B, ...), of each leaf h: the gradient of each sample's own loss, not of the batch's
    mean.

    Args:
        loss: the batch's mean loss, ().
        leaves: activities, or what they depend on, (B, ...) each.
        batch: the step's batch.
        retain: keep the graph.

    Returns:
        The gradients, in at least single precision and without the loss scale.
    """
    differentiate(loss, batch.scale, inputs=leaves, retain=retain)
    one = batch.scaled_one(loss)
    return [wide(taken(leaf)) * (len(leaf) / one) for leaf in leaves]


def back(out: Tensor, leaf: Tensor, e: Tensor, retain: bool = False) -> Tensor:
    """e dout/dh, in the shape of h: a block's error e, passed back to its input h (`leaf`)."""
    differentiate(out, gradient=e.to(out.dtype), inputs=(leaf,), retain=retain)
    return wide(taken(leaf))


def taken(leaf: Tensor) -> Tensor:
    """The gradient of a leaf, which is removed from its `.grad`; 0 if it has none."""
    found, leaf.grad = leaf.grad, None
    return torch.zeros_like(leaf) if found is None else found


def check_inference(
    call: str, blocks: Blocks, steps: int, step_size: float, whole: bool = False
) -> None:
    """Refuse an inference in which the error does not reach the first block.

    Args:
        call: name of the rule, for errors.
        blocks: the network.
        steps: number of steps.
        step_size: step size.
        whole: whether the error passes back through the whole network in each step.

    Raises:
        InputError: fewer steps than the error needs; a step size that is not positive.
    """
    least = len(checked(call, blocks)) - 1
    if whole:
        at_least(min(least, 1), call, steps=steps)
    elif steps < least:
        raise InputError(
            f"{call}(steps={steps}): the error moves back one block in each step, and there are "
            f"{least + 1} blocks; give at least {least}"
        )
    if not step_size > 0:
        raise InputError(f"{call}(step_size={step_size}): give more than 0, such as 0.1")


def wide(tensor: Tensor) -> Tensor:
    """The tensor in at least single precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
