"""The base class of learning rules, which replace `loss.backward()`: a rule fills `.grad`."""

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
from layerwise.blocks.stretch import Stretch
from layerwise.errors import InputError
from layerwise.heads.layout import channels_first
from layerwise.inputs import Inputs
from layerwise.objectives import Objective, Site
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch, OnBlock, Scale, identity, nothing
from layerwise.objectives.classify import Classify, Criterion, cross_entropy
from layerwise.rules.base.checks import BatchCheck, checked, explain
from layerwise.rules.base.differentiate import differentiate, kept_graphs
from layerwise.rules.base.objectives import LAST_ONLY, OfBlocks, one_per_block
from layerwise.rules.base.reading import Reading

Module = TypeVar("Module", bound=nn.Module)


class Needs(enum.Flag):
    """The information that a block must receive before its gradient can be computed. It decides
    which blocks can run in parallel."""

    FORWARD = enum.auto()  # the block's input and the labels
    NEXT = enum.auto()  # a tensor from the next block, for auxiliary networks; it may come later
    ERROR = enum.auto()  # the error of the network's output
    BACKWARD = enum.auto()  # a signal that passes back through the blocks after it
    WEIGHTS = enum.auto()  # the weights that the next block had in the step before
    READOUT = enum.auto()  # the weights of the network's classifier


@dataclass(eq=False)
class Report:
    """The results of one step, as detached tensors on the device.

    Attributes:
        logits: the network's output, the class scores, (B, C), (B, T, C) or (B, C, H, W). Where the
            loss is computed without them (`Rule.deferring_scores`), they are NaN and (B, T, D).
        loss: the last block's loss, (); None in a process that does not have the last block.
        local_losses: each block's loss, (); None for a block without a loss of its own.
        local_logits: each block's class scores, in the shape of `logits`; None for a block that
            does not predict the classes.
        labels: the labels of these scores, as in `Batch`.
    """

    logits: Tensor
    loss: Tensor | None
    local_losses: tuple[Tensor | None, ...]
    local_logits: tuple[Tensor | None, ...]
    labels: Tensor

    @classmethod
    def of(cls, batch: Batch, output: Tensor, blocks: int) -> Report:
        """The report of a step.

        Args:
            batch: the step's batch, with its losses and scores.
            output: the network's output; only the first augmented view is reported.
            blocks: number of blocks.
        """
        logits = output.detach()[: batch.rows]
        if batch.deferred:  # no scores were computed
            logits = logits.new_full((), torch.nan).expand(logits.shape)
        return cls(
            logits=logits,
            loss=batch.losses.get(blocks - 1),
            local_losses=tuple(batch.losses.get(k) for k in range(blocks)),
            local_logits=tuple(batch.scores.get(k) for k in range(blocks)),
            labels=batch.labels,
        )


class Done(NamedTuple):
    """The result of one block's step, or of one block at inference.

    Attributes:
        out: the input of the next block, usually the block's output; detached.
        loss: the block's loss, (), detached, or None.
        scores: the block's class scores, (B, C), detached, or None.
        carry: detached tensors that travel with `out` to the next block; its `local_step` or `exit`
            gets them as further arguments.
        back: a detached tensor for the auxiliary networks of the block before (`Needs.NEXT`), or
            None.
        kept: a tensor, with its graph, for this block's own `learn`, or None.
    """

    out: Tensor
    loss: Tensor | None = None
    scores: Tensor | None = None
    carry: tuple[Tensor, ...] = ()
    back: Tensor | None = None
    kept: Tensor | None = None


