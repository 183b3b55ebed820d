"""Write docs/results.md from the files in benchmarks/results/.

python benchmarks/tables.py            write it
python benchmarks/tables.py --check    fail where it is not what the files give
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from layerwise.bench import markdown as step_table
from layerwise.cost import Costs
from layerwise.report.comparison import Summary, over_seeds
from layerwise.report.comparison import markdown as accuracy_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"

INTRODUCTION = """\
# Results

Written by `make tables` from the files in `benchmarks/results/`; each holds the command that made
it, versions, machine and every raw number. Times and bytes are ratios to backpropagation on the
same network and batch, measured in turns in one run, while the other core did other work.
"""


def page() -> str:
    """The whole document."""
    parts = [INTRODUCTION]
    if steps := sorted(RESULTS.glob("step-*.json")):
        parts += ["## A training step\n", step_table(steps)]
        commands = {json.loads(path.read_text())["command"] for path in steps}
        parts.append(_commands(sorted(commands)))
    for path in sorted(RESULTS.glob("accuracy-*.json")):
        parts += [f"## Accuracy: {path.stem.removeprefix('accuracy-')}\n", _accuracy(path)]
    if paths := sorted(RESULTS.glob("data-*.json")):
        parts += ["## The data path\n", _data([json.loads(path.read_text()) for path in paths])]
    return "\n".join(parts)


def _accuracy(path: Path) -> str:
    runs = json.loads(path.read_text())["runs"]
    summaries = [
        Summary.of_metrics(
            run["run"], run["config"], run["metrics"], Costs.from_json(json.dumps(run["costs"]))
        )
        for run in runs
    ]
    machine = runs[0]["environment"]
    several = len({run["config"]["seed"] for run in runs}) > 1
    table = over_seeds(summaries) if several else accuracy_table(summaries)
    reported = "".join(_beside_the_seed(runs)) if "first_iteration" in path.stem else ""
    return (
        f"{table}\n{reported}"
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s) a run, torch "
        f"{machine['torch']}. images/s were not measured in turns: they say what the run took, not "
        f"how the rules compare.\n\n{_commands([run['environment']['command'] for run in runs])}"
    )


# Test accuracy in %, the highest of the run, as the project's seed reports it.
SEED = {"seed-1-bp": 76.5, "seed-1-dgl": 77.6, "seed-1-dni": 65.6, "seed-1-cdni": 73.7}


def _beside_the_seed(runs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "The seed reports the highest test accuracy of any epoch; beside it here, and only here, "
        "the same.\n\n",
        "| run | seed | highest of any epoch | epoch | difference | last |\n",
        "|---|--:|--:|--:|--:|--:|\n",
    ]
    for run in runs:
        tested = [(100 * row["test_accuracy"], int(row["epoch"])) for row in run["metrics"]]
        highest, epoch = max(tested)
        then = SEED[run["run"]]
        lines.append(
            f"| {run['run']} | {then} | {highest:.2f} | {epoch} | {highest - then:+.1f} "
            f"| {tested[-1][0]:.2f} |\n"
        )
    return [*lines, "\n"]


def _data(results: list[dict[str, Any]]) -> str:
    lines = ["| augmentation | memory format | threads | images/s |", "|---|---|--:|--:|"]
    for r in results:
        kinds = ("flip", "crop", "resized_crop", "cutout")
        augment = [
            k if v is True else f"{k} {v}" for k, v in r["augment"].items() if k in kinds and v
        ]
        form = "channels_last" if r["channels_last"] else "contiguous"
        lines.append(
            f"| {', '.join(augment) or 'none'} | {form} | {r['threads']} | {r['images_per_s']:,} |"
        )
    shape = "x".join(map(str, results[0]["shape"]))
    return (
        "\n".join(lines)
        + f"\n\nImages of {shape}, batches of {results[0]['batch_size']}, {results[0]['cpu']}, "
        f"torch {results[0]['torch']}.\n\n{_commands([r['command'] for r in results])}"
    )


def _commands(commands: list[str]) -> str:
    return "\n".join(["```", *commands, "```\n"])


def main() -> None:
    text = page()
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text() != text:
            sys.exit(f"{PAGE.name} is not what benchmarks/results/ gives; run `make tables`")
        return
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
