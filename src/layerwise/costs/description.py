"""The blocks of a network: shapes, receptive fields, parameters, FLOPs, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from layerwise.blocks import ReceptiveField, receptive_fields
from layerwise.blocks.cost import saved_by_each, saved_bytes
from layerwise.costs.blocks import BlockCost, Costs
from layerwise.rules.base import Rule

CAPTION = (
    "field, stride, offset: pixels of the image that one position of the output depends on, pixels "
    "from one position to the next, and the center of the first one (height x width where they "
    "differ); image: all of it, or no region that moves with the position. MFLOPs: forward pass of "
    "one sample. kB: activations kept for a sample's backward pass; all: for end-to-end "
    "backpropagation, where activations that two blocks keep count once."
)


@dataclass(frozen=True)
class Description:
    """What the blocks of a network are.

    Attributes:
        costs: shape, parameters and FLOPs of every block and its head.
        fields: receptive field of every block; None for the whole image.
        activation_bytes: bytes that each block keeps for its backward pass, per sample.
        all_activation_bytes: bytes that the whole network keeps, per sample.
    """

    costs: Costs
    fields: tuple[ReceptiveField | None, ...]
    activation_bytes: tuple[float, ...]
    all_activation_bytes: float

    @classmethod
    def of(cls, rule: Rule, batch_size: int, labels: Tensor | None = None) -> Description:
        """Measure a rule whose blocks `cut` made.

        Args:
            rule: a rule over the blocks.
            batch_size: samples of the batch in which activations are measured, at least 2: a batch
                shares BatchNorm's statistics.
            labels: as in `Costs.of`.
        """
        blocks = rule.blocks
        assert blocks.input_shape is not None, "blocks made by `cut` know their shapes"
        x = torch.zeros(batch_size, *blocks.input_shape)
        return cls(
            Costs.of(rule, labels=labels),
            receptive_fields(blocks),
            tuple(kept / batch_size for kept in saved_by_each(blocks, x)),
            saved_bytes(blocks, x) / batch_size,
        )

    def as_dict(self) -> dict[str, Any]:
        """As a JSON file holds it."""
        rows = zip(self.costs.blocks, self.fields, self.activation_bytes, strict=True)
        return {
            "blocks": [
                {
                    **asdict(cost),
                    "receptive_field": None if field is None else asdict(field),
                    "activation_bytes": kept,
                }
                for cost, field, kept in rows
            ],
            "all": {
                "parameters": self.costs.parameters,
                "flops": self.costs.flops,
                "head_parameters": self.costs.head_parameters,
                "head_flops": self.costs.head_flops,
                "step_flops": self.costs.step_flops,
                "step_head_flops": self.costs.step_head_flops,
                "backprop_flops": self.costs.backprop_flops,
                "activation_bytes": self.all_activation_bytes,
            },
        }

    def table(self, title: str) -> Table:
        """As a terminal shows it; with columns for heads if there are any."""
        heads = bool(self.costs.head_parameters)
        table = Table(
            title=title,
            title_justify="left",
            box=box.SIMPLE,
            pad_edge=False,
            padding=(0, 0, 0, 0 if heads else 1),  # to fit 80 characters
        )
        table.add_column("block", overflow="fold")
        columns = ["output", "field", "stride", "offset", "params", "MFLOPs", "kB"]
        for column in [*columns, *(["head params", "MFLOPs"] if heads else [])]:
            table.add_column(column, justify="right", overflow="fold")

        def cells(cost: BlockCost | Costs, kept: float) -> list[str]:
            of_block = [f"{cost.parameters:,}", f"{cost.flops / 1e6:,.2f}", f"{kept / 1e3:,.0f}"]
            if not heads:
                return of_block
            head = [f"{cost.head_parameters:,}", f"{cost.head_flops / 1e6:,.2f}"]
            return of_block + (head if cost.head_parameters else ["", ""])

        rows = zip(self.costs.blocks, self.fields, self.activation_bytes, strict=True)
        for i, (cost, field, kept) in enumerate(rows):
            seen = ["image", "", ""]
            if field is not None:
                seen = [_sides(pair) for pair in (field.size, field.stride, field.offset)]
            table.add_row(f"{i} {cost.name}", by_x(cost.shape), *seen, *cells(cost, kept))
        table.add_section()
        table.add_row("all", "", "", "", "", *cells(self.costs, self.all_activation_bytes))
        return table


def by_x(numbers: Sequence[float]) -> str:
    """Write (3, 32, 32) as 3x32x32."""
    return "x".join(f"{number:g}" for number in numbers)


def _sides(pair: tuple[float, float]) -> str:
    """Write (6, 6) as 6, (6, 5) as 6x5."""
    return by_x(pair[:1] if pair[0] == pair[1] else pair)
