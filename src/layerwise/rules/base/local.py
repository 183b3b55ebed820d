"""Rules under which blocks minimise objectives of their own."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from layerwise.blocks import Blocks
from layerwise.blocks.chain import dry_run
from layerwise.blocks.pooling import before_pooling
from layerwise.errors import InputError
from layerwise.inputs import Inputs, describe, detached
from layerwise.objectives import Classify, Objective
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base.differentiate import differentiate
from layerwise.rules.base.rule import ForwardRule, Rule, checked


class ObjectiveRule(Rule):
    """A rule under which blocks minimise objectives of their own.

    Args:
        blocks: the network; made with an example where an objective has a head.
        objectives: one, of which every block but the last gets its own copy; or one per block,
            None for a block that has none; or one per block but the last. Where the last is left
            out it predicts the labels from the network's own output.
        criterion: the last block's loss where its objective is left out.
    """

    def __init__(
        self,
        blocks: Blocks,
        objectives: Objective | Sequence[Objective | None],
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks)
        found = one_per_block(type(self).__name__, blocks, objectives, criterion)
        for i, objective in enumerate(found):
            if objective is not None:
                objective.number(i, len(blocks))
        # A block whose objective reads what comes before its pooling runs in two parts. They are
        # not registered: their modules are the block's own.
        self._parts = {
            i: parts
            for i, objective in enumerate(found)
            if objective is not None
            and objective.reads_unpooled
            and (parts := before_pooling(blocks[i])) is not None
        }
        # A view passes through the blocks up to the last that wants it: those that go on come
        # first.
        until = {view: i for i, o in enumerate(found) if o is not None for view in o.views}
        views = sorted(until, key=lambda view: -until[view])
        self._views = [tuple(v for v in views if until[v] >= i) for i in range(len(blocks))]
        # Augmented views, too, pass up to the last block that compares them.
        self._compared = [
            any(o is not None and o.needs_views for o in found[i:]) for i in range(len(blocks))
        ]
        for i, objective in enumerate(found):
            if objective is not None:
                self._attach(i, objective, self._unpooled_shape(i))
        self._needs_views = max((o.needs_views for o in found if o is not None), default=0)

    @property
    def needs_views(self) -> int:
        return self._needs_views

    def enter(self, batch: Batch) -> Inputs:
        """The first block's input, detached: the batch in its V augmented views, and below it every
        view of the first that an objective asks for, ((V + views) B, ...)."""
        return self._stacked(batch)

    def _stacked(self, batch: Batch) -> Inputs:
        inputs, views = detached(batch.drawn), self._views[0]  # sg[h_0]
        if not views:
            return inputs
        if not isinstance(inputs, Tensor):
            raise InputError(
                f"{type(self).__name__}: an objective asks for further views of the input, and the "
                f"network takes {describe(inputs)}; views are of one tensor"
            )
        first = batch.x.detach()
        return torch.cat([inputs, *(view(first) for view in views)])

    def illustrate(self, x: Tensor, y: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        batch = Batch(x, y)
        pictures = {}
        with torch.no_grad(), self.blocks.passes(batch.drawn) as batch.passes:
            h = self._stacked(batch)
            for i in range(len(self.blocks)):
                h = self._run(i, h, batch)
                objective = self._objective(i)
                found = None if objective is None else objective.illustrate(h[: len(x)], batch)
                if found is not None:
                    pictures[i] = found
        return pictures

    def _run(self, i: int, h: Any, batch: Batch) -> Tensor:
        """Block i's output; what its objective reads beside goes into `batch`."""
        return self._hand_out(i, self._activity(i, h, batch), batch)

    def _activity(self, i: int, h: Any, batch: Batch) -> Tensor:
        """What all that block i's objective reads is made of: the block's output, before the
        pooling that ends it where the objective reads that."""
        views, count = self._views[i], batch.rows
        if isinstance(h, Tensor) and h.shape[0] > count:
            augmented = len(h) // count - len(self._views[i - 1] if i else views)
            if self._compared[i] or augmented == 1:
                h = h[: count * (augmented + len(views))]
            else:  # the further augmented views have come to their end
                others = h[count * augmented :][: count * len(views)]
                h = torch.cat([h[:count], others]) if views else h[:count]
        return self._parts[i][0](h) if i in self._parts else batch.run(i, h)

    def _hand_out(self, i: int, unpooled: Tensor, batch: Batch) -> Tensor:
        """Block i's output, and what its objective reads beside, of what `_activity` gave."""
        views, count = self._views[i], batch.rows
        h = self._parts[i][1](unpooled) if i in self._parts else unpooled
        rows = h.shape[0]
        augmented = rows // count - len(views)
        batch.unpooled = unpooled[:count] if rows > count else unpooled
        batch.views = dict(zip(views, h.split(count)[augmented:], strict=True)) if views else {}
        if self._compared[i]:
            batch.augmented = h[: count * augmented].unflatten(0, (augmented, count))
        return h

    def _unpooled_shape(self, i: int) -> tuple[int, ...] | None:
        if i not in self._parts or self.blocks.shapes is None:
            return None
        body, _ = self._parts[i]
        before = self.blocks.shapes[i - 1] if i else self.blocks.input_shape
        weight = self._weight(i)
        like = torch.zeros(()) if weight is None else weight
        with dry_run(body):
            return tuple(body(like.new_zeros(1, *(before or ()))).shape[1:])


