"""How the blocks run so that their objectives get what they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layerwise.blocks import Blocks
from layerwise.blocks.chain import dry_run
from layerwise.blocks.inplace import kept
from layerwise.blocks.pooling import before_pooling
from layerwise.errors import InputError
from layerwise.inputs import Inputs, describe, detached
from layerwise.objectives import Objective
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch


class Reading:
    """What the objectives of a network's blocks read, and how the blocks run to give it.

    Some objectives read more than the output of their block: the output before the pooling that
    ends the block, the output for further views of the input (`Objective.views`), or the outputs
    for several augmented views of the batch (`Objective.needs_views`). All of these pass through
    the blocks as one tensor of (V + views) B rows: the V augmented views of the batch, and below
    them each further view of the first. A view passes up to the last block that reads it.

    Args:
        call: name of the rule, for errors.
        blocks: the network.
        objectives: one for each block, or None.

    Attributes:
        needs_views: the number of augmented views of every sample that the objectives compare at
            least; 0 where none compares any.
    """

    def __init__(self, call: str, blocks: Blocks, objectives: Sequence[Objective | None]):
        self.call = call
        # A block whose objective reads what comes before its pooling runs in two parts.
        self._parts = {
            k: parts
            for k, objective in enumerate(objectives)
            if objective is not None
            and objective.reads_unpooled
            and (parts := before_pooling(blocks[k])) is not None
        }
        # Of the views, those that pass through most blocks come first.
        until = {view: k for k, o in enumerate(objectives) if o is not None for view in o.views}
        views = sorted(until, key=lambda view: -until[view])
        self._views = [tuple(v for v in views if until[v] >= k) for k in range(len(blocks))]
        # Augmented views, too, pass up to the last block that compares them.
        self._compared = [
            any(o is not None and o.needs_views for o in objectives[k:]) for k in range(len(blocks))
        ]
        self.needs_views = max((o.needs_views for o in objectives if o is not None), default=0)

    def first_input(self, batch: Batch) -> Inputs:
        """The input of the first block, detached, ((V + views) B, ...).

        Raises:
            InputError: an objective reads further views, and the inputs are not one tensor.
        """
        inputs, views = detached(batch.augmented), self._views[0]  # sg[h_0]
        if not views:
            return inputs
        if not isinstance(inputs, Tensor):
            raise InputError(
                f"{self.call}: an objective asks for further views of the input, and the "
                f"network takes {describe(inputs)}; views are of one tensor"
            )
        first = batch.x.detach()
        return torch.cat([inputs, *(view(first) for view in views)])

    def unpooled(self, k: int, h: Any, batch: Batch, keep: bool = False) -> Tensor:
        """Run block k on h; gives its output, before the pooling that ends the block where its
        objective reads that. `keep` as of `Batch.run`."""
        views, count = self._views[k], batch.rows
        if isinstance(h, Tensor) and h.shape[0] > count:
            augmented = len(h) // count - len(self._views[k - 1] if k else views)
            if self._compared[k] or augmented == 1:
                h = h[: count * (augmented + len(views))]
            else:  # no later block compares the further augmented views
                others = h[count * augmented :][: count * len(views)]
                h = torch.cat([h[:count], others]) if views else h[:count]
        if k not in self._parts:
            return batch.run(k, h, keep=keep)
        body, _ = self._parts[k]
        return body(kept(body, h) if keep else h)

    def activity(self, k: int, unpooled: Tensor, batch: Batch) -> tuple[Tensor, Activity]:
        """Block k's output with all its rows, ((V + views) B, ...), which the next block takes, and
        what the block's objective reads of it; from what `unpooled` gave."""
        views, count = self._views[k], batch.rows
        pooled = k in self._parts
        h = self._parts[k][1](unpooled) if pooled else unpooled
        rows = h.shape[0]
        if rows <= count and not self._compared[k]:
            return h, Activity(h, unpooled if pooled else None)
        augmented = rows // count - len(views)
        return h, Activity(
            h[:count] if rows > count else h,
            (unpooled[:count] if rows > count else unpooled) if pooled else None,
            dict(zip(views, h.split(count)[augmented:], strict=True)) if views else {},
            h[: count * augmented].unflatten(0, (augmented, count)) if self._compared[k] else None,
        )

    def unpooled_shape(self, k: int, blocks: Blocks, like: Tensor) -> tuple[int, ...] | None:
        """Shape of block k's output before its pooling, where its objective reads that and shapes
        are known; otherwise None. `like` has the type and the device of the block's weights."""
        if k not in self._parts or blocks.shapes is None:
            return None
        body, _ = self._parts[k]
        before = blocks.shapes[k - 1] if k else blocks.input_shape
        with dry_run(body):
            return tuple(body(like.new_zeros(1, *(before or ()))).shape[1:])
