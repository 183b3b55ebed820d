"""Published curves: runs are drawn over them and compared with them at equal steps."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from layerwise.errors import InputError, choices, reason
from layerwise.report.curves import COLOURS, PANELS, Rows, Write, factor_of, save

REFERENCES = resources.files("layerwise") / "references"
NEAR = 0.02  # an epoch stands for a published step that is at most this share of it away
NONE_NEAR = "no epoch of these runs ends within 2 % of a published step"


@dataclass(frozen=True)
class Distance:
    """A published point next to the epoch of a run at the same step.

    Attributes:
        run: the run's label.
        column: a column of metrics.csv.
        step: the published optimizer step.
        published: the published value; accuracies in %, losses in nats.
        measured: the run's, in the same unit.
    """

    run: str
    column: str
    step: int
    published: float
    measured: float

    @property
    def difference(self) -> float:
        """Measured minus published."""
        return self.measured - self.published


@dataclass(frozen=True)
class Reference:
    """Published curves, read from a JSON file:

        {"title": "...", "source": "...",
         "series": {"dgl": {"test_accuracy": [[196, 52.25], [392, 61.05]]}}}

    Attributes:
        title: what the curves are.
        source: where they were published.
        series: for each name, columns of metrics.csv and their points (optimizer step, value);
            accuracies in %, losses in nats.
    """

    title: str
    source: str
    series: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]

    @classmethod
    def read(cls, name: str) -> Reference:
        """Read a file, or one that comes with the library, by its name.

        Raises:
            InputError: there is no such file, or it does not have this form.
        """
        path = Path(name)
        known = reference_names()
        own = REFERENCES / f"{name}.json"
        if not os.path.exists(path) and name not in known:
            raise InputError(
                f"--reference {name}: no such file; of the library {choices(name, known)}"
            )
        try:
            text = (own if name in known else path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--reference {name}: cannot be read: {reason(error)}") from error
        try:
            found = json.loads(text)
            return cls(
                str(found["title"]),
                str(found["source"]),
                {
                    str(label): {column: _points(points) for column, points in columns.items()}
                    for label, columns in found["series"].items()
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f'--reference {name}: give JSON of the form {{"title": "...", "source": "...", '
                '"series": {"dgl": {"test_accuracy": [[196, 52.25], [392, 61.05]]}}}'
            ) from error

    def series_of(self, run: str) -> str | None:
        """The series of a run, or of several seeds: it has the run's name, or its beginning before
        a hyphen, as in `dgl-0`."""
        run = run.partition(" (seeds ")[0]
        fitting = [s for s in self.series if run == s or run.startswith(f"{s}-")]
        return max(fitting, key=len, default=None)

    def distances(self, runs: Mapping[str, Rows]) -> list[Distance]:
        """Every published point that a run has an epoch for, at most 2 % of the steps away.

        Args:
            runs: each run's label and rows of metrics.

        Raises:
            InputError: none of the runs belongs to a series, or has a column with a point in it.
        """
        names = {run: self.series_of(Path(run).name) for run in runs}
        if not any(names.values()):
            raise InputError(
                f"compare {' '.join(runs)} --reference: no series has the name of a run; call a "
                f"run like the series that it repeats, with --name; {choices('', self.series)}"
            )
        own = [self.series[name] for name in names.values() if name is not None]
        columns = {column for series in own for column, points in series.items() if points}
        known = {
            c for rows in runs.values() for row in rows for c, v in row.items() if v is not None
        }
        if not columns & known:
            lacks = f"no run has {', '.join(sorted(columns))}" if columns else "it has no points"
            raise InputError(
                f"compare {' '.join(runs)} --reference: {lacks}; "
                f"{choices(min(columns, default=''), known & PANELS.keys())}"
            )
        found = []
        for run, rows in runs.items():
            if (name := names[run]) is None:
                continue
            for column, points in self.series[name].items():
                for step, published in points:
                    row = min(rows, key=lambda r: abs((r.get("step") or 0) - step))
                    value = row.get(column)
                    if value is not None and abs((row.get("step") or 0) - step) <= NEAR * step:
                        measured = value * factor_of(column)
                        found.append(Distance(run, column, step, published, measured))
        return found

    def draw(self, runs: Mapping[str, Rows], write: Write) -> None:
        """Draw runs as lines over the published points of the same colour.

        Args:
            runs: each run's label and rows of metrics.
            write: writes a file, from its name and content.
        """
        names = {run: self.series_of(Path(run).name) for run in runs}
        columns = [
            (column, title)
            for column, title in PANELS.items()
            if any(column in self.series[name] for name in names.values() if name is not None)
        ]
        if not columns:
            return
        figure = Figure(figsize=(6.5 * len(columns), 4.8), layout="constrained")
        last = max(row.get("step") or 0 for rows in runs.values() for row in rows)
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, (column, title) in zip(panels, columns, strict=True):
            for k, (run, name) in enumerate(names.items()):
                colour, factor = COLOURS[k % len(COLOURS)], factor_of(column)
                ours = [
                    (row["step"], factor * value)
                    for row in runs[run]
                    if (value := row.get(column)) is not None
                ]
                if ours:
                    marker = "." if len(ours) == 1 else None
                    axes.plot(*zip(*ours, strict=True), color=colour, label=run, marker=marker)
                points = self.series.get(name or "", {}).get(column, [])
                shown = [(step, value) for step, value in points if step <= 1.05 * last]
                if shown:
                    axes.plot(
                        *zip(*shown, strict=True),
                        "o",
                        color=colour,
                        fillstyle="none",
                        label=f"{name}, published",
                    )
            axes.set_ylabel(title, fontsize=9)
            axes.set_xlabel("optimizer step", fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            axes.grid(alpha=0.25)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8)
        save(figure, "reference", write)


def reference_names() -> list[str]:
    """Names of the references that come with the library."""
    return sorted(f.name.removesuffix(".json") for f in REFERENCES.iterdir() if ".json" in f.name)


def rows_of(distances: Sequence[Distance]) -> list[dict[str, str]]:
    """Distances as text, by column."""
    return [
        {
            "run": d.run,
            "measure": PANELS.get(d.column, d.column),
            "step": f"{d.step:,}",
            "published": f"{d.published:.2f}",
            "measured": f"{d.measured:.2f}",
            "difference": f"{d.difference:+.2f}",
        }
        for d in distances
    ]


def _points(points: Any) -> list[tuple[int, float]]:
    """Checked points.

    Raises:
        ValueError: a value that is no number.
    """
    found = [(int(step), float(value)) for step, value in points]
    if not all(math.isfinite(value) for _, value in found):
        raise ValueError("not a finite number")
    return found
