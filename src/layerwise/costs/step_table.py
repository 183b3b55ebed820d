"""The results of `bench step`: a table in the terminal, a JSON file, a table in Markdown."""

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


@dataclass(frozen=True)
class Measured:
    """What one contender's training step costs.

    Attributes:
        name: of the contender.
        times_s: wall-clock time of each round's step, s.
        cpu_times_s: CPU time of the same, all threads together, s; on a machine that does other
            work too it is the steadier of the two, but waiting threads may count in it.
        peak: most bytes alive at once, activations, gradients and optimizer state together.
        activation_peak_bytes: most bytes of saved activations and temporaries alone.
        at_rest_bytes: alive between two steps: optimizer state, and gradients if any are kept.
        cuda_peak_bytes: the most that torch.cuda allocated in a step above what was allocated
            before it (so without optimizer state), bytes; None on other devices.
        flops: that a step executes.
        head_flops: of these, in objectives and heads.
        parameters: trained, the heads' too.
        head_parameters: of these, the heads'.
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


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and extremes of one number per round."""

    median: float
    lower: float
    upper: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """At least one value."""
        lower, median, upper = (
            statistics.quantiles(values, n=4, method="inclusive")
            if len(values) > 1
            else (values[0],) * 3
        )
        return cls(median, lower, upper, min(values), max(values))


@dataclass(frozen=True)
class StepTable:
    """A comparison of training steps; the first contender is what the others are compared with.

    Printed by rich as a table.

    Attributes:
        title: names the comparison.
        batch: shape of the batch.
        setting: what was fixed, by name.
        provenance: command, machine and versions.
        contenders: one measurement each.
    """

    title: str
    batch: tuple[int, ...]
    setting: dict[str, Any]
    provenance: dict[str, Any]
    contenders: tuple[Measured, ...]

    def time_ratios(self, contender: Measured) -> list[float]:
        """Each round's step time over the first contender's in the same round."""
        return _each(contender.times_s, self.contenders[0].times_s)

    def ratios(self, contender: Measured) -> dict[str, Any]:
        """The contender over the first one: times with their spread, bytes, FLOPs."""
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
        """What `save` writes."""
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
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not such a file.
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
        for column in ("time", "quartiles", "CPU", "memory", "act.", "FLOPs", "heads"):
            table.add_column(column, justify="right", no_wrap=True)
        for i, contender in enumerate(self.contenders):
            cells = _cells(self, contender, first=i == 0)
            table.add_row(contender.name, *cells[:-1])
        yield table
        yield Text(_caption(self), style="dim")


def markdown(paths: Sequence[str | Path]) -> str:
    """Saved comparisons as one Markdown table, in the order given.

    Args:
        paths: files that `StepTable.save` wrote.

    Raises:
        InputError: a path that is not such a file; no path.
    """
    if not paths:
        raise InputError("markdown(paths): got no file; give results of `layerwise bench step`")
    rows = [
        "| network, batch | heads | | step time | quartiles | CPU time | memory | act. | FLOPs "
        "| heads' FLOPs | heads' parameters |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    notes: dict[str, None] = {}
    for path in paths:
        table = StepTable.load(path)
        notes[_caption(table)] = None
        for i, contender in enumerate(table.contenders):
            cells = [
                f"{table.title}, {_shape(table.batch)}" if i == 0 else "",
                str(table.setting.get("heads", "")) if contender.head_parameters else "",
                contender.name,
                *_cells(table, contender, first=i == 0),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", *(f"{note}\n" for note in notes)])


def _caption(table: StepTable) -> str:
    made = table.provenance
    rounds = len(table.contenders[0].times_s)
    return (
        f"{made['cpu']}, {made['threads']} threads on {made['cores']} cores, torch "
        f"{made['torch']}, {table.setting['dtype']}, {table.setting['memory_format']}. Time: "
        f"median of {rounds} rounds' ratios; CPU: of all threads' time. Memory: the most bytes of "
        "activations, gradients and optimizer state alive at once; act.: of saved activations and "
        "temporaries alone. "
        "Parameters and the batch are not counted."
    )


def _each(values: Sequence[float], references: Sequence[float]) -> list[float]:
    return [value / reference for value, reference in zip(values, references, strict=True)]


def _cells(table: StepTable, contender: Measured, first: bool) -> list[str]:
    """What the first contender costs, or what another costs relative to it."""
    if first:
        return [
            f"{statistics.median(contender.times_s):.3g} s",
            "",
            f"{statistics.median(contender.cpu_times_s):.3g} s",
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
    """What a file says of a contender, as `Measured` takes it."""
    fields = {k: v for k, v in contender.items() if k not in ("ratios", "time_ratios")}
    fields["peak"] = Peak(**contender["peak"])
    for name in ("times_s", "cpu_times_s"):
        fields[name] = tuple(contender[name])
    return fields
