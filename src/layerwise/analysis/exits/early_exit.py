"""The network that decides, sample by sample, at which exit it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.analysis.exits.temperature import checked_temperatures, checked_threshold
from layerwise.arguments import check, shortened
from layerwise.blocks.chain import dry_run
from layerwise.blocks.stretches import Stretches
from layerwise.blocks.unchanged import seed, unchanged
from layerwise.errors import InputError, reason
from layerwise.heads.layout import scores_axis
from layerwise.inputs import Inputs, chosen_rows, in_order, leading, tensors
from layerwise.objectives import Objective
from layerwise.rules.base import Rule
from layerwise.rules.base.objectives import OfBlocks


class EarlyExit(nn.Module):
    """The network in which every sample leaves at the first exit that is confident enough.

    After each block that predicts, the samples whose highest calibrated probability reaches the
    threshold leave with the class scores of this exit. The blocks that follow compute the others
    only: the batch gets smaller. The last exit takes all that are left. (Schwartz et al. 2020,
    arXiv:2004.07453, section 3; the temperatures are theirs, too.)

        z_k = head_k(h_k);    leave at the first k with  max_c softmax(z_k / T_k)_c >= threshold

    With threshold 0 every sample leaves at the first exit, and with a threshold above 1 at the
    last. The modules are the rule's own. On a GPU every exit makes the host wait for its decision.

    A sample of tokens (B, T, C), or of maps (B, C, H, W) or (B, H, W, C), has several predictions.
    It leaves when the least confident of them reaches the threshold, or when that of `position`
    does.

    Of several inputs, those that the samples share (a mask (T, T), a memory) stay whole: every
    tensor that is not as long as the batch, and every tensor that was not as long as the batch in
    the example with which the network was cut. This example needs a number of samples that no
    shared tensor has as its length.

    In an export (`torch.export`) a batch cannot get smaller: there the whole batch goes on until
    all of its samples would have left, and each has the scores of its own exit. Later blocks are
    then not run (`torch.cond`). With one sample that is the same as here; a graph for one sample is
    exported with one, and a graph for several (`dynamic_shapes=(({0: Dim("batch", min=2)},),)`)
    takes two or more. Only blocks that are modules called one after the other can be exported so:
    those of an `nn.Sequential`, or given by hand. For any other network export `Exit(rule, i)` of
    several exits, and compare their confidence on the host; each of them computes from the
    network's input on.

    Args:
        rule: the rule, trained or not; its blocks were made with an example.
        threshold: the probability at which a sample leaves, 0 or more.
        temperatures: T_k of every block's exit, or None for a block that does not predict; by
            default all are 1. `fit_temperatures` finds them.
        position: the token whose prediction decides, such as -1 for the last; only for tokens.

    Attributes:
        exits: the numbers of the blocks that predict.
        axis: the axis of the classes in the scores, 1 or -1.

    Raises:
        InputError: a threshold or temperatures that are none; no block but the last predicts; a
            network with a single output; the rule does not predict by running its blocks in order;
            blocks made without an example, or with one in which a tensor that samples share is as
            long as the batch; `position` without tokens. In a call: inputs in both
            ways; fewer tokens than `position` needs; a block that does not run by itself, if
            samples left before it (`cut` then has to cut elsewhere); in an export, other blocks.
    """

    def __init__(
        self,
        rule: Rule,
        threshold: float,
        temperatures: Sequence[float | None] | None = None,
        position: int | None = None,
    ):
        super().__init__()
        if not isinstance(rule, Rule):
            raise InputError(f"EarlyExit(rule={shortened(rule)}): give a rule, lw.rules.DGL(...)")
        name, blocks = type(rule).__name__, rule.blocks
        check("EarlyExit", {"position": position}, {"position": int | None})
        if type(rule).exit is not Rule.exit:
            raise InputError(
                f"EarlyExit({name}): {name} does not predict by running its blocks in order; use "
                "rule.exits(x)"
            )
        _, (*_, shape) = blocks.known_shapes("EarlyExit", "exits cannot be tried")
        if isinstance(blocks, Stretches):
            _check_example(blocks)
        self.blocks, self.threshold = blocks, checked_threshold("EarlyExit", threshold)
        self.exits = predicting(rule)
        if len(self.exits) == 1:
            raise InputError(
                f"EarlyExit({name}): no block but the last predicts, so no sample can leave early; "
                "train heads: rules.DGL, or rules.DeepSupervision(detach=True) for a network that "
                "backpropagation trains"
            )
        self.objectives = OfBlocks[Objective]()
        for k in self.exits[:-1]:
            self.objectives[k] = rule.objectives[k]
        names = blocks.names
        self.temperatures = checked_temperatures("EarlyExit", temperatures, names, self.exits)
        self.axis = scores_axis(list(blocks), shape)
        if not shape or shape[0 if self.axis == 1 else -1] == 1:
            raise InputError(
                f"EarlyExit({name}): the network gives {shape} for each sample; a single output "
                "is no class whose probability could be high enough: use Exit(rule, i)"
            )
        self.position = position
        if position is not None and len(shape) != 2:
            raise InputError(
                f"EarlyExit(position={position}): the network gives {shape} for each sample, and "
                "not scores of tokens; leave position out"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Class scores, from the inputs that the network takes."""
        return self.decide(*args, **kwargs)[0]

    def decide(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Class scores, and the number of the block at whose exit each sample left, (B,) int64.

        Args:
            *args: the inputs that the network takes, all of them by position,
            **kwargs: or all by name.
        """
        if args and kwargs:
            raise InputError(
                f"EarlyExit: got inputs by position and {', '.join(kwargs)} by name; give all of "
                "them in one way"
            )
        inputs: Inputs = kwargs or (args[0] if len(args) == 1 else args)
        inputs = in_order(inputs, self.blocks.example)
        if torch.compiler.is_exporting():
            return self._exported(0, inputs)
        rows = len(leading(inputs))
        here = torch.arange(rows, device=leading(inputs).device)  # the samples on their way
        found: list[tuple[Tensor, Tensor, int]] = []
        with contextlib.ExitStack() as stack:
            passes = stack.enter_context(self.blocks.passes(inputs))
            h: Any = inputs
            part = inputs  # those of the samples on their way
            for k in range(len(self.blocks)):
                h = passes.run(k, h)
                if k not in self.exits:
                    continue
                z = self._scores(k, h, part)
                if k == self.exits[-1]:
                    found.append((here, z, k))
                    break
                leaves = self._leaves(k, z)
                going = int(leaves.sum())
                if not going:
                    continue
                if going == len(here):
                    found.append((here, z, k))
                    break
                found.append((here[leaves], z[leaves], k))
                stay = (~leaves).nonzero().squeeze(1)
                h, here = h[stay], here[stay]
                part = chosen_rows(inputs, here, self.blocks.example)
                passes.close()
                passes = stack.enter_context(self.blocks.passes(part))
        if len(found) == 1:
            [(_, z, k)] = found
            return z, torch.full((rows,), k, device=z.device)
        order = torch.cat([of for of, _, _ in found]).argsort()
        taken = [torch.full((len(of),), k, device=z.device) for of, z, k in found]
        return torch.cat([z for _, z, _ in found])[order], torch.cat(taken)[order]

    def confidence(self, k: int, scores: Tensor) -> Tensor:
        """The calibrated probability of the class that exit k predicts, (B,) or (B, positions)."""
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return (wide / self.temperatures[k]).softmax(self.axis).amax(self.axis)  # type: ignore[operator]

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, exits={self.exits}"

    def _leaves(self, k: int, scores: Tensor) -> Tensor:
        """Which samples leave at exit k, (B,) bool."""
        p = self.confidence(k, scores)
        if self.position is not None:
            if not -p.shape[1] <= self.position < p.shape[1]:
                raise InputError(
                    f"EarlyExit(position={self.position}): got samples of {p.shape[1]} tokens; "
                    "give the number of one of them, such as -1 for the last"
                )
            p = p[:, self.position]
        return p.flatten(1).amin(1) >= self.threshold if p.dim() > 1 else p >= self.threshold

    def _scores(self, k: int, h: Tensor, inputs: Inputs) -> Tensor:
        """The class scores of exit k."""
        if k == self.exits[-1]:
            return h
        found = self.objectives[k].predict(h, inputs)
        assert found is not None
        return found

    def _exported(self, k: int, h: Any) -> tuple[Tensor, Tensor]:
        """The results of a batch from block k on, as a graph with conditions."""
        blocks = self.blocks
        if isinstance(blocks, Stretches) and not blocks.is_sequential():
            raise InputError(
                f"EarlyExit: {type(blocks.model).__name__} is not an nn.Sequential, so its blocks "
                "cannot be exported one by one; export Exit(rule, i) of some exits, and compare "
                "their confidence on the host"
            )
        while True:
            block = blocks[k]
            h = block.call_chain(h) if isinstance(blocks, Stretches) else block(h)  # type: ignore
            if k in self.exits:
                break
            k += 1
        z = self._scores(k, h, None)
        taken = torch.full(z.shape[:1], k, device=z.device)  # `len` would fix the number
        if k == self.exits[-1]:
            return z, taken
        leaves = self._leaves(k, z)
        later, where = torch.cond(
            leaves.all(),
            lambda h, z, taken: (z.clone(), taken.clone()),
            lambda h, z, taken: self._exported(k + 1, h),
            (h, z, taken),
        )
        of_sample = leaves.view(-1, *[1] * (z.dim() - 1))
        return torch.where(of_sample, z, later), torch.where(leaves, taken, where)


def _check_example(blocks: Stretches) -> None:
    """Check that the tensors of the example that are as long as the batch have a row for each
    sample: a sample alone has the scores that it has in the batch. A shared tensor whose rows do
    the same, such as zeros, passes.

    Raises:
        InputError: it has others, or cannot be run alone.
    """
    example = blocks.example_here()
    rows = len(leading(example))
    long = [t for t in tensors(example) if t.dim() and len(t) == rows]
    if rows == 1 or len(long) == 1 or any(p.device.type == "meta" for p in blocks.parameters()):
        return
    found = []
    try:
        for batch in (example, chosen_rows(example, slice(1))):
            with unchanged(blocks), dry_run(blocks):
                seed(leading(example).device)
                found.append(blocks(batch)[:1])
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3, equal_nan=True)
    except Exception as error:
        raise InputError(
            f"EarlyExit: one of the example's {rows} samples alone does not have the scores that "
            f"it has among them ({reason(error)}); if its samples share a tensor of length {rows}, "
            "cut the network with an example of another number of samples"
        ) from error


def predicting(rule: Rule) -> tuple[int, ...]:
    """The numbers of the blocks that give class scores, from a dry run on one sample.

    Args:
        rule: its blocks were made with an example.
    """
    weight = next(rule.parameters(), torch.zeros(()))
    with dry_run(rule):
        scores = rule.exits(rule.blocks.zeros(1, weight))
    return tuple(k for k, z in enumerate(scores) if z is not None)
