"""Checks of what a rule is given: its blocks, and its batches."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import torch
from torch import nn

from layerwise.blocks import Blocks
from layerwise.errors import InputError, LostStage, reason
from layerwise.heads.layout import scores_axis
from layerwise.inputs import Inputs, number_of_views, tensors
from layerwise.labels import prepared
from layerwise.objectives import Objective
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import is_cross_entropy
from layerwise.rules.base.differentiate import refuse_without_gradients

if TYPE_CHECKING:
    from layerwise.rules.base.rule import Rule


def checked(call: str, blocks: Blocks) -> Blocks:
    """Return `blocks` if they are Blocks.

    Args:
        call: name of the rule, for the error.
        blocks: what the rule was given.

    Raises:
        InputError: they are something else.
    """
    if not isinstance(blocks, Blocks):
        raise InputError(
            f"{call}(blocks): got {type(blocks).__name__}; a rule takes Blocks: "
            "layerwise.cut(model, blocks=4, example=x), or Blocks([...]) by hand"
        )
    return blocks


def explain(rule: Rule, error: Exception, inputs: Inputs = None) -> None:
    """Raise an error of PyTorch's in a step that has a simple remedy as one that says it.

    Args:
        rule: the rule whose step it is.
        error: the error.
        inputs: the network's inputs in this step; None in a process that does not read them.

    Raises:
        InputError: gradients are off; BatchNorm was given one value for a channel; the inputs or
            the labels were made in `torch.inference_mode`; the inputs have another shape or type
            than the example.
    """
    if isinstance(error, InputError | LostStage | torch.OutOfMemoryError):
        return  # it says all
    said, call = str(error), type(rule).__name__
    if said.startswith("Inference tensors"):
        refuse_without_gradients()
        raise InputError(
            f"{call}.backward(x, y): got a tensor that was made in torch.inference_mode(), which "
            "no gradient can pass; give its clone(), or make it under torch.no_grad()"
        ) from error
    if said.startswith("Expected more than 1 "):
        raise InputError(
            f"{call}.backward(x, y): {_place(rule, error)} is given a single value for each "
            "channel in train mode, which has no variance; give batches of at least 2 samples, or "
            "call .eval() of the normalization"
        ) from error
    if isinstance(error, TypeError) and "unexpected keyword argument" in said:
        raise InputError(
            f"{call}.backward(x, y): got the inputs {', '.join(map(str, inputs))}, which the "
            f"network does not take: {reason(error)}; leave out what is no input"
        ) from error
    example = rule.blocks.example
    if inputs is not None and example is not None and _kinds(inputs) != _kinds(example):
        raise InputError(
            f"{call}.backward(x, y): got {_described(inputs)}, but the network was cut with "
            f"{_described(example)}, and the step fails: {reason(error)}; give inputs like the "
            "example, or cut the network again with an example like these"
        ) from error


def _kinds(inputs: Inputs) -> list[tuple[torch.dtype, torch.Size]]:
    """The type and the shape without the batch of each tensor."""
    return [(tensor.dtype, tensor.shape[1:]) for tensor in tensors(inputs)]


def _described(inputs: Inputs) -> str:
    """The type and shape of each tensor, for errors."""
    return " and ".join(
        f"{str(t.dtype).removeprefix('torch.')} of shape {tuple(t.shape)}" for t in tensors(inputs)
    )


def _place(rule: Rule, error: Exception) -> str:
    """The normalization in which an error was raised, and the block that it belongs to."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [m for f in frames if isinstance(m := f.f_locals.get("self"), nn.Module)]
    raised = modules[-1] if modules else rule
    for k, name in enumerate(rule.blocks.names):
        if any(raised is module for module in rule.blocks[k].modules()):
            return f"{type(raised).__name__} in block {name!r}"
        if any(raised is m for part in rule.auxiliary(k) for m in part.modules()):
            return f"{type(raised).__name__} in the auxiliary network of block {name!r}"
    return type(raised).__name__


class BatchCheck:
    """The check that a rule can use the batches it is given.

    Class numbers on the CPU are checked in every batch. Other labels are checked only in the first
    batch with labels of each type and number of axes: those on an accelerator because the host has
    to wait for the device to read them. In a later batch on an accelerator, a class number that no
    class has is not refused here.

    Args:
        rule: the rule, whose objectives have been built.
    """

    def __init__(self, rule: Rule):
        self.call, self.needs_views = type(rule).__name__, rule.needs_views
        self.comparing = [
            type(o).__name__
            for o in rule.objectives.modules()
            if isinstance(o, Objective) and o.needs_views == rule.needs_views
        ]
        asking = [rule, *rule.objectives.modules()]
        self.default_criterion = any(
            is_cross_entropy(getattr(m, "criterion", None)) for m in asking
        )
        self.shapes = rule.blocks.shapes
        self.axis = -1 if self.shapes is None else scores_axis(list(rule.blocks), self.shapes[-1])
        self.seen: set[tuple[torch.dtype, int]] = set()

    def __call__(self, batch: Batch) -> None:
        """Refuse a batch that the rule cannot use, and bring its labels into the form that the
        default criterion reads. Labels for another criterion are not checked.

        Raises:
            InputError: the number of inputs is not the number of labels or a multiple of it; a
                number of views that `views` refuses; labels that the default criterion cannot use.
        """
        if batch.augmented is not None:
            self.views(number_of_views(batch.augmented, batch.rows, self.call))
        if self.shapes is None or not self.default_criterion:
            return
        kind = batch.labels.dtype, batch.labels.dim()
        look = kind not in self.seen
        batch.labels = prepared(batch.labels, self.shapes[-1], self.axis, self.call, look)
        self.seen.add(kind)

    def views(self, views: int) -> None:
        """Refuse batches with this number of augmented views if the rule cannot use them.

        Raises:
            InputError: several views, but no objective compares views; fewer views than an
                objective needs.
        """
        if views > 1 and not self.needs_views:
            raise InputError(
                f"{self.call}: got {views} views of every sample, but no objective compares views; "
                "give one view (--views 1), or an objective that compares them: NTXent"
            )
        if views < self.needs_views:
            raise InputError(
                f"{self.comparing[-1] if self.comparing else self.call}: got {views} view of every "
                f"sample, but compares {self.needs_views}; give --views {self.needs_views}, in "
                f"Python data.Loader(views={self.needs_views})"
            )
