"""A learning rule is what takes the place of `loss.backward()`: it fills `.grad`."""

from __future__ import annotations

import contextlib
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.blocks.chain import Passes
from layerwise.errors import InputError
from layerwise.heads.layout import channels_first
from layerwise.inputs import Inputs, detached, leading
from layerwise.labels import prepared
from layerwise.objectives import Objective, Site
from layerwise.objectives.batch import Batch, Report, identity, nothing
from layerwise.objectives.classify import is_cross_entropy
from layerwise.rules.base.differentiate import Scale, kept_graphs

OnBlock = Callable[[int], None]


class Needs(enum.Flag):
    """What a block must receive before its gradient is there; decides what can run in parallel."""

    FORWARD = enum.auto()  # its input, and the labels
    ERROR = enum.auto()  # the network's output error
    BACKWARD = enum.auto()  # a signal through the blocks after it
    WEIGHTS = enum.auto()  # the weights of the block after it, of the step before
    READOUT = enum.auto()  # the weights of the network's classifier


class Rule(nn.Module, ABC):
    """Base of all learning rules.

    `parameters()` and `state_dict()` are the network's and the heads'. A rule never steps or
    zeroes an optimizer, never rebinds a parameter, and leaves no hook behind.

    Attributes:
        blocks: the network, as a chain.
        objectives: one per block that has one, under the block's number.
        needs: what a block's gradient waits for.
        draws: whether a step draws random numbers of its own: the same batch gives another
            gradient the next time.
        synchronised: whether gradients are averaged over processes elsewhere, or not to be, so that
            `backward` may be called in one of several.
        predicts_as_chain: whether `forward` is the blocks one after the other and nothing else, so
            that the model gives the same.
    """

    needs: Needs
    draws: bool = False
    synchronised: bool = False
    predicts_as_chain: ClassVar[bool] = True

    def __init__(self, blocks: Blocks):
        super().__init__()
        self.blocks = checked(type(self).__name__, blocks)
        self.objectives = nn.ModuleDict()
        self._default_criterion: bool | None = None  # whether an objective has it; found once
        self._scores_first: bool | None = None  # whether scores are (classes, T); found once
        self._kinds_read: set[tuple[torch.dtype, int]] = set()  # labels, in steps before

    @property
    def needs_views(self) -> int:
        """How many augmented views of every sample the rule compares at least; 0 where it cannot
        use more than one."""
        return 0

    @abstractmethod
    def step(self, batch: Batch) -> Tensor:
        """The rule's gradient of a batch, into `.grad`.

        `batch.run(k, h)` runs block k; `batch.finish(k, loss)` keeps its loss and
        `batch.on_block(k)` says that its gradients are complete.

        Returns:
            The network's class scores, (B, C).
        """

    def backward(
        self, inputs: Inputs, y: Tensor, *, scale: Scale = identity, on_block: OnBlock | None = None
    ) -> Report:
        """Accumulate the rule's gradient into `.grad`, as autograd does.

        Args:
            inputs: what the network is called with: a batch (B, ...), a tuple of arguments, or a
                dict of named ones. For a rule that compares augmented views one tensor (V B, ...),
                view after view, as `data.Loader(views=V)` gives it.
            y: its labels. Under the default criterion class numbers of any integer type, (B,),
                (B, T) for one label per token, (B, H, W) for one per pixel, -100 for what is not to
                count; or the classes' probabilities, of the scores' shape.
            scale: applied to every loss before it is differentiated: `scaler.scale` for a
                `torch.amp.GradScaler`, or `lambda loss: loss / n` to average n accumulated
                batches.
            on_block: called with a block's number when the gradients of `parameters_of(number)`
                are complete; it may step them and set them to None. A local rule calls it as soon
                as a block is done, so that a whole network's gradients never exist at once;
                backpropagation after all are. In which order is the rule's own.

        Raises:
            InputError: inputs that are not as many, or a multiple, of the labels; views that the
                rule cannot use, or too few; a step where gradients are off.
        """
        if torch.distributed.is_initialized() and not self.synchronised:
            self._refuse_alone()
        batch = Batch(inputs, y, scale, on_block or nothing)
        self.check_batch(batch)
        kept = kept_graphs() if self.blocks.shares else contextlib.nullcontext()
        with self.blocks.passes(batch.drawn) as batch.passes, kept:
            return batch.report(self.step(batch), len(self.blocks))

    def phases(self, epochs: int) -> Sequence[int]:
        """How many of `epochs` each phase of training takes; by default there is one. A trainer
        runs the learning-rate schedule anew in each, and calls `begin` at its start."""
        return (epochs,)

    def begin(self, phase: int) -> None:
        """Training stands in this phase, from 0; also called when it is continued there. By
        default nothing follows from that."""

    def forward(self, inputs: Inputs) -> Tensor:
        """The network's output, as at inference."""
        return self.blocks(inputs)

    def activities(self, inputs: Inputs) -> list[Tensor]:
        """What every block gives at inference, a row for each input."""
        return self.blocks.outputs(inputs)

    def exits(self, inputs: Inputs) -> tuple[Tensor | None, ...]:
        """Class scores after every block, None where a block does not predict; the last is
        `forward(inputs)`."""
        h = inputs
        scores: list[Tensor | None] = []
        with self.blocks.passes(inputs) as passes:
            for i in range(len(self.blocks)):
                h, predicted = self.exit(i, h, passes)
                scores.append(predicted)
        return tuple(scores)

    def exit(self, i: int, h: Any, passes: Passes) -> tuple[Tensor, Tensor | None]:
        """Block i's output and the class scores there, as in `exits`.

        Args:
            i: number of the block.
            h: its input, (B, ...); of the first block the network's inputs.
            passes: the batch's way through the blocks.
        """
        h = passes.run(i, h)
        if i == len(self.blocks) - 1:
            return h, h
        objective = self._objective(i)
        return h, None if objective is None else objective.predict(h, passes.inputs)

    def check_views(self, views: int) -> None:
        """Refuse batches of as many augmented views.

        Raises:
            InputError: more than one, and nothing compares them; fewer than what does needs.
        """
        if views > 1 and not self.needs_views:
            raise InputError(
                f"{type(self).__name__}: got {views} views of every sample, and nothing here "
                "compares them; give one (--views 1), or an objective that does: NTXent"
            )
        if views < self.needs_views:
            compares = [
                type(o).__name__
                for o in self.objectives.modules()
                if isinstance(o, Objective) and o.needs_views == self.needs_views
            ]
            raise InputError(
                f"{compares[-1] if compares else type(self).__name__}: got {views} view of every "
                f"sample, and it compares {self.needs_views}; give --views {self.needs_views}, in "
                f"Python data.Loader(views={self.needs_views})"
            )

    def illustrate(self, x: Tensor, y: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Images of what blocks should have given and of what they gave, (B, C, H, W) on the scale
        of `x`, under the number of each block whose objective makes images."""
        return {}

    def auxiliary(self, i: int) -> list[nn.Module]:
        """What trains with block `i` and is no part of the network."""
        objective = self._objective(i)
        return [] if objective is None else [objective]

    def parameters_of(self, i: int) -> list[nn.Parameter]:
        """The parameters of block `i` and of its auxiliary networks."""
        parts = [self.blocks[i], *self.auxiliary(i)]
        return [parameter for part in parts for parameter in part.parameters()]

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

    def check_batch(self, batch: Batch) -> None:
        """See that the batch has inputs for the labels, in as many views as the rule wants.

        Raises:
            InputError: as `check_views`; inputs that are not as many, or a multiple, of the labels;
                labels that the default criterion cannot use.
        """
        if batch.drawn is not None:
            rows = len(leading(batch.drawn))
            views, rest = divmod(rows, max(1, len(batch.y)))
            if rest or not views:
                raise InputError(
                    f"{type(self).__name__}: got {rows} inputs for {len(batch.y)} labels; "
                    "give one label for each input, or for its views, view after view"
                )
            self.check_views(views)
        self._check_labels(batch)

    def _check_labels(self, batch: Batch) -> None:
        """Bring labels that the default criterion reads to what all parts of a rule read, or refuse
        them; those of another criterion are its own. Values are read once for each kind of labels:
        for them the host waits for the device."""
        shapes = self.blocks.shapes
        if self._default_criterion is None:
            asking = [self, *self.objectives.modules()]
            found = (is_cross_entropy(getattr(m, "criterion", None)) for m in asking)
            self._default_criterion = any(found)
        if shapes is None or not self._default_criterion:
            return
        kind = batch.y.dtype, batch.y.dim()
        look = kind not in self._kinds_read
        if self._scores_first is None:
            self._scores_first = channels_first(list(self.blocks), shapes[-1])
        call = type(self).__name__
        batch.y = prepared(batch.y, shapes[-1], self._scores_first, call, look)
        self._kinds_read.add(kind)

    def _attach(
        self,
        i: int,
        objective: Objective,
        unpooled_shape: tuple[int, ...] | None = None,
        among: nn.ModuleDict | None = None,
    ) -> None:
        """Give block `i` its objective, built for its place; `among` others than `objectives`."""
        blocks = self.blocks
        if blocks.shapes is not None or objective.needs_site:
            name = type(self).__name__
            input_shape, shapes = blocks.known_shapes(name, "no head can be made")
            before = unpooled_shape or shapes[i]
            turned = [
                channels_first(list(blocks)[: k + 1], shapes[k]) for k in (i, len(blocks) - 1)
            ]
            site = Site(i, len(blocks), shapes[i], before, input_shape, shapes[-1], *turned)
            objective.place(site)
        weight = self._weight(i)
        if weight is not None:
            objective.to(weight.device, weight.dtype)
        (self.objectives if among is None else among)[str(i)] = objective

    def _weight(self, i: int) -> nn.Parameter | None:
        """A parameter that lies where block `i` works: of its own, else of the nearest before it,
        else of any."""
        nearest = [*reversed(list(self.blocks)[: i + 1]), self.blocks]
        weights = (p for block in nearest for p in block.parameters() if p.is_floating_point())
        return next(weights, None)

    @contextlib.contextmanager
    def _kept(self, i: int, h: Tensor) -> Iterator[None]:
        """Refuse an objective that changes block i's output, which the next block takes."""
        version = h._version
        yield
        if h._version != version:
            self._refuse_changed(i)

    def _refuse_changed(self, i: int) -> NoReturn:
        raise InputError(
            f"{type(self).__name__}: the objective of block {self.blocks.names[i]!r} changes "
            "the block's output in place, which the next block takes; make its head's first "
            "operation inplace=False"
        )

    def _objective(self, i: int) -> Objective | None:
        objective = self.objectives._modules.get(str(i))
        assert objective is None or isinstance(objective, Objective)
        return objective


class ForwardRule(Rule):
    """A rule under which a block's gradient is there once its input is: blocks may live in
    different processes.

    Attributes:
        sends_back: whether what a block finds (`Batch.targets`) is wanted by the block before it,
            sooner or later: by `learn`.
    """

    needs = Needs.FORWARD
    sends_back: ClassVar[bool] = False

    @abstractmethod
    def local_backward(self, i: int, h: Tensor, batch: Batch) -> Tensor:
        """Block i's step: its detached input in, its detached output out; its gradients are in
        `.grad` when this returns. What else the next block needs goes into `batch.along`."""

    def enter(self, batch: Batch) -> Inputs:
        """The first block's input, detached."""
        return detached(batch.inputs)

    def keep(self, blocks: Iterable[int]) -> None:
        """Keep only the weights of these blocks on their device: other processes train the others,
        whose weights go to the CPU.

        Raises:
            InputError: a parameter is used by several blocks; a block that does not run by itself.
        """
        self.blocks.keep(blocks)

    def reads_input(self, blocks: Iterable[int]) -> bool:
        """Whether these blocks read `batch.x`, other than as the first block's input."""
        blocks = list(blocks)
        objectives = map(self._objective, blocks)
        return any(o.reads_input for o in objectives if o is not None) or any(
            i > 0 and self.blocks.reads_inputs(i) for i in blocks
        )

    def learn(self, i: int, h: Tensor, batch: Batch) -> None:
        """What block i's auxiliary networks learn from `batch.targets[i]`, which block i+1 found on
        its input h."""

    def step(self, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        before = h = self.enter(batch)
        for k in range(len(self.blocks)):
            h = self.local_backward(k, before, batch)
            if k and self.sends_back:
                self.learn(k - 1, before, batch)
                batch.on_block(k - 1)  # its auxiliary networks had to wait for block k
            if k == last or not self.sends_back:
                batch.on_block(k)
            before = h
        return h


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


def checked(call: str, blocks: Blocks) -> Blocks:
    """`blocks`, where they are Blocks.

    Raises:
        InputError: they are not.
    """
    if not isinstance(blocks, Blocks):
        raise InputError(
            f"{call}(blocks): got {type(blocks).__name__}; a rule takes Blocks: "
            "layerwise.cut(model, blocks=4, example=x), or Blocks([...]) by hand"
        )
    return blocks
