"""The tables of README.md, between comments that name them."""

from __future__ import annotations

import math
import re
import statistics

from layerwise.costs import StepTable
from layerwise.costs.ways import BACKPROP, LOCAL
from pages import stages, steps
from pages.all_rules import accuracy, flops, memory, rows
from pages.files import RESULTS, ROOT, machines, result
from pages.spread import mean, median, ratio

# The rules of benchmarks/all_rules.py that the README shows.
RULES = (
    "backprop",
    "deep-supervision",
    "overlap-4-3",
    "overlap-2-2",
    "overlap",
    "auglocal",
    "man",
    "dgl-narrow",
    "dgl-conv",
    "mono-forward",
    "dgl",
    "kolen-pollack",
    "usf",
    "ldrl",
    "dtp",
    "dfa",
    "fa",
    "random-fixed",
)
STEPS = (
    "resnet110-16",
    "resnet50-8",
    "vgg8b-linear",
    "vit12-12",
    "gpt-8",
    "convnext-8",
    "mixer-8",
    "cnn-4",
)
QUICK = 1.1  # of backpropagation's time
RACES = ("vgg8b", "resnet56", "transformer", "transformer-16")
TITLES = {"vgg8b": "VGG8b", "resnet56": "ResNet-56", "transformer-16": "transformer"}
PARALLEL = {
    "local rule, two stages": "local rule, 2 stages",
    "delayed gradients, two stages": "delayed gradients, 2 stages",
    "local rule, two threads": "local rule, serial, 2 threads",
    "DDP, two replicas": "DDP, 2 ranks",
}
TEXTS = {"a generated language": "markov", "English": "python-topics"}


def page() -> str:
    """The README with its tables written anew."""
    text = (ROOT / "README.md").read_text()
    tables = {
        "accuracy": _accuracy(),
        "text": _text(),
        "memory": _memory(),
        "parallel": _parallel(),
    }
    for name, table in tables.items():
        between = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(between, lambda m, t=table: m[1] + t + m[2], text, flags=re.DOTALL)
    return text


def _accuracy() -> str:
    settings = [rows(setting) for setting in ("cnn", "resnet20")]
    lines = [
        "| rule | CNN, % | FLOPs | time | memory | ResNet-20, % | FLOPs | time | memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in RULES:
        cells = []
        for row in (found.get(name) for found in settings):
            if row is None:
                cells += [""] * 4
                continue
            step = row["step"]
            times = zip(step["times_s"], step["backprop_times_s"], strict=True)
            cells += [
                accuracy(row, "last", 2),
                flops(row["costs"]),
                f"{statistics.median(a / b for a, b in times):.2f}",
                memory(row),
            ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    made = [row["environment"] for found in settings for row in found.values()]
    return "\n".join([*lines, "", f"{machines(made)}.", ""])


def _text() -> str:
    """Perplexities of the small transformer."""
    found = [result(f"text-{name}") for name in TEXTS.values()]
    lines = [f"| rule | {' | '.join(TEXTS)} | FLOPs |", "|---|" + "--:|" * (len(TEXTS) + 1)]
    for of_rule in zip(*(text["rows"] for text in found), strict=True):
        assert len({row["rule"] for row in of_rule}) == 1
        cells = [mean([run["test"] for run in row["runs"]], 2) for row in of_rule]
        lines.append(
            f"| `{of_rule[0]['rule']}` | {' | '.join(cells)} | {flops(of_rule[-1]['costs'])} |"
        )
    return "\n".join([*lines, "", f"{machines(found)}.", ""])


def _memory() -> str:
    """The least memory of each family, at most `QUICK` of backpropagation's time and at any."""
    lines = [
        f"| network, batch | at most {QUICK} of the time: backpropagation | local | at any time: "
        "backpropagation | local |",
        "|---|---|---|---|---|",
    ]
    made = []
    for name in STEPS:
        path = RESULTS / f"step-{name}.json"
        if not path.exists():
            continue
        table = StepTable.load(path)
        cells = [
            _least(table, family, limit)
            for limit in (QUICK, math.inf)
            for family in (BACKPROP, LOCAL)
        ]
        batch = "x".join(map(str, table.batch))
        lines.append(f"| {table.title}, {batch} | {' | '.join(cells)} |")
        made.append(table.provenance)
    return "\n".join([*lines, "", f"{machines(made)}.", ""])


def _least(table: StepTable, family: str, limit: float) -> str:
    found = steps.least(table, family, limit)
    if found is None:
        return "-"
    return f"**{found['bytes']:.2f}**, time {median(found['times'])}: {found['name']}"


def _parallel() -> str:
    """Samples per second of two processes, as ratios to backpropagation in one with two threads."""
    lines = [
        f"| network, batch | {' | '.join(PARALLEL)} | best pipeline |",
        "|---|" + "--:|" * (len(PARALLEL) + 1),
    ]
    made = []
    for name in RACES:
        found = result(f"stages-{name}")
        rates = {row["name"]: row["per_second"] for row in found["contenders"]}
        base = rates["backprop, 2 threads"]
        best = stages.best_pipeline(rates)
        made.append(found)
        cells = [ratio(rates[n], base) if n in rates else "" for n in PARALLEL.values()]
        lines.append(
            f"| {TITLES.get(name, name)}, {found['batch']} | {' | '.join(cells)} "
            f"| {ratio(rates[best], base)} {best} |"
        )
    return "\n".join([*lines, "", f"{machines(made)}.", ""])
