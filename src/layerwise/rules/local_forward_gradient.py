"""Local forward gradients: a derivative of every block's own loss along a random direction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from layerwise.arguments import checks_arguments
from layerwise.autocast import without_autocast
from layerwise.blocks import Blocks
from layerwise.inputs import leading
from layerwise.objectives import Activity, Classify, Objective
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy, with_scores
from layerwise.rules.base import (
    Done,
    LocalRule,
    differentiate,
    forget_casts,
    refuse_without_gradients,
)
from layerwise.rules.calls.again import Again
from layerwise.rules.calls.as_written import as_written
from layerwise.rules.calls.forward_mode import dual, forward_mode, primal, tangent
from layerwise.rules.families.perturbation import (
    Directions,
    check_directions,
    draw,
    draw_seed,
    generator,
)


class Measured(NamedTuple):
    """The results of an objective in forward mode.

    Attributes:
        loss: (), detached.
        derivative: the derivative of each sample's loss along its direction, (B,), or that of the
            batch's loss along all directions, ().
        scores: the class scores, detached, or None.
        learning: the tensors that the objective's own weights learn from (class scores or a loss),
            each with its gradient.
    """

    loss: Tensor
    derivative: Tensor
    scores: Tensor | None
    learning: list[tuple[Tensor, Tensor]]


class LocalForwardGradient(LocalRule):
    """Local forward gradients: the derivative of a block's own loss along a random direction
    estimates the gradient of the block's output.

    Ren et al. 2023 (arXiv:2210.03310), LG-FG-A (activity perturbation). The loss is not
    differentiated backward to the block's output. Instead, every sample b gets a random direction
    u_b of its activity h_b, with h_k = f_k(sg[h_{k-1}]), where sg[] stops the gradient:

        delta_b = (dL/dh_b . u_b) u_b,    grad_k = sum over b of delta_b dh_b / d f_k

    The derivative in brackets is computed by forward-mode differentiation, in the same pass as the
    loss. In a block of one layer, as in the paper, dh/df_k is an outer product with the layer's
    input. The mean of the estimate is the gradient of `Greedy`. With `directions`, several
    estimates are averaged. If the N directions were the N axes, each scaled by sqrt(N), it would
    equal `Greedy`.

    With `weights` (LG-FG-W), the weights of the block and of its objective move along a random
    direction v, as in `ForwardGradient`, and nothing is differentiated backward: grad_k = (dL_k .
    v) v.

    The gradient of a loss with respect to class scores is known without a perturbation. If a block
    gives the class scores itself, as the last one does, that gradient is used. So with one block,
    and without `weights`, it is backpropagation.

    Deviations: a block of several layers learns from the delta of its output by backpropagation
    within the block (the paper perturbs every layer). An auxiliary network learns in the same way
    from the gradient of its class scores, which for one layer is the paper's rule. `Classify` has
    class scores for every sample. Any other objective has only one loss for the batch, so its
    derivative is that along the directions of all samples at once: the estimate is still unbiased,
    but its variance is B times as large. BatchNorm in a head mixes samples: the derivative is then
    that of a sample's own scores along all directions, and the estimate leaves out how a sample
    changes the scores of others.

    Args:
        blocks: the network's blocks; made with an example input if an objective has a head, because
            heads take their shapes from it.
        objectives: the objectives of the blocks, given as for `Greedy`, or None for a block that is
            not trained.
        directions: the number of directions whose estimates are averaged, at least 1. Each one
            costs a pass in forward mode.
        weights: whether to move the weights instead of the activity.
        rademacher: whether directions are drawn from +1 and -1 instead of from the normal
            distribution.
        criterion: the loss function of the last block if `objectives` leaves it out: takes class
            scores and labels, returns a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example and an
            objective has a head; `objectives` has the wrong length, contains something other than
            objectives, or leaves the last block with None; no direction; in `backward`, an
            operation without a forward-mode derivative in PyTorch, between a block's output and its
            loss (with `weights`, also in the block).
    """

    stochastic = True

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        objectives: Objective | Sequence[Objective | None],
        directions: int = 1,
        weights: bool = False,
        rademacher: bool = False,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, objectives, criterion)
        with_scores(self)
        check_directions("LocalForwardGradient", directions)
        self.directions, self.weights, self.rademacher = directions, weights, rademacher

    def local_step(self, k: int, h: Any, batch: Batch) -> Done:
        objective = self.objectives.get(k)
        known = isinstance(objective, Classify) and objective.recipe is None
        if objective is None or (known and not self.weights):
            return super().local_step(k, h, batch)
        refuse_without_gradients()
        done = self._move_weights(k, h, batch) if self.weights else self._move_activity(k, h, batch)
        forget_casts(done.out.device)
        return done

    def _move_activity(self, k: int, before: Any, batch: Batch) -> Done:
        objective = self.objectives[k]
        a = self.reading.unpooled(k, before, batch)  # with the graph of the block
        seed, start = draw_seed(), Again(objective, a)
        still, delta = a.detach(), torch.zeros_like(a)
        found: list[tuple[Tensor, Measured]] = []
        for n in range(self.directions):
            again = start.run() if n else contextlib.nullcontext()
            graph = torch.set_grad_enabled(n == 0)  # of the auxiliary network
            with forward_mode("LocalForwardGradient"), as_written(objective), again, graph:
                u = draw(still, generator(a.device, seed, k, n), self.rademacher)
                h, activity = self.reading.activity(k, dual(still, u), batch)
                measured = self._measured(k, activity, batch)
                # Further views of a sample share its derivative.
                d = measured.derivative.to(a.dtype).expand(batch.rows).repeat(len(a) // batch.rows)
                delta += d.view(-1, *[1] * (a.dim() - 1)) * u / self.directions
                found = found or [(primal(h), measured)]
        [(out, measured)] = found
        for scores, gradient in measured.learning:
            differentiate(scores, batch.scale, gradient)
        differentiate(a, batch.scale, delta)
        return Done(out.detach(), measured.loss, measured.scores)

    @torch.no_grad()
    def _move_weights(self, k: int, before: Any, batch: Batch) -> Done:
        local = _Local(self, k)
        directions = Directions([local], draw_seed(), self.rademacher)
        start = Again(local, leading(before))
        found: list[Done] = []
        derivatives = []
        for n in range(self.directions):
            again = start.run() if n else contextlib.nullcontext()
            with forward_mode("LocalForwardGradient"), as_written(local), again:
                moving = {name: dual(p, v) for name, p, v in directions.along(0, n)}
                h, loss, scores = functional_call(local, moving, (before, batch))
                derivatives.append(batch.scale(tangent(loss).clone()))  # dL/dtheta . v_n
                scores = None if scores is None else primal(scores)
                found = found or [Done(primal(h).detach(), primal(loss), scores)]
        directions.accumulate(0, derivatives)
        return found[0]

    def _measured(self, k: int, activity: Activity, batch: Batch) -> Measured:
        """The objective of block k at a dual activity, term by term.

        The gradient e of class scores z is known, so the derivative of sample b is e_b . dz_b.
        """
        h = activity.output
        version = h._version
        loss, derivative, scores, learning = h.new_zeros(()), h.new_zeros(()), None, []
        for weight, term in self.objectives[k].parts():
            if isinstance(term, Classify):
                moving = term.predict(h, batch.inputs)
                z, dz = primal(moving), tangent(moving)
                scores = z.detach() if scores is None else scores
                leaf = z.detach().requires_grad_()
                with torch.enable_grad():
                    part = term.criterion(leaf, batch.labels)
                with without_autocast(h.device):
                    (e,) = torch.autograd.grad(part, leaf)
                wide = torch.promote_types(e.dtype, torch.float32)
                along = (e.to(wide) * dz.to(wide)).reshape(len(e), -1).sum(1)
                learning.append((z, weight * e))
            else:
                moving, found = term.loss_and_scores(activity, batch)
                if found is not None and scores is None:
                    scores = primal(found).detach()
                part, along = primal(moving), tangent(moving)
                learning.append((part, weight * torch.ones_like(part)))
            loss = loss + weight * part.detach()
            derivative = derivative + weight * along.detach()
        self._refuse_changed(k, h, version)
        return Measured(loss, derivative, scores, learning)


class _Local(nn.Module):
    """Block k of a rule and its objective as one module.

    It maps the block's input to the block's output, the loss and the class scores.
    """

    def __init__(self, rule: LocalForwardGradient, k: int):
        super().__init__()
        self.blocks, self.k, self.objective = rule.blocks, k, rule.objectives[k]
        self._rule = (rule,)  # not registered

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.blocks[self.k].named_parameters():
            yield f"blocks.{self.blocks.key(self.k, name)}", parameter
        for name, parameter in self.objective.named_parameters():
            yield f"objective.{name}", parameter

    def modules(self, *args: Any, **kwargs: Any) -> Iterator[nn.Module]:
        yield from self.blocks[self.k].modules()
        yield from self.objective.modules()

    def forward(self, h: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        (rule,) = self._rule
        h, activity = rule.run(self.k, h, batch)
        return h, *rule.loss(self.k, activity, batch)
