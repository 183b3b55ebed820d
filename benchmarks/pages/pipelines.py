"""docs/pipelines.md: claims of papers on few labels, in small (benchmarks/pipelines.py)."""

from __future__ import annotations

from typing import Any

from pages import parts
from pages.spread import mean

PAGE = parts.path("pipelines")


def page() -> str:
    """The document."""
    return parts.page("pipelines", TABLES)


def _cell(found: list[float] | None) -> str:
    return "" if found is None else mean([100 * a for a in found], 1)


def _labels(rows: list[dict[str, Any]]) -> str:
    shares = list(rows[0]["labels"])
    lines = []
    for row in rows:
        for kind, name in (("untrained", "from the start"), ("pretrained", "after SimCLR")):
            cells = [_cell(row[kind][share]) for share in shares]
            lines.append([f"{row['width']} channels" if kind == "untrained" else "", name, *cells])
        both = [zip(row["pretrained"][s], row["untrained"][s], strict=True) for s in shares]
        lines.append(["", "gain, points", *(_cell([a - b for a, b in pair]) for pair in both)])
    counts = [f"{count:,} labels" for count in rows[0]["labels"].values()]
    return parts.table(["network", "fine-tuned", *counts], lines)


def _distill(rows: list[dict[str, Any]]) -> str:
    students = [key for key in rows[0] if key.startswith("student")]
    heads = ["labels", "teacher, %", *(f"student, {s.split()[1]} channels, %" for s in students)]
    return parts.table(
        heads,
        [
            [f"{100 * row['share']:g} %", _cell(row["teacher"]), *(_cell(row[s]) for s in students)]
            for row in rows
        ],
    )


def _choices(rows: list[dict[str, Any]]) -> str:
    return parts.table(
        ["SimCLR with", "linear probe, %"],
        [[row["name"], _cell(row["trained"]["1"])] for row in rows],
    )


PUBLISHED = {
    "blockwise Barlow Twins": "70.5; end to end 71.6 (ImageNet, ResNet-50 of four blocks)",
    "CLAPP++ without direct feedback": "80.5; end to end 80.5 (CIFAR-10, VGG)",
    "CLAPP": "73.6 (STL-10, VGG)",
}


def _objectives(rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            row["name"] if kind == "trained" else f"untrained network of {row['name']}",
            *(_cell(row[kind][share]) for share in ("0.01", "1")),
            PUBLISHED.get(row["name"], "") if kind == "trained" else "",
        ]
        for row in rows
        for kind in ("trained", "untrained")
        if kind in row
    ]
    return parts.table(["objective", "20 labels, %", "2,000 labels, %", "paper"], lines)


TABLES: dict[str, parts.Table] = {
    "pipelines-labels": _labels,
    "pipelines-distill": _distill,
    "pipelines-choices": _choices,
    "pipelines-objectives": _objectives,
}
