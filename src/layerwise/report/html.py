"""One page about runs, in a single HTML file without scripts: table, curves, blocks, options."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from layerwise.report.curves import COLOURS, PANELS, SPREAD, Rows, block_label, factor_of
from layerwise.runs.run import Run

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 260, 52, 34, 12  # pixels of a panel and its margins
MOST_PICTURES = 12  # of a run
STYLE = """
:root { color-scheme: light dark; --line: #8886; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .8rem .25rem 0; text-align: left;
  vertical-align: top; } td + td, th + th { text-align: right; }
.panels { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; }
figcaption { font-size: .9rem; } svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; font-size: 11px; } .grid { stroke: var(--line); }
.legend span { white-space: nowrap; margin-right: 1.2rem; }
.legend i { display: inline-block; width: 1.6rem; height: .3rem; margin-right: .4rem;
  vertical-align: middle; }
img { max-width: 100%; }
"""


def page(
    title: str,
    cells: Sequence[Mapping[str, str]],
    metrics: Mapping[str, Rows],
    runs: Sequence[Run],
    names: Mapping[str, Sequence[str]],
) -> str:
    """The page.

    Args:
        title: its heading.
        cells: the columns of the table, one per run or experiment: value by name; the first is the
            column's name.
        metrics: rows of metrics.csv, or their means, by label.
        runs: the run folders, for pictures and options.
        names: of the blocks, by label.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<h2>Results</h2>",
        _table(cells),
        "<h2>Curves</h2>",
        "<p>Point at a mark to read its value.</p>",
        _legend(metrics),
        _panels(metrics),
        "<h2>Blocks</h2>",
        *(_blocks(label, rows, names.get(label)) for label, rows in metrics.items()),
    ]
    if differences := _differences(runs):
        parts += ["<h2>Options that differ</h2>", _table(differences)]
    if pictures := [part for run in runs for part in _pictures(run)]:
        parts += ["<h2>Pictures</h2>", *pictures]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )


