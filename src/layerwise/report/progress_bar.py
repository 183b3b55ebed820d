"""The progress of a training on the terminal."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rich import progress
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from layerwise.report.console import console
from layerwise.trainer import Progress

if TYPE_CHECKING:
    from layerwise.costs.blocks import Costs


class ProgressBar(Progress):
    """A bar per epoch with images/s, loss, accuracy and the time left.

    If the output is not a terminal, only whole lines are written.

    Args:
        shown: whether anything is shown; False in all but one of several processes.
        unit: what is counted.
    """

    def __init__(self, shown: bool = True, unit: str = "images") -> None:
        self.shown = shown
        self._progress = progress.Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{{task.fields[speed]}} {unit}/s"),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            refresh_per_second=2,
            disable=not (shown and console.is_terminal),
        )
        self._task: TaskID | None = None
        self._done_before = 0

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the pipe or the terminal may be gone
            self._progress.stop()

    def costs(self, costs: Costs) -> None:
        if self.shown:
            console.print(costs.table())

    def start(self, epoch: int, epochs: int, images: int, done: int) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(
            f"epoch {epoch}/{epochs}", total=images, completed=done, speed="-", state=""
        )
        self._done_before = done

    def update(self, done: int, loss: float | None, accuracy: float | None) -> None:
        if self._task is None:
            return
        task = self._progress.tasks[-1]
        speed = f"{(done - self._done_before) / task.elapsed:,.0f}" if task.elapsed else "-"
        state = "" if loss is None else f"loss {loss:.3f}"
        state += "" if accuracy is None else f" accuracy {100 * accuracy:.1f}%"
        self._progress.update(self._task, completed=done, speed=speed, state=state)

    def say(self, line: str) -> None:
        if not self.shown:
            return
        console.print(line, soft_wrap=True, markup=False)
