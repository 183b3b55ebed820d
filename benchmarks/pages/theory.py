"""docs/theory.md: claims of papers on the theory of learning, in small (benchmarks/theory.py)."""

from __future__ import annotations

from typing import Any

from pages import parts
from pages.spread import mean

PAGE = parts.path("theory")


def page() -> str:
    """The document."""
    return parts.page("theory", TABLES)


def _accuracy(row: dict[str, Any]) -> str:
    return mean([100 * epochs[-1] for epochs in row["accuracy"]], 1)


# Name of a row -> words for what is trained on what, and what the paper has.
LEARNERS = {
    "biased": ("a hidden layer; 5 of 128 bits, P(1) = 0.6", "94, 100 after 20,000"),
    "uniform, 128 bits": ("the same; P(1) = 0.5", "47, 50 after 20,000"),
    "mixture": ("a hidden layer; 5 of 64 bits, half of the samples reveal them", "learned"),
    "mixture, linear": ("a linear model; the same", "not learned"),
    "mixture, fixed": ("a linear model of 512 random ReLU features; the same", "not learned"),
    "uniform, 64 bits": ("a hidden layer; 5 of 64 uniform bits", "not learned"),
    "digits": ("a hidden layer of 512; three digits", ""),
    "digits, linear": ("a linear model of the pixels; the same", ""),
    "digits, fixed": ("a linear model of 512 random ReLU features; the same", ""),
}


def _learners(rows: list[dict[str, Any]]) -> str:
    return parts.table(
        ["learner and data", "steps", "test accuracy of each seed, %", "paper"],
        [
            [
                LEARNERS[row["name"]][0],
                f"{row['steps'] * done:,.0f}",
                cell,
                LEARNERS[row["name"]][1],
            ]
            for row in rows
            for done in ((2 / 3, 1) if row["recipe"] == "parity-biased" else (1,))
            for cell in [
                ", ".join(f"{100 * _after(epochs, done):.1f}" for epochs in row["accuracy"])
            ]
        ],
    )


def _after(epochs: list[float], done: float) -> float:
    """The accuracy when a part of the training is done."""
    return epochs[round(len(epochs) * done) - 1]


def _circuits(rows: list[dict[str, Any]]) -> str:
    kinds = [run["name"].removeprefix(f"{rows[0]['name']}, ") for run in rows[0]["runs"]]
    return parts.table(
        ["gates", "weakest correlation", "larger class, %", *(f"{kind}, %" for kind in kinds)],
        [
            [
                row["name"],
                f"{row['weakest']:.3f}",
                f"{100 * row['majority']:.1f}",
                *map(_accuracy, row["runs"]),
            ]
            for row in rows
        ],
    )


def _variance(rows: list[dict[str, Any]]) -> str:
    return parts.table(
        ["bits", "all, uniform", "3 bits, uniform", "3 bits, P(1) = 0.6", "3 bits, mixture"],
        [
            [str(row["bits"])]
            + [f"{row[key]:.4f}" for key in ("all", "uniform", "biased", "mixture")]
            for row in rows
        ],
    )


def _views(rows: list[dict[str, Any]]) -> str:
    labels = [probe["labels"] for probe in rows[0]["probes"]]
    return parts.table(
        [
            "dependence",
            "features",
            "knee",
            "effective rank",
            *(f"{count} labels" for count in labels),
        ],
        [
            [
                f"{row['dependence']}" if kind == "raw" else "",
                "the view itself" if kind == "raw" else "learned without labels",
                "" if kind == "raw" else str(row["knee"]),
                "" if kind == "raw" else f"{row['rank']:.1f}",
                *(mean([100 * a for a in probe[kind]], 1) for probe in row["probes"]),
            ]
            for row in rows
            for kind in ("raw", "learned")
        ],
    )


TABLES: dict[str, parts.Table] = {
    "parity": _learners,
    "digits": _learners,
    "circuits": _circuits,
    "variance": _variance,
    "views": _views,
}
