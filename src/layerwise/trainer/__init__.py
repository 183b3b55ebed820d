"""Training a rule: settings, device, the loop, checkpoints."""

from layerwise.trainer.checkpoint import load_evaluated, load_rule
from layerwise.trainer.device import fabric_for
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
    "fabric_for",
    "load_evaluated",
    "load_rule",
    "phase_of",
]