def _table(columns: Sequence[Mapping[str, str]]) -> str:
    """A table with a row for each name."""
    rows = []
    for k, name in enumerate(columns[0]):
        tag = "th" if k == 0 else "td"
        values = "".join(f"<{tag}>{escape(column[name])}</{tag}>" for column in columns)
        rows.append(f"<tr><{tag}>{escape(name)}</{tag}>{values}</tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _legend(metrics: Mapping[str, Rows]) -> str:
    names = "".join(
        f'<span><i style="background: {_colour(k)}"></i>{escape(label)}</span>'
        for k, label in enumerate(metrics)
    )
    return f'<p class="legend">{names}</p>'


def _panels(metrics: Mapping[str, Rows]) -> str:
    figures = []
    for column, title in PANELS.items():
        lines = {label: _points(rows, column) for label, rows in metrics.items()}
        if any(lines.values()):
            figures.append(figure(title, lines))
    return f'<div class="panels">{"".join(figures)}</div>'


def _blocks(label: str, rows: Rows, names: Sequence[str] | None) -> str:
    """Curves of every block's test accuracy, and its last values."""
    prefix = "test_accuracy_block"
    numbers = sorted(int(k.removeprefix(prefix)) for k in rows[0] if k.startswith(prefix))
    lines = {block_label(k, names): _points(rows, f"{prefix}{k}") for k in numbers}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return f"<h3>{escape(label)}</h3><p>No block predicts.</p>"
    last = [
        {"block": name.removeprefix("block "), "test accuracy, %": f"{points[-1][1]:.2f}"}
        for name, points in lines.items()
    ]
    chart = figure("test accuracy of every block, %", lines)
    return (
        f"<h3>{escape(label)}</h3>{_legend(dict.fromkeys(lines, ()))}"
        f'<div class="panels">{chart}{_table(last)}</div>'
    )


Point = tuple[float, float, float | None]  # epoch, value, standard deviation over seeds


def _points(rows: Rows, column: str) -> list[Point]:
    found: list[Point] = []
    factor = factor_of(column)
    for row in rows:
        value, spread = row.get(column), row.get(f"{SPREAD}{column}")
        if value is not None and math.isfinite(value):
            scaled = None if spread is None else factor * spread
            found.append((row["epoch"] or 0, factor * value, scaled))
    return found


def figure(title: str, lines: Mapping[str, Sequence[Point]]) -> str:
    """A panel as SVG: lines with marks that tell their values, and bands of one standard
    deviation.

    Args:
        title: of the panel.
        lines: points by label.
    """
    every = [point for points in lines.values() for point in points]
    spreads = [(value - (s or 0), value + (s or 0)) for _, value, s in every]
    low, high = min(a for a, _ in spreads), max(b for _, b in spreads)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = min(x for x, *_ in every), max(x for x, *_ in every)

    def at(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - 10) * (x - first) / max(1e-9, last - first)
        up = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (y - low) / max(1e-9, high - low)
        return f"{across:.1f},{up:.1f}"

    drawn = []
    for tick in ticks:
        y = at(first, tick).partition(",")[2]
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y}" y2="{y}"/>')
        drawn.append(
            f'<text x="{LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for x in range(round(first), round(last) + 1, max(1, math.ceil((last - first) / 6))):
        across = at(x, low).partition(",")[0]
        drawn.append(f'<text x="{across}" y="{HEIGHT - 16}" text-anchor="middle">{x:g}</text>')
    drawn.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 2}" text-anchor="middle">epoch</text>')
    for k, (label, points) in enumerate(lines.items()):
        colour = _colour(k)
        band = [(x, value, s) for x, value, s in points if s is not None]
        if len(band) > 1:
            upper = [at(x, value + s) for x, value, s in band]
            lower = [at(x, value - s) for x, value, s in reversed(band)]
            outline = " ".join([*upper, *lower])
            drawn.append(f'<polygon points="{outline}" fill="{colour}" opacity=".18"/>')
        path = " ".join(at(x, value) for x, value, _ in points)
        drawn.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
        )
        for x, value, s in points:
            across, up = at(x, value).split(",")
            said = f"{label}, epoch {x:g}: {value:.4g}" + ("" if s is None else f" ± {s:.2g}")
            drawn.append(
                f'<circle cx="{across}" cy="{up}" r="3.5" fill="{colour}"><title>{escape(said)}'
                "</title></circle>"
            )
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="{escape(title)}">{"".join(drawn)}</svg>'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that cover an interval."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    count = math.floor(high / step) - math.ceil(low / step) + 1
    return [round((math.ceil(low / step) + k) * step, 10) for k in range(count)] or [low, high]


def _differences(runs: Sequence[Run]) -> list[dict[str, str]]:
    """A column for each run with the options in which the runs differ; empty if there are none."""
    flat = [dict(_flattened(run.config)) for run in runs]
    keys = dict.fromkeys(key for options in flat for key in options)
    differing = [k for k in keys if len({str(options.get(k, "-")) for options in flat}) > 1]
    if not differing:
        return []
    return [
        {"option": run.path.name, **{key: str(options.get(key, "-")) for key in differing}}
        for run, options in zip(runs, flat, strict=True)
    ]


def _flattened(options: Mapping[str, Any], key: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in options.items():
        path = f"{key}.{name}" if key else str(name)
        found += _flattened(value, path) if isinstance(value, Mapping) else [(path, value)]
    return found


def _pictures(run: Run) -> list[str]:
    """The pictures of a run's last epoch: `epoch-005-filters.png` and so on."""
    every = sorted((run.path / "pictures").glob("epoch-*.png"))
    if not every:
        return []
    epoch = every[-1].stem.split("-")[1]
    shown = [path for path in every if path.stem.split("-")[1] == epoch][:MOST_PICTURES]
    images = "".join(
        f"<figure>{_image(path)}<figcaption>{escape(path.stem)}</figcaption></figure>"
        for path in shown
    )
    return [f'<h3>{escape(run.path.name)}</h3><div class="panels">{images}</div>']


def _image(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{content}">'


def _colour(k: int) -> str:
    return COLOURS[k % len(COLOURS)]
