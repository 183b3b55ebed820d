"""`layerwise bench step` and `layerwise bench data`."""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable
from typing import Any

import torch

from layerwise.cli.options import data_options, new_file, write_picture
from layerwise.cli.parser import Parser, tokens_of
from layerwise.cli.threads import set_threads
from layerwise.costs import compare_steps
from layerwise.costs.example_labels import example_batch
from layerwise.data import Augment, Loader, throughput
from layerwise.errors import InputError, choices
from layerwise.experiment.build import criterion_and_labels, load_data, tuples
from layerwise.experiment.config import DEFAULTS
from layerwise.experiment.registry import make
from layerwise.report.console import output
from layerwise.runs.files import write_new
from layerwise.runs.provenance import provenance
from layerwise.trainer import device_for


def main(arguments: list[str]) -> None:
    """Measure a training step, or the data path."""
    what: dict[str, Callable[[list[str]], None]] = {"step": _step, "data": _data}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: layerwise bench {step,data} [options]\n\n"
            "  step   time, memory and FLOPs of a training step: backpropagation, activation\n"
            "         checkpointing and a rule, interleaved on the same network and batch\n"
            "  data   augmented images per second\n\n"
            "`layerwise bench step --help` explains every option with its default."
        )
        return
    if arguments[0] not in what:
        raise InputError(
            f"bench {arguments[0]}: no such measurement; {choices(arguments[0], what)}"
        )
    what[arguments[0]](arguments[1:])


def _step(arguments: list[str]) -> None:
    """Measure time, memory and FLOPs of a training step, as ratios to backpropagation."""
    tokens = tokens_of(arguments)
    parser = Parser(prog="layerwise bench step", description=_step.__doc__)
    parser.add_argument(
        "--shape",
        type=list[int],
        default=[3, 32, 32],
        help="shape of a sample: C, H, W of an image, or T tokens of a text",
    )
    parser.add_argument("--num_classes", type=int, default=10, help="number of classes")
    parser.add_argument("--batch_size", type=int, default=128, help="samples per batch")
    parser.add_argument(
        "--threads", type=int | None, default=None, help="CPU threads; null: PyTorch's default"
    )
    parser.add_argument("--device", type=str, default="cpu", help="as in `layerwise train`")
    parser.add_argument("--out", type=str | None, default=None, help="JSON file to write")
    parser.add_argument(
        "--picture", type=str | None, default=None, help="PNG file: bytes against time"
    )
    tokens = parser.component(tokens, "model", "model", "vgg8b")
    tokens = parser.component(tokens, "rule", "rule", "DGL")
    tokens = parser.component(tokens, "criterion", "criterion", DEFAULTS["criterion"])
    given: set[int | str] = {"network", "rule", "x", "y", "criterion"}
    parser.add_function_arguments(compare_steps, None, skip=given)
    parser.set_defaults({"keep_freed": True})  # the process ends afterwards
    found = parser.read(tokens)
    shape, classes, batch = found["shape"], found["num_classes"], found["batch_size"]
    if len(shape) not in (1, 3) or min(*shape, classes, batch) < 1:
        raise InputError(
            f"--shape {shape} --num_classes {classes} --batch_size {batch}: give C, H and W, or T, "
            "and numbers of at least 1"
        )
    out, picture = new_file(found["out"]), new_file(found["picture"], "--picture")
    set_threads(found["threads"])
    torch.manual_seed(found["seed"])
    network = make("model", found["model"], shape=tuple(shape), num_classes=classes)
    options = {k: found[k] for k in inspect.signature(compare_steps).parameters if k not in given}
    device = _device(found["device"])
    x, y = example_batch(shape, classes, batch, device)
    criterion, y = criterion_and_labels(found["criterion"], network.to(device), x, y)
    rule = functools.partial(make, "rule", found["rule"], criterion=criterion)
    table = compare_steps(
        network, lambda blocks: rule(blocks=blocks), x, y, criterion=criterion, **options
    )
    output.print(table)
    if picture is not None:
        from layerwise.report.step_picture import draw_steps

        write_picture(picture, functools.partial(draw_steps, table))
    if out is not None:
        write_new(out, (json.dumps(table.as_dict(), indent=1) + "\n").encode(), "--out")


def _data(arguments: list[str]) -> None:
    """Measure augmented images per second, as a training loop gets them."""
    tokens = tokens_of(arguments)
    parser = Parser(prog="layerwise bench data", description=_data.__doc__)
    tokens = data_options(parser, tokens)
    parser.add_class_arguments(Augment, "augment")
    parser.add_argument("--batch_size", type=int, default=128, help="images per batch")
    parser.add_argument(
        "--channels_last", type=bool, default=False, help="memory format of the images"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds to measure")
    parser.add_argument(
        "--threads", type=int | None, default=1, help="CPU threads; null: PyTorch's default"
    )
    parser.add_argument("--device", type=str, default="cpu", help="as in `layerwise train`")
    parser.add_argument("--out", type=str | None, default=None, help="JSON file to write")
    found = parser.read(tokens)
    if not 0 < found["seconds"] < math.inf:
        raise InputError(f"--seconds {found['seconds']}: give a positive, finite number")
    out = new_file(found["out"])
    set_threads(found["threads"])
    splits = load_data(found, seed=0)
    loader = Loader(
        splits.train,
        found["batch_size"],
        augment=Augment(**tuples(found["augment"])),
        train=True,
        device=_device(found["device"]),
        channels_last=found["channels_last"],
    )
    images_per_s = throughput(loader, found["seconds"])
    result: dict[str, Any] = {
        **provenance(),
        "data": splits.name,
        "shape": splits.shape,
        "augment": found["augment"],
        "batch_size": found["batch_size"],
        "channels_last": found["channels_last"],
        "images_per_s": round(images_per_s),
    }
    output.print(
        f"{splits.name} {'x'.join(map(str, splits.shape))}, batches of {found['batch_size']}, "
        f"{torch.get_num_threads()} thread(s): {images_per_s:,.0f} {loader.unit}/s"
    )
    if out is not None:
        write_new(out, (json.dumps(result, indent=1) + "\n").encode(), "--out")


def _device(name: str) -> torch.device:
    return device_for(name)
