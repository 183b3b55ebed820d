"""What each block and its head cost: parameters and FLOPs of a forward pass."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import torch
from rich.table import Table

from layerwise.blocks.chain import dry_run
from layerwise.blocks.cost import flops
from layerwise.objectives import Objective
from layerwise.rule import Rule


@dataclass(frozen=True)
class BlockCost:
    """One block's cost; FLOPs are of one sample's forward pass, a multiply-add counted as two.

    Attributes:
        name: of the block.
        shape: of its output, without the batch dimension.
        parameters: of the block.
        flops: of the block.
        head_parameters: of the block's auxiliary network.
        head_flops: of the same.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    flops: int
    head_parameters: int
    head_flops: int


@dataclass(frozen=True)
class Costs:
    """The cost of every block."""

    blocks: tuple[BlockCost, ...]

    @classmethod
    def of(cls, rule: Rule) -> Costs:
        """Measure a rule whose blocks were made with an example."""
        assert rule.blocks.input_shape is not None, "blocks made by `cut` know their shapes"
        weight = next(rule.parameters(), torch.zeros(()))
        h = torch.zeros(1, *rule.blocks.input_shape, device=weight.device, dtype=weight.dtype)
        costs = []
        with dry_run(rule):
            for i, (name, block) in enumerate(zip(rule.blocks.names, rule.blocks, strict=True)):
                of_block = flops(block, h)
                h = block(h)
                head = getattr(rule.objectives, str(i), None)
                costs.append(
                    BlockCost(
                        name=name,
                        shape=tuple(h.shape[1:]),
                        parameters=sum(p.numel() for p in block.parameters()),
                        flops=of_block,
                        head_parameters=sum(p.numel() for p in head.parameters()) if head else 0,
                        head_flops=flops(_Predict(head), h) if head else 0,
                    )
                )
        return cls(tuple(costs))

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

    def json(self) -> str:
        """As text that `from_json` reads."""
        return json.dumps([dataclasses.asdict(block) for block in self.blocks], indent=1)

    @classmethod
    def from_json(cls, text: str) -> Costs:
        return cls(tuple(BlockCost(**block) for block in json.loads(text)))

    def table(self) -> Table:
        """For a terminal."""
        table = Table(title="blocks (FLOPs: forward pass of one sample)")
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


class _Predict(torch.nn.Module):
    """An objective's predictions as a module, so that their FLOPs can be counted."""

    def __init__(self, objective: Objective):
        super().__init__()
        self.objective = objective

    def forward(self, h: torch.Tensor) -> torch.Tensor | None:
        return self.objective.predict(h)
