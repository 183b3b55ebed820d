"""End-to-end backpropagation, with or without activation checkpointing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.blocks.inplace import out_of_place
from layerwise.errors import InputError
from layerwise.inputs import leading
from layerwise.objectives import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Needs, Rule, differentiate
from layerwise.rules.calls.again import buffers_as, buffers_of

# The operations whose results selective checkpointing keeps.
PRODUCTS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
]


class Backprop(Rule):
    """End-to-end backpropagation of the network's own loss.

    This is the reference that other rules are compared with. Without `checkpoint`, a step gives the
    same gradients as `loss.backward()`, bit for bit.

    Args:
        blocks: the network's blocks.
        checkpoint: whether to keep only the input of each block and to run the block again during
            the backward pass (Chen et al. 2016, arXiv:1604.06174). This saves memory and costs a
            second forward pass. The gradient is the same, because the second run repeats the random
            numbers of the first and does not move buffers (running statistics) again. "selective"
            also keeps the results of matrix products, convolutions and attention, so that only the
            operations between them run again; layers with `inplace=True` then work out of place.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; in `backward` with `checkpoint`, a block changes its
            input in place, or, if it is "selective", a function overwrites a result that is kept.
    """

    needs = Needs.BACKWARD
    one_pass = True

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        checkpoint: bool | Literal["selective"] = False,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, criterion=criterion)
        self.checkpoint = checkpoint

    def step(self, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        with self.deferring_scores(batch):
            h = self._checkpointed(batch) if self.checkpoint else self.blocks(batch.inputs)
            loss, scores = self.loss(last, Activity(h), batch)
            try:
                differentiate(loss, batch.scale)
            except RuntimeError as error:
                if "selective" not in str(error) or "mutated" not in str(error):
                    raise
                raise InputError(
                    'Backprop(checkpoint="selective"): a function overwrites the result of a '
                    "matrix product or convolution in place; write it without in-place functions, "
                    "or give checkpoint=True"
                ) from error
        batch.done(last, loss, scores)
        for k in reversed(range(last)):
            batch.done(k)
        return h

    def _checkpointed(self, batch: Batch) -> Tensor:
        h = batch.inputs
        for k in range(len(self.blocks)):
            h = _kept_input(self.blocks, k, h, batch, self.checkpoint == "selective")
        return h


def _kept_input(blocks: Blocks, k: int, h: Any, batch: Batch, selective: bool) -> Tensor:
    """Block k's output; only the block's input is kept for the backward pass, and under `selective`
    the results of `PRODUCTS`."""
    before = buffers_of(blocks[k])
    tensor = leading(h)
    version = tensor._version

    def contexts() -> tuple[Any, Any]:
        if not selective:
            return contextlib.nullcontext(), buffers_as(before)
        keeping, again = create_selective_checkpoint_contexts(PRODUCTS)
        return (
            _all(keeping, out_of_place(blocks[k])),  # what is kept must stay as it is
            _all(again, out_of_place(blocks[k]), buffers_as(before)),
        )

    out = checkpoint(
        lambda h: batch.again(k, h),
        h,
        use_reentrant=False,
        context_fn=contexts,
    )
    if tensor._version != version:
        raise InputError(
            f"Backprop(checkpoint=True): block {blocks.names[k]!r} changes its input in place, so "
            "it cannot run again on it; make its first operation inplace=False, or cut elsewhere"
        )
    return out


@contextlib.contextmanager
def _all(*contexts: contextlib.AbstractContextManager) -> Iterator[None]:
    with contextlib.ExitStack() as entered:
        for context in contexts:
            entered.enter_context(context)
        yield
