"""Sections of docs/results.md: accuracies of single experiments, one section for each file."""

from __future__ import annotations

import json
from typing import Any

from layerwise.costs.blocks import Costs
from layerwise.report.comparison import Summary, over_seeds
from layerwise.report.comparison import markdown as accuracy_table
from pages.figures import inserted
from pages.files import RESULTS, commands, machines, result
from pages.spread import mean

TITLES = {
    "airbench": "CIFAR-10 in eight epochs",
    "basic_cnn": "BasicCNN",
    "original-1": "the original study, first experiments",
    "original-1-lr-0.0003": "the original study, first experiments at ten times the learning rate",
    "original-2": "the original study, second experiments",
    "original-3": "the original study, third experiments",
    "original-3-small": "the original study, third experiments on a small network",
    "recompressed": "images compressed once more",
    "shifted": "crops and decoders under the shifted task",
    "vgg8b": "VGG8b",
}
# What a section begins with.
ABOUT = {
    "airbench": """\
The recipes `cifar10-airbench` and, with every convolution a block, `cifar10-airbench-dgl`. The
recipe is published (Jordan 2024, [arXiv:2404.00498](https://arxiv.org/abs/2404.00498)) with 94.0 %
at full width, with class scores averaged over views. On our compressed copy of CIFAR-10
backpropagation reaches {{over_views airbench airbench-bp}} % in this way. The compression is one
reason: [once more, it costs {{behind recompressed airbench-half-bp-jpeg-75 airbench-half-bp-0}} or
{{behind recompressed airbench-half-bp-jpeg-50 airbench-half-bp-0}}
points](#accuracy-images-compressed-once-more). What else differs is listed at `models.airbench`.
`DGL` is behind by {{behind airbench airbench-half-dgl airbench-half-bp}} points at half width,
where its heads make a step's FLOPs {{run_flops airbench airbench-half-dgl}} of
backpropagation's. At full width (one seed) it is behind by
{{behind airbench airbench-dgl airbench-bp}} points, at {{run_flops airbench airbench-dgl}}.
""",
    "recompressed": """\
Our copy of CIFAR-10, `cifar10-jpeg`, is compressed as JPEG. What does that cost? Here its images
are compressed once more (`benchmarks/recompress.py cifar10-jpeg cifar10-jpeg-75 --quality 75`).
That changes a value (0 to 255) by a mean square of {{recompressed 75}} with quality 75 and of
{{recompressed 50}} with quality 50. In the eight epochs of the fast recipe it costs
{{behind recompressed airbench-half-bp-jpeg-75 airbench-half-bp-0}} and
{{behind recompressed airbench-half-bp-jpeg-50 airbench-half-bp-0}} points.
""",
}
# The original study reports the highest test accuracy of a run, in %.
ORIGINAL = {"bp": 76.5, "dgl": 77.6, "dni": 65.6, "cdni": 73.7}


def sections() -> list[str]:
    """Every file of benchmarks/accuracy.py."""
    parts = []
    for path in sorted(RESULTS.glob("accuracy-*.json")):
        name = path.stem.removeprefix("accuracy-")
        parts.append(f"## Accuracy: {TITLES.get(name, name)}\n")
        parts += [inserted(ABOUT[name])] if name in ABOUT else []
        parts.append(_section(name))
    return parts


def _section(name: str) -> str:
    runs = result(f"accuracy-{name}")["runs"]
    summaries = [
        Summary.of_metrics(
            run["run"], run["config"], run["metrics"], Costs.from_json(json.dumps(run["costs"]))
        )
        for run in runs
    ]
    made_by = [run["environment"] for run in runs]
    several = len({run["config"]["seed"] for run in runs}) > 1
    table = over_seeds(summaries) if several else accuracy_table(summaries)
    reported = _next_to_original(runs) if name == "original-1-lr-0.0003" else ""
    # Runs of several seeds show no images/s.
    note = (
        ""
        if several
        else " images/s were not measured in turns: they describe the runs, but do not compare the "
        "rules."
    )
    return (
        f"{table}\n{reported}{_over_views(runs)}{machines(made_by)}.{note}\n\n"
        f"{commands([m['command'] for m in made_by])}"
    )


def _over_views(runs: list[dict[str, Any]]) -> str:
    """The test accuracies over views of each image, where they were evaluated."""
    found: dict[str, list[float]] = {}
    for run in runs:
        if "accuracy_over_views" in run:
            name = run["run"].removesuffix(f"-{run['config']['seed']}")
            found.setdefault(name, []).append(100 * run["accuracy_over_views"])
    if not found:
        return ""
    cells = [f"{name} {mean(of_seeds, 2)} %" for name, of_seeds in found.items()]
    return (
        "With class scores averaged over six views of each test image (`--test_time shift`): "
        f"{', '.join(cells)}.\n\n"
    )


def _next_to_original(runs: list[dict[str, Any]]) -> str:
    """The highest test accuracy of any epoch, which the original study reports."""
    lines = [
        "The original study reports the highest test accuracy of any epoch. This table alone does "
        "the same.\n",
        "| run | original study | highest of any epoch | epoch | difference | last |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for run in runs:
        tested = [(100 * row["test_accuracy"], int(row["epoch"])) for row in run["metrics"]]
        highest, epoch = max(tested)
        then = ORIGINAL[run["run"].removeprefix("original-1-")]
        lines.append(
            f"| {run['run']} | {then} | {highest:.2f} | {epoch} | {highest - then:+.1f} "
            f"| {tested[-1][0]:.2f} |"
        )
    return "\n".join([*lines, "", ""])
