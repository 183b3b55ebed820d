"""`layerwise evaluate`."""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
import torch
from rich.table import Table

from layerwise.analysis.exits import evaluate, sample_losses
from layerwise.cli.console import output
from layerwise.cli.parser import Parser, tokens_of
from layerwise.costs.blocks import Costs
from layerwise.errors import InputError
from layerwise.experiment.build import build
from layerwise.runs.metrics import perplexity
from layerwise.runs.run import Run
from layerwise.trainer import fabric_for, load_evaluated


def main(arguments: list[str]) -> None:
    """Measure a run on data it was not trained on: every exit's loss, accuracy and calibration."""
    parser = Parser(prog="layerwise evaluate", description=main.__doc__)
    parser.add_argument("run", type=str, help="a run folder")
    parser.add_argument(
        "--checkpoint",
        type=str,
        default="last",
        help="last, or best (the best epoch on the validation split)",
    )
    parser.add_argument("--split", type=str, default="test", help="test, validation or train")
    parser.add_argument(
        "--losses",
        type=bool,
        default=False,
        help="also write the loss on every sample, by which a curriculum may order them",
    )
    parser.add_argument("--device", type=str, default="auto", help="as in `layerwise train`")
    found = parser.read(tokens_of(arguments, positional=True))
    run = Run.open(found["run"])
    state = run.checkpoint(found["checkpoint"])
    with run.readable():
        experiment = build(run.config)
    fabric = fabric_for(found["device"], experiment.settings.precision)
    load_evaluated(experiment.rule, state)
    loader = experiment.loaders(fabric.device, evaluation=True).get(found["split"])
    if loader is None:
        raise InputError(
            f"--split {found['split']}: {experiment.splits.name} has no such split here; give "
            "test, train, or validation where the run has one"
        )
    classes = experiment.splits.num_classes
    exits, ensembles, confusion = evaluate(experiment.rule, loader, classes, fabric)
    if (run.path / "cost.json").exists():
        costs = Costs.from_json((run.path / "cost.json").read_text())
        for i, exit in enumerate(exits):
            if exit is not None:
                exit["parameters"], exit["flops"] = costs.up_to(i)
    result: dict[str, Any] = {
        "checkpoint": found["checkpoint"],
        "epoch": state["epoch"],
        "split": found["split"],
        "data": experiment.splits.name,
        loader.unit: loader.size,
        "exits": exits,
        "ensembles": ensembles,
    }
    if (rate := experiment.splits.entropy_rate) is not None:
        result["entropy_rate"] = rate
    name = f"evaluation-{found['split']}-{found['checkpoint']}.json"
    run.write(name, _json(result, confusion).encode())
    output.print(_table(result, experiment.rule.blocks.names))
    if sum(exit is not None and "flops" in exit for exit in exits) > 1:
        output.print(_costs(result, experiment.rule.blocks.names))
    output.print(f"{run.path / name}", soft_wrap=True)
    if found["losses"]:
        losses = {"losses": sample_losses(experiment.rule, loader, fabric)}
        if not loader.tokens:
            losses["labels"] = torch.cat(list(loader.labels(0))).cpu()
        name = f"losses-{found['split']}-{found['checkpoint']}.safetensors"
        run.write(name, safetensors.torch.save(losses))
        output.print(f"{run.path / name}", soft_wrap=True)


def _json(result: dict[str, Any], confusion: list[list[int]] | None) -> str:
    """The result with each row of `confusion` on one line."""
    if confusion is None:
        return json.dumps(result, indent=2)
    rows = ",\n    ".join(map(json.dumps, confusion))
    return json.dumps(result, indent=2)[:-2] + f',\n  "confusion": [\n    {rows}\n  ]\n}}'


def _table(result: dict[str, Any], names: tuple[str, ...]) -> Table:
    size = next(f"{result[unit]} {unit}" for unit in ("images", "windows") if unit in result)
    title = f"{result['data']}, {result['split']}, {size}, epoch {result['epoch']}"
    if "entropy_rate" in result:
        rate = result["entropy_rate"]
        title += f"; the source has {rate:.4f} nats a token, perplexity {perplexity(rate):.3f}"
    table = Table(title=title)
    columns = ["block", "loss, nats", "accuracy, %", "top 5, %", "calibration error, %"]
    columns += ["perplexity"] if "windows" in result else []
    for column in columns:
        table.add_column(column, justify="left" if column == "block" else "right")
    rows = [(f"{i} {names[i]}", exit) for i, exit in enumerate(result["exits"])]
    for name, exit in [*rows, *result["ensembles"].items()]:
        if exit is not None:
            table.add_row(
                name,
                f"{exit['loss']:.4f}",
                f"{100 * exit['accuracy']:.2f}",
                "" if exit["top5"] is None else f"{100 * exit['top5']:.2f}",
                f"{100 * exit['calibration_error']:.2f}",
                *([f"{exit['perplexity']:.3f}"] if "windows" in result else []),
            )
    return table


def _costs(result: dict[str, Any], names: tuple[str, ...]) -> Table:
    table = Table(title="the network up to each exit, with its head")
    for column in ("block", "parameters", "MFLOPs"):
        table.add_column(column, justify="left" if column == "block" else "right")
    for i, exit in enumerate(result["exits"]):
        if exit is not None:
            flops = f"{exit['flops'] / 1e6:,.2f}"
            table.add_row(f"{i} {names[i]}", f"{exit['parameters']:,}", flops)
    return table