class Rule(nn.Module, ABC):
    """The base class of all learning rules.

    A rule sets `needs` and writes `step`, which fills `.grad`; `backward`, which users call, is
    written once around it. If every block can learn from its input and the labels alone, derive
    from `LocalRule` instead. This step trains every block on its own objective:

        def step(self, batch):
            h = self.reading.first_input(batch)
            for k in range(len(self.blocks)):
                out, activity = self.run(k, h, batch)
                loss, scores = self.loss(k, activity, batch)
                differentiate(loss, batch.scale)
                batch.done(k, loss, scores)
                h = out.detach()
            return h

    A rule that does not predict by running its blocks one after the other also writes `forward` and
    `exit`. A rule with further networks to train also writes `auxiliary`. A rule with random
    numbers of its own sets `stochastic`.

    `parameters()` and `state_dict()` are those of the network and of the auxiliary networks. A rule
    never steps an optimizer or zeroes gradients, never rebinds a parameter, and leaves no hook
    behind.

    Args:
        blocks: the network; made with an example if an objective has a head.
        objectives: one objective, which is copied for every block except the last; or one for each
            block, with None for a block without one; or one for each block except the last. By
            default only the last block has one. A last block whose objective is left out predicts
            the labels from the network's output.
        criterion: the last block's loss if its objective is left out: a function of class scores
            and labels that returns a scalar, mean over the batch.

    Attributes:
        blocks: the network, as a sequence of blocks.
        objectives: `objectives[k]` is the objective of block k; `objectives.get(k)` is None if it
            has none.
        reading: runs the blocks so that the objectives get what they read.
        needs: the information that a block must receive before its gradient can be computed.
        one_pass: whether one backward pass completes the gradient of each parameter that it
            reaches, so that the parameter may be stepped within the pass (`early_steps`).
        stochastic: whether a step draws random numbers of its own, so that the same batch gives
            different gradients in two steps.
        kept_in_eval: modules that stay in eval mode while the rule trains, such as BatchNorm in a
            part of the network that is frozen.
        synchronised: whether `backward` may be called in one of several processes, because
            gradients are averaged elsewhere or need not be.

    Raises:
        InputError: `blocks` are not Blocks; objectives that do not fit them.
    """

    needs: Needs
    one_pass: bool = False
    stochastic: bool = False
    synchronised: bool = False
    kept_in_eval: Sequence[nn.Module] = ()

    def __init__(
        self,
        blocks: Blocks,
        objectives: Objective | Sequence[Objective | None] = LAST_ONLY,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__()
        call = type(self).__name__
        self.blocks = checked(call, blocks)
        if not isinstance(getattr(self, "needs", None), Needs):
            raise InputError(
                f"{call}: say in the class what a block's gradient waits for, such as needs = "
                "Needs.BACKWARD"
            )
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

        Run block k with `self.run(k, h, batch)`, or with `batch.run(k, h)` if no objective reads
        more than block outputs. Call `batch.done(k, loss, scores)` once for every block, when its
        gradients and those of its auxiliary networks are complete: `on_block` may then step and
        clear them.

        Args:
            batch: the step's batch.

        Returns:
            The network's output, the class scores, (B, C), (B, T, C) or (B, C, H, W).
        """

    def forward(self, inputs: Inputs) -> Tensor:
        """The network's prediction: class scores, (B, C), (B, T, C) or (B, C, H, W).

        Args:
            inputs: what the network is called with.
        """
        return self.blocks(inputs)

    def exit(self, k: int, h: Any, passes: Passes) -> Done:
        """Run block k at inference. A rule that carries tensors from block to block
        (`Done.carry`) takes them as further arguments, with defaults.

        Args:
            k: number of the block.
            h: its input, (B, ...); for the first block the network's inputs.
            passes: the pass of the batch through the blocks.

        Returns:
            `out`, the input of block k+1, and `scores`, the class scores after block k or None.
        """
        h = passes.run(k, h)
        if k == len(self.blocks) - 1:
            return Done(h, scores=h)
        objective = self.objectives.get(k)
        return Done(h, scores=None if objective is None else objective.predict(h, passes.inputs))

    def auxiliary(self, k: int) -> list[nn.Module]:
        """The modules that train with block k and are not part of the network; by default its
        objective, which holds its head."""
        objective = self.objectives.get(k)
        return [] if objective is None else [objective]

    def phases(self, epochs: int) -> Sequence[int]:
        """The number of epochs in each phase of a training; by default there is one phase. At the
        start of each, a trainer calls `begin` and restarts the learning-rate schedule.

        Args:
            epochs: number of epochs of the training, the sum of the result.
        """
        return (epochs,)

    def begin(self, phase: int) -> None:
        """Called at the start of a phase, and when training is resumed within it. Does nothing by
        default.

        Args:
            phase: number of the phase, from 0.
        """

    def restart(self) -> None:
        """Called where batches do not continue those before, such as at the start of an epoch; a
        rule that carries a state from batch to batch forgets it. Does nothing by default."""

    # ------------------------------------------------------------ written once, for all rules

    def train(self, mode: bool = True) -> Any:
        """Set the mode of the rule and of its network, except for `kept_in_eval`."""
        super().train(mode)
        for module in self.kept_in_eval:
            module.training = False
        return self

    def backward(
        self,
        inputs: Inputs,
        labels: Tensor,
        *,
        scale: Scale = identity,
        on_block: OnBlock | None = None,
    ) -> Report:
        """Add the rule's gradient to `.grad`, as `loss.backward()` does.

        Args:
            inputs: what the network is called with: a tensor (B, ...), a tuple of arguments, or a
                dict of named ones; the first tensor of these has a row for each sample. For a rule
                that compares augmented views, one tensor (V B, ...), view after view, as
                `data.Loader(views=V)` gives it.
            labels: for the default criterion, class numbers of any integer type, (B,), (B, T) for
                one label per token or (B, H, W) for one per pixel, with -100 for a label that does
                not count; or the probabilities of the classes, in the shape of the class scores.
            scale: applied to every loss before it is differentiated: `scaler.scale` of a
                `torch.amp.GradScaler`, or `lambda loss: loss / n` to average n accumulated
                batches.
            on_block: called with a block's number when the gradients of `parameters_of(number)` are
                complete; it may step these parameters and clear their gradients. A local rule calls
                it as soon as a block is done, so that the gradients of the whole network never
                exist at once; backpropagation calls it when all are complete. The rule decides the
                order of blocks.

        Returns:
            The losses and class scores of the step, detached, on the device; not scaled.

        Raises:
            InputError: the number of inputs is not the number of labels or a multiple of it; too
                few augmented views, or views that the rule cannot use; labels that the default
                criterion cannot use; inputs of another shape or type than the example, if the step
                fails; gradients are off; one of several processes calls this, and nothing averages
                gradients.
        """
        if torch.distributed.is_initialized() and not self.synchronised:
            self._refuse_alone()
        if inputs is None:
            raise InputError("backward(x, y): got no inputs, None; give what the network takes")
        batch = Batch(inputs, labels, scale, on_block or nothing)
        self.check(batch)
        kept = kept_graphs() if self.blocks.shares else contextlib.nullcontext()
        with self.blocks.passes(batch.augmented) as batch.passes, kept:
            try:
                output = self.step(batch)
            except Exception as error:
                explain(self, error, batch.augmented)
                raise
        self._check_step(batch, output)
        return Report.of(batch, output, len(self.blocks))

    def exits(self, inputs: Inputs) -> tuple[Tensor | None, ...]:
        """The class scores after every block, in the shape of `forward(inputs)`, which are the
        last; None for a block that does not predict the classes.

        Args:
            inputs: what the network is called with.
        """
        done, scores = Done(inputs), []
        with self.blocks.passes(inputs) as passes:
            for k in range(len(self.blocks)):
                done = self.exit(k, done.out, passes, *done.carry)
                scores.append(done.scores)
        return tuple(scores)

    def activities(self, inputs: Inputs) -> list[Tensor]:
        """The output of every block at inference, (B, ...).

        Args:
            inputs: what the network is called with.
        """
        return self.blocks.outputs(inputs)

    def parameters_of(self, k: int) -> list[nn.Parameter]:
        """The parameters of block k and of its auxiliary networks."""
        parts = [self.blocks[k], *self.auxiliary(k)]
        return [parameter for part in parts for parameter in part.parameters()]

    @property
    def needs_views(self) -> int:
        """The smallest number of augmented views of every sample that the rule can compare; 0 if it
        cannot use more than one."""
        return self.reading.needs_views

    @property
    def check(self) -> BatchCheck:
        """The check that the rule can use a batch; `backward` calls it."""
        if self._check is None:
            self._check = BatchCheck(self)
        return self._check

    # ------------------------------------------------------------ tools for `step`

    def run(self, k: int, h: Any, batch: Batch, keep: bool = False) -> tuple[Tensor, Activity]:
        """Run block k.

        Args:
            k: number of the block.
            h: its input, ((V + views) B, ...): the output of block k-1 that this method returned,
                or `reading.first_input(batch)`. Usually (B, ...): see `Reading`.
            batch: the step's batch.
            keep: as in `Batch.run`.

        Returns:
            The output of the block, which is the input of block k+1; and what the objective of
            block k reads.
        """
        return self.reading.run(k, h, batch, keep)

    def loss(
        self, k: int, activity: Activity, batch: Batch, objective: Objective | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The loss of block k.

        Args:
            k: number of the block.
            activity: what the objective reads, from `run`.
            batch: the step's batch.
            objective: another objective than the block's own.

        Returns:
            The loss, (), mean over the batch, with its graph; and the class scores computed on the
            way to it, detached, or None.

        Raises:
            InputError: the objective changes the block's output in place, although the next block
                reads it.
        """
        version = _version(activity.output)
        objective = self.objectives[k] if objective is None else objective
        found = objective.loss_and_scores(activity, batch)
        self._refuse_changed(k, activity.output, version)
        return found

    @contextlib.contextmanager
    def deferring_scores(self, batch: Batch) -> Iterator[None]:
        """Within, the loss of a network that scores a large vocabulary at every token is computed
        in chunks (`Classify(chunk_above=...)`), if the network ends in an `nn.Linear`. The last
        block's output is then the input of that layer, and the step's `Report.logits` are not
        numbers."""
        last = len(self.blocks) - 1
        objective = self.objectives.get(last)
        if type(objective) is not Classify or self.blocks.shares or self.blocks.shared:
            yield
            return
        with objective.deferring(_last_layer(self.blocks[last]), batch) as batch.deferred:
            yield

    def scores(self, k: int, h: Tensor, batch: Batch) -> Tensor:
        """The class scores that the objective of block k predicts, with their graph.

        Args:
            k: number of the block; its objective predicts the classes.
            h: the block's output, (B, ...).
            batch: the step's batch.

        Raises:
            InputError: as in `loss`.
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
        the output, in its shape.

        Args:
            output: the network's output, (B, C), (B, T, C) or (B, C, H, W).
            batch: the step's batch.
            scale: applied to the loss before it is differentiated; by default there is none.
        """
        scores = output.detach().requires_grad_()
        loss, _ = self.loss(len(self.blocks) - 1, Activity(scores), batch)
        differentiate(loss, scale, inputs=(scores,))
        assert scores.grad is not None
        return loss, scores.grad

    def placed(self, k: int, objective: Objective) -> Objective:
        """Build an objective's auxiliary network for block k, in the type and on the device of the
        block's weights; return the objective.

        Raises:
            InputError: the objective does not fit the block, or needs shapes that are not known.
        """
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
        """Move a module to the type and the device of block k's weights; return it."""
        like = self.weight_at(k)
        return module if like is None else module.to(like.device, like.dtype)

    def weight_at(self, k: int) -> nn.Parameter | None:
        """A parameter that has the type and the device of block k: one of its own, of the nearest
        block before it that has one, or of any block; None if no block has one."""
        nearest = [*reversed(list(self.blocks)[: k + 1]), self.blocks]
        weights = (p for block in nearest for p in block.parameters() if p.is_floating_point())
        return next(weights, None)

    def _refuse_changed(self, k: int, h: Tensor, version: int) -> None:
        if _version(h) != version and k < len(self.blocks) - 1:
            raise InputError(
                f"{type(self).__name__}: the objective of block {self.blocks.names[k]!r} changes "
                "the block's output in place, but the next block reads it; make the first "
                "operation of its head inplace=False"
            )

    def _check_step(self, batch: Batch, output: object) -> None:
        """Refuse a step that does not keep the contract: a mistake in the rule."""
        call, blocks = type(self).__name__, list(range(len(self.blocks)))
        if not isinstance(output, Tensor) or output.dim() == 0:
            raise InputError(
                f"{call}.step: returned {type(output).__name__}; return the network's output, the "
                "class scores, (B, C)"
            )
        if sorted(batch.finished) != blocks:
            raise InputError(
                f"{call}.step: batch.done was called for blocks {sorted(batch.finished)} of "
                f"{blocks}; call it once for every block, when its gradients are complete"
            )

    def _refuse_alone(self) -> None:
        """Refuse to train in several processes whose gradients nothing averages."""
        world = torch.distributed.get_world_size()
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        # Sharded parameters (FSDP) are averaged in any backward pass.
        alone = [name for name, p in trained.items() if not hasattr(p, "device_mesh")]
        if world > 1 and alone and len(alone) < len(trained):
            raise InputError(
                f"{type(self).__name__}.backward: {world} processes train, and FSDP averages the "
                f"gradients of sharded parameters only, to which {alone[0]} does not belong; call "
                "fully_shard on it, too: on rule.auxiliary(k) of every block k and on the network"
            )
        if world > 1 and alone:
            raise InputError(
                f"{type(self).__name__}.backward: {world} processes train, and nothing averages "
                "their gradients, because DistributedDataParallel does so in a backward pass that "
                "a rule does not use; call layerwise.runtime.DataParallel(rule).backward(x, y), "
                "which averages them, or set rule.synchronised = True if you average them yourself "
                "or each process trains separately"
            )


def _last_layer(block: nn.Module) -> nn.Module | None:
    """The module that is called last in a block, if the block is a chain of modules."""
    while isinstance(block, nn.Sequential | Stretch):
        chain = list(block) if isinstance(block, nn.Sequential) else block.chain
        if not chain:
            return None
        block = chain[-1]
    return block


def _version(h: Tensor) -> int:
    """How often a tensor was changed in place; those of `torch.inference_mode` do not count it."""
    return 0 if h.is_inference() else h._version


@contextlib.contextmanager
def alone(*rules: Rule) -> Iterator[None]:
    """Within, `backward` of these rules may be called in one of several processes; the gradients
    are not averaged."""
    before = [rule.synchronised for rule in rules]
    for rule in rules:
        rule.synchronised = True
    try:
        yield
    finally:
        for rule, synchronised in zip(rules, before, strict=True):
            rule.synchronised = synchronised
