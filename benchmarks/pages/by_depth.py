"""Sections of docs/results.md: what blocks learn by depth (benchmarks/by_depth.py)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from pages.files import RESULTS, commands, machines, result
from pages.spread import mean

Rows = list[dict[str, Any]]
Found = dict[str, Any]


def section() -> list[str]:
    """A part for each figure."""
    return [
        "## By depth\n",
        "What the blocks of one network learn under different rules (`benchmarks/by_depth.py`). "
        "The network of the\nfirst three parts is VGG11c with a quarter of its channels, every "
        "layer a block, on images of 16x16 pixels.\n",
        *(
            line
            for name, part in PARTS.items()
            if (RESULTS / f"by-depth-{name}.json").exists()
            for line in part(result(f"by-depth-{name}"))
        ),
    ]


def rows(figure: str, rule: str) -> Rows:
    """The rows of a rule, one for each seed."""
    return [row for row in result(f"by-depth-{figure}")["rows"] if row["rule"] == rule]


def block(figure: str, rule: str, key: str, k: int) -> list[float]:
    """A number of block k, one for each seed."""
    return [row["blocks"][k][key] for row in rows(figure, rule)]


def chosen(rule: str) -> tuple[list[float], list[float]]:
    """Accuracies in % of the exits that the validation split chose, and the share in % of the
    network's FLOPs that they take."""
    of = [(row["exits"], row["chosen"]) for row in rows("exits", rule)]
    accuracy = [100 * exits[i]["accuracy"] for exits, i in of]
    return accuracy, [100 * exits[i]["flops"] / exits[-1]["flops"] for exits, i in of]


def supported(sentence: str, *by: bool) -> str:
    """A sentence about the results, if they show what it says.

    Raises:
        ValueError: they do not.
    """
    if not all(by):
        raise ValueError(f"benchmarks/results/ no longer shows this; write it anew: {sentence}")
    return sentence


def means(found: Found, rule: str, key: str) -> list[float]:
    """A number of every block that has it, as a mean over the seeds."""
    of = [row["blocks"] for row in found["rows"] if row["rule"] == rule]
    at_block = ([block[key] for block in blocks] for blocks in zip(*of, strict=True))
    return [statistics.mean(values) for values in at_block if None not in values]


def _exits(found: Found) -> list[str]:
    lines = [
        "### Choosing a sub-network\n",
        "Local Critic Training (Lee et al. 2021) gives a network for every budget: the blocks up "
        "to an exit. The\ncheapest exit whose validation accuracy is within one point of the best "
        "is chosen.\n",
        "| rule | last exit, % | chosen exit, % | block | FLOPs of the whole, % |",
        "|---|--:|--:|--:|--:|",
    ]
    for rule in found["commands"]:
        of = rows("exits", rule)
        accuracy, share = chosen(rule)
        last = [100 * row["exits"][-1]["accuracy"] for row in of]
        at = ", ".join(str(row["chosen"]) for row in of)
        lines.append(
            f"| `{rule}` | {mean(last, 1)} | {mean(accuracy, 1)} | {at} | {mean(share, 0)} |"
        )
    return [*lines, *_end(found, "test accuracy of exits over their FLOPs")]


def _gradients(found: Found) -> list[str]:
    dgl, overlap = means(found, "dgl", "angle"), means(found, "overlap", "angle")
    return [
        "### Gradients\n",
        "Angle in degrees of each block's gradient to backpropagation's after training, for the "
        "same weights and batch\n(Laskin et al. 2020, "
        "[arXiv:2012.03837](https://arxiv.org/abs/2012.03837), report the cosine). "
        + supported(
            "As there, the gradients of early\nblocks under `dgl` differ most, and those of "
            "`overlap`, whose losses reach one block further, differ less.\n",
            dgl.index(max(dgl)) == 0,
            statistics.mean(dgl[:3]) > statistics.mean(dgl[3:]),
            all(a <= b for a, b in zip(overlap, dgl, strict=True)),
        ),
        *_by_block(found, "angle", lambda values: f"{statistics.mean(values):.0f}"),
        *_end(found, "angle to backpropagation's gradient by block"),
    ]


