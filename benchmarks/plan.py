"""Hold the predictions of `layerwise plan --memory` against `layerwise bench step`.

    python benchmarks/plan.py    writes results/plan.json, from results/step-*.json

Every way of the networks of step.py is predicted as `plan` does, and listed with what step.py
measured.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from step import MEASUREMENTS

from layerwise.cli.parser import Parser, tokens_of
from layerwise.costs import StepTable
from layerwise.costs.example_labels import example_batch
from layerwise.costs.measure import fused_optimizer
from layerwise.costs.memory_plan import Bytes, Seconds
from layerwise.costs.ways import rivals
from layerwise.experiment.registry import make
from layerwise.inputs import first_rows
from layerwise.runs.provenance import provenance

RESULTS = Path(__file__).parent / "results"


def options_of(text: str) -> dict[str, Any]:
    """The options of a `layerwise bench step`."""
    parser = Parser(prog="step", description="")
    tokens = tokens_of(shlex.split(text))
    tokens = parser.component(tokens, "model", "model", "vgg8b")
    tokens = parser.component(tokens, "rule", "rule", "DGL")
    for name, kind, default in (
        ("shape", list[int], [3, 32, 32]),
        ("num_classes", int, 10),
        ("batch_size", int, 128),
        ("blocks", int | str, "all"),
        ("segments", int | None, None),
        ("optimizer", str, "SGD"),
        ("lr", float, 0.01),
        ("title", str, ""),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default)
    return parser.read(tokens)


def main() -> None:
    torch.set_num_threads(2)
    rows = []
    for name, text in MEASUREMENTS.items():
        path = RESULTS / f"step-{name}.json"
        if not path.exists():
            continue
        table = StepTable.load(path)
        measured = {contender.name: contender for contender in table.contenders}
        found = options_of(text)
        shape, classes = found["shape"], found["num_classes"]
        network = make("model", found["model"], shape=tuple(shape), num_classes=classes)
        x, y = example_batch(shape, classes, 16, torch.device("cpu"))

        optimizer = partial(fused_optimizer, found["optimizer"])
        size, whole_s = found["batch_size"], 0.0
        for way in rivals((4, 16), size):
            if way.turns > 1 or way.budget is not None:
                continue  # `plan` does not offer these
            contender = way.contender(
                network,
                lambda blocks, found=found: make("rule", found["rule"], blocks=blocks),
                first_rows(x, 2),
                y[:2],
                blocks=found["blocks"],
                segments=found["segments"] or found["blocks"],
                balance="memory",
                seed=0,
            )
            if contender.name not in measured:
                continue
            seconds = Seconds.of(replace(contender, micro=1), x, y, optimizer, size)
            took = seconds(way.micro, size / way.micro)
            whole_s = whole_s or took
            real = measured[contender.name]
            rows.append(
                {
                    "network": table.title,
                    "way": contender.name,
                    "predicted_bytes": Bytes(contender, x, y, optimizer, size)(way.micro),
                    "measured_bytes": real.peak.bytes,
                    "predicted_time": took / whole_s,
                    "measured_time": table.ratios(real)["time"]["median"],
                }
            )
            print(rows[-1], flush=True)
    result = {"benchmark": "plan", **provenance(), "rows": rows}
    (RESULTS / "plan.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
