"""What `layerwise evaluate --exits true` prints."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from layerwise.experiment.early_exits import EarlyExits
from layerwise.report.console import output


def print_exits(found: EarlyExits) -> None:
    """Print accuracy and cost of each threshold, and how far the exits agree."""
    evaluation = found.evaluation
    unit = "token" if evaluation.loader.tokens else "image"
    names = [f"{k} {evaluation.names[k]}" for k in found.predictions.blocks]
    output.print(_thresholds(found, unit))
    output.print(_agreement(found, names))
    for line in _sentences(found, unit):
        output.print(line, soft_wrap=True, markup=False)


def _thresholds(found: EarlyExits, unit: str) -> Table:
    costs = f"MFLOPs per {unit}, and the " if found.flops else ""
    table = Table(
        title=f"every {unit} leaves at the first exit that is sure: {costs}share at each exit"
    )
    columns = ["threshold", "accuracy, %", *(["MFLOPs"] if found.flops else [])]
    for column in [*columns, *(f"at {k}, %" for k in found.predictions.blocks)]:
        table.add_column(column, justify="right")
    for row in found.result["thresholds"]:
        table.add_row(
            f"{row['threshold']:g}",
            f"{100 * row['accuracy']:.2f}",
            *([f"{row['flops'] / 1e6:,.3f}"] if found.flops else []),
            *(f"{100 * share:.1f}" for share in row["shares"]),
        )
    return table


def _agreement(found: EarlyExits, names: list[str]) -> Table:
    table = Table(title="exits: temperature, and how often they predict the same class")
    table.add_column("block")
    for column in ("temperature", *(f"as {k}, %" for k in found.predictions.blocks)):
        table.add_column(column, justify="right")
    result = found.result
    rows = zip(names, result["temperatures"], result["agreement"], strict=True)
    for name, temperature, shares in rows:
        table.add_row(name, f"{temperature:.3f}", *(f"{100 * share:.1f}" for share in shares))
    return table


def _sentences(found: EarlyExits, unit: str) -> list[str]:
    result, about = found.result, found.result["agree"]
    if not found.fitted:
        said = "temperatures are 1, not calibrated: the run has no validation split to fit them on"
    elif result["split"] == "validation":
        said = "temperatures were fitted on the validation split, which is also measured here"
    else:
        said = "temperatures were fitted on the validation split"
    last = {
        key: f"{100 * about[key][-1]:.2f} %" if about[key] else "none"
        for key in ("accuracy", "accuracy_otherwise")
    }
    lines = [
        said,
        f"all exits agree on {100 * about['share']:.1f} % of the {unit}s; accuracy of the last "
        f"exit on these: {last['accuracy']}, on the others: {last['accuracy_otherwise']}",
    ]
    if (over := result["over_epochs"]) is not None:
        right, kept = map(_shares, (over, over["unforgettable"]))
        lines.append(
            f"during the training these were right after {right['agree']} of the epochs, and the "
            f"others after {right['otherwise']}; once right, never wrong again: {kept['agree']} of "
            f"these, {kept['otherwise']} of the others"
        )
    return lines


def _shares(of: Mapping[str, float | None]) -> dict[str, str]:
    parts = {key: of[key] for key in ("agree", "otherwise")}
    return {k: "none" if share is None else f"{100 * share:.1f} %" for k, share in parts.items()}
