"""A learning rule replaces `loss.backward()`: it fills `.grad`."""

from __future__ import annotations

import contextlib
import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.blocks.chain import Passes
from layerwise.errors import InputError
from layerwise.heads.layout import channels_first
from layerwise.inputs import Inputs
from layerwise.objectives import Objective, Site
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch, OnBlock, Scale, identity, nothing
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base.checks import BatchCheck, checked, explain
from layerwise.rules.base.differentiate import differentiate, kept_graphs
from layerwise.rules.base.objectives import OfBlocks, one_per_block
from layerwise.rules.base.reading import Reading

Module = TypeVar("Module", bound=nn.Module)


class Needs(enum.Flag):
    """What a block must receive before its gradient is there. It decides what can run in
    parallel."""

    FORWARD = enum.auto()  # its input, and the labels
    NEXT = enum.auto()  # for its auxiliary networks, what the next block finds; it may come late
    ERROR = enum.auto()  # the error of the network's output
    BACKWARD = enum.auto()  # a signal through the blocks after it
    WEIGHTS = enum.auto()  # the weights that the next block had in the step before
    READOUT = enum.auto()  # the weights of the network's classifier


@dataclass(eq=False)
class Report:
    """The results of one step, as detached tensors on the device.

    Attributes:
        logits: the network's output, (B, C), (B, T, C) or of maps (B, C, H, W).
        loss: the last block's loss, (); None where another process has it.
        local_losses: each block's loss, (); None for a block that has no objective of its own.
        local_logits: each block's class scores; None for a block that does not predict.
        labels: the labels that belong to them, as in `Batch`.
    """

    logits: Tensor
    loss: Tensor | None
    local_losses: tuple[Tensor | None, ...]
    local_logits: tuple[Tensor | None, ...]
    labels: Tensor

    @classmethod
    def of(cls, batch: Batch, output: Tensor, blocks: int) -> Report:
        """The report of a step of so many blocks, which gave `output`; the rows of further
        augmented views are left out."""
        return cls(
            logits=output.detach()[: batch.rows],
            loss=batch.losses.get(blocks - 1),
            local_losses=tuple(batch.losses.get(k) for k in range(blocks)),
            local_logits=tuple(batch.scores.get(k) for k in range(blocks)),
            labels=batch.labels,
        )


class Done(NamedTuple):
    """What one block leaves: of its step, or of inference.

    Attributes:
        out: the input of the next block, as a rule the block's output; detached.
        loss: the block's loss, (), detached, or None.
        scores: the block's class scores, detached, or None.
        carry: tensors that travel with `out` to the next block, whose `local_step` or `exit` is
            given them after its other arguments.
        back: a tensor that goes back to the block before, for its auxiliary networks, or None.
        kept: a tensor of this block that its own `learn` is given again, or None.
    """

    out: Tensor
    loss: Tensor | None = None
    scores: Tensor | None = None
    carry: tuple[Tensor, ...] = ()
    back: Tensor | None = None
    kept: Tensor | None = None


