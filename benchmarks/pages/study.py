"""docs/original-study.md: the original study's experiments, run again, next to its own curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from layerwise.report.reference import NEAR, Distance, Reference
from pages import parts
from pages.figures import inserted
from pages.files import RESULTS, commands, machines, result

PAGE = parts.path("original-study")
EPOCHS = (1, 2, 3, 5, 10, 20)  # of the study, whose points are at their ends


def page() -> str:
    """The document: the story, with a section of each series where it says `[[N]]`."""
    text = inserted(parts.page("original-study", {}))
    for number in ("1", "2", "3"):
        text = text.replace(f"[[{number}]]", _section(number))
    return text


def pictures(write: Callable[[str, bytes], None]) -> None:
    """Draw each series of experiments that has runs, as SVG.

    Args:
        write: writes a file, from its name and content.
    """
    for number in ("1", "2", "3"):
        runs = _runs(number)

        def write_one(name: str, content: bytes, number: str = number) -> None:
            if name.endswith(".svg"):
                write(f"original-study-{number}.svg", content)

        if runs:
            metrics = {run["run"]: run["metrics"] for run in runs}
            Reference.read(f"original-{number}").draw(metrics, write_one)


def _runs(number: str) -> list[Mapping[str, Any]]:
    """The runs of a series of experiments; some are ours and have no published curve."""
    if not (RESULTS / f"accuracy-original-{number}.json").exists():
        return []
    return result(f"accuracy-original-{number}")["runs"]


def _section(number: str) -> str:
    reference, runs = Reference.read(f"original-{number}"), _runs(number)
    trained = {reference.series_of(run["run"]) for run in runs}
    missing = [name for name in reference.series if name not in trained]
    lines = []
    if runs:
        lines += [f"![Test accuracy over steps](original-study-{number}.svg)", ""]
        lines += [*_table(number, reference, runs), "", _about(runs)]
    if missing:
        names = ", ".join(f"`{name}`" for name in missing)
        lines += ["", f"Published, and not trained here yet: {names}."]
    return "\n".join(lines)


def _table(number: str, reference: Reference, runs: list[Mapping[str, Any]]) -> list[str]:
    """Test accuracy at the steps of some epochs: measured, and the distance to the study's."""
    distances = reference.distances({run["run"]: run["metrics"] for run in runs})
    found = {(d.run, d.step): d for d in distances if d.column == "test_accuracy"}
    first = min(points[0][0] for of in reference.series.values() for points in of.values())
    every = {
        step: [_cell(found.get((run["run"], step)), run["metrics"], step) for run in runs]
        for step in (first * epoch for epoch in EPOCHS)
    }
    columns = {step: cells for step, cells in every.items() if any(cells)}
    lines = [
        "Test accuracy in %, and in brackets the distance to the study's at the same step, in "
        f"points. An epoch of the study has {first} steps.\n",
        "| run | " + " | ".join(f"step {step:,}" for step in columns) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    for k, run in enumerate(runs):
        cells = [of_runs[k] for of_runs in columns.values()]
        lines.append(f"| `{run['run']}` | {' | '.join(cells)} |")
    return lines


def _cell(distance: Distance | None, rows: list[Mapping[str, Any]], step: int) -> str:
    """The accuracy at a step; without a published one, that of the epoch nearest to the step."""
    if distance is not None:
        return f"{distance.measured:.1f} ({distance.difference:+.1f})"
    row = min(rows, key=lambda row: abs(row["step"] - step))
    return f"{100 * row['test_accuracy']:.1f}" if abs(row["step"] - step) <= NEAR * step else ""


def _about(runs: list[Mapping[str, Any]]) -> str:
    made = [run["environment"] for run in runs]
    settings = dict.fromkeys(
        f"{run['config']['precision']}, {run['config']['data']['name']}" for run in runs
    )
    seeds = [f"`{run['run']}`: {s}" for run in runs if (s := run["config"]["seed"])]
    text = f"{'; '.join(['Seed 0', *seeds, *settings])}. {machines(made)}."
    return f"{text}\n\n{commands([m['command'] for m in made])}"
