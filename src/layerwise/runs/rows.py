"""Rows of the files that grow while a run trains: metrics.csv, and JSON objects line by line.

A crash, and above all a loss of power, may leave the last row cut short or filled with zero bytes.
Reading leaves such a row out; before a training goes on, it is removed from the file.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

Row = dict[str, "float | None"]


def read_metrics(content: bytes) -> list[Row]:
    """The rows of a metrics.csv, without a last one that is cut short; empty cells are None.

    Raises:
        ValueError: this is not such a file, or a row before the last one is damaged.
    """
    lines = _lines(content)
    if not lines:
        return []
    columns = _columns(lines[0])
    found: list[Row] = []
    for i, line in enumerate(lines[1:]):
        try:
            found.append(_row(line, columns))
        except ValueError:
            if i < len(lines) - 2:
                raise
    return found


def cut_metrics(content: bytes, epochs: int) -> tuple[bytes, list[int]]:
    """The part of a metrics.csv up to an epoch.

    Args:
        content: of the file.
        epochs: the last epoch that is kept.

    Returns:
        The header and all whole rows of the epochs 1 to `epochs`, nothing if there is no such row;
        and the epochs of the whole rows that are left out.
    """
    lines = _lines(content)
    try:
        columns = _columns(lines[0])
    except (IndexError, ValueError):
        return b"", []
    kept, left_out, last = [], [], 0
    for line in lines[1:]:
        try:
            epoch = int(_row(line, columns)["epoch"] or 0)
        except ValueError:
            continue
        if last < epoch <= epochs:
            kept.append(line)
            last = epoch
        else:
            left_out.append(epoch)
    return b"".join([lines[0], *kept]) if kept else b"", left_out


def columns_of(content: bytes) -> list[str]:
    """The columns of a metrics.csv; none if it holds no header.

    Raises:
        ValueError: this is not such a file.
    """
    lines = _lines(content)
    return _columns(lines[0]) if lines else []


def read_lines(content: bytes) -> list[dict[str, Any]]:
    """The rows of a file of one JSON object per line, without a last one that is cut short.

    Raises:
        ValueError: this is not such a file, or a row before the last one is damaged.
    """
    lines = _lines(content)
    found = []
    for i, line in enumerate(lines):
        try:
            found.append(_object(line))
        except ValueError:
            if i < len(lines) - 1:
                raise
    return found


def cut_lines(content: bytes, step: int) -> tuple[bytes, int]:
    """The rows before a step, and how many lines were damaged and are left out. A last line that is
    cut short does not count."""
    kept, damaged = [], 0
    for line in _lines(content):
        try:
            at = _object(line).get("step")
        except ValueError:
            damaged += 1
            continue
        if type(at) is not int:
            damaged += 1
        elif at < step:
            kept.append(line)
    return b"".join(kept), damaged


def _lines(content: bytes) -> list[bytes]:
    """The lines that are whole, each with its end."""
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def _cells(line: bytes) -> list[str]:
    try:
        found: Iterator[Sequence[str]] = csv.reader([line.decode().rstrip("\r\n")], strict=True)
        return [*next(found, ())]
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _columns(line: bytes) -> list[str]:
    cells = _cells(line)
    if cells[:1] != ["epoch"] or len(set(cells)) < len(cells):
        raise ValueError("its first line does not name the columns, epoch first")
    return cells


def _row(line: bytes, columns: Sequence[str]) -> Row:
    cells = _cells(line)
    if len(cells) != len(columns):
        raise ValueError(f"a row has {len(cells)} cells, not {len(columns)}")
    row: Row = {
        key: float(cell) if cell else None for key, cell in zip(columns, cells, strict=True)
    }
    epoch = row["epoch"]
    if epoch is None or not epoch.is_integer() or epoch < 1:
        raise ValueError(f"an epoch is {cells[0] or 'missing'}")
    return row


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("a line is not a JSON object")
    return found


def finite(value: Any) -> Any:
    """The same, for JSON, with None for numbers that are not finite, which JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
