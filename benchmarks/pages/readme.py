"""The tables of README.md, between comments that name them."""

from __future__ import annotations

import re
import statistics

from layerwise.costs import StepTable
from pages.all_rules import accuracy, flops, memory, rows
from pages.files import RESULTS, ROOT, result
from pages.spread import mean

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
STEPS = ("resnet110-16", "resnet50-8", "vit12-12", "vgg8b-linear")
TEXTS = {"a generated language": "markov", "English": "python-topics"}


def page() -> str:
    """The README with its tables written anew."""
    text = (ROOT / "README.md").read_text()
    for name, table in (("accuracy", _accuracy()), ("text", _text()), ("memory", _memory())):
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
    return "\n".join(lines) + "\n"


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
    return "\n".join(lines) + "\n"


def _memory() -> str:
    lines = [
        "| network, batch | blocks | time: checkpointing | local | memory: checkpointing | local |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in STEPS:
        table = StepTable.load(RESULTS / f"step-{name}.json")
        checkpointing, local = map(table.ratios, table.contenders[1:3])
        lines.append(
            f"| {table.title}, {'x'.join(map(str, table.batch))} | {len(table.setting['blocks'])} "
            f"| {checkpointing['time']['median']:.2f} | {local['time']['median']:.2f} "
            f"| {checkpointing['peak_bytes']:.2f} | {local['peak_bytes']:.2f} |"
        )
    return "\n".join(lines) + "\n"