class Rule(nn.Module, ABC):
    """The base class of all learning rules.

    A rule writes `step`, which fills `.grad`; `backward` is written once, around it. A rule that
    predicts otherwise than by its blocks one after the other also writes `forward` and `exit`, and
    one that has further networks to train writes `auxiliary`.

    `parameters()` and `state_dict()` are those of the network and of the auxiliary networks. A rule
    never steps or zeroes an optimizer, never rebinds a parameter, and leaves no hook behind.

    Args:
        blocks: the network; made with an example where an objective has a head.
        objectives: one, of which every block but the last gets its own copy; or one per block, None
            for a block that has none; or one per block but the last. By default only the last block
            has one. Where the last is left out it predicts the labels from the network's output.
        criterion: the last block's loss where its objective is left out: of class scores and
            labels, a scalar.

    Attributes:
        blocks: the network, as a chain.
        objectives: `objectives[k]` is the objective of block k; `objectives.get(k)` is None where
            it has none.
        needs: what a block's gradient waits for.
        stochastic: whether a step draws random numbers of its own, so that the same batch gives
            another gradient the next time.
        synchronised: whether gradients are averaged over processes elsewhere, or need not be, so
            that `backward` may be called in one of several processes.

    Raises:
        InputError: `blocks` are no Blocks; objectives that do not fit them.
    """

    needs: Needs
    stochastic: bool = False
    synchronised: bool = False

    def __init__(
        self,
        blocks: Blocks,
        objectives: Objective | Sequence[Objective | None] | None = None,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__()
        call = type(self).__name__
        self.blocks = checked(call, blocks)
        self.objectives = OfBlocks[Objective]()
        found = one_per_block(call, blocks, objectives, criterion)
        for k, objective in enumerate(found):
            if objective is not None:
                objective.number(k, len(blocks))
        self.reading = Reading(call, blocks, found)
        for k, objective in enumerate(found):
            if objective is not None:
                self.objectives[k] = self.placed(k, objective)
        self._check: BatchCheck | None = None  # made once

    @abstractmethod
    def step(self, batch: Batch) -> Tensor:
        """Add the rule's gradient of a batch to `.grad`.

        `batch.run(k, h)` runs block k. `batch.done(k, loss, scores)` is called once for every
        block, when its gradients and those of its auxiliary networks are complete.

        Returns:
            The network's output, the class scores, (B, C).
        """

    def forward(self, inputs: Inputs) -> Tensor:
        """The network's prediction, as at inference."""
        return self.blocks(inputs)

    def exit(self, k: int, h: Any, passes: Passes) -> Done:
        """Block k at inference: the input of block k+1, and the class scores after block k, (B, C),
        or None.

        Args:
            k: number of the block.
            h: its input, (B, ...); of the first block the network's inputs.
            passes: the batch's pass through the blocks.
        """
        h = passes.run(k, h)
        if k == len(self.blocks) - 1:
            return Done(h, scores=h)
        objective = self.objectives.get(k)
        return Done(h, scores=None if objective is None else objective.predict(h, passes.inputs))

    def auxiliary(self, k: int) -> list[nn.Module]:
        """The modules that train with block k and are no part of the network."""
        objective = self.objectives.get(k)
        return [] if objective is None else [objective]

    def phases(self, epochs: int) -> Sequence[int]:
        """The number of epochs of each phase of a training of `epochs`; by default there is one
        phase. A trainer starts the learning-rate schedule anew in each, and calls `begin`."""
        return (epochs,)

    def begin(self, phase: int) -> None:
        """Called at the start of a phase, counted from 0, and where training continues in one. Does
        nothing by default."""

    # ------------------------------------------------------------ written once, for all rules

    def backward(
        self,
        inputs: Inputs,
        labels: Tensor,
        *,
        scale: Scale = identity,
        on_block: OnBlock = nothing,
    ) -> Report:
        """Add the rule's gradient to `.grad`, as `loss.backward()` does.

        Args:
            inputs: what the network is called with: a batch (B, ...), a tuple of arguments, or a
                dict of named ones. For a rule that compares augmented views one tensor (V B, ...),
                view after view, as `data.Loader(views=V)` gives it.
            labels: under the default criterion class numbers of any integer type, (B,), (B, T) for
                one label per token, (B, H, W) for one per pixel, -100 for a label that does not
                count; or the probabilities of the classes, in the shape of the scores.
            scale: applied to every loss before it is differentiated: `scaler.scale` for a
                `torch.amp.GradScaler`, or `lambda loss: loss / n` to average n accumulated
                batches.
            on_block: called with a block's number when the gradients of `parameters_of(number)` are
                complete; it may step them and set them to None. A local rule calls it as soon as a
                block is done, so that the gradients of the whole network never exist at once;
                backpropagation calls it when all are complete. The order of blocks is the rule's.

        Raises:
            InputError: inputs that are not as many, or a multiple, of the labels; views that the
                rule cannot use, or too few; labels that the default criterion cannot use; a step
                where gradients are off.
        """
        if torch.distributed.is_initialized() and not self.synchronised:
            self._refuse_alone()
        if inputs is None:
            raise InputError("backward(x, y): got no inputs, None; give what the network takes")
        batch = Batch(inputs, labels, scale, on_block)
        self.check(batch)
        kept = kept_graphs() if self.blocks.shares else contextlib.nullcontext()
        with self.blocks.passes(batch.augmented) as batch.passes, kept:
            try:
                return Report.of(batch, self.step(batch), len(self.blocks))
            except (RuntimeError, ValueError) as error:
                explain(self, error)
                raise

    def exits(self, inputs: Inputs) -> tuple[Tensor | None, ...]:
        """The class scores after every block, None where a block does not predict; the last are
        `forward(inputs)`."""
        done, scores = Done(inputs), []
        with self.blocks.passes(inputs) as passes:
            for k in range(len(self.blocks)):
                done = self.exit(k, done.out, passes, *done.carry)
                scores.append(done.scores)
        return tuple(scores)

    def activities(self, inputs: Inputs) -> list[Tensor]:
        """The output of every block at inference, a row for each input."""
        return self.blocks.outputs(inputs)

    def parameters_of(self, k: int) -> list[nn.Parameter]:
        """The parameters of block k and of its auxiliary networks."""
        parts = [self.blocks[k], *self.auxiliary(k)]
        return [parameter for part in parts for parameter in part.parameters()]

    @property
    def needs_views(self) -> int:
        """The number of augmented views of every sample that the rule compares at least; 0 where it
        cannot use more than one."""
        return self.reading.needs_views

    @property
    def check(self) -> BatchCheck:
        """Refuses batches that the rule cannot use."""
        if self._check is None:
            self._check = BatchCheck(self)
        return self._check

    # ------------------------------------------------------------ tools for `step`

    def run(self, k: int, h: Any, batch: Batch, keep: bool = False) -> tuple[Tensor, Activity]:
        """Run block k; gives the input of block k+1, and what the objective of block k reads.

        Args:
            k: number of the block.
            h: its input, ((V + views) B, ...) as `reading.first_input` makes it.
            batch: the step's.
            keep: as of `Batch.run`.
        """
        return self.reading.activity(k, self.reading.unpooled(k, h, batch, keep), batch)

    def loss(
        self, k: int, activity: Activity, batch: Batch, objective: Objective | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The loss of block k, (), and the class scores computed on the way to it, detached (or
        None). It is that of the block's own objective, or of another.

        Raises:
            InputError: the objective changes the block's output in place, which the next block
                takes.
        """
        version = _version(activity.output)
        objective = self.objectives[k] if objective is None else objective
        found = objective.loss_and_scores(activity, batch)
        self._refuse_changed(k, activity.output, version)
        return found

    def scores(self, k: int, h: Tensor, batch: Batch) -> Tensor:
        """The class scores that the objective of block k predicts from the block's output h, with
        their graph.

        Raises:
            InputError: as of `loss`.
        """
        version = _version(h)
        scores = self.objectives[k].predict(h, batch.inputs)
        self._refuse_changed(k, h, version)
        assert scores is not None
        return scores

    def output_error(
        self, output: Tensor, batch: Batch, scale: Scale = identity
    ) -> tuple[Tensor, Tensor]:
        """The loss of the network's output, (), and the gradient of the scaled loss with respect to
        the output, in its shape."""
        scores = output.detach().requires_grad_()
        loss, _ = self.loss(len(self.blocks) - 1, Activity(scores), batch)
        differentiate(loss, scale, inputs=(scores,))
        assert scores.grad is not None
        return loss, scores.grad

    def placed(self, k: int, objective: Objective) -> Objective:
        """An objective, with its auxiliary network made for block k."""
        blocks = self.blocks
        if blocks.shapes is not None or objective.needs_site:
            call = type(self).__name__
            input_shape, shapes = blocks.known_shapes(call, "no head can be made")
            like = self.weight_at(k)
            unpooled = self.reading.unpooled_shape(
                k, blocks, torch.zeros(()) if like is None else like
            )
            turned = [
                channels_first(list(blocks)[: j + 1], shapes[j]) for j in (k, len(blocks) - 1)
            ]
            before = unpooled or shapes[k]
            objective.place(
                Site(k, len(blocks), shapes[k], before, input_shape, shapes[-1], *turned)
            )
        return self.moved(k, objective)

    def moved(self, k: int, module: Module) -> Module:
        """A module, moved to where block k works: to the type and the device of its weights."""
        like = self.weight_at(k)
        return module if like is None else module.to(like.device, like.dtype)

    def weight_at(self, k: int) -> nn.Parameter | None:
        """A parameter that lies where block k works: its own, or that of the nearest block before
        it that has one, or any."""
        nearest = [*reversed(list(self.blocks)[: k + 1]), self.blocks]
        weights = (p for block in nearest for p in block.parameters() if p.is_floating_point())
        return next(weights, None)

    def _refuse_changed(self, k: int, h: Tensor, version: int) -> None:
        if _version(h) != version:
            raise InputError(
                f"{type(self).__name__}: the objective of block {self.blocks.names[k]!r} changes "
                "the block's output in place, which the next block takes; make its head's first "
                "operation inplace=False"
            )

    def _refuse_alone(self) -> None:
        """Refuse to let the weights of several processes drift apart."""
        world = torch.distributed.get_world_size()
        sharded = any(hasattr(p, "device_mesh") for p in self.parameters())  # averages by itself
        if world > 1 and not sharded:
            raise InputError(
                f"{type(self).__name__}.backward: {world} processes train, and nothing averages "
                "their gradients: DistributedDataParallel does so in a backward pass that a rule "
                "does not use; call layerwise.runtime.DataParallel(rule).backward(x, y), which "
                "does, or set rule.synchronised = True where you average them yourself or each "
                "process trains for itself"
            )


def _version(h: Tensor) -> int:
    """How often a tensor was changed in place; those of `torch.inference_mode` do not count it."""
    return 0 if h.is_inference() else h._version


@contextlib.contextmanager
def alone(*rules: Rule) -> Iterator[None]:
    """Within, `backward` runs in one of several processes: the gradients stay there."""
    before = [rule.synchronised for rule in rules]
    for rule in rules:
        rule.synchronised = True
    try:
        yield
    finally:
        for rule, synchronised in zip(rules, before, strict=True):
            rule.synchronised = synchronised
