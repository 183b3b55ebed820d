"""Tables and curves that compare runs."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from layerwise.costs.blocks import Costs
from layerwise.errors import InputError, reason
from layerwise.report.curves import Rows, block_names, draw_blocks, draw_runs, means
from layerwise.report.html import page
from layerwise.report.reference import NONE_NEAR, Distance, Reference, rows_of
from layerwise.runs.files import claim_numbered, write_atomically
from layerwise.runs.metrics import selected_by
from layerwise.runs.run import MADE_BY, Run

DIFFER = ("run", "seed", "images/s")  # columns in which the seeds of one experiment differ


@dataclass(frozen=True)
class Summary:
    """The summary of one run.

    Attributes:
        run: name of the folder.
        data: the data set and its augmentation.
        model: the network and its options.
        rule: the rule and its options.
        blocks: number of blocks.
        epochs: number of finished epochs.
        precision: in which autocast computes: 32, bf16 or 16.
        runtime: serial, or the numbers of stages and replicas.
        seed: of the run.
        selected_epoch: the best epoch on validation (of a text, by perplexity), never on test. None
            without a validation split.
        test_selected: test accuracy at that epoch, a share.
        test_last: test accuracy after the last epoch, a share.
        train_last: training accuracy of the last epoch (augmented images, train mode), a share.
        parameters: of the network.
        head_parameters: of the heads.
        step_flops: FLOPs of a training step divided by backpropagation's; None if not measured.
        step_head_flops: the heads' share of the step's FLOPs.
        images_per_s: of the median epoch.
        perplexity_selected: of a text, test perplexity at the selected epoch.
        perplexity_last: of a text, test perplexity after the last epoch.
        loss_selected: test loss at the selected epoch, of a run without accuracy.
        loss_last: test loss after the last epoch, of a run without accuracy.
    """

    run: str
    data: str
    model: str
    rule: str
    blocks: int
    epochs: int
    precision: str
    runtime: str
    seed: int
    selected_epoch: int | None
    test_selected: float | None
    test_last: float | None
    train_last: float | None
    parameters: int
    head_parameters: int
    step_flops: float | None
    step_head_flops: float | None
    images_per_s: float
    perplexity_selected: float | None = None
    perplexity_last: float | None = None
    loss_selected: float | None = None
    loss_last: float | None = None

    @classmethod
    def of(cls, run: Run) -> Summary:
        """Summarise a run.

        Raises:
            InputError: no epoch is finished yet; the run's files cannot be read.
        """
        rows, config = run.metrics(), run.config
        if not rows:
            raise InputError(f"run {run.path}: no epoch is finished yet; train it first")
        try:
            costs = Costs.from_json((run.path / "cost.json").read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                f"run {run.path}: cost.json cannot be read: {reason(error)}; layerwise train "
                f"--resume {run.path} writes it again"
            ) from error
        return cls.of_metrics(run.path.name, config, rows, costs)

    @classmethod
    def of_metrics(
        cls,
        name: str,
        config: Mapping[str, Any],
        rows: Sequence[Mapping[str, float | None]],
        costs: Costs,
    ) -> Summary:
        """Summarise the measurements of a run.

        Args:
            name: of the run.
            config: its options.
            rows: its metrics, one row per epoch, at least one.
            costs: of its blocks.
        """
        scores = [(score, r) for r in rows if (score := selected_by(r)) is not None]
        best = max(scores, key=lambda pair: pair[0])[1] if scores else None
        classes = any(row.get("test_accuracy") is not None for row in rows)
        speeds = sorted(r["images_per_s"] or 0.0 for r in rows)
        return cls(
            run=name,
            data=_data(config),
            model=_named(config["model"]),
            rule=_named(config["rule"]),
            blocks=len(costs.blocks),
            epochs=len(rows),
            precision=str(config.get("precision", "32")),
            runtime=_runtime(config),
            seed=config["seed"],
            selected_epoch=None if best is None else int(best["epoch"] or 0),
            test_selected=None if best is None else best.get("test_accuracy"),
            test_last=rows[-1].get("test_accuracy"),
            train_last=rows[-1].get("train_accuracy"),
            parameters=costs.parameters,
            head_parameters=costs.head_parameters,
            step_flops=_ratio(costs.step_flops, costs.backprop_flops),
            step_head_flops=_ratio(costs.step_head_flops, costs.step_flops),
            images_per_s=speeds[len(speeds) // 2],
            perplexity_selected=None if best is None else best.get("test_perplexity"),
            perplexity_last=rows[-1].get("test_perplexity"),
            loss_selected=None if best is None or classes else best.get("test_loss"),
            loss_last=None if classes else rows[-1].get("test_loss"),
        )

    def cells(self) -> dict[str, str]:
        """The summary as text, by column."""
        selected = _percent(self.test_selected)
        if self.selected_epoch is not None:
            selected += f" (epoch {self.selected_epoch})"
        return {
            "run": self.run,
            "data": self.data,
            "model": self.model,
            "rule": self.rule,
            "blocks": str(self.blocks),
            "epochs": str(self.epochs),
            "precision": self.precision,
            "runtime": self.runtime,
            "seed": str(self.seed),
            "test accuracy, best on validation, %": selected,
            "test accuracy, last, %": _percent(self.test_last),
            "train accuracy, last, %": _percent(self.train_last),
            "test perplexity, best on validation": _number(self.perplexity_selected),
            "test perplexity, last": _number(self.perplexity_last),
            "test loss, best on validation": _number(self.loss_selected),
            "test loss, last": _number(self.loss_last),
            "parameters": f"{self.parameters:,}",
            "heads' parameters": f"{self.head_parameters:,}",
            "FLOPs of a step / backprop's": "-"
            if self.step_flops is None
            else f"{self.step_flops:.2f}",
            "heads' share of these FLOPs, %": _percent(self.step_head_flops),
            "images/s": f"{self.images_per_s:,.0f}",
        }


def labels_of(runs: Sequence[Run]) -> list[str]:
    """What to call runs side by side: their names, or their paths if two have the same name."""
    names = [run.path.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def write_comparison(
    runs: Sequence[Run], root: Path, reference: Reference | None = None, html: bool = False
) -> tuple[Path, list[Summary], list[Distance]]:
    """Write a table of runs, their curves, and those of every block, into a new folder
    comparison-N; with a reference, also the runs over its published points.

    Args:
        runs: the runs.
        root: where the folder is made.
        reference: published curves.
        html: whether to write one self-contained page, report.html, as well.

    Returns:
        The folder, a summary of each run, and the distances to the reference's points.

    Raises:
        InputError: a run cannot be read, no run belongs to a series of the reference, or the folder
            cannot be written.
    """
    summaries = []
    for run in runs:
        with run.readable():
            summaries.append(Summary.of(run))
    metrics, names = _by_experiment(runs, summaries)
    distances = [] if reference is None else reference.distances(metrics)
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = claim_numbered(root, "comparison")

        def write(name: str, content: bytes) -> None:
            write_atomically(folder / name, content)

        several = len(metrics) < len(runs)
        write("table.md", (over_seeds if several else markdown)(summaries).encode())
        rows = [asdict(summary) for summary in summaries]
        write("table.yaml", yaml.safe_dump(rows, sort_keys=False).encode())
        draw_runs(metrics, write)
        draw_blocks(metrics, write, names)
        if reference is not None:
            title = f"{reference.title} ({reference.source}), at equal steps.\n\n"
            write("reference.md", (title + _rows(rows_of(distances))).encode())
            reference.draw(metrics, write)
        if html:
            title = ", ".join(metrics)
            write("report.html", page(title, _columns(summaries), metrics, runs, names).encode())
    except OSError as error:
        raise InputError(f"--out {root}: cannot be written: {error.strerror}") from error
    return folder, summaries, distances


def _by_experiment(
    runs: Sequence[Run], summaries: Sequence[Summary]
) -> tuple[dict[str, Rows], dict[str, list[str]]]:
    """Rows of metrics of each run; of runs that differ in their seed alone, their means. Also the
    names of the blocks."""
    labels: dict[int, str] = dict(zip(map(id, summaries), labels_of(runs), strict=True))
    of = dict(zip(map(id, summaries), runs, strict=True))
    found: dict[str, Rows] = {}
    names: dict[str, list[str]] = {}
    for (name, *_), several in _together(summaries).items():
        rows = [of[id(summary)].metrics() for summary in several]
        label = labels[id(several[0])]
        if len(several) > 1:
            label = f"{name} (seeds {', '.join(str(summary.seed) for summary in several)})"
        found[label] = rows[0] if len(several) == 1 else means(rows)
        names[label] = block_names(of[id(several[0])])
    return found, names


def experiment_of(summary: Summary) -> tuple[str, ...]:
    """What the runs of one experiment share: the name up to "-SEED", and all that is neither seed,
    speed nor result."""
    shared = [
        value
        for column, value in summary.cells().items()
        if column not in DIFFER and not re.search(" (accuracy|perplexity|loss), ", column)
    ]
    return (summary.run.removesuffix(f"-{summary.seed}"), *shared)


def table(summaries: Sequence[Summary]) -> Table:
    """A table for the terminal with one column per run, or per experiment if some runs differ in
    their seed alone."""
    rows = _columns(summaries)
    first = next(iter(rows[0]))
    made = Table()
    made.add_column(first, no_wrap=True)
    for cells in rows:
        made.add_column(cells[first], overflow="fold", justify="right")
    for column in list(rows[0])[1:]:
        made.add_row(column, *(cells[column] for cells in rows))
    return made


def distance_table(distances: Sequence[Distance], title: str) -> Table:
    """A table for the terminal with one row per published point."""
    made = Table(title=title)
    for column in ("run", "measure", "step", "published", "measured", "difference"):
        made.add_column(column, justify="left" if column in ("run", "measure") else "right")
    for row in rows_of(distances):
        made.add_row(*row.values())
    return made


def markdown(summaries: Sequence[Summary]) -> str:
    """A table for a document with one row per run; values that all runs share stand above it."""
    return _rows([summary.cells() for summary in summaries])


def _of_its_kind(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The same rows without the columns of perplexities, if no run has one."""
    rare = ("test perplexity, ", "test loss, ")
    shown = [c for c in rows[0] if not c.startswith(rare) or any(cells[c] != "-" for cells in rows)]
    return [{column: cells[column] for column in shown} for cells in rows]


