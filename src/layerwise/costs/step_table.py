"""The results of `layerwise bench step`: as a terminal table, as JSON, and as Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from layerwise.costs.live_bytes import Peak
from layerwise.errors import InputError

BENCHMARK = "step"
KEPT = 3  # the column of times while freed memory is kept
KEPT_NOTE = (
    " Kept: the median ratio in as many rounds afterwards, in which the C library keeps freed "
    "memory for the next tensors."
)
ACCUMULATED_NOTE = (
    " Micro-batches: the whole batch's gradient, except under BatchNorm, which then normalises "
    "each micro-batch by itself."
)
TURNS_NOTE = " State of 1/n: in a step one n-th of the blocks trains; most bytes, mean time."


@dataclass(frozen=True)
class Measured:
    """The costs of one contender's training step.

    Attributes:
        name: of the contender.
        times_s: wall-clock time of each round's step, s.
        cpu_times_s: CPU time of the same steps, summed over threads, s. It varies less on a machine
            that also does other work, but may include threads that wait.
        peak: the most bytes alive at the same time: activations, gradients and optimizer state.
        activation_peak_bytes: the most bytes of saved activations and temporaries.
        at_rest_bytes: bytes alive between two steps: optimizer state, and gradients that are kept.
        cuda_peak_bytes: the most bytes that torch.cuda allocated in a step, above those allocated
            before it (so without optimizer state); None on other devices.
        flops: executed in a step.
        head_flops: the part of `flops` in objectives and heads.
        parameters: number of trained parameters, the heads' included.
        head_parameters: the heads' part of `parameters`.
        kept_times_s: as `times_s`, while the C library keeps freed memory; empty if not measured.
        family: of ways to train, for pictures; empty if there are no families.
    """

    name: str
    times_s: tuple[float, ...]
    cpu_times_s: tuple[float, ...]
    peak: Peak
    activation_peak_bytes: int
    at_rest_bytes: int
    cuda_peak_bytes: int | None
    flops: int
    head_flops: int
    parameters: int
    head_parameters: int
    kept_times_s: tuple[float, ...] = ()
    family: str = ""


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and extremes over the rounds."""

    median: float
    lower: float
    upper: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        lower, median, upper = (
            statistics.quantiles(values, n=4, method="inclusive")
            if len(values) > 1
            else (values[0],) * 3
        )
        return cls(median, lower, upper, min(values), max(values))


