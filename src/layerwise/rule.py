"""A learning rule is what takes the place of `loss.backward()`: it fills `.grad`."""

from __future__ import annotations

import copy
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from layerwise.batch import Batch, Report, identity
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.objectives import Classify, Objective, Site
from layerwise.objectives.classify import Criterion, cross_entropy

OnBlock = Callable[[int], None]
Scale = Callable[[Tensor], Tensor]


class Needs(enum.Flag):
    """What a block must receive before its gradient is there; decides what can run in parallel."""

    FORWARD = enum.auto()  # its input, and the labels
    ERROR = enum.auto()  # the network's output error
    BACKWARD = enum.auto()  # a signal through the blocks after it


class Rule(nn.Module, ABC):
    """Base of all learning rules.

    `parameters()` and `state_dict()` are the network's and the heads'. A rule never steps or
    zeroes an optimizer, never rebinds a parameter, and leaves no hook behind.

    Attributes:
        blocks: the network, as a chain.
        objectives: one per block that has one, under the block's number.
        needs: what a block's gradient waits for.
    """

    needs: ClassVar[Needs]

    def __init__(self, blocks: Blocks):
        super().__init__()
        if not isinstance(blocks, Blocks):
            raise InputError(
                f"{type(self).__name__}(blocks): got {type(blocks).__name__}; a rule takes Blocks: "
                "layerwise.cut(model, blocks=4, example=x), or Blocks([...]) by hand"
            )
        self.blocks = blocks
        self.objectives = nn.ModuleDict()

    @abstractmethod
    def backward(
        self, x: Tensor, y: Tensor, *, scale: Scale = identity, on_block: OnBlock | None = None
    ) -> Report:
        """Accumulate the rule's gradient into `.grad`, as autograd does.

        Args:
            x: a batch, (B, ...).
            y: its labels, (B,), or (B, T) for one label per token.
            scale: applied to every loss before it is differentiated: `scaler.scale` for a
                `torch.amp.GradScaler`, or `lambda loss: loss / n` to average n accumulated
                batches.
            on_block: called with a block's number when the gradients of `parameters_of(number)`
                are complete; it may step them and set them to None. A local rule calls it as soon
                as a block is done, so that a whole network's gradients never exist at once;
                backpropagation after all are.
        """

    def forward(self, x: Tensor) -> Tensor:
        """The network's output, as at inference."""
        return self.blocks(x)

    def exits(self, x: Tensor) -> tuple[Tensor | None, ...]:
        """Class scores after every block, None where a block does not predict; the last is
        `forward(x)`."""
        h = x
        scores: list[Tensor | None] = []
        for i, block in enumerate(self.blocks):
            h = block(h)
            objective = self._objective(i)
            scores.append(None if objective is None else objective.predict(h))
        scores[-1] = h
        return tuple(scores)

    def parameters_of(self, i: int) -> list[nn.Parameter]:
        """The parameters of block `i` and of its objective."""
        objective = self._objective(i)
        of_objective = () if objective is None else objective.parameters()
        return [*self.blocks[i].parameters(), *of_objective]

    def _objective(self, i: int) -> Objective | None:
        if str(i) not in self.objectives:
            return None
        objective = self.objectives[str(i)]
        assert isinstance(objective, Objective)
        return objective


class LocalRule(Rule):
    """A rule under which a block needs nothing from the blocks after it.

    Every block k minimises its own objective; sg[] stops the gradient between blocks:

        h_k = f_k(sg[h_{k-1}]),    grad_k = d objective_k(h_k) / d (f_k, head_k)

    A block's input does not require grad, so its gradient is never computed.

    Args:
        blocks: the network; made with an example where an objective has a head.
        objectives: one, of which every block but the last gets its own copy; or one per block; or
            one per block but the last. Where the last is left out it predicts the labels from the
            network's own output.
        criterion: the last block's loss where its objective is left out.
    """

    needs = Needs.FORWARD

    def __init__(
        self,
        blocks: Blocks,
        objectives: Objective | Sequence[Objective],
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks)
        if isinstance(objectives, Objective):
            objectives = [copy.deepcopy(objectives) for _ in range(len(blocks) - 1)]
        objectives = list(objectives) if isinstance(objectives, Iterable) else [objectives]
        wrong = [type(given).__name__ for given in objectives if not isinstance(given, Objective)]
        if wrong:
            raise InputError(
                f"{type(self).__name__}(objectives): got {wrong[0]}; give an objective such as "
                "objectives.Classify(heads.Linear()), or a list of them"
            )
        if len(objectives) == len(blocks) - 1:
            objectives.append(Classify(criterion=criterion))
        if len(objectives) != len(blocks):
            raise InputError(
                f"{type(self).__name__}(objectives): got {len(objectives)} for {len(blocks)} "
                f"blocks; give {len(blocks)}, or {len(blocks) - 1} to leave the last block to the "
                "network's own classifier"
            )
        modules = [module for objective in objectives for module in objective.modules()]
        if len(set(modules)) < len(modules):  # a head, too, belongs to one block
            objectives = [copy.deepcopy(objective) for objective in objectives]
        weight = _weight(blocks)
        for i, objective in enumerate(objectives):
            if blocks.shapes is not None and blocks.input_shape is not None:
                objective.build(
                    Site(i, len(blocks), blocks.shapes[i], blocks.input_shape, blocks.shapes[-1])
                )
            elif objective.needs_site:
                raise InputError(
                    f"{type(self).__name__}(blocks): the shapes between these blocks are not "
                    "known, so no head can be made; give an example: Blocks([...], example=x)"
                )
            weight = _weight(blocks[i], default=weight)  # a ReLU's head lies where its input does
            if weight is not None:
                objective.to(weight.device, weight.dtype)
            self.objectives[str(i)] = objective

    def local_backward(self, i: int, h: Tensor, batch: Batch) -> Tensor:
        """Block i's step: its detached input in, the detached input of block i+1 out.

        Its gradients are in `.grad` and its graph is gone when this returns.
        """
        h = self.blocks[i](h)
        version = h._version
        loss = self.objectives[str(i)](h, batch)
        if h._version != version:
            raise InputError(
                f"{type(self).__name__}: the objective of block {self.blocks.names[i]!r} changes "
                "the block's output in place, which the next block takes; make its head's first "
                "operation inplace=False"
            )
        differentiate(loss, batch.scale)
        batch.finish(i, loss)
        return h.detach()

    def backward(
        self, x: Tensor, y: Tensor, *, scale: Scale = identity, on_block: OnBlock | None = None
    ) -> Report:
        batch = Batch(x, y, scale)
        h = x.detach()  # sg[h_0]
        for i in range(len(self.blocks)):
            h = self.local_backward(i, h, batch)
            if on_block is not None:
                on_block(i)
        return batch.report(h, len(self.blocks))


def differentiate(loss: Tensor, scale: Scale = identity) -> None:
    """`scale(loss).backward()` as PyTorch asks for it: outside autocast, and only where some
    parameter wants it."""
    if not torch.is_grad_enabled():
        raise InputError(
            "backward(x, y): called where gradients are off; call it outside torch.no_grad() and "
            "torch.inference_mode()"
        )
    if loss.requires_grad:
        with torch.autocast(loss.device.type, enabled=False):
            scale(loss).backward()
    if torch.is_autocast_enabled(loss.device.type):
        # Autocast keeps the weights it cast until its context ends, and would go on using them
        # after a step inside the context.
        torch.clear_autocast_cache()


def _weight(module: nn.Module, default: nn.Parameter | None = None) -> nn.Parameter | None:
    return next((p for p in module.parameters() if p.is_floating_point()), default)