def _information(found: Found) -> list[str]:
    lines = [
        "### Information on image and label\n",
        "The measurement of Wang et al. 2021 "
        "([arXiv:2101.10832](https://arxiv.org/abs/2101.10832)): the loss in nats of a decoder "
        "that\nreconstructs the image from a block's output (more is less information on the "
        "image), and a lower bound\nof the information on the label, in nats (at most ln 10 = "
        "2.30).\n",
    ]
    titles = {
        "reconstruction": "Image: loss of the decoder, nats",
        "label": "Label: information, nats",
    }
    for key, title in titles.items():
        lines += [
            f"{title}:\n",
            *_by_block(found, key, lambda values: f"{statistics.mean(values):.3f}"),
            "",
        ]
    image = {rule: means(found, rule, "reconstruction") for rule in found["commands"]}
    label = {rule: means(found, rule, "label") for rule in found["commands"]}
    change = {rule: bound[-2] - bound[2] for rule, bound in label.items()}  # up to the classifier
    lines.append(
        "Information cannot grow from a block to the next, but these estimates can: a decoder that "
        "is too weak loses\nmore on the first blocks, and a bound can come nearer. "
        + supported(
            "How do other self-supervised tasks match these observations? From the fourth block "
            "on, images are\nreconstructed better from SimCLR's blocks than from those of "
            "backpropagation and of `dgl`, as they are from\n`infopro`'s; but the bound on the "
            "label falls from the third block on, more than under `dgl`, where it rises\nunder "
            "backpropagation. So what SimCLR keeps is not what the label needs, in this short "
            "training on one seed.\n",
            *(
                image[kept][k] < image[rule][k]
                for kept in ("simclr", "infopro")
                for rule in ("backprop", "dgl")
                for k in range(3, len(image["dgl"]))
            ),
            change["simclr"] < change["dgl"] < 0 < change["backprop"],
            len({row["seed"] for row in found["rows"]}) == 1,
        )
    )
    return [*lines, *_end(found, "information on image and label by block")]


def _random_labels(found: Found) -> list[str]:
    last = {rule: means(found, rule, "memorized")[-1] for rule in found["commands"]}
    return [
        "### Random labels\n",
        "Share in % of the training images with random labels (digits) whose label each exit "
        "gives after training: a\nmeasure of capacity. "
        + supported(
            "As in Laskin et al. 2020, backpropagation memorises more than local rules.\n",
            last.pop("backprop") > max(last.values()),
        ),
        *_by_block(found, "memorized", lambda values: mean([100 * v for v in values], 1)),
        *_end(found, "memorised random labels by block"),
    ]


def _filters(found: Found) -> list[str]:
    return [
        "### Filters\n",
        f"The first layer's filters of BasicCNN with 32 channels after one epoch on "
        f"{found['data']}, each from its smallest to\nits largest weight (Laskin et al. 2020). "
        "After so short a training most of what they show is still the initial noise,\nunder every "
        "rule, so the picture tells no difference between them.\n",
        *_end(found, "filters of the first layer"),
    ]


def _by_block(found: dict[str, Any], key: str, cell: Callable[[list[float]], str]) -> list[str]:
    """A row for each rule, a column for each block."""
    names = [block["name"] for block in found["rows"][0]["blocks"]]
    lines = [
        f"| rule | {' | '.join(names)} |",
        "|---|" + "--:|" * len(names),
    ]
    for rule in found["commands"]:
        cells = []
        for k in range(len(names)):
            values = [row["blocks"][k][key] for row in found["rows"] if row["rule"] == rule]
            cells.append("" if any(v is None for v in values) else cell(values))
        lines.append(f"| `{rule}` | {' | '.join(cells)} |")
    return lines


def _end(found: dict[str, Any], about: str) -> list[str]:
    seeds = sorted({row["seed"] for row in found["rows"]})
    return [
        f"\nData {found['data']}, seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}. {machines([found])}.\n",
        f"![{about}](pictures/by-depth-{found['figure']}.png)\n",
        commands(
            [
                found["command"],
                f"layerwise train {found['options']} RULE",
                *(f"{rule}: {options}" for rule, options in found["commands"].items()),
            ]
        ),
    ]


PARTS: dict[str, Callable[[Found], list[str]]] = {
    "exits": _exits,
    "gradients": _gradients,
    "information": _information,
    "random-labels": _random_labels,
    "filters": _filters,
}