def _rows(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return f"{NONE_NEAR.capitalize()}.\n"
    rows = _of_its_kind(rows)
    same = [c for c in rows[0] if len(rows) > 1 and len({cells[c] for cells in rows}) == 1]
    columns = [column for column in rows[0] if column not in same]
    lines = [columns, ["---"] * len(columns), *([cells[c] for c in columns] for cells in rows)]
    common = "; ".join(f"{column}: {rows[0][column]}" for column in same)
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return f"All runs: {common}.\n\n{text}" if common else text


def over_seeds(summaries: Sequence[Summary]) -> str:
    """A table for a document with one row per experiment: mean and standard deviation over seeds.

    The runs of one experiment have the same name up to "-SEED". The columns alone do not identify
    an experiment: a learning rate, for example, is not among them.
    """
    return _rows(_means_of(_together(summaries)))


def _columns(summaries: Sequence[Summary]) -> list[dict[str, str]]:
    """Cells of each run, or of each experiment if some runs differ in their seed alone."""
    together = _together(summaries)
    if len(together) < len(summaries):
        return _of_its_kind(_means_of(together))
    return _of_its_kind([summary.cells() for summary in summaries])


def _together(summaries: Sequence[Summary]) -> dict[tuple[str, ...], list[Summary]]:
    """The runs of each experiment; the same seed twice is no further seed, but another run."""
    found: dict[tuple[str, ...], list[Summary]] = {}
    for k, summary in enumerate(summaries):
        experiment = experiment_of(summary)
        if any(summary.seed == other.seed for other in found.get(experiment, ())):
            experiment = (*experiment, str(k))
        found.setdefault(experiment, []).append(summary)
    return found


def _means_of(experiments: Mapping[tuple[str, ...], Sequence[Summary]]) -> list[dict[str, str]]:
    """A row of cells for each experiment."""
    return [
        {
            "experiment": experiment,
            **{k: v for k, v in runs[0].cells().items() if k not in DIFFER},
            "test accuracy, best on validation, %": _spread([r.test_selected for r in runs]),
            "test accuracy, last, %": _spread([r.test_last for r in runs]),
            "train accuracy, last, %": _spread([r.train_last for r in runs]),
            "test perplexity, best on validation": _mean([r.perplexity_selected for r in runs]),
            "test perplexity, last": _mean([r.perplexity_last for r in runs]),
            "test loss, best on validation": _mean([r.loss_selected for r in runs]),
            "test loss, last": _mean([r.loss_last for r in runs]),
            "seeds": ", ".join(str(r.seed) for r in runs),
        }
        for (experiment, *_), runs in experiments.items()
    ]


def _spread(shares: Sequence[float | None]) -> str:
    return _mean([None if share is None else 100 * share for share in shares], 2)


def _mean(numbers: Sequence[float | None], places: int = 3) -> str:
    """Mean and standard deviation as text."""
    known = [number for number in numbers if number is not None]
    if len(known) < 2:
        return _number(numbers[0], places)
    return f"{statistics.mean(known):.{places}f} ± {statistics.stdev(known):.{places}f}"


def _ratio(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


def _percent(share: float | None) -> str:
    return _number(None if share is None else 100 * share, 2)


def _number(value: float | None, places: int = 3) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def _data(config: Mapping[str, Any]) -> str:
    if config.get(MADE_BY) == "fit":
        return config["data"]["name"]
    augment = [
        key if value is True else f"{key} {value}"
        for key, value in config["augment"].items()
        if key in ("flip", "crop", "resized_crop", "cutout") and value
    ]
    held_out = f"; validation {config['data']['validation']}"
    if random := config["data"].get("random_labels"):
        held_out += f"; random labels {random:g}"
    if (share := config["data"].get("labels", 1)) < 1:
        held_out += f"; {100 * share:g} % of the labels"
    if (curriculum := config.get("curriculum") or {}).get("scores") is not None:
        held_out += "; the hardest first" if curriculum["anti"] else "; the easiest first"
        held_out += " ({start:g}, x{increase:g} every {every})".format_map(curriculum)
    return f"{config['data']['name']} ({', '.join(augment) or 'no augmentation'}{held_out})"


def _runtime(config: Mapping[str, Any]) -> str:
    kinds = ("stages", "replicas", "replay")
    counts = {kind: config.get(kind) or 0 for kind in kinds}
    several = [f"{n} {kind}" for kind, n in counts.items() if n > 1 and kind != "replay"]
    replay = [f"replay {counts['replay']}"] if counts["replay"] else []
    return ", ".join([*several, *replay]) or "serial"


def _named(specification: Mapping[str, Any]) -> str:
    """`{name: DGL, head: {name: MLP, width: 64}}` -> `DGL(MLP(width=64))`; a sum of objectives ->
    `0.5*A(...) + B`."""
    name = specification["name"]
    if "+" in name:
        return " + ".join(_term(term, specification.get(term, {})) for term in name.split("+"))
    shown = []
    for key, value in specification.items():
        if isinstance(value, Mapping):
            shown.append(_named(value))
        elif key != "name" and value not in (None, 0, False):
            shown.append(f"{key}={value}")
    return f"{name}({', '.join(shown)})" if shown else name


def _term(name: str, specification: Mapping[str, Any]) -> str:
    options = {key: value for key, value in specification.items() if key != "weight"}
    weight = specification.get("weight", 1.0)
    if isinstance(weight, list | tuple):  # over the blocks
        factor = "[{:g}, {:g}]*".format(*weight)
    else:
        factor = "" if weight == 1 else f"{weight:g}*"
    return factor + _named({**options, "name": name})
