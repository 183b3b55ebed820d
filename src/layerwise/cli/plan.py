"""`layerwise plan MODEL --stages N` and `layerwise plan MODEL --memory 2GiB`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import nn

from layerwise.cli.describe import with_model
from layerwise.cli.options import cut_options, new_file
from layerwise.cli.parser import Parser, tokens_of
from layerwise.cli.threads import set_threads
from layerwise.costs.example_labels import example_batch
from layerwise.costs.memory_plan import BLOCKS
from layerwise.costs.memory_plan import plan as fit_memory
from layerwise.costs.stages import Plan, bubbles
from layerwise.errors import InputError
from layerwise.experiment.build import cut_network
from layerwise.experiment.registry import make
from layerwise.report.console import output
from layerwise.runs.files import write_new
from layerwise.runs.provenance import provenance
from layerwise.runtime import check_rule
from layerwise.trainer import device_for

SAMPLES = 16  # of the steps that tell what fits
BATCHES = 1000  # batches of a simulated training


def main(arguments: list[str]) -> None:
    """Divide a network into stages, one per process, and estimate the speed; or, with --memory, find
    the ways to train it within a memory."""
    parser = Parser(prog="layerwise plan MODEL", description=main.__doc__)
    tokens = with_model(tokens_of(arguments, positional=True), "plan vgg11c --stages 2")
    tokens = parser.component(tokens, "model", "model", "basic_cnn")
    parser.add_argument("--stages", type=int, default=2, help="number of stages, one process each")
    parser.add_argument(
        "--memory",
        type=str | None,
        default=None,
        help="bytes for parameters, batch and step, as in 2GiB: list the ways to train that fit",
    )
    parser.add_argument(
        "--shape",
        type=list[int],
        default=[3, 32, 32],
        help="shape of a sample: C, H, W of an image, or T tokens of a text",
    )
    parser.add_argument("--num_classes", type=int, default=10, help="number of classes")
    cut_options(parser)
    tokens = parser.component(tokens, "rule", "rule", "DGL")
    parser.add_argument("--batch_size", type=int, default=128, help="images per batch")
    parser.add_argument(
        "--microbatches",
        type=int,
        default=8,
        help="microbatches of pipelined backpropagation, for comparison",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="measurements, of which the median is taken"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--device", type=str, default="cpu", help="as in `layerwise train`")
    parser.add_argument("--out", type=str | None, default=None, help="JSON file to write")
    found = parser.read(tokens)
    for name in ("stages", "num_classes", "microbatches", "rounds"):
        if found[name] < 1:
            raise InputError(f"--{name} {found[name]}: give at least 1")
    shape, batch = found["shape"], found["batch_size"]
    if len(shape) not in (1, 3) or min(shape) < 1 or batch < 2:
        raise InputError(f"--shape {shape} --batch_size {batch}: give C, H and W, and 2 images")
    set_threads(found["threads"])
    device = device_for(found["device"])
    out = new_file(found["out"])
    network = make("model", found["model"], shape=tuple(shape), num_classes=found["num_classes"])
    if found["memory"] is not None:
        _fit(network, found, device, out)
        return
    blocks = cut_network(
        network,
        example_batch(shape, found["num_classes"], 2, torch.device("cpu"))[0],
        found["blocks"],
        found["at"],
        found["balance"],
    )
    rule = make("rule", found["rule"], blocks=blocks).to(device)
    check_rule(rule, found["stages"])
    x, y = example_batch(shape, found["num_classes"], batch, device)
    x = torch.cat([x] * max(1, rule.needs_views))
    plan = Plan.of(rule, x, y, found["stages"], found["rounds"])
    if out is not None:
        result = {
            **provenance(),
            "asked": {key: value for key, value in found.items() if key != "out"},
            "stages": [{**asdict(s), "blocks": list(s.blocks)} for s in plan.stages],
            "images_per_s": plan.images_per_s,
            "speedup": plan.speedup,
            "bubbles": bubbles(found["stages"], found["microbatches"]),
        }
        write_new(out, (json.dumps(result, indent=1) + "\n").encode(), "--out")
    output.print(_table(plan, rule.blocks.names, found))
    for line in _expected(plan, found["microbatches"]):
        output.print(line, soft_wrap=True)


def _fit(network: nn.Module, found: dict[str, Any], device: torch.device, out: Path | None) -> None:
    """The ways to train the network within `--memory`."""
    numbers = [found["blocks"]] if isinstance(found["blocks"], int) else BLOCKS
    shape, classes, batch = found["shape"], found["num_classes"], found["batch_size"]
    x, y = example_batch(shape, classes, SAMPLES, device)
    plan = fit_memory(
        network.to(device),
        x,
        y,
        memory=found["memory"],
        batch_size=batch,
        rule=lambda blocks: make("rule", found["rule"], blocks=blocks),
        blocks=numbers,
    )
    if out is not None:
        asked = {key: value for key, value in found.items() if key != "out"}
        result = {**provenance(), "asked": asked, **plan.as_dict()}
        write_new(out, (json.dumps(result, indent=1) + "\n").encode(), "--out")
    output.print(plan)


def _table(plan: Plan, names: tuple[str, ...], found: dict[str, Any]) -> Table:
    title = f"{found['model']['name']}, {found['rule']['name']}, batches of {plan.batch_size}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("stage")
    table.add_column("blocks", overflow="fold")
    for column in ("ms", "busy, %", "parameters", "activations, MB", "sends, MB"):
        table.add_column(column, justify="right")
    slowest = max(stage.seconds for stage in plan.stages)
    for r, stage in enumerate(plan.stages):
        table.add_row(
            str(r),
            " ".join(names[i] for i in stage.blocks),
            f"{1e3 * stage.seconds:,.1f}",
            f"{100 * stage.seconds / slowest:.0f}",
            f"{stage.parameters:,}",
            f"{stage.activation_bytes / 1e6:,.1f}",
            f"{stage.sends_bytes / 1e6:,.2f}" if stage.sends_bytes else "",
        )
    return table


def _expected(plan: Plan, microbatches: int) -> list[str]:
    count = len(plan.stages)
    simulated = BATCHES * plan.batch_size / plan.seconds_for(BATCHES)
    still = ", ".join(f"{k} {100 * v:.1f} %" for k, v in bubbles(count, microbatches).items())
    return [
        f"one process: {plan.batch_size / plan.serial_seconds:,.0f} images/s; {count} stages: "
        f"{plan.images_per_s:,.0f} ({plan.speedup:.2f} times), simulated over {BATCHES} batches: "
        f"{simulated:,.0f}",
        f"backpropagation in {count} equal stages and {microbatches} microbatches is idle "
        f"for {still} of the time",
    ]
