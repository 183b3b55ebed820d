"""`layerwise plan MODEL --stages N` and `layerwise plan MODEL --memory 2GiB`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from layerwise.cli.describe import with_model
from layerwise.cli.options import cut_options, new_file, write_picture
from layerwise.cli.parser import Parser, tokens_of
from layerwise.cli.threads import set_threads
from layerwise.costs.example_labels import example_batch
from layerwise.costs.measure import fused_optimizer
from layerwise.costs.memory_plan import BLOCKS
from layerwise.costs.memory_plan import plan as fit_memory
from layerwise.costs.pipelines import DELAYED, SCHEDULES, Pipelined, pipelined, seconds_to_send
from layerwise.costs.stages import Plan, block_seconds
from layerwise.errors import InputError
from layerwise.experiment.build import criterion_and_labels, cut_network
from layerwise.experiment.config import DEFAULTS
from layerwise.experiment.registry import make
from layerwise.report.console import output
from layerwise.rules import Backprop
from layerwise.rules.base import Rule
from layerwise.runs.files import write_new
from layerwise.runs.provenance import provenance
from layerwise.runtime import check_rule
from layerwise.trainer import device_for

SAMPLES = 16  # of the steps that tell what fits
BATCHES = 1000  # batches of a simulated training
OF_STAGES = ("stages", "at", "balance", "microbatches", "link", "picture", "rounds")


def main(arguments: list[str]) -> None:
    """Divide a network into stages, one per process, and estimate the speed; or, with --memory,
    find the ways to train it within a memory."""
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
        "--optimizer",
        type=Literal["SGD", "AdamW"],
        default="SGD",
        help="with --memory: whose state is counted; SGD has momentum",
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
    tokens = parser.component(tokens, "criterion", "criterion", DEFAULTS["criterion"])
    parser.add_argument("--batch_size", type=int, default=128, help="images per batch")
    parser.add_argument(
        "--microbatches",
        type=int | None,
        default=None,
        help="micro-batches of pipelined backpropagation, for comparison; null: twice the number "
        "of stages, at least 8 and at most one for each sample",
    )
    parser.add_argument(
        "--link",
        type=float | None,
        default=None,
        help="rate of the link between stages, Gb/s; null: infinite",
    )
    parser.add_argument(
        "--picture",
        type=str | None,
        default=None,
        help="PNG file: speed for 2, 4, 8, ... stages up to --stages",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="measurements, of which the median is taken"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--device", type=str, default="cpu", help="as in `layerwise train`")
    parser.add_argument("--out", type=str | None, default=None, help="JSON file to write")
    found = parser.read(tokens)
    given = {token[2:].partition("=")[0] for token in tokens}
    if found["memory"] is not None:
        for name in (name for name in OF_STAGES if name in given):
            raise InputError(
                f"--memory {found['memory']} contradicts --{name}, which is of stages; leave one "
                "out"
            )
    elif "optimizer" in given:
        raise InputError(
            f"--optimizer {found['optimizer']}: only for plans within a memory; give --memory too"
        )
    if found["microbatches"] is None:
        found["microbatches"] = _microbatches(found["stages"], found["batch_size"])
    for name in ("stages", "num_classes", "microbatches", "rounds"):
        if found[name] < 1:
            raise InputError(f"--{name} {found[name]}: give at least 1")
    if found["link"] is not None and not 0 < found["link"] < math.inf:
        raise InputError(
            f"--link {found['link']}: give a rate above 0, in Gb/s, or null for an infinite one"
        )
    shape, batch = found["shape"], found["batch_size"]
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise InputError(f"--shape {shape}: give C, H and W of an image, or T tokens of a text")
    least = 1 if found["memory"] is not None else 2
    if batch < least:
        raise InputError(f"--batch_size {batch}: give at least {least}")
    if found["microbatches"] > batch and found["memory"] is None:
        raise InputError(
            f"--microbatches {found['microbatches']}: a batch has {batch} samples; give at most as "
            "many, or a larger --batch_size"
        )
    set_threads(found["threads"])
    device = device_for(found["device"])
    out, picture = new_file(found["out"]), new_file(found["picture"], "--picture")
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
    x, y = example_batch(shape, found["num_classes"], batch, device)
    criterion, y = criterion_and_labels(found["criterion"], network, x.cpu(), y)
    rule = make("rule", found["rule"], blocks=blocks, criterion=criterion).to(device)
    check_rule(rule, found["stages"])
    x = torch.cat([x] * max(1, rule.needs_views))
    seconds = block_seconds(rule, x, y, found["rounds"])
    plan = Plan.of(rule, x, y, found["stages"], seconds=seconds)
    backprop = Backprop(rule.blocks, criterion=criterion)
    of_backprop = block_seconds(backprop, x[:batch], y, found["rounds"])
    powers = [2**i for i in range(1, found["stages"].bit_length())]
    counts = sorted({*(powers if picture else ()), found["stages"]} - {1})
    speeds = {n: _speeds(rule, seconds, of_backprop, x, y, n, found) for n in counts}
    output.print(_table(plan, rule.blocks.names, found))
    output.print(_expected(plan), soft_wrap=True)
    if found["stages"] > 1:
        output.print(_compared(speeds[found["stages"]], of_backprop, found))
        if halved := [name for name, pipe in speeds[found["stages"]].items() if pipe.halved]:
            output.print(
                f"{', '.join(halved)}: two stages in each process need {2 * found['stages']} "
                f"blocks, and there are {len(rule.blocks)}; simulated are halves of blocks, which "
                "no cut of this network gives, so these times are lower bounds",
                soft_wrap=True,
            )
    if out is not None:
        result = {
            **provenance(),
            "asked": {key: value for key, value in found.items() if key != "out"},
            "stages": [{**asdict(s), "blocks": list(s.blocks)} for s in plan.stages],
            "images_per_s": plan.images_per_s,
            "speedup": plan.speedup,
            "block_seconds": seconds,
            "backprop_block_seconds": of_backprop,
            "pipelines": {n: {k: asdict(v) for k, v in of.items()} for n, of in speeds.items()},
        }
        write_new(out, (json.dumps(result, indent=1) + "\n").encode(), "--out")
    if picture is not None:
        title = f"{found['model']['name']}, batches of {batch}{_link(found)}"
        from layerwise.report.stage_picture import draw_speeds

        times = {n: _over(of, of_backprop) for n, of in speeds.items()}
        write_picture(picture, partial(draw_speeds, times, title))


def _speeds(
    rule: Rule,
    seconds: list[float],
    of_backprop: list[float],
    x: Tensor,
    y: Tensor,
    stages: int,
    found: dict[str, Any],
) -> dict[str, Pipelined]:
    """The simulated speed of the rule and of backpropagation's schedules in a number of stages."""
    plan = Plan.of(rule, x, y, stages, seconds=seconds)
    link = math.inf if found["link"] is None else found["link"]
    rate = link * 1e9 / 8
    per_batch = (
        plan.seconds_for(BATCHES, bytes_per_s=rate)
        - plan.seconds_for(BATCHES // 2, bytes_per_s=rate)
    ) / (BATCHES - BATCHES // 2)
    speeds = {
        type(rule).__name__: Pipelined(per_batch, 1 - plan.serial_seconds / stages / per_batch)
    }
    assert rule.blocks.shapes is not None
    size = len(y) * (x.element_size() if x.is_floating_point() else 4)
    sends = [seconds_to_send(size * math.prod(shape), link) for shape in rule.blocks.shapes]
    micro = found["microbatches"]
    if stages != found["stages"]:
        micro = _microbatches(stages, len(y))
    for name in (DELAYED, *SCHEDULES):
        try:
            speeds[name] = pipelined(name, of_backprop, sends, stages, micro)
        except ValueError:  # needs other numbers of stages and micro-batches
            continue
    return speeds


def _microbatches(stages: int, batch: int) -> int:
    """As many micro-batches as keep a pipeline's stages busy, and as the batch has samples."""
    return max(1, min(batch, max(8, 2 * stages)))


def _over(speeds: dict[str, Pipelined], of_backprop: list[float]) -> dict[str, float]:
    """How many times as fast as backpropagation in one process."""
    return {name: sum(of_backprop) / found.seconds for name, found in speeds.items()}


def _link(found: dict[str, Any]) -> str:
    return "" if found["link"] is None else f", a link of {found['link']:g} Gb/s"


def _compared(
    speeds: dict[str, Pipelined], of_backprop: list[float], found: dict[str, Any]
) -> Table:
    title = f"{found['stages']} stages, simulated: {found['microbatches']} micro-batches"
    title += _link(found)
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("")
    for column in ("samples/s", "x backprop in one process", "idle, %"):
        table.add_column(column, justify="right")
    for name, times in _over(speeds, of_backprop).items():
        pipe = speeds[name]
        rate = found["batch_size"] / pipe.seconds
        table.add_row(name, f"{rate:,.0f}", f"{times:.2f}", f"{100 * pipe.idle:.1f}")
    return table


def _fit(network: nn.Module, found: dict[str, Any], device: torch.device, out: Path | None) -> None:
    """The ways to train the network within `--memory`."""
    numbers = BLOCKS if found["blocks"] is None else [found["blocks"]]
    shape, classes, batch = found["shape"], found["num_classes"], found["batch_size"]
    x, y = example_batch(shape, classes, SAMPLES, device)
    criterion, y = criterion_and_labels(found["criterion"], network.to(device), x, y)
    plan = fit_memory(
        network,
        x,
        y,
        memory=found["memory"],
        batch_size=batch,
        rule=lambda blocks: make("rule", found["rule"], blocks=blocks, criterion=criterion),
        blocks=numbers,
        optimizer=partial(fused_optimizer, found["optimizer"]),
        criterion=criterion,
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


def _expected(plan: Plan) -> str:
    count = len(plan.stages)
    simulated = BATCHES * plan.batch_size / plan.seconds_for(BATCHES)
    return (
        f"one process: {plan.batch_size / plan.serial_seconds:,.0f} images/s; {count} stages: "
        f"{plan.images_per_s:,.0f} ({plan.speedup:.2f} times), simulated over {BATCHES} batches: "
        f"{simulated:,.0f}"
    )