class LocalRule(ObjectiveRule, ForwardRule):
    """A rule under which a block needs nothing from the blocks after it.

    Every block k minimises its own objective; sg[] stops the gradient between blocks:

        h_k = f_k(sg[h_{k-1}]),    grad_k = d objective_k(h_k) / d (f_k, head_k)

    A block's input does not require grad, so its gradient is never computed. A block that has no
    objective is not trained.

    Args:
        blocks: the network; made with an example where an objective has a head.
        objectives: one, of which every block but the last gets its own copy; or one per block,
            None for a block that is not to be trained; or one per block but the last. Where the
            last is left out it predicts the labels from the network's own output.
        criterion: the last block's loss where its objective is left out.
    """

    def keep(self, blocks: Iterable[int]) -> None:
        """Keep only the weights of these blocks and of their objectives on their device."""
        kept = set(blocks)
        super().keep(kept)
        for i in set(range(len(self.blocks))) - kept:
            for module in self.auxiliary(i):
                module.to("cpu")

    def local_backward(self, i: int, h: Tensor, batch: Batch) -> Tensor:
        """Block i's step: its detached input in, the detached input of block i+1 out.

        Its gradients are in `.grad` and its graph is gone when this returns. `enter` gives the
        first block's input.
        """
        objective = self._objective(i)
        if objective is None:
            with torch.no_grad():
                return self._run(i, h, batch)
        h = self._run(i, h, batch)
        version = h._version
        loss = objective(h[: batch.rows] if h.shape[0] > batch.rows else h, batch)
        if h._version != version:
            self._refuse_changed(i)
        batch.unpooled, batch.augmented, batch.views = None, None, {}
        differentiate(loss, batch.scale)
        batch.finish(i, loss)
        return h.detach()


def one_per_block(
    call: str,
    blocks: Blocks,
    objectives: Objective | Sequence[Objective | None],
    criterion: Criterion,
) -> list[Objective | None]:
    """The objective of each block, from what a rule named `call` was given, as in
    `ObjectiveRule`."""
    checked(call, blocks)
    given: list[Objective | None]
    if isinstance(objectives, Objective):
        given = [copy.deepcopy(objectives) for _ in range(len(blocks) - 1)]
    else:
        given = list(objectives) if isinstance(objectives, Iterable) else [objectives]
    wrong = [type(o).__name__ for o in given if not isinstance(o, Objective | None)]
    if wrong:
        raise InputError(
            f"{call}(objectives): got {wrong[0]}; give an objective such as "
            "objectives.Classify(heads.Linear()), or a list of them"
        )
    if len(given) == len(blocks) - 1:
        given.append(Classify(criterion=criterion))
    if len(given) != len(blocks):
        raise InputError(
            f"{call}(objectives): got {len(given)} for {len(blocks)} "
            f"blocks; give {len(blocks)}, or {len(blocks) - 1} to leave the last block to the "
            "network's own classifier"
        )
    if given[-1] is None:
        raise InputError(
            f"{call}(objectives): got None for the last block, so nothing would learn to "
            "predict; leave it out, and it predicts the labels from the network's output"
        )
    modules = [module for o in given if o is not None for module in o.modules()]
    if len(set(modules)) < len(modules):  # a head, too, belongs to one block
        given = [copy.deepcopy(o) for o in given]
    return given
