"""Section of docs/results.md: objectives without labels (benchmarks/selfsupervised.py)."""

from __future__ import annotations

from typing import Any

from pages.files import commands, machines, results
from pages.spread import mean

# What a row is compared with, seed by seed.
BASES = ("random fixed blocks", "untrained")


def section() -> list[str]:
    """A table for each data set."""
    return ["## Without labels\n", *map(_probes, results("probe"))]


def accuracies(found: dict[str, Any]) -> dict[str, dict[int, list[float]]]:
    """Linear probes' test accuracy in % after each block, under contender and seed."""
    of: dict[str, dict[int, list[float]]] = {}
    for result in (result for run in found["runs"] for result in run["results"]):
        of.setdefault(result["contender"], {})[result["seed"]] = [
            100 * accuracy for accuracy in result["accuracy"]
        ]
    return of


def above(of: dict[str, dict[int, list[float]]], name: str, base: str) -> list[float]:
    """Seed by seed, how many points a contender's last block lies above that of a base, which has
    the same network."""
    patches = ", patches"
    other = of.get(base + (patches if name.endswith(patches) else ""), {})
    if name.removesuffix(patches) in BASES:
        return []
    return [of[name][seed][-1] - other[seed][-1] for seed in sorted(of[name].keys() & other)]


def _probes(found: dict[str, Any]) -> str:
    of = accuracies(found)
    last = found["blocks"][-1]
    lines = [
        f"| {found['data']}, linear probe after | {' | '.join(found['blocks'])} | seeds | "
        f"{last} above {BASES[0]} | above {BASES[1]} |",
        "|---|" + "--:|" * (len(found["blocks"]) + 3),
    ]
    for name, seeds in of.items():
        cells = [mean(block, 1) for block in zip(*seeds.values(), strict=True)]
        cells.append(str(len(seeds)))
        for base in BASES:
            points = above(of, name, base)
            cells.append(mean(points, 1) if points else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    given = found["given"]
    images = f", {given['images']} training images" if given["images"] else ""
    return (
        "\n".join(lines)
        + f"\n\nTest accuracy in %, {given['epochs']} epochs{images}. Blocks learn without labels; "
        f"probes read their frozen output, averaged down to {given['pool']}x{given['pool']} "
        f"positions. Patches have {given['patch']}x{given['patch']} pixels and overlap by half. "
        "The last two columns are means ± standard deviations of differences seed by seed. "
        f"{machines(found['runs'])}.\n\n{commands([r['command'] for r in found['runs']])}"
    )
