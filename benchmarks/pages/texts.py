"""Section of docs/results.md: a small transformer on text (benchmarks/text.py, streams.py)."""

from __future__ import annotations

import statistics
from typing import Any

from pages.all_rules import flops, head_parameters
from pages.files import commands, machines, result, results
from pages.spread import mean, ratio


def section() -> list[str]:
    """Perplexities, and what becomes of the residual stream."""
    equal = map(_equal, results("equal"))
    return ["## Text\n", *map(_text, results("text")), *equal, _streams(result("streams"))]


def _text(result: dict[str, Any]) -> str:
    rows, budget = result["rows"], result["budget"]
    tried, seeds = ", ".join(rows[0]["searched"]), ", ".join(map(str, rows[0]["seeds"]))
    searched = ", ".join(map(str, rows[0]["searched_seeds"]))
    data = f"The help texts of Python {result['of_python']}" if result["of_python"] else ""
    data = data or f"The generated language `{result['data']}`"
    kind = "" if budget["norm_first"] else ", normalisation at the end of layers"
    kind += "" if budget["layers"] == 2 else f", {budget['layers']} layers"
    recurrent = budget.get("network") == "lstm"
    kind = ", an LSTM" if recurrent else kind
    network = "an LSTM (`models.lstm`)" if recurrent else "a causal transformer (`models.gpt`)"
    lines = [
        f"### {data}{kind}\n\n{result['vocabulary']} different characters; {network} "
        f"with {budget['layers']} layers of width {budget['width']}, each layer a "
        f"block; {budget['steps']} steps on {budget['batch_size']} windows of "
        f"{budget['context']} characters. Learning rates tried with seeds {searched} for every "
        f"rule and chosen by validation perplexity: {tried}; seeds {seeds}.\n",
        "| rule | test perplexity | test accuracy, % | learning rate | FLOPs | of these the "
        "heads', % | heads' parameters |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        costs, runs = row["costs"], row["runs"]
        lines.append(
            f"| {row['rule']} | {mean([run['test'] for run in runs], 3)} "
            f"| {mean([100 * run['test_accuracy'] for run in runs], 2)} | {row['rate']:g} "
            f"| {flops(costs)} "
            f"| {100 * costs['step_head_flops'] / costs['step_flops']:.1f} "
            f"| {head_parameters(row):,} |"
        )
    last = (
        "layer and the classifier"
        if recurrent
        else "normalisation and the classifier only; everything before them stays random"
    )
    counted = result["counted"]
    lines += [
        f"| *counts of character pairs* | {counted['pair']:.3f} | | | | | |",
        f"| *counts of single characters* | {counted['character']:.3f} | | | | | |",
    ]
    floor = ""
    if result["floor"] is not None:
        lines.append(f"| *the source itself* | {result['floor']:.3f} | | | | | |")
        floor = (
            " The first characters of a window have little context, so a model of windows stays "
            "above the source's perplexity."
        )
    return (
        "\n".join(lines)
        + "\n\nMeans ± standard deviations over the seeds, at the end of training. FLOPs of a "
        "training step are ratios to backpropagation's. `LastBlock` trains the last "
        f"{last}.{floor} "
        f"{machines([result])}.\n\n" + commands([result["command"]])
    )


EQUAL = {"steps": "steps", "flops": "FLOPs", "time": "time in two stages"}
WORDS = """At equal FLOPs backpropagation has the lowest mean. Two blocks, with light heads or with
heads of a transformer layer, are behind it by less than the spread of two seeds. With three or six
blocks the heads cost more than they bring: a head of a layer costs as much as a block of one layer,
and leaves fewer steps.

At equal time, by CPU times, two blocks with light heads win over the fastest pipeline, and over
delayed gradients by less: local stages and delayed gradients run whole batches, while a pipeline
waits or pays for small micro-batches. Delayed gradients need error feedback with AdamW. This holds
where a micro-batch is too small for a device, as in this small network. By FLOPs alone, as on large
networks, pipelines hardly wait. No local rule then gets more steps than at equal FLOPs, so nothing
is won by local learning in two stages.

Trainings are short (less than an epoch), the network is small, and two seeds cannot order rules
that are closer than their spread. Where the largest learning rate tried is the best one, a larger
one may be better. `DiffusionBlocks` does not train language models here
([why](rules/diffusion_blocks.md))."""


def _equal(result: dict[str, Any]) -> str:
    """Rules at equal steps, FLOPs and time in two stages."""
    rows, budget = result["rows"], result["budget"]
    [backprop] = [row for row in rows if row["rule"] == "Backprop"]
    kinds = [kind for kind in EQUAL if any(row["runs"].get(kind) for row in rows)]
    searched = ", ".join(rows[0]["searched"])
    best, best_s = _fastest(backprop)
    flops_best = min(backprop["times"]["by_flops"], key=backprop["times"]["by_flops"].get)
    unit = backprop["times"]["by_flops"][flops_best]
    lines = [
        f"### Local rules at equal FLOPs, and at equal time in two stages\n\nThe help texts of "
        f"Python {result['of_python']}; the transformer with {budget['layers']} layers of width "
        f"{budget['width']} in fewer blocks. `AugLocal` has heads of one transformer layer with "
        "fresh weights, normalisation and a projection to the vocabulary; `DGL` an MLP with "
        "64 hidden units for each token. "
        f"`Backprop` takes {budget['steps']} steps on {budget['batch_size']} windows of "
        f"{budget['context']} characters; the others take the number of steps (in brackets) that "
        "gives equal FLOPs, or equal time in two stages. Learning rates tried at equal FLOPs with "
        f"seeds {', '.join(map(str, rows[0]['searched_seeds']))} and chosen by validation "
        f"perplexity: {searched}. A perplexity with ± is of seeds "
        f"{', '.join(map(str, result['seeds']))}, one without it of the first.\n",
        "| rule | learning rate | FLOPs of a step | its time in two stages: by CPU times "
        f"| by FLOPs alone | {' | '.join(f'perplexity at equal {EQUAL[k]}' for k in kinds)} |",
        "|---|--:|--:|--:|--:|" + "--:|" * len(kinds),
    ]
    for row in rows:
        cells = [
            f"{mean([run['test'] for run in row['runs'][kind]], 2)} ({row['steps'][kind]})"
            if row["runs"][kind]
            else ""
            for kind in kinds
        ]
        by_flops = min(row["times"]["by_flops"].values()) / unit
        lines.append(
            f"| {row['rule']} | {row['rate']:g} | {flops(row['costs'])} "
            f"| {ratio(_fastest(row)[1], best_s)} | {by_flops:.2f} | {' | '.join(cells)} |"
        )
    return (
        "\n".join(lines)
        + "\n\nTest perplexities are means ± standard deviations over the seeds. FLOPs and times "
        "are ratios to `Backprop`'s. Times of a step are simulated as by `layerwise plan`, over a "
        "link without cost and without the optimizer: from the CPU times of blocks, one thread "
        "each (medians of rounds, lowest to highest), and from FLOPs alone, as if small "
        "micro-batches cost nothing more. "
        f"`Backprop` has the fastest schedule and number of micro-batches: {best} by CPU times, "
        f"{flops_best} by FLOPs alone. `DelayedGradient` needs no micro-batches.\n\n{WORDS}\n\n"
        f"{machines([result])}.\n\n" + commands([result["command"]])
    )


def _fastest(row: dict[str, Any]) -> tuple[str, list[float]]:
    """The fastest way to run a rule in two stages, and its seconds in every round."""
    return min(row["times"]["seconds"].items(), key=lambda found: statistics.median(found[1]))


def _streams(result: dict[str, Any]) -> str:
    """The residual stream at the start and the end of training, after every block but the last."""
    lines = [
        "### The residual stream\n",
        "| rule, on Python's help texts | step | validation perplexity | norm of a token after "
        "each block | effective rank | angle to backpropagation's gradient, degrees |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    of: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        of.setdefault(row["rule"], []).append(row)
    for name, rows in of.items():
        for k in (0, -1):
            found = [row["steps"][k] for row in rows]
            cells = [
                "; ".join(mean(of_block, 0) for of_block in zip(*values, strict=True))
                for values in ([one[key] for one in found] for key in ("norm", "rank", "angle"))
            ]
            perplexities = mean([one["perplexity"] for one in found], 1)
            lines.append(f"| {name} | {found[0]['step']} | {perplexities} | {' | '.join(cells)} |")
    return (
        "\n".join(lines) + f"\n\nMeans ± standard deviations over {len(rows)} seeds. "
        f"{machines([result])}.\n\n" + commands([result["command"]])
    )
