"""The rows of the table that `gpu_check.py` prints, and how they reach it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

NEEDS_CUDA = "needs CUDA"


@dataclass(frozen=True)
class Row:
    """One check.

    Attributes:
        section: the section that made it.
        check: what was checked.
        ok: whether it passed; None if it was skipped.
        found: what was found, for the table.
        numbers: what was found, for the file.
        seconds: how long it took.
    """

    section: str
    check: str
    ok: bool | None
    found: str
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class Rows:
    """Collects the rows of one section. Each is written to a file at once, so that a section that
    is stopped, or that a fault of the device ends, keeps those that it has.

    Args:
        section: its name.
        device: the device that is checked.
        quick: whether little time may be taken.
        path: where rows are written, one a line.
        deadline: the time, as of `time.monotonic`, after which no further check begins.
    """

    def __init__(
        self, section: str, device: torch.device, quick: bool, path: Path, deadline: float
    ):
        self.section, self.device, self.quick = section, device, quick
        self.path, self.deadline = path, deadline
        self._began = time.perf_counter()

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def late(self) -> bool:
        """Whether the section's time is over."""
        return time.monotonic() > self.deadline

    def add(self, check: str, ok: bool | None, found: str, **numbers: Any) -> None:
        """Add a row; its time is that since the row before."""
        now = time.perf_counter()
        row = Row(self.section, check, ok, found, numbers, round(now - self._began, 2))
        self._began = now
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    def skip(self, check: str, why: str = NEEDS_CUDA) -> None:
        self.add(check, None, why)

    def failed(self, check: str, error: BaseException) -> None:
        """Add a row for a check that raised an error."""
        self.add(check, False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def read(path: Path) -> list[Row]:
    """The rows that sections have written so far."""
    if not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [Row(**json.loads(line)) for line in whole]
