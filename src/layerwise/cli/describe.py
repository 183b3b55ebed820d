"""`layerwise describe MODEL`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from layerwise.blocks import ReceptiveField, receptive_fields
from layerwise.blocks.cost import saved_by_each, saved_bytes
from layerwise.cli.console import output
from layerwise.cli.options import cut_options
from layerwise.cli.parser import Parser, Tokens, tokens_of
from layerwise.costs.blocks import BlockCost, Costs
from layerwise.errors import InputError
from layerwise.experiment.build import cut_network
from layerwise.experiment.registry import KINDS, make
from layerwise.rules.base import Rule
from layerwise.runs.files import write_new
from layerwise.runs.provenance import provenance


def main(arguments: list[str]) -> None:
    """What the blocks of a network are: shapes, receptive fields, parameters, FLOPs, memory."""
    parser = Parser(prog="layerwise describe MODEL", description=main.__doc__)
    tokens = with_model(tokens_of(arguments, positional=True), "describe vgg11c")
    tokens = parser.component(tokens, "model", "model", "basic_cnn")
    parser.add_argument("--shape", type=list[int], default=[3, 32, 32], help="of an image, C, H, W")
    parser.add_argument("--num_classes", type=int, default=10, help="class scores")
    cut_options(parser)
    tokens = parser.component(tokens, "rule", "rule", "Backprop")
    parser.add_argument(
        "--batch_size", type=int, default=8, help="images of which activation bytes are the mean"
    )
    parser.add_argument("--out", type=str | None, default=None, help="a JSON file to write")
    found = parser.read(tokens)
    shape, classes, batch = found["shape"], found["num_classes"], found["batch_size"]
    if len(shape) != 3 or min(*shape, classes) < 1 or batch < 2:
        raise InputError(
            f"--shape {shape} --num_classes {classes} --batch_size {batch}: give C, H and W, and "
            "numbers of at least 1; a batch of at least 2, as training does"
        )
    network = make("model", found["model"], shape=tuple(shape), num_classes=classes)
    blocks = cut_network(
        network, torch.zeros(2, *shape), found["blocks"], found["at"], found["balance"]
    )
    rule = make("rule", found["rule"], blocks=blocks)
    description = Description.of(rule, batch)
    if found["out"] is not None:
        asked = {key: value for key, value in found.items() if key != "out"}
        result = {**provenance(), "asked": asked, **description.as_dict()}
        write_new(Path(found["out"]), (json.dumps(result, indent=1) + "\n").encode(), "--out")
    name = found["model"].get("arch", found["model"]["name"])
    # What is no terminal has no width; 80 would fold numbers.
    wide = output if output.is_terminal else Console(highlight=False, emoji=False, width=120)
    wide.print(description.table(f"{name}, {_by(shape)}, batch {batch}"))
    wide.print(Text(CAPTION, style="dim"))


def with_model(tokens: Tokens, example: str) -> Tokens:
    """`MODEL` as `--model=MODEL`; `example` is a command to quote where there is none."""
    models = [token for token in tokens if not token.startswith("-")]
    options = [token for token in tokens if token.startswith("-")]
    given = models + [token.replace("=", " ") for token in options if token.startswith("--model=")]
    if len(given) != 1 and not {"-h", "--help"} & {*options}:
        got = f"got {' and '.join(given)}" if given else "no model given"
        known = ", ".join(sorted(KINDS["model"]))
        raise InputError(f"{got}; give one, as in `layerwise {example}`; there is: {known}")
    return [*(f"--model={model}" for model in models), *options]


CAPTION = (
    "field, stride, offset: pixels of the image that a position reads, from one position's to the "
    "next one's, and where the middle of the first one's is (height x width where they differ); "
    "image: all of it, or what does not move with the position. MFLOPs: of one sample's forward "
    "pass. kB: activations kept for a sample's backward pass; all: of end-to-end "
    "backpropagation, where what two blocks keep counts once."
)


@dataclass(frozen=True)
class Description:
    """What the blocks are.

    Attributes:
        costs: shape, parameters and FLOPs of every block and its head.
        fields: receptive fields, None for the whole image.
        activation_bytes: that each block keeps for its backward pass, per sample.
        all_activation_bytes: that the whole network keeps, per sample.
    """

    costs: Costs
    fields: tuple[ReceptiveField | None, ...]
    activation_bytes: tuple[float, ...]
    all_activation_bytes: float

    @classmethod
    def of(cls, rule: Rule, batch_size: int) -> Description:
        """Measure a rule whose blocks were made with an example; activations in a batch, which
        shares BatchNorm's statistics."""
        blocks = rule.blocks
        assert blocks.input_shape is not None, "blocks made by `cut` know their shapes"
        x = torch.zeros(batch_size, *blocks.input_shape)
        return cls(
            Costs.of(rule),
            receptive_fields(blocks),
            tuple(kept / batch_size for kept in saved_by_each(blocks, x)),
            saved_bytes(blocks, x) / batch_size,
        )

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
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
        """For a terminal; the heads' columns where there are heads."""
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
            table.add_row(f"{i} {cost.name}", _by(cost.shape), *seen, *cells(cost, kept))
        table.add_section()
        table.add_row("all", "", "", "", "", *cells(self.costs, self.all_activation_bytes))
        return table


def _by(numbers: Sequence[float]) -> str:
    """(3, 32, 32) as 3x32x32."""
    return "x".join(f"{number:g}" for number in numbers)


def _sides(pair: tuple[float, float]) -> str:
    """(6, 6) as 6, (6, 5) as 6x5."""
    return _by(pair[:1] if pair[0] == pair[1] else pair)