@dataclass(frozen=True)
class StepTable:
    """A comparison of training steps; all contenders are compared with the first one.

    rich prints it as a table.

    Attributes:
        title: names the comparison.
        batch: shape of the batch.
        setting: the options that all contenders share, by name.
        provenance: command, machine and versions.
        contenders: one measurement per contender.
    """

    title: str
    batch: tuple[int, ...]
    setting: dict[str, Any]
    provenance: dict[str, Any]
    contenders: tuple[Measured, ...]

    def time_ratios(self, contender: Measured) -> list[float]:
        """Each round's step time divided by the first contender's in the same round."""
        return _each(contender.times_s, self.contenders[0].times_s)

    def ratios(self, contender: Measured) -> dict[str, Any]:
        """The contender's times (with their spread), bytes and FLOPs, over the first one's."""
        reference = self.contenders[0]
        cpu_times = _each(contender.cpu_times_s, reference.cpu_times_s)
        return {
            "time": asdict(Spread.of(self.time_ratios(contender))),
            "cpu_time": asdict(Spread.of(cpu_times)),
            "peak_bytes": contender.peak.bytes / reference.peak.bytes,
            "activation_peak_bytes": (
                contender.activation_peak_bytes / reference.activation_peak_bytes
            ),
            "flops": contender.flops / max(reference.flops, 1),
        }

    def save(self, path: str | Path) -> None:
        """Write everything, with every round's raw time, as JSON."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n")

    def as_dict(self) -> dict[str, Any]:
        """The content of the file that `save` writes."""
        return {
            "benchmark": BENCHMARK,
            "title": self.title,
            **self.provenance,
            "batch": list(self.batch),
            "setting": self.setting,
            "contenders": [
                {**asdict(c), "ratios": self.ratios(c), "time_ratios": self.time_ratios(c)}
                for c in self.contenders
            ],
        }

    @classmethod
    def load(cls, path: str | Path) -> StepTable:
        """Read a file that `save` wrote.

        Raises:
            InputError: there is no such file; it holds something else.
        """
        try:
            saved = json.loads(Path(path).read_text())
            fields = ("title", "setting", "batch", "contenders", "benchmark")
            if saved["benchmark"] != BENCHMARK:
                raise KeyError("benchmark")
            contenders = tuple(Measured(**_read(c)) for c in saved["contenders"])
            return cls(
                title=saved["title"],
                batch=tuple(saved["batch"]),
                setting=saved["setting"],
                provenance={k: v for k, v in saved.items() if k not in fields},
                contenders=contenders,
            )
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; give a file that bench wrote") from error
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not a result of `layerwise bench step`") from error

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(
            title=f"{self.title}, batch {_shape(self.batch)}",
            title_justify="left",
            box=box.SIMPLE,
            pad_edge=False,
            padding=(0, 0, 0, 1),
        )
        table.add_column("", min_width=15)
        columns = ["time", "quartiles", "CPU", "kept", "memory", "act.", "FLOPs", "heads"]
        shown = [i for i, column in enumerate(columns) if column != "kept" or _has_kept(self)]
        for i in shown:
            table.add_column(columns[i], justify="right", no_wrap=True)
        for i, contender in enumerate(self.contenders):
            cells = _cells(self, contender, first=i == 0)
            table.add_row(contender.name, *(cells[i] for i in shown))
        yield table
        yield Text(_caption(self), style="dim")


def markdown(paths: Sequence[str | Path]) -> str:
    """Several saved comparisons as one Markdown table.

    Args:
        paths: files that `StepTable.save` wrote, in the order of the table.

    Raises:
        InputError: `paths` is empty, or names a file that `save` did not write.
    """
    if not paths:
        raise InputError("markdown(paths): got no file; give results of `layerwise bench step`")
    tables = [StepTable.load(path) for path in paths]
    kept = any(map(_has_kept, tables))
    rows = [
        "| network, batch | heads | | step time | quartiles | CPU time "
        f"{'| freed memory kept ' if kept else ''}| memory | act. | FLOPs "
        "| heads' FLOPs | heads' parameters |",
        f"|---|---|---|--:|--:|--:|{'--:|' if kept else ''}--:|--:|--:|--:|--:|",
    ]
    notes: dict[str, None] = {}
    for table in tables:
        notes[_caption(table)] = None
        for i, contender in enumerate(table.contenders):
            cells = _cells(table, contender, first=i == 0)
            row = [
                f"{table.title}, {_shape(table.batch)}" if i == 0 else "",
                str(table.setting.get("heads", "")) if contender.head_parameters else "",
                contender.name,
                *(cell for j, cell in enumerate(cells) if kept or j != KEPT),
            ]
            rows.append(f"| {' | '.join(row)} |")
    return "\n".join([*rows, "", *(f"{note}\n" for note in notes)])


def _caption(table: StepTable) -> str:
    made = table.provenance
    rounds = len(table.contenders[0].times_s)
    return (
        f"{made['cpu']}, {made['threads']} threads on {made['cores']} cores, torch "
        f"{made['torch']}, {table.setting['dtype']}, {table.setting['memory_format']}"
        f"{', ' + made['allocator'] if 'allocator' in made else ''}. Time: "
        f"median of {rounds} rounds' ratios; CPU: of all threads' time. Memory: the most bytes of "
        "activations, gradients and optimizer state alive at once; act.: of saved activations and "
        "temporaries alone. "
        "Parameters and the batch are not counted."
        f"{ACCUMULATED_NOTE if any('micro-batches' in c.name for c in table.contenders) else ''}"
        f"{TURNS_NOTE if any('state of' in c.name for c in table.contenders) else ''}"
        f"{KEPT_NOTE if _has_kept(table) else ''}"
    )


def _has_kept(table: StepTable) -> bool:
    return any(contender.kept_times_s for contender in table.contenders)


def _kept(table: StepTable, contender: Measured, first: bool) -> str:
    """The step time while freed memory is kept: in seconds for the first contender, as a ratio to
    it for the others."""
    if not contender.kept_times_s:
        return ""
    if first:
        return f"{statistics.median(contender.kept_times_s):.3g} s"
    ratios = _each(contender.kept_times_s, table.contenders[0].kept_times_s)
    return f"{statistics.median(ratios):.2f}"


def _each(values: Sequence[float], references: Sequence[float]) -> list[float]:
    return [value / reference for value, reference in zip(values, references, strict=True)]


def _cells(table: StepTable, contender: Measured, first: bool) -> list[str]:
    """A contender's cells: absolute costs for the first one, ratios to it for the others."""
    if first:
        return [
            f"{statistics.median(contender.times_s):.3g} s",
            "",
            f"{statistics.median(contender.cpu_times_s):.3g} s",
            _kept(table, contender, first),
            f"{contender.peak.bytes / 2**20:.0f} MiB",
            f"{contender.activation_peak_bytes / 2**20:.0f} MiB",
            f"{contender.flops / 1e9:.3g} G",
            _percent(contender.head_flops, contender.flops),
            _percent(contender.head_parameters, contender.parameters),
        ]
    ratios = table.ratios(contender)
    spread = ratios["time"]
    return [
        f"{spread['median']:.2f}",
        f"{spread['lower']:.2f}-{spread['upper']:.2f}",
        f"{ratios['cpu_time']['median']:.2f}",
        _kept(table, contender, first),
        f"{ratios['peak_bytes']:.2f}",
        f"{ratios['activation_peak_bytes']:.2f}",
        f"{ratios['flops']:.2f}",
        _percent(contender.head_flops, contender.flops),
        _percent(contender.head_parameters, contender.parameters),
    ]


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if part else ""


def _shape(batch: Sequence[int]) -> str:
    return "x".join(map(str, batch))


def _read(contender: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Measured` from a contender's entry in a file."""
    fields = {k: v for k, v in contender.items() if k not in ("ratios", "time_ratios")}
    fields["peak"] = Peak(**contender["peak"])
    for name in ("times_s", "cpu_times_s", "kept_times_s"):
        fields[name] = tuple(contender.get(name, ()))
    return fields
