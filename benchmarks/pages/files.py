"""Where pages and results lie."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@functools.cache
def result(name: str) -> dict[str, Any]:
    """The content of benchmarks/results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def results(kind: str) -> list[dict[str, Any]]:
    """The contents of benchmarks/results/KIND-*.json, in the order of their names."""
    return [result(path.stem) for path in sorted(RESULTS.glob(f"{kind}-*.json"))]


def machines(made: Iterable[Mapping[str, Any]]) -> str:
    """The machines and versions of PyTorch in the provenance of results, each once."""
    return "; ".join(
        dict.fromkeys(f"{m['cpu']}, {m['cores']} cores, torch {m['torch']}" for m in made)
    )


def commands(lines: Iterable[str]) -> str:
    """A code block with commands."""
    return "\n".join(["```", *lines, "```\n"])
