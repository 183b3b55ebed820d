"""From a config to a trained run: `train` and `resume`; `fit` for things of your own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerwise.experiment.build import Experiment
    from layerwise.experiment.fitting import fit
    from layerwise.experiment.own import trust
    from layerwise.experiment.training import resume, train

__all__ = ["Experiment", "fit", "resume", "train", "trust"]

# Imported when they are asked for: the registry is needed without the trainer.
HOMES = {
    "Experiment": "build",
    "fit": "fitting",
    "resume": "training",
    "train": "training",
    "trust": "own",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
