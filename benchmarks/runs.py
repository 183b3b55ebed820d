"""Runs that are continued where they were interrupted, and left alone where they are done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def left_to_train(run: Path, options: Sequence[str]) -> list[str] | None:
    """What `layerwise train` is to be told so that there is this run; None where it is done."""
    if (run / "model.safetensors").exists():
        return None
    if (run / "config.yaml").exists():
        return ["--resume", str(run)]
    return [*options, "--runs", str(run.parent), "--name", run.name]
