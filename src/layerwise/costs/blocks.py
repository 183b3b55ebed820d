"""Parameters and FLOPs of each block and its heads, and FLOPs of a training step."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from layerwise.blocks.chain import dry_run
from layerwise.blocks.cost import counted
from layerwise.blocks.unchanged import unchanged
from layerwise.costs.example_labels import example_labels
from layerwise.costs.flops import Flops, count_flops
from layerwise.inputs import first_rows
from layerwise.rules import Backprop
from layerwise.rules.base import Rule, alone

SAMPLES = 2  # of the step that is measured: BatchNorm needs more than one


@dataclass(frozen=True)
class BlockCost:
    """The cost of one block; FLOPs are for one sample's forward pass, a multiply-add counts as two.

    Attributes:
        name: of the block.
        shape: of the block's output, without the batch dimension.
        parameters: of the block.
        flops: of the block.
        head_parameters: of the block's auxiliary networks.
        head_flops: of the block's auxiliary networks, in training.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    flops: int
    head_parameters: int
    head_flops: int


@dataclass(frozen=True)
class Costs:
    """The cost of every block, and of a training step.

    Attributes:
        blocks: one cost per block, in order.
        step_flops: FLOPs of a training step, forward and backward, heads included, per sample; the
            mean over the rule's phases; None if it was not measured.
        step_head_flops: the part of `step_flops` in objectives and auxiliary networks.
        backprop_flops: FLOPs of a step of backpropagation, per sample.
    """

    blocks: tuple[BlockCost, ...]
    step_flops: int | None = None
    step_head_flops: int | None = None
    backprop_flops: int | None = None

    @classmethod
    def of(cls, rule: Rule, views: int | None = None, labels: Tensor | None = None) -> Costs:
        """Measure a rule whose blocks were made with an example; the rule is left unchanged.

        Args:
            rule: the rule.
            views: number of augmented views of every sample; by default the number that the rule
                needs. FLOPs per sample are those of all its views.
            labels: a batch of labels, if the rule has a criterion of your own.
        """
        blocks = rule.blocks
        assert blocks.input_shape is not None, "blocks made by `cut` know their shapes"
        weight = next(rule.parameters(), torch.zeros(()))
        rows = SAMPLES * (views or max(1, rule.needs_views))
        x, one = blocks.zeros(rows, weight), blocks.zeros(1, weight)
        y = example_labels(rule, SAMPLES, labels, weight.device)
        phases = len(rule.phases(len(blocks)))
        trained = rule if phases == 1 else copy.deepcopy(rule)  # the rule stays in its phase
        end_to_end = Backprop(blocks, criterion=_mean)
        measured = alone(rule, trained, end_to_end)
        steps: list[Flops] = []
        with measured, without_gradients(rule), unchanged(rule), torch.enable_grad():
            for phase in range(phases):
                if trained is not rule:
                    trained.begin(phase)
                trained.train()
                steps.append(count_flops(lambda: trained.backward(x, y), trained))
            rule.train()
            backprop = count_flops(lambda: end_to_end.backward(first_rows(x, SAMPLES), y))
        head_flops = [
            max(forwards) for forwards in zip(*(step.head_forwards for step in steps), strict=True)
        ]
        return cls(
            _block_costs(rule, one, [flops // SAMPLES for flops in head_flops]),
            sum(step.total for step in steps) // (phases * SAMPLES),
            sum(step.heads for step in steps) // (phases * SAMPLES),
            backprop.total // SAMPLES,
        )

    @property
    def parameters(self) -> int:
        return sum(block.parameters for block in self.blocks)

    @property
    def flops(self) -> int:
        return sum(block.flops for block in self.blocks)

    @property
    def head_parameters(self) -> int:
        return sum(block.head_parameters for block in self.blocks)

    @property
    def head_flops(self) -> int:
        return sum(block.head_flops for block in self.blocks)

    def up_to(self, i: int) -> tuple[int, int]:
        """Parameters and forward FLOPs (one sample) of the network that ends at block `i`.

        The auxiliary networks of block `i` are included, unless it is the last block.
        """
        parameters = sum(block.parameters for block in self.blocks[: i + 1])
        flops = sum(block.flops for block in self.blocks[: i + 1])
        if i + 1 < len(self.blocks):
            parameters += self.blocks[i].head_parameters
            flops += self.blocks[i].head_flops
        return parameters, flops

    def deciding(self, exits: Sequence[int]) -> list[int]:
        """Forward FLOPs (one sample) up to each of these exits, with the heads of all exits on the
        way: the cost of a sample that leaves there because the exits before were not sure.

        Args:
            exits: numbers of blocks that predict, in order.
        """
        heads = [b.head_flops if i in exits else 0 for i, b in enumerate(self.blocks)]
        heads[-1] = 0  # the last block's is the network's own classifier
        flops = [b.flops for b in self.blocks]
        return [sum(flops[: i + 1]) + sum(heads[: i + 1]) for i in exits]

    def json(self) -> str:
        """The costs as text that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Costs:
        """The costs from text that `json` gave.

        Raises:
            ValueError: the text is something else.
        """
        try:
            found = json.loads(text)
            if isinstance(found, list):  # the format from before steps were measured
                found = {"blocks": found}
            found = dict(found)
            blocks = [BlockCost(**block) for block in found.pop("blocks")]
            blocks = tuple(dataclasses.replace(b, shape=tuple(b.shape)) for b in blocks)
            costs = cls(blocks, **found)
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"not the costs of blocks: {error}") from error
        for part in (costs, *blocks):
            for name, value in vars(part).items():
                counts = value if name == "shape" else (value,)
                optional = part is costs and value is None
                if name in ("name", "blocks"):
                    right = isinstance(value, str if name == "name" else tuple)
                else:
                    right = optional or all(type(one) is int and one >= 0 for one in counts)
                if not right:
                    raise ValueError(f"not the costs of blocks: {name} is {str(value)[:40]}")
        return costs

    def table(self) -> Table:
        """The costs as a table for the terminal."""
        title = "blocks (FLOPs: forward pass of one sample)"
        if self.step_flops and self.backprop_flops:
            title += f"; a step: {self.step_flops / self.backprop_flops:.2f} of backprop's FLOPs"
        table = Table(title=title)
        table.add_column("block")
        for column in ("output", "parameters", "MFLOPs", "head parameters", "head MFLOPs"):
            table.add_column(column, justify="right")
        for i, block in enumerate(self.blocks):
            table.add_row(
                f"{i} {block.name}",
                "x".join(map(str, block.shape)),
                f"{block.parameters:,}",
                f"{block.flops / 1e6:,.2f}",
                f"{block.head_parameters:,}" if block.head_parameters else "",
                f"{block.head_flops / 1e6:,.2f}" if block.head_flops else "",
            )
        table.add_section()
        table.add_row(
            "all",
            "",
            f"{self.parameters:,}",
            f"{self.flops / 1e6:,.2f}",
            f"{self.head_parameters:,}",
            f"{self.head_flops / 1e6:,.2f}",
        )
        return table


def _mean(scores: Tensor, labels: Tensor) -> Tensor:
    """A loss of scores of any shape, which has as few FLOPs as the cross-entropy."""
    return scores.mean()


def _block_costs(rule: Rule, x: Tensor, head_flops: Sequence[int]) -> tuple[BlockCost, ...]:
    """The cost of every block.

    Args:
        rule: with its blocks.
        x: one sample.
        head_flops: of every block's auxiliary networks, per sample.
    """
    blocks, costs = rule.blocks, []
    with dry_run(rule), blocks.passes(x) as passes:
        h = x
        for i, (name, block) in enumerate(zip(blocks.names, blocks, strict=True)):
            with counted() as counter:
                h = passes.run(i, h)
            of_block = counter.get_total_flops()
            auxiliary = [p for module in rule.auxiliary(i) for p in module.parameters()]
            costs.append(
                BlockCost(
                    name=name,
                    shape=tuple(h.shape[1:]),
                    parameters=sum(p.numel() for p in block.parameters()),
                    flops=of_block,
                    head_parameters=sum(p.numel() for p in auxiliary),
                    head_flops=head_flops[i],
                )
            )
    return tuple(costs)


@contextlib.contextmanager
def without_gradients(rule: Rule) -> Iterator[None]:
    """Set all gradients to None; at the end, restore them."""
    before = [(p, p.grad) for p in rule.parameters()]
    for p, _ in before:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in before:
            p.grad = grad
