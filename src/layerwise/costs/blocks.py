"""What each block and its head cost: parameters and FLOPs."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.table import Table

from layerwise.blocks.chain import dry_run
from layerwise.blocks.cost import counted
from layerwise.blocks.unchanged import unchanged
from layerwise.costs.flops import count_flops
from layerwise.inputs import first_rows
from layerwise.rules import Backprop
from layerwise.rules.base import Rule, alone

SAMPLES = 2  # of the step that is measured: BatchNorm wants more than one


@dataclass(frozen=True)
class BlockCost:
    """One block's cost; FLOPs are of one sample's forward pass, a multiply-add counted as two.

    Attributes:
        name: of the block.
        shape: of its output, without the batch dimension.
        parameters: of the block.
        flops: of the block.
        head_parameters: of the block's auxiliary networks.
        head_flops: of the same, in training.
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
        blocks: in order.
        step_flops: of one sample's share of a training step, forward and backward, heads and all,
            the mean over the rule's phases; None where it was not measured.
        step_head_flops: of these, in objectives and auxiliary networks.
        backprop_flops: of one sample's share of a step of backpropagation.
    """

    blocks: tuple[BlockCost, ...]
    step_flops: int | None = None
    step_head_flops: int | None = None
    backprop_flops: int | None = None

    @classmethod
    def of(cls, rule: Rule, views: int | None = None) -> Costs:
        """Measure a rule whose blocks were made with an example; it is left unchanged.

        A sample's share is that of all its augmented `views`; by default as many as the rule needs.
        """
        blocks = rule.blocks
        assert blocks.input_shape is not None, "blocks made by `cut` know their shapes"
        assert blocks.shapes is not None
        weight = next(rule.parameters(), torch.zeros(()))
        rows = SAMPLES * (views or max(1, rule.needs_views))
        x, one = blocks.zeros(rows, weight), blocks.zeros(1, weight)
        y = torch.zeros(SAMPLES, *blocks.shapes[-1][:-1], device=weight.device, dtype=torch.long)
        phases = len(rule.phases(len(blocks)))
        trained = rule if phases == 1 else copy.deepcopy(rule)  # the rule stays in its phase
        end_to_end = Backprop(blocks)
        measured = alone(rule, trained, end_to_end)
        with measured, without_gradients(rule), unchanged(rule), torch.enable_grad():
            steps = []
            for phase in range(phases):
                if trained is not rule:
                    trained.begin(phase)
                trained.train()
                steps.append(count_flops(lambda: trained.backward(x, y), trained))
            rule.train()
            backprop = count_flops(lambda: end_to_end.backward(first_rows(x, SAMPLES), y))
        costs = []
        with dry_run(rule), blocks.passes(one) as passes:
            h = one
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
                        head_flops=max(step.head_forwards[i] for step in steps) // SAMPLES,
                    )
                )
        return cls(
            tuple(costs),
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
        """Of the network that ends with block `i` and its auxiliary networks: its parameters, and
        FLOPs of one sample's forward pass."""
        before, here = (
            self.blocks[: i + 1],
            self.blocks[i : i + 1] if i + 1 < len(self.blocks) else (),
        )
        parameters = sum(b.parameters for b in before) + sum(b.head_parameters for b in here)
        return parameters, sum(b.flops for b in before) + sum(b.head_flops for b in here)

    def json(self) -> str:
        """As text that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Costs:
        found = json.loads(text)
        if isinstance(found, list):  # as it was written before steps were measured
            found = {"blocks": found}
        blocks = [BlockCost(**block) for block in found.pop("blocks")]
        blocks = tuple(dataclasses.replace(b, shape=tuple(b.shape)) for b in blocks)
        return cls(blocks, **found)

    def table(self) -> Table:
        """For a terminal."""
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


@contextlib.contextmanager
def without_gradients(rule: Rule) -> Iterator[None]:
    """Put gradients back as they were."""
    before = [(p, p.grad) for p in rule.parameters()]
    for p, _ in before:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in before:
            p.grad = grad
