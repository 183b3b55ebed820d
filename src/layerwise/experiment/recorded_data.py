"""A run's record of its data, and whether the data are still the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from layerwise.data import Splits
from layerwise.data.curriculum import read_scores
from layerwise.data.fingerprint import Fingerprint, checksum
from layerwise.errors import InputError, reason
from layerwise.runs.run import Run

DATA = "data.json"


def record_data(run: Run, splits: Splits, config: Mapping[str, Any]) -> None:
    """Write the fingerprint of a new run's data, and that of its curriculum's scores."""
    found = {**Fingerprint.of(splits).as_dict(), "curriculum": _scores(config)}
    run.write(DATA, json.dumps(found, indent=1).encode())


def about_scores(splits: Splits, split: str) -> dict[str, str]:
    """What a file of scores says about the samples that it orders, for `read_scores`."""
    # One entry: safetensors writes several in no fixed order, and equal files would differ.
    return {"samples": json.dumps({"split": split, **Fingerprint.of(splits).as_dict()})}


def check_data(run: Run, splits: Splits, *, curriculum: bool = False) -> None:
    """Refuse data that are not those with which a run began.

    A run of an earlier version, which has no record, is not checked.

    Args:
        run: a run folder.
        splits: its data as they are now.
        curriculum: also check the scores of its curriculum.

    Raises:
        InputError: the data have changed; the record cannot be read.
    """
    try:
        found = json.loads((run.path / DATA).read_text(encoding="utf-8"))
        then = Fingerprint.from_dict(found)
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"run {run.path}: {DATA} cannot be read ({reason(error)}); without this file, the data "
            "are not checked"
        ) from error
    if (difference := then.changed(Fingerprint.of(splits))) is not None:
        raise InputError(
            f"run {run.path}: data {splits.name} changed since the run began: {difference}; "
            "restore them, or train a new run"
        )
    if curriculum and found.get("curriculum") not in (None, _scores(run.config)):
        raise InputError(
            f"run {run.path}: the scores of its curriculum, {run.config['curriculum']['scores']}, "
            "changed since the run began; restore the file, or train a new run"
        )


def _scores(config: Mapping[str, Any]) -> str | None:
    """A checksum over the scores of a config's curriculum; None without a curriculum."""
    path = (config.get("curriculum") or {}).get("scores")
    return None if path is None else checksum(read_scores(path))
