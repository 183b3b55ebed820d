"""Section of docs/results.md: early exits that decide (benchmarks/early_exits.py)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from pages.files import commands, machines, result
from pages.spread import mean, ratio

IMAGES = {"digits": "A small CNN on digits", "cnn": "A CNN on CIFAR-10"}
SHOWN = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)

INTRODUCTION = """\
## Early exits that decide

Every sample leaves at the first exit whose highest probability reaches the threshold
(`EarlyExit`). Temperatures are fitted on the validation split, figures are of the test split. All
rules train the same network and the same heads. Under *backprop with heads* the heads read detached
activations, so the network is that of `Backprop`. *Heads on frozen backprop* learn on that network
when it is trained, in as many epochs again (`--freeze`). FLOPs are those of a forward pass, the
heads of all exits on the way included, as a ratio to the network without heads. Time follows them
only where convolutions and matrix products take most of it: not in networks as small as these.
"""


def section() -> list[str]:
    return [
        INTRODUCTION,
        *(_images(setting) for setting in IMAGES),
        _text(result("early-exits-text")),
    ]


def _images(setting: str) -> str:
    found = result(f"early-exits-{setting}")
    first = found["rows"][0]["runs"]
    lines = [
        f"### {IMAGES[setting]}: exits\n\n{found['rows'][0]['runs'][0]['data']}, test accuracy in "
        "%; in brackets the FLOPs.\n",
        f"| | full network | {' | '.join(map('threshold {:g}'.format, SHOWN))} | first exit |",
        f"|---|{'--:|' * (len(SHOWN) + 2)}",
    ]
    for row in found["rows"]:
        cells = [_cell(row["runs"], lambda run: run["fixed"][-1])]
        cells += [_cell(row["runs"], lambda run, t=t: _at(run, t)) for t in SHOWN]
        cells.append(_cell(row["runs"], lambda run: run["fixed"][0]))
        lines.append(f"| {row['rule']} | {' | '.join(cells)} |")
    lines += [
        "",
        "Temperatures of the exits, the share of images on which all exits agree, and CPU time of "
        "the deciding network as a ratio to the full network's, in turns:\n",
        "| | temperatures | exits agree, % | accuracy there, % | on the others, % "
        + "".join(f"| time, threshold {t}, batch {b} " for b, t in _timed(found))
        + "|",
        f"|---|{'--:|' * (4 + len(_timed(found)))}",
    ]
    for row in found["rows"]:
        runs = row["runs"]
        temperatures = zip(*(run["temperatures"] for run in runs), strict=True)
        agree = [run["agree"] for run in runs]
        cells = [
            "; ".join(mean(of, 2) for of in temperatures),
            mean([100 * a["share"] for a in agree], 1),
            mean([100 * a["accuracy"][-1] for a in agree if a["accuracy"]], 1),
            mean([100 * o[-1] for a in agree if (o := a["accuracy_otherwise"])], 1),
        ]
        for times in row["times"]:
            of = times["times_s"]
            cells += [ratio(of[t], of["full"]) for t in of if t != "full"]
        lines.append(f"| {row['rule']} | {' | '.join(cells)} |")
    count = len(first)
    return (
        "\n".join(lines)
        + f"\n\n{'Means ± standard deviations over' if count > 1 else 'From'} {count} "
        f"seed{'s' if count > 1 else ''}; times are of one thread and the first seed, with the "
        f"lowest and the highest round. {machines([found])}.\n\n" + commands([found["command"]])
    )


def _at(run: dict[str, Any], threshold: float) -> dict[str, Any]:
    [row] = [row for row in run["thresholds"] if row["threshold"] == threshold]
    return row


def _cell(runs: Sequence[dict[str, Any]], choose: Any) -> str:
    found = [choose(run) for run in runs]
    shares = [
        row["flops"] / run["fixed"][-1]["flops"] for row, run in zip(found, runs, strict=True)
    ]
    return f"{mean([100 * row['accuracy'] for row in found], 1)} ({statistics.mean(shares):.2f})"


def _timed(found: dict[str, Any]) -> list[tuple[int, str]]:
    rows = found["rows"][0]["times"]
    return [(row["batch"], t) for row in rows for t in row["times_s"] if t != "full"]


def _text(found: dict[str, Any]) -> str:
    budget, tokens = found["budget"], found["tokens"]
    lines = [
        f"### Generated text\n\nThe help texts of Python, a transformer (`models.gpt`) of "
        f"{budget['layers']} layers and width {budget['width']}, every layer a block, "
        f"{budget['steps']} steps. {tokens} tokens follow a prompt of {found['prompt']}, always "
        f"the most probable one; windows of at most {budget['context']} tokens are computed again "
        "for every token (no cache). Tokens per second of CPU time are ratios to the full "
        "network's, in turns. "
        f"With drafts, an exit proposes up to {found['ahead']} tokens, and one forward of the full "
        "network verifies them.\n",
        "| | how | tokens/s | as the full network's text, % | drafts accepted, % |",
        "|---|---|--:|--:|--:|",
    ]
    for row in found["rows"]:
        ways = {way["way"]: way for way in row["generated"]}
        for name, way in ways.items():
            speed = ratio(ways["full"]["times_s"], way["times_s"])
            if name == "full":
                per_second = tokens / statistics.median(way["times_s"])
                speed = f"1 ({per_second:.0f} a second)"
            drafted = way["drafted"]
            accepted = f"{100 * way['accepted'] / drafted:.0f}" if drafted else ""
            lines.append(
                f"| {row['rule']} | {name} | {speed} | {100 * way['same_as_full']:.0f} "
                f"| {accepted} |"
            )
    lines += [
        "",
        "Accuracy of the next character in %, on the test split; in brackets the FLOPs.\n",
        f"| | full network | {' | '.join(map('threshold {:g}'.format, SHOWN))} | first exit |",
        f"|---|{'--:|' * (len(SHOWN) + 2)}",
    ]
    for row in found["rows"]:
        cells = [_cell([row], lambda run: run["fixed"][-1])]
        cells += [_cell([row], lambda run, t=t: _at(run, t)) for t in SHOWN]
        cells.append(_cell([row], lambda run: run["fixed"][0]))
        lines.append(f"| {row['rule']} | {' | '.join(cells)} |")
    return (
        "\n".join(lines) + f"\n\nOne seed. {machines([found])}.\n\n" + commands([found["command"]])
    )
