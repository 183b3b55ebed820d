"""Section of docs/results.md: layers in parallel (benchmarks/stages.py)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pages.files import RESULTS, commands, machines, result, results
from pages.spread import ratio

PIPELINES = ("GPipe", "1F1B", "interleaved 1F1B", "ZBV zero bubble", "DualPipeV")


def section() -> list[str]:
    """A table for each network, and one for links of limited rate."""
    found = results("stages")
    return [
        "## Layers in parallel\n",
        _of_the_simulation(found),
        *map(_stages, found),
        *_of_many_stages(),
    ]


def _of_many_stages() -> list[str]:
    """The simulated speed of up to 64 stages."""
    if not (RESULTS / "plan-stages.json").exists():
        return []
    found = result("plan-stages")
    asked, whole = found["asked"], sum(found["backprop_block_seconds"])
    names = list(found["pipelines"]["64"])
    lines = [
        "### 64 stages, simulated\n",
        f"A ViT of {len(found['block_seconds'])} blocks, batches of {asked['batch_size']}, a link "
        f"of {asked['link']:g} Gb/s, twice as many micro-batches as stages (at least 8). Speed as "
        "a ratio to backpropagation in one process, from times of blocks measured on this machine; "
        "here a micro-batch of one sample is assumed to take no longer than its share of the "
        "batch, which flatters the pipelines. Stages of the local rule never wait for a gradient, "
        "but its heads cost time, and the slowest stage decides.\n",
        f"| stages | {' | '.join(names)} |",
        "|--:|" + "--:|" * len(names),
    ]
    for count, of in found["pipelines"].items():
        cells = [f"{whole / of[n]['seconds']:.1f}" if n in of else "" for n in names]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return [
        *lines,
        "\n![speed over the number of stages](pictures/stages-64.png)\n",
        f"{machines([found])}.\n\n{commands([found['command']])}",
    ]


def _of_the_simulation(found: Sequence[Mapping[str, Any]]) -> str:
    """How near simulated rates of two stages are to the measured ones."""
    ratios = [
        result["simulated_per_second"][row["name"]] / statistics.median(row["per_second"])
        for result in found
        for row in result.get("contenders", ())
        if row["name"] in result.get("simulated_per_second", {})
    ]
    return (
        "`layerwise plan` simulates stages from the times of single layers. The simulated rates of "
        f"two stages in the tables below are {min(ratios):.2f} to {max(ratios):.2f} of the "
        f"measured ones, in the median {statistics.median(ratios):.2f}. More stages than this "
        "machine has cores are simulated only. The lowest ratio is that of VGG8b's local rule; "
        "why was not found, and the simulations of the pipelines next to it agree.\n"
    )


def best_pipeline(rates: Mapping[str, Sequence[float]]) -> str:
    """Name of the fastest of torch's pipeline schedules."""
    return max((n for n in PIPELINES if n in rates), key=lambda n: statistics.median(rates[n]))


def _stages(result: dict[str, Any]) -> str:
    about = (
        f"{machines([result])}, float32; each process has one thread and a "
        f"core of its own.\n\n{commands([result['command']])}"
    )
    table = _link(result) if "networks" in result else _race(result)
    return f"{table}\n\n{about}"


def _link(result: dict[str, Any]) -> str:
    lines = [
        "Over a link between two hosts (network namespaces joined by a cable). *Kept* is the rate "
        "over the link of 1 Gb/s as a share of that over the free link:\n",
        "| network | a batch sends | | free link, /s | 1 Gb/s, /s | kept |",
        "|---|--:|---|--:|--:|--:|",
    ]
    for network, found in result["networks"].items():
        rates = {row["name"]: row["per_second"] for row in found["contenders"]}
        for name in dict.fromkeys(n.rpartition(", ")[0] for n in rates):
            free, slow = rates[f"{name}, free"], rates[f"{name}, slow"]
            lines.append(
                f"| {network} | {found['sends_bytes'] / 1e6:.1f} MB | {name} "
                f"| {statistics.median(free):.1f} | {statistics.median(slow):.1f} "
                f"| {ratio(slow, free)} |"
            )
    return "\n".join(lines)


def _race(result: dict[str, Any]) -> str:
    rates = {row["name"]: row["per_second"] for row in result["contenders"]}
    ours = rates["local rule, 2 stages"]
    lines = [
        f"{result['title']}, batches of {result['batch']} over all processes, local blocks: "
        f"{result['blocks']}, heads {result['heads']}; pipelines with {result['microbatches']} "
        "microbatches:\n",
        f"| | {result['unit']}/s | two stages are faster by | memory of a process, MB "
        "| its parameters, MB | simulated |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['name']} | {statistics.median(row['per_second']):.1f} "
        f"| {ratio(ours, row['per_second'])} | {_megabytes(row['rss_bytes'])} "
        f"| {_each(row.get('parameter_bytes', []))} | {_simulated(result, row['name'])} |"
        for row in result["contenders"]
    ]
    predicted = result["predicted_per_second"]["2"]
    return (
        "\n".join(lines)
        + f"\n\n`layerwise plan` predicts {predicted:.1f} {result['unit']}/s for two stages. "
        f"Ratios are medians of {len(ours)} rounds (lowest to highest); memory is the peak "
        "resident set of the largest process, Python and torch included; parameters: of each "
        "process. The last stage of the library's own keeps the others' as well, because it writes "
        "files. Simulated: from the times of single layers, as `layerwise plan` does."
    )


def _megabytes(processes: list[int]) -> str:
    return f"{max(processes) / 1e6:.0f}" if processes else "-"


def _simulated(result: dict[str, Any], name: str) -> str:
    found = result.get("simulated_per_second", {}).get(name)
    return "" if found is None else f"{found:.1f}"


def _each(processes: list[int]) -> str:
    return " / ".join(f"{found / 1e6:.1f}" for found in processes)
