"""Training a rule: settings, device, the loop, checkpoints."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerwise.trainer import optim
    from layerwise.trainer.checkpoint import load_evaluated, load_rule
    from layerwise.trainer.device import device_for
    from layerwise.trainer.fabric import fabric_for
    from layerwise.trainer.learning_rate import phase_of
    from layerwise.trainer.loop import Trainer
    from layerwise.trainer.observer import Observer
    from layerwise.trainer.progress import Progress
    from layerwise.trainer.settings import Precision, Settings

__all__ = [
    "Observer",
    "Precision",
    "Progress",
    "Settings",
    "Trainer",
    "device_for",
    "fabric_for",
    "load_evaluated",
    "load_rule",
    "optim",
    "phase_of",
]

# Imported when they are asked for: settings and optimizers are needed without Lightning Fabric,
# which takes as long to import as PyTorch.
HOMES = {
    "Observer": "observer",
    "Precision": "settings",
    "Progress": "progress",
    "Settings": "settings",
    "Trainer": "loop",
    "device_for": "device",
    "fabric_for": "fabric",
    "load_evaluated": "checkpoint",
    "load_rule": "checkpoint",
    "phase_of": "learning_rate",
}


def __getattr__(name: str) -> Any:
    if name == "optim":
        return importlib.import_module(f"{__name__}.optim")
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
