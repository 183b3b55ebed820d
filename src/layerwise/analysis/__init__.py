"""Reading a network: one question per file; nothing here trains it."""

from layerwise.analysis.probe import linear_probe

__all__ = ["linear_probe"]
