"""`layerwise evaluate`."""

from __future__ import annotations

import math
from typing import Any, Literal

from rich.table import Table

from layerwise.cli.interrupts import interrupts_end_at_once
from layerwise.cli.parser import Parser, tokens_of
from layerwise.errors import InputError
from layerwise.report.console import console, output
from layerwise.runs.metrics import perplexity
from layerwise.runs.run import Run


def main(arguments: list[str]) -> None:
    """Measure a run on data that it was not trained on: loss, accuracy and calibration of every
    exit."""
    parser = Parser(prog="layerwise evaluate", description=main.__doc__)
    parser.add_argument("run", type=str, help="a run folder")
    parser.add_argument(
        "--checkpoint",
        type=str,
        default="last",
        help="last, best (the best epoch on the validation split), or a file in the run's folder",
    )
    parser.add_argument("--split", type=str, default="test", help="test, validation or train")
    parser.add_argument(
        "--losses",
        type=bool,
        default=False,
        help="also write the loss on every sample, which can order a curriculum",
    )
    parser.add_argument(
        "--exits",
        type=bool,
        default=False,
        help="also measure a network in which every sample leaves at the first exit that is sure: "
        "accuracy and FLOPs for several thresholds, a picture, and where the exits disagree",
    )
    parser.add_argument(
        "--threshold",
        type=float | None,
        default=None,
        help="with --exits: the probability at which a sample leaves; null: several",
    )
    parser.add_argument(
        "--test_time",
        type=Literal["none", "mirror", "shift"],
        default="none",
        help="average the class scores over views of each image: mirror, it and its mirror image; "
        "shift, also moved by a pixel",
    )
    parser.add_argument("--device", type=str, default="auto", help="as in `layerwise train`")
    found = parser.read(tokens_of(arguments, positional=True))
    if found["threshold"] is not None and not found["exits"]:
        raise InputError(f"--threshold {found['threshold']:g}: also give --exits true")
    if found["threshold"] is not None and not 0 <= found["threshold"] < math.inf:
        raise InputError(
            f"--threshold {found['threshold']:g}: give a probability, such as 0.95; with 0 all "
            "samples leave at the first exit, with more than 1 at the last"
        )
    if found["test_time"] != "none" and (found["losses"] or found["exits"]):
        raise InputError(
            f"--test_time {found['test_time']} contradicts --losses and --exits, which look at "
            "each image once; leave one out"
        )
    run = Run.open(found["run"])
    with interrupts_end_at_once():  # seconds, which neither help nor an error waits for
        from layerwise.experiment.evaluation import Evaluation
    evaluation = Evaluation.of(
        run,
        checkpoint=found["checkpoint"],
        split=found["split"],
        test_time=found["test_time"],
        device=found["device"],
    )
    result, names = evaluation.result, evaluation.names
    output.print(_table(result, names))
    if sum(exit is not None and "flops" in exit for exit in result["exits"]) > 1:
        output.print(_costs(result, names))
    deciding = None
    if found["exits"]:
        with interrupts_end_at_once():
            from layerwise.cli.exit_tables import print_exits
            from layerwise.experiment.early_exits import EarlyExits
        deciding = EarlyExits.of(evaluation, found["threshold"])
        print_exits(deciding)
    try:
        output.print(f"{evaluation.write()}", soft_wrap=True)
    except InputError as error:
        if found["losses"] or found["exits"]:
            raise  # a file was asked for
        # Otherwise the table is the result, also of a run that may only be read.
        said = f"layerwise evaluate: the table was not saved: {error}"
        console.print(said, soft_wrap=True, markup=False)
    if found["losses"]:
        output.print(f"{evaluation.write_losses()}", soft_wrap=True)
    if deciding is not None:
        for path in deciding.write():
            output.print(f"{path}", soft_wrap=True)


def _table(result: dict[str, Any], names: tuple[str, ...]) -> Table:
    size = next(f"{result[unit]} {unit}" for unit in ("images", "windows") if unit in result)
    title = f"{result['data']}, {result['split']}, {size}, epoch {result['epoch']}"
    if "test_time" in result:
        title += f", mean over views: {result['test_time']}"
    if "entropy_rate" in result:
        rate = result["entropy_rate"]
        title += f"; the source has {rate:.4f} nats a token, perplexity {perplexity(rate):.3f}"
    table = Table(title=title)
    columns = [
        "block",
        f"loss, {result.get('criterion', 'nats')}",
        "accuracy, %",
        "top 5, %",
        "calibration error, %",
    ]
    columns += ["perplexity"] if "windows" in result else []
    for column in columns:
        table.add_column(column, justify="left" if column == "block" else "right")

    def percent(share: float | None) -> str:
        return "" if share is None else f"{100 * share:.2f}"

    rows = [(f"{i} {names[i]}", exit) for i, exit in enumerate(result["exits"])]
    for name, exit in [*rows, *result["ensembles"].items()]:
        if exit is not None:
            table.add_row(
                name,
                f"{exit['loss']:.4f}",
                *(percent(exit[key]) for key in ("accuracy", "top5", "calibration_error")),
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
