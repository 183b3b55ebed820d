"""Runs side by side, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from layerwise.cost import Costs
from layerwise.errors import InputError
from layerwise.run import Run

COLUMNS = (
    "run",
    "data",
    "model",
    "rule",
    "blocks",
    "epochs",
    "test, best on validation",
    "test, last",
    "train, last",
    "parameters",
    "heads' parameters",
    "heads' FLOPs",
    "images/s",
)


@dataclass(frozen=True)
class Summary:
    """One run in a line. Accuracies are shares; FLOPs of heads relative to the network's."""

    run: str
    data: str
    model: str
    rule: str
    blocks: int
    epochs: int
    selected_epoch: int | None
    test_selected: float | None
    test_last: float | None
    train_last: float | None
    parameters: int
    head_parameters: int
    head_flops_ratio: float
    images_per_s: float

    @classmethod
    def of(cls, run: Run) -> Summary:
        """Summarise a run; the selected epoch is the best on validation, never on test.

        Raises:
            InputError: no epoch is finished yet.
        """
        rows, config = run.metrics(), run.config
        if not rows:
            raise InputError(f"run {run.path}: no epoch is finished yet; let it train first")
        try:
            costs = Costs.from_json((run.path / "cost.json").read_text())
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"run {run.path}: cost.json cannot be read: {error}") from error
        validated = [r for r in rows if r.get("validation_accuracy") is not None]
        best = max(validated, key=lambda r: r["validation_accuracy"] or 0) if validated else None
        speeds = sorted(r["images_per_s"] or 0.0 for r in rows)
        return cls(
            run=run.path.name,
            data=str(config["data"]["name"]),
            model=_named(config["model"]),
            rule=_named(config["rule"]),
            blocks=len(costs.blocks),
            epochs=len(rows),
            selected_epoch=None if best is None else int(best["epoch"] or 0),
            test_selected=None if best is None else best.get("test_accuracy"),
            test_last=rows[-1].get("test_accuracy"),
            train_last=rows[-1].get("train_accuracy"),
            parameters=costs.parameters,
            head_parameters=costs.head_parameters,
            head_flops_ratio=costs.head_flops / max(1, costs.flops),
            images_per_s=speeds[len(speeds) // 2],
        )

    def cells(self) -> tuple[str, ...]:
        """Text in the order of COLUMNS."""
        selected = _percent(self.test_selected)
        if self.selected_epoch is not None:
            selected += f" (epoch {self.selected_epoch})"
        return (
            self.run,
            self.data,
            self.model,
            self.rule,
            str(self.blocks),
            str(self.epochs),
            selected,
            _percent(self.test_last),
            _percent(self.train_last),
            f"{self.parameters:,}",
            f"{self.head_parameters:,}",
            f"{100 * self.head_flops_ratio:.1f}%",
            f"{self.images_per_s:,.0f}",
        )


def table(summaries: Sequence[Summary]) -> Table:
    """For a terminal."""
    made = Table(title="accuracies in %")
    for k, column in enumerate(COLUMNS):
        made.add_column(column, justify="left" if k < 4 else "right", overflow="fold")
    for summary in summaries:
        made.add_row(*summary.cells())
    return made


def markdown(summaries: Sequence[Summary]) -> str:
    """For a document."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *(s.cells() for s in summaries)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _named(specification: dict[str, Any]) -> str:
    """`{name: DGL, head: {name: MLP, width: 64, ...}}` -> "DGL(MLP)"."""
    inner = [_named(v) for v in specification.values() if isinstance(v, dict) and "name" in v]
    shown = [f"{k}={v}" for k, v in specification.items() if k in ("width", "channels", "arch")]
    if specification.get("checkpoint"):
        shown.append("checkpoint")
    within = ", ".join([*inner, *shown])
    return f"{specification['name']}({within})" if within else str(specification["name"])
