"""The time that is not training: `results/overhead.json`, a section each.

    python benchmarks/overhead.py                      every section
    python benchmarks/overhead.py --only startup       this one; the others stay in the file
    python benchmarks/overhead.py --against OLD/src    measure another version as well, in turns

`startup`: the seconds of each command until it ends, in wall-clock time and in CPU time, which work
of others on the machine lengthens less, and the modules that it imports.

`trainer` and `blocks`: what overhead_steps.py measures, the median of the rounds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from layerwise.runs.provenance import provenance

RESULTS = Path(__file__).parent / "results"
SOURCE = Path(__file__).parents[1] / "src"

TRAIN = "train --recipe demo-dgl --epochs 1 --runs {folder}"
# What a person waits for -> arguments of Python.
STARTS = {
    "import torch": ["-c", "import torch"],
    "import layerwise, cut, DGL": ["-c", "import torch, layerwise as l; l.cut, l.rules.DGL"],
    **{
        f"layerwise {command}": ["-m", "layerwise", *command.split()]
        for command in (
            "--version",
            "--help",
            "list",
            "train --help",
            "train --epochs none",
            "evaluate --help",
            "compare --help",
            "describe basic_cnn",
        )
    },
    "layerwise train, one epoch of the demo": ["-m", "layerwise", *TRAIN.split()],
}


def startup(rounds: int, sources: dict[str, Path]) -> dict[str, Any]:
    """The seconds and the modules of each start: the median of `rounds`, of all versions in turns.

    Args:
        rounds: how often each is started.
        sources: version -> the folder that its package is in.
    """
    pairs = list(itertools.product(STARTS, sources))
    # First, so that the files of both versions are in the memory of the machine and compiled.
    imported = {(start, name): modules(STARTS[start], sources[name]) for start, name in pairs}
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {pair: [] for pair in pairs}
    for start, name in pairs * rounds:
        seconds[start, name].append(started(STARTS[start], sources[name])[:2])
    return {
        "rounds": rounds,
        "threads": 1,
        "starts": {
            name: {
                start: {
                    "seconds": spread(wall for wall, _ in seconds[start, name]),
                    "cpu_seconds": spread(cpu for _, cpu in seconds[start, name]),
                    **imported[start, name],
                }
                for start in STARTS
            }
            for name in sources
        },
    }


def steps(section: str, rounds: int, sources: dict[str, Path]) -> dict[str, Any]:
    """What overhead_steps.py finds, for each version: the median, least and largest of `rounds`."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sources}
    for name in [*sources] * rounds:
        script = str(Path(__file__).with_name("overhead_steps.py"))
        found[name].append(json.loads(started([script, section], sources[name])[2]))
    return {
        "rounds": rounds,
        "threads": 1,
        "found": {
            name: {key: spread(one[key] for one in of_version) for key in of_version[0]}
            for name, of_version in found.items()
        },
    }


def started(arguments: list[str], source: Path, *options: str) -> tuple[float, float, str]:
    """Run Python with the package in `source`: wall-clock and CPU seconds, and what it reports, on
    stderr if options of Python were given, otherwise on stdout."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *options, *(a.format(folder=folder) for a in arguments)]
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        before, began = os.times(), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        wall, after = time.perf_counter() - began, os.times()
    if done.returncode not in (0, 2):  # 2: an option is refused
        sys.exit(done.stderr)
    cpu = after.children_user + after.children_system
    said = done.stderr if options else done.stdout
    return wall, cpu - before.children_user - before.children_system, said


def modules(arguments: list[str], source: Path) -> dict[str, Any]:
    """How many modules a start imports, and of which libraries."""
    report = started(arguments, source, "-X", "importtime")[2]
    lines = [line for line in report.splitlines() if line.startswith("import time:")]
    names = {line.rpartition("|")[2].strip() for line in lines[1:]}
    own = {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "layerwise"}
    return {"modules": len(names), "libraries": sorted(n for n in own if not n.startswith("_"))}


def spread(values: Any) -> dict[str, float]:
    """The median of some values, the least and the largest."""
    found = sorted(values)
    of = {"median": statistics.median(found), "least": found[0], "largest": found[-1]}
    return {name: round(value, 3) for name, value in of.items()}


SECTIONS = {
    "startup": startup,
    "trainer": functools.partial(steps, "trainer"),
    "blocks": functools.partial(steps, "blocks"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="folder of another version's package")
    given = parser.parse_args()
    sources = {"layerwise": SOURCE}
    if given.against is not None:
        sources = {"before": given.against.resolve(), **sources}
    out = RESULTS / "overhead.json"
    result = json.loads(out.read_text()) if out.exists() else {}
    for name in [given.only] if given.only else SECTIONS:
        result[name] = {**provenance(), **SECTIONS[name](given.rounds, sources)}
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
