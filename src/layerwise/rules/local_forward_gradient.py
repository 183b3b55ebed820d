"""Local forward gradients: every block's own loss, derived along a random direction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from layerwise.blocks import Blocks
from layerwise.inputs import leading
from layerwise.objectives import Classify, Objective
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy, with_scores
from layerwise.rules.base import LocalRule, differentiate, forget_casts, refuse_without_gradients
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

# What an objective gives in forward mode: its loss (); its derivative (B,), or () for the batch as
# one; and of what it computes with its own weights, each with the gradient that it learns from.
Found = tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]


class LocalForwardGradient(LocalRule):
    """Local forward gradients: a block's output learns from its loss along a random direction.

    Ren et al. 2023 (arXiv:2210.03310), LG-FG-A (activity perturbation). No loss is passed back
    through what computes it: every sample b has a direction u_b, and


        delta_b = (dL/dh_b . u_b) u_b,    grad_k = sum over b of delta_b dh_b / d f_k

    with h_k = f_k(sg[h_{k-1}]), and the derivative in the brackets found in forward mode with the
    loss itself. In a block of one layer, which are the paper's, dh/df_k is an outer product with
    the layer's input. Its mean is the gradient of `Greedy`; with `directions` it is that of as
    many, and over the axes, scaled by the root of their number, it is `Greedy`.

    With `weights` (LG-FG-W) the weights of the block and its objective move, as in
    `ForwardGradient`, and nothing is passed back anywhere: grad_k = (dL_k . v) v.

    The gradient of class scores is known without either: where nothing is between a block and them,
    as in the last, it is taken as it is, so that one block is backpropagation.

    Deviations: a block of several layers learns from its output's delta by backpropagation within
    it, where the paper guesses at every layer; an auxiliary network learns from its scores'
    gradient in the same way, which for one layer is the paper's. `Classify` has scores for every
    sample; of any other objective only the batch's loss is known, so its derivative is that of all
    directions at once: the mean is as true, the variance B times as large. BatchNorm in a head
    mixes samples: the derivative is then that of the sample's own scores along all directions, and
    the mean leaves out what a sample does to the others' scores.

    Args:
        blocks: the network, made with an example where an objective has a head.
        objectives: as for `Greedy`.
        directions: how many are averaged.
        weights: move the weights, not the activity.
        rademacher: draw +1 and -1, and not from the normal distribution.
        criterion: the last block's loss where its objective is left out.

    Raises:
        InputError: no direction; in `backward`, an operation between a block's output and its loss
            (with `weights`, in the block) that has no forward-mode derivative in PyTorch.
    """

    draws = True

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

    def local_backward(self, i: int, h: Tensor, batch: Batch) -> Tensor:
        objective = self._objective(i)
        known = isinstance(objective, Classify) and objective.recipe is None
        if objective is None or (known and not self.weights):
            return super().local_backward(i, h, batch)
        refuse_without_gradients()
        move = self._move_weights if self.weights else self._move_activity
        h, loss = move(i, h, objective, batch)
        batch.unpooled, batch.augmented, batch.views = None, None, {}
        forget_casts(h.device)
        batch.finish(i, loss)
        return h

    def _move_activity(
        self, i: int, before: Tensor, objective: Objective, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        a = self._activity(i, before, batch)  # with the block's graph
        seed, start = draw_seed(), Again(objective, a)
        still, delta = a.detach(), torch.zeros_like(a)
        first: tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]] | None = None
        for n in range(self.directions):
            again = start.run() if n else contextlib.nullcontext()
            graph = torch.set_grad_enabled(n == 0)  # of the auxiliary network
            with forward_mode("LocalForwardGradient"), as_written(objective), again, graph:
                u = draw(still, generator(a.device, seed, i, n), self.rademacher)
                h = self._hand_out(i, dual(still, u), batch)
                with self._kept(i, h):
                    loss, d, learn = _measure(objective, h[: len(batch.y)], batch)
                first = first or (primal(h), loss, learn)
                # A further view of a sample moves with the sample.
                d = d.to(a.dtype).expand(len(batch.y)).repeat(len(a) // len(batch.y))
                delta += d.view(-1, *[1] * (a.dim() - 1)) * u / self.directions
        assert first is not None
        out, loss, learn = first
        for scores, gradient in learn:
            differentiate(scores, batch.scale, gradient)
        differentiate(a, batch.scale, delta)
        return out.detach(), loss

    @torch.no_grad()
    def _move_weights(
        self, i: int, before: Tensor, objective: Objective, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        local = _Local(self, i, objective)
        directions = Directions([local], draw_seed(), self.rademacher)
        start = Again(local, leading(before))
        first: tuple[Tensor, Tensor] | None = None
        derivatives = []
        for n in range(self.directions):
            again = start.run() if n else contextlib.nullcontext()
            with forward_mode("LocalForwardGradient"), as_written(local), again:
                moving = {name: dual(p, v) for name, p, v in directions.along(0, n)}
                h, loss = functional_call(local, moving, (before, batch))
                first = first or (primal(h), primal(loss))
                derivatives.append(batch.scale(tangent(loss).clone()))  # dL/dtheta . v_n
        assert first is not None
        directions.accumulate(0, derivatives)
        out, loss = first
        return out.detach(), loss.detach()


class _Local(nn.Module):
    """A block and its objective: the block's output and loss, of its input."""

    def __init__(self, rule: LocalForwardGradient, i: int, objective: Objective):
        super().__init__()
        self.blocks, self.number, self.objective = rule.blocks, i, objective
        self.run = lambda h, batch: rule._run(i, h, batch)
        self.kept = lambda h: rule._kept(i, h)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.blocks[self.number].named_parameters():
            yield f"blocks.{self.blocks.key(self.number, name)}", parameter
        for name, parameter in self.objective.named_parameters():
            yield f"objective.{name}", parameter

    def modules(self, *args: Any, **kwargs: Any) -> Iterator[nn.Module]:
        yield from self.blocks[self.number].modules()
        yield from self.objective.modules()

    def forward(self, h: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        h = self.run(h, batch)
        with self.kept(h):
            return h, self.objective(h[: len(batch.y)], batch)


def _measure(objective: Objective, h: Tensor, batch: Batch) -> Found:
    """An objective of a dual h, term by term: of class scores, whose gradient e is known, a
    sample's derivative is e_b . dz_b."""
    loss, d, learn = h.new_zeros(()), h.new_zeros(()), []
    for weight, term in objective.parts():
        if isinstance(term, Classify):
            moving = term.predict(h, batch.inputs)
            z, dz = primal(moving), tangent(moving)
            batch.predicted(z)
            leaf = z.detach().requires_grad_()
            with torch.enable_grad():
                part = term.criterion(leaf, batch.y)
            with torch.autocast(h.device.type, enabled=False):
                (e,) = torch.autograd.grad(part, leaf)
            wide = torch.promote_types(e.dtype, torch.float32)
            along = (e.to(wide) * dz.to(wide)).reshape(len(e), -1).sum(1)
            learn.append((z, weight * e))
        else:
            moving = term(h, batch)
            part, along = primal(moving), tangent(moving)
            learn.append((part, weight * torch.ones_like(part)))
        loss = loss + weight * part.detach()
        d = d + weight * along.detach()
    return loss, d, learn
