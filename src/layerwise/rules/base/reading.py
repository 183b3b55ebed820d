"""Running the blocks so that each objective gets the outputs that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layerwise.blocks import Blocks
from layerwise.blocks.chain import dry_run
from layerwise.blocks.inplace import kept
from layerwise.blocks.layout import as_laid_out
from layerwise.blocks.pooling import before_pooling
from layerwise.errors import InputError
from layerwise.inputs import Inputs, describe, detached
from layerwise.objectives import Objective
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch


class Reading:
    """Runs a network's blocks so that each objective gets its `Activity`.

    Some objectives read more than the output of their block: the output before the pooling that
    ends the block, the output for further views of the input (`Objective.views`), or the outputs
    for several augmented views of the batch (`Objective.needs_views`). All of these pass through
    the blocks as one tensor of (V + views) B rows: first the V augmented views of the batch, then
    each further view of the first augmented one. A view passes up to the last block that reads it.
    If no objective reads more, there are B rows.

    Args:
        call: name of the rule, for errors.
        blocks: the network.
        objectives: one objective or None for each block.

    Attributes:
        needs_views: the smallest number of augmented views of every sample that the objectives can
            compare; 0 if none compares any.
    """

    def __init__(self, call: str, blocks: Blocks, objectives: Sequence[Objective | None]):
        self.call = call
        # A block whose objective reads its output before the pooling runs in two parts.
        self._parts = {
            k: parts
            for k, objective in enumerate(objectives)
            if objective is not None
            and objective.reads_unpooled
            and (parts := before_pooling(blocks[k])) is not None
        }
        # Views that pass through more blocks come first.
        until = {view: k for k, o in enumerate(objectives) if o is not None for view in o.views}
        views = sorted(until, key=lambda view: -until[view])
        self._views = [tuple(v for v in views if until[v] >= k) for k in range(len(blocks))]
        # Augmented views pass up to the last block that compares them.
        self._compared = [
            any(o is not None and o.needs_views for o in objectives[k:]) for k in range(len(blocks))
        ]
        self.needs_views = max((o.needs_views for o in objectives if o is not None), default=0)
        self._with_input = {
            k for k, o in enumerate(objectives) if o is not None and o.reads_block_input
        }
        # Whether block k is given B rows, and its objective reads its output alone.
        self._plain = [
            k not in self._parts
            and k not in self._with_input
            and not self._views[before]
            and not self._compared[before]
            for k, before in enumerate([0, *range(len(blocks) - 1)])
        ]

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
                f"{self.call}: an objective reads further views of the input, but the network "
                f"takes {describe(inputs)}, and views are made of one tensor; give an objective "
                "without views"
            )
        first = batch.x.detach()
        return torch.cat([inputs, *(view(first) for view in views)])

    def run(self, k: int, h: Any, batch: Batch, keep: bool = False) -> tuple[Tensor, Activity]:
        """Run block k: `unpooled`, then `activity`.

        Raises:
            InputError: the block's objective reads the block's input, which is not one tensor.
        """
        if self._plain[k]:  # nearly every block
            h = batch.run(k, h, keep=keep)
            return h, Activity(h)
        read = k in self._with_input
        out, activity = self.activity(k, self.unpooled(k, h, batch, keep or read), batch)
        if read:
            if not isinstance(h, Tensor):
                raise InputError(
                    f"{self.call}: the objective of block {k} reads the block's input, which is "
                    f"{describe(h)}; it has to be one tensor: leave the term that reads it, such "
                    "as Displacement, out of this block's objective"
                )
            activity.input = h.detach()[: batch.rows]
        return out, activity

    def unpooled(self, k: int, h: Any, batch: Batch, keep: bool = False) -> Tensor:
        """Run block k on h, without the pooling that ends the block if its objective reads the
        output before it. Rows that neither this block nor a later one reads are left out.

        Args:
            k: number of the block.
            h: its input, ((V + views) B, ...), as `first_input` or `activity` returned it.
            batch: the step's batch.
            keep: as in `Batch.run`.

        Returns:
            The output, ((V + views) B, ...), for `activity`.
        """
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
        """Finish the run of block k.

        Args:
            k: number of the block.
            unpooled: the result of `unpooled`.
            batch: the step's batch.

        Returns:
            The block's output with all its rows, ((V + views) B, ...), the input of the next block;
            and what the block's objective reads.
        """
        views, count = self._views[k], batch.rows
        pooled = k in self._parts
        h = self._parts[k][1](unpooled) if pooled else unpooled
        rows = h.shape[0]
        if rows <= count and not self._compared[k]:
            return h, Activity(h, unpooled if pooled else None)
        augmented = rows // count - len(views)
        of_views = dict(zip(views, h.split(count)[augmented:], strict=True)) if views else {}
        compared = self._compared[k]
        stacked = h[: count * augmented].unflatten(0, (augmented, count)) if compared else None
        before = (unpooled[:count] if rows > count else unpooled) if pooled else None
        # Last, so that the gradients of `h` are added up in this order.
        output = h[:count] if rows > count else h
        return h, Activity(output, before, of_views, stacked)

    def unpooled_shape(self, k: int, blocks: Blocks, like: Tensor) -> tuple[int, ...] | None:
        """The shape of block k's output before its pooling, without the batch dimension; None if
        its objective does not read that, or shapes are not known.

        Args:
            k: number of the block.
            blocks: the network.
            like: a tensor of the type and on the device of the block's weights.
        """
        if k not in self._parts or blocks.shapes is None:
            return None
        body, _ = self._parts[k]
        before = blocks.shapes[k - 1] if k else blocks.input_shape
        with dry_run(body):
            found = tuple(body(like.new_zeros(1, *(before or ()))).shape[1:])
        return as_laid_out(found, blocks.shapes[k])
