"""Predict the class scores of a trained network."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from layerwise.arguments import checks_arguments, positive
from layerwise.errors import InputError
from layerwise.heads.head import Head
from layerwise.inputs import call
from layerwise.labels import IGNORED, class_axis
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.objective import ThroughHead


class Distill(ThroughHead):
    """Predict the class scores of a trained network, the teacher; no labels are read.

    Hinton, Vinyals & Dean 2015 (arXiv:1503.02531), section 2. With the teacher's class scores t,
    the student's z and the temperature tau:

        L       = tau^2 KL(softmax(t / tau) || softmax(z / tau))
        dL / dz = tau (softmax(z / tau) - softmax(t / tau))

    in nats; the mean is over the samples that count. The factor tau^2 keeps the size of the
    gradient. Without it, and with the teacher's entropy added, which has no gradient, this is eq. 2
    of Chen et al. 2020 (SimCLRv2, arXiv:2006.10029). Their eq. 3, which also reads the labels that
    are there, is the sum (1 - alpha) Classify + alpha Distill.

    Every block learns through its own head. The last block learns to match the teacher with its own
    output, instead of the labels, if one `Distill` is given for all blocks. With one block this is
    ordinary distillation, end to end.

    The teacher sees the network's inputs (the first augmented view), in eval mode and without a
    graph; all blocks share one pass. It is neither trained nor part of a checkpoint.

    Args:
        teacher: a network with the same classes; on the command line the folder of a complete run.
        head: the auxiliary network of every block but the last; without one the block's output is
            taken as the class scores.
        temperature: tau, by which class scores are divided.
        unlabelled_only: count only samples whose label is missing (-100).

    Raises:
        InputError: no teacher; a temperature that is not above 0; in a step, a teacher with other
            classes.
    """

    @checks_arguments
    def __init__(
        self,
        teacher: nn.Module | None = None,
        head: Head | None = None,
        temperature: float = 1.0,
        unlabelled_only: bool = False,
    ):
        super().__init__(head, "Distill")
        if teacher is None:
            raise InputError(
                "Distill(teacher=None): give a trained network; on the command line the "
                "folder of a complete run: --rule.objectives.teacher RUN"
            )
        positive("Distill", temperature=temperature)
        self.teacher = _Teacher(copy.deepcopy(teacher))
        self.temperature, self.unlabelled_only = temperature, unlabelled_only

    def of_output(self) -> Distill:
        """The same for the network's own output."""
        own = copy.deepcopy(self)
        own.recipe, own.head = None, nn.Identity()
        return own

    def forward(
        self, activity: Activity, batch: Batch, scores: list[Tensor] | None = None
    ) -> Tensor:
        z = self.predict(activity.output, batch.inputs)
        if scores is not None:
            scores.append(z.detach())
        t = self.teacher(batch)
        if t.shape != z.shape:
            raise InputError(
                f"Distill: the teacher gives class scores {tuple(t.shape)} and the student "
                f"{tuple(z.shape)}; give a teacher with the same classes"
            )
        axis = class_axis(z, t, "Distill")
        wide = torch.promote_types(z.dtype, torch.float32)
        log_p = (t.to(wide) / self.temperature).log_softmax(axis)
        log_q = (z.to(wide) / self.temperature).log_softmax(axis)
        each = self.temperature**2 * (log_p.exp() * (log_p - log_q)).sum(axis)
        if not self.unlabelled_only or batch.labels.is_floating_point():
            return each.mean()
        counts = (batch.labels == IGNORED).to(each.dtype)
        return (each * counts).sum() / counts.sum().clamp(min=1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distill:
        self.teacher.network._apply(fn)  # to another device or memory format
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, unlabelled_only={self.unlabelled_only}"


class _Teacher:
    """A trained network that all copies of an objective share. It is no submodule, so that it has
    no part in `parameters`, `state_dict` and `train`."""

    def __init__(self, network: nn.Module):
        self.network = network.eval().requires_grad_(False)
        self._seen: tuple[Callable[[], Batch | None], Tensor] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Teacher:
        return self

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Class scores of the batch's inputs, (B, C), computed once for all blocks."""
        if self._seen is None or self._seen[0]() is not batch:
            self._seen = weakref.ref(batch), call(self.network, batch.inputs)
        return self._seen[1]
