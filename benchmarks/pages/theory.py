"""docs/theory.md, docs/patches.md and docs/modalities.md: claims of papers, in small.

The measurements are those of benchmarks/theory.py, patches.py and modalities.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pages.files import RESULTS, ROOT, commands, result
from pages.spread import mean


def pages() -> dict[Path, str]:
    """The documents: their stories, with the table of a result where they say `[[RESULT]]`."""
    docs = ROOT / "docs"
    names = ("theory.md", "patches.md", "modalities.md")
    return {docs / name: _filled((docs / "stories" / name).read_text()) for name in names}


def _filled(text: str) -> str:
    for name, table in TABLES.items():
        shown = "Not measured yet."
        if (RESULTS / f"{name}.json").exists():
            found = result(name)
            of = f"{found['data']}, " if "data" in found else ""
            about = f"{of}{found['cpu']}, torch {found['torch']}."
            shown = f"{table(found['rows'])}\n\n{about}\n\n{commands([found['command']])}".rstrip()
        text = text.replace(f"[[{name}]]", shown)
    return text


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    return _table(
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
    return _table(
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
    return _table(
        ["bits", "all, uniform", "3 bits, uniform", "3 bits, P(1) = 0.6", "3 bits, mixture"],
        [
            [str(row["bits"])]
            + [f"{row[key]:.4f}" for key in ("all", "uniform", "biased", "mixture")]
            for row in rows
        ],
    )


def _views(rows: list[dict[str, Any]]) -> str:
    labels = [probe["labels"] for probe in rows[0]["probes"]]
    return _table(
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


def _cantor(rows: list[dict[str, Any]]) -> str:
    return _table(
        ["fine", *(f"{run['name']}, %" for run in rows[0]["runs"])],
        [[str(row["fine"]), *map(_accuracy, row["runs"])] for row in rows],
    )


def _synthetic(rows: list[dict[str, Any]]) -> str:
    kinds = ("Backprop", "DNI")
    words = {"Backprop": "backpropagation", "DNI": "synthetic gradients"}
    return _table(
        ["data", "features", "loss", *words.values(), "true gradient at the end of the latter"],
        [
            [
                row["data"],
                str(row["features"]),
                row["criterion"],
                *(f"{row[kind]['loss']:.4f}" for kind in kinds),
                f"{row['DNI']['gradient']:.1e}",
            ]
            for row in rows
        ],
    )


def _similarity(rows: list[dict[str, Any]]) -> str:
    return _table(
        ["rule", "initial weights", *rows[0]["layers"], "test accuracy, %"],
        [
            [
                f"`{row['name']}`",
                weights,
                *(mean(layer, 2) for layer in zip(*row["cka"][weights], strict=True)),
                mean([100 * accuracy for accuracy in row["accuracy"]], 1),
            ]
            for weights in ("same", "other")
            for row in rows
            if weights == "other" or row["name"] != "Backprop"
        ],
    )


def _spectrum(rows: list[dict[str, Any]]) -> str:
    shares = list(rows[0]["held"])
    return _table(
        ["side of a patch", "directions", *(f"{float(share):.0%}" for share in shares)],
        [
            [str(row["size"]), str(row["directions"]), *(str(row["held"][s]) for s in shares)]
            for row in rows
        ],
    )


def _patches(rows: list[dict[str, Any]]) -> str:
    papers = {"512": "78.4", "1024": "80.3"}
    with_paper = rows[0]["name"] in papers
    return _table(
        ["network", "epochs", "test accuracy, %", *(["paper, 80 epochs"] if with_paper else [])],
        [
            [
                row["name"],
                str(row["epochs"]),
                f"{100 * row['accuracy'][-1]:.1f}",
                *([papers[row["name"]]] if with_paper else []),
            ]
            for row in rows
        ],
    )


def _modalities(rows: list[dict[str, Any]]) -> str:
    tasks = {
        "view": ("pixels, PSNR in dB", 1, 2),
        "clicks": ("clicks, AUC in %", 100, 2),
        "graph": ("graph, accuracy in %", 100, 1),
    }
    found = {row["task"]: row["scores"] for row in rows}
    return _table(
        ["rule", *(tasks[task][0] for task in found)],
        [
            [f"`{rule}`"]
            + [
                mean([tasks[task][1] * score for score in scores[rule]["test"]], tasks[task][2])
                for task, scores in found.items()
            ]
            for rule in rows[0]["scores"]
        ],
    )


TABLES: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "theory-parity": _learners,
    "theory-digits": _learners,
    "theory-circuits": _circuits,
    "theory-variance": _variance,
    "theory-views": _views,
    "theory-cantor": _cantor,
    "theory-synthetic": _synthetic,
    "theory-similarity": _similarity,
    "patches-spectrum": _spectrum,
    "patches-ablation": _patches,
    "patches-stacked": _patches,
    "patches-whole": _patches,
    "modalities": _modalities,
}
