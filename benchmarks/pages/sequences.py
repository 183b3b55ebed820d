"""Section of docs/results.md: recurrent networks (benchmarks/sequences.py)."""

from __future__ import annotations

import statistics
from typing import Any

from pages.files import commands, machines, result
from pages.spread import mean

Row = dict[str, Any]
WHOLE = "whole sequences"
# Of each task: the title, what it is, and what is solved.
TASKS = {
    "copy": (
        "The longest sequence copied",
        "An LSTM with {width} units reads N random symbols and writes them down again. N grows by "
        "one when the mean error of {batches} batches is below {bits} bits per symbol (the "
        "protocol of Jaderberg et al. 2017).",
        "N solved",
    ),
    "repeat-copy": (
        "The longest sequence copied repeatedly",
        "The same, but the symbols are written down as often as a number after them says, at most "
        "R times, and then an end. N and R grow by one in turn, N first.",
        "N x R solved",
    ),
}


def section() -> list[str]:
    """The longest sequence copied, and how well synthetic gradients are predicted."""
    found = result("sequences")
    return ["## Sequences\n", *(_longest(found, task) for task in TASKS), _predicted(found)]


def chosen(window: int | None, synthetic: bool, task: str = "copy") -> list[Row]:
    """The trainings of a row with the learning rate that solves the most stages; among equal ones,
    the rate that solved them earlier."""
    of_rates: dict[float, list[Row]] = {}
    for row in result("sequences")["rows"]:
        of_row = row["task"], row["window"], row["synthetic"] > 0
        if of_row == (task, window, synthetic):
            of_rates.setdefault(row["rate"], []).append(row)
    return max(of_rates.values(), key=_score, default=[])


def written(row: Row) -> int:
    """The symbols that the longest sequence solved writes: N, or N R."""
    return row["solved"] * (row["repeats"] or 1)


def _score(rows: list[Row]) -> tuple[float, float]:
    earlier = [-row["solved_at"][-1] if row["solved_at"] else -float("inf") for row in rows]
    return statistics.mean(len(row["solved_at"]) for row in rows), statistics.mean(earlier)


def looks(synthetic: float) -> list[list[Row]]:
    """What was observed with a factor of the synthetic gradient: of every seed, every look."""
    rows = result("sequences")["observed"]
    return [row["looks"] for row in rows if row["synthetic"] == synthetic]


def _longest(found: Row, task: str) -> str:
    budget = found["budget"]
    rates = " and ".join(f"{rate:g}" for rate in budget["rates"])
    title, about, solved = TASKS[task]
    lines = [
        f"### {title}\n",
        about.format(**budget),
        f"Every row sees {budget['time_steps']:,} time steps of {budget['batch_size']} sequences, "
        f"one optimizer step for every batch. Learning rates tried for every row (Adam): {rates}; "
        f"those of synthesizers are {budget['faster']:g} times as high.\n",
        f"| steps T of backpropagation through time | truncated: {solved} | learning rate "
        f"| CPU time, s | synthetic gradients (factor {budget['synthetic']:g}): {solved} "
        "| learning rate | CPU time, s |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    windows = {row["window"] for row in found["rows"]}
    for window in sorted(windows, key=lambda window: window or float("inf")):
        cells = [WHOLE if window is None else str(window)]
        for synthetic in (False, True):
            rows = chosen(window, synthetic, task)
            cells.append(_cell([written(row) for row in rows], 1))
            cells.append(f"{rows[0]['rate']:g}" if rows else "")
            cells.append(_cell([row["cpu_s"] for row in rows], 0))
        lines.append(f"| {' | '.join(cells)} |")
    return (
        "\n".join(lines)
        + f"\n\nMeans ± standard deviations over {len(found['seeds'])} seeds, with the better "
        "learning rate; a cell without a deviation is one seed, and an empty one is not measured. "
        "Whole sequences are what perfect synthetic gradients would give. "
        f"{machines([found])}.\n"
    )


def _predicted(found: Row) -> str:
    fixed = found["fixed"]
    lines = [
        "### How well synthetic gradients are predicted\n",
        f"Sequences of {fixed['length']} symbols in windows of {fixed['window']} steps; learning "
        f"rate {fixed['rate']:g}, that of synthesizers {found['budget']['faster']:g} times as "
        "high. *Explained* is the share of the true gradient's mean square, at the end of the "
        "first window, that the synthesizer explains: 1 if it is right, 0 if it predicts nothing, "
        "below 0 if it is worse than nothing.\n",
        "| factor of the synthetic gradient | step | error, bits per symbol | explained | cosine "
        "with the true gradient |",
        "|---|--:|--:|--:|--:|",
    ]
    for synthetic in fixed["synthetic"]:
        name = "observed only" if synthetic < 1e-3 else f"{synthetic:g}"
        for at in list(zip(*looks(synthetic), strict=True))[1::2]:
            cells = [_cell([look[key] for look in at], 2) for key in KEYS]
            lines.append(f"| {name} | {at[0]['step']} | {' | '.join(cells)} |")
    return (
        "\n".join(lines)
        + f"\n\nMeans ± standard deviations over {len(found['seeds'])} seeds; the error is that of "
        "the steps since the look before.\n\n" + commands([found["command"]])
    )


KEYS = ("bits", "explained", "cosine")


def _cell(found: list[float], places: int) -> str:
    return mean(found, places) if found else ""
