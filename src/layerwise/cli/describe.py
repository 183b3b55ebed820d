"""`layerwise describe MODEL`."""

from __future__ import annotations

import json

import torch
from rich.console import Console
from rich.text import Text

from layerwise.cli.options import cut_options, new_file
from layerwise.cli.parser import Parser, Tokens, tokens_of
from layerwise.costs.description import CAPTION, Description, by_x
from layerwise.costs.example_labels import example_batch
from layerwise.errors import InputError
from layerwise.experiment.build import criterion_and_labels, cut_network
from layerwise.experiment.config import DEFAULTS
from layerwise.experiment.registry import KINDS, make
from layerwise.report.console import output
from layerwise.runs.files import write_new
from layerwise.runs.provenance import provenance


def main(arguments: list[str]) -> None:
    """Describe the blocks of a network: shapes, receptive fields, parameters, FLOPs, memory."""
    parser = Parser(prog="layerwise describe MODEL", description=main.__doc__)
    tokens = with_model(tokens_of(arguments, positional=True), "describe vgg11c")
    tokens = parser.component(tokens, "model", "model", "basic_cnn")
    parser.add_argument(
        "--shape", type=list[int], default=[3, 32, 32], help="shape of an image: C, H, W"
    )
    parser.add_argument("--num_classes", type=int, default=10, help="number of classes")
    cut_options(parser)
    tokens = parser.component(tokens, "rule", "rule", "Backprop")
    tokens = parser.component(tokens, "criterion", "criterion", DEFAULTS["criterion"])
    parser.add_argument(
        "--batch_size", type=int, default=8, help="images over which activation bytes are averaged"
    )
    parser.add_argument("--out", type=str | None, default=None, help="JSON file to write")
    found = parser.read(tokens)
    shape, classes, batch = found["shape"], found["num_classes"], found["batch_size"]
    if len(shape) != 3 or min(*shape, classes) < 1 or batch < 2:
        raise InputError(
            f"--shape {shape} --num_classes {classes} --batch_size {batch}: give C, H and W, and "
            "numbers of at least 1; a batch of at least 2, as training does"
        )
    out = new_file(found["out"])
    network = make("model", found["model"], shape=tuple(shape), num_classes=classes)
    blocks = cut_network(
        network, torch.zeros(2, *shape), found["blocks"], found["at"], found["balance"]
    )
    x, y = example_batch(shape, classes, batch, torch.device("cpu"))
    criterion, y = criterion_and_labels(found["criterion"], network, x, y)
    rule = make("rule", found["rule"], blocks=blocks, criterion=criterion)
    description = Description.of(rule, batch, y)
    if out is not None:
        asked = {key: value for key, value in found.items() if key != "out"}
        result = {**provenance(), "asked": asked, **description.as_dict()}
        write_new(out, (json.dumps(result, indent=1) + "\n").encode(), "--out")
    name = found["model"].get("arch", found["model"]["name"])
    # A file has no width; the default of 80 would fold numbers.
    wide = output if output.is_terminal else Console(highlight=False, emoji=False, width=120)
    wide.print(description.table(f"{name}, {by_x(shape)}, batch {batch}"))
    wide.print(Text(CAPTION, style="dim"))


def with_model(tokens: Tokens, example: str) -> Tokens:
    """Replace `MODEL` by `--model=MODEL`; an error quotes the command `example`."""
    models = [token for token in tokens if not token.startswith("-")]
    options = [token for token in tokens if token.startswith("-")]
    given = models + [token.replace("=", " ") for token in options if token.startswith("--model=")]
    if len(given) != 1 and not {"-h", "--help"} & {*options}:
        got = f"got {' and '.join(given)}" if given else "no model given"
        known = ", ".join(sorted(KINDS["model"]))
        raise InputError(f"{got}; give one, as in `layerwise {example}`; there is: {known}")
    return [*(f"--model={model}" for model in models), *options]
