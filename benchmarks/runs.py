"""Which runs are still to be trained: interrupted runs are continued, finished runs left alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def left_to_train(run: Path, options: Sequence[str]) -> list[str] | None:
    """Arguments of `layerwise train` that make or continue the run; None if it is finished."""
    if (run / "model.safetensors").exists():
        return None
    if (run / "config.yaml").exists():
        return ["--resume", str(run)]
    return [*options, "--runs", str(run.parent), "--name", run.name]
