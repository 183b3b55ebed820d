"""A section of docs/results.md: the time that is not training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pages.files import commands, machines, result

COLUMNS = {"before": "before", "layerwise": "now"}
DECIMALS = {"trainer": 2, "blocks": 0}


def section() -> str:
    """How long commands take to start, and what the trainer and blocks cost besides arithmetic."""
    found = result("overhead")
    starts = found["startup"]["starts"]
    versions = [name for name in COLUMNS if name in starts]
    made = found["blocks"]
    return "\n".join(
        [
            "## Overhead\n",
            *_table(
                ["until the command ends", *_each("CPU s", versions), *_each("modules", versions)],
                (
                    [
                        start,
                        *(f"{starts[v][start]['cpu_seconds']['median']:.2f}" for v in versions),
                        *(str(starts[v][start]["modules"]) for v in versions),
                    ]
                    for start in starts[versions[0]]
                ),
            ),
            "",
            *_table(
                ["besides the arithmetic", *(COLUMNS[v] for v in versions)],
                (row for name in DECIMALS for row in _steps(found[name]["found"], name, versions)),
            ),
            "",
            "CPU time, one thread; before is the version before this work, measured in turns. The "
            "trainer's epoch is divided by that of the same rule, batches and optimizer in a loop "
            "of four lines. A block's cost is that of DGL over a greedy loop by hand over the same "
            f"modules. {machines([made])}.\n",
            commands(sorted({part["command"] for part in found.values()})),
        ]
    )


def _each(what: str, versions: Iterable[str]) -> list[str]:
    return [f"{what}, {COLUMNS[version]}" for version in versions]


def _steps(found: Mapping[str, Any], name: str, versions: list[str]) -> Iterable[list[str]]:
    """The rows of a section; the spread is from the least to the largest."""
    for what in found[versions[0]]:
        cells = []
        for version in versions:
            of, places = found[version][what], DECIMALS[name]
            least, most = (f"{of[end]:.{places}f}" for end in ("least", "largest"))
            cells.append(f"{of['median']:.{places}f} ({least} to {most})")
        yield [f"trainer: {what}" if name == "trainer" else what, *cells]


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return [lines[0], f"|---|{'--:|' * (len(head) - 1)}", *lines[1:]]
