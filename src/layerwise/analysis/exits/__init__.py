"""Early exits: measured, as networks of their own, and a network that decides where to leave."""

from layerwise.analysis.exits.decisions import Predictions, fit_temperatures, predictions
from layerwise.analysis.exits.early_exit import EarlyExit
from layerwise.analysis.exits.exit import Exit
from layerwise.analysis.exits.generation import Generated, generate
from layerwise.analysis.exits.measure import (
    cheapest,
    ensemble,
    evaluate,
    sample_losses,
    sample_outcomes,
)
from layerwise.analysis.exits.temperature import temperature
from layerwise.analysis.exits.test_time import TestTime, averaged_exits

__all__ = [
    "EarlyExit",
    "Exit",
    "Generated",
    "Predictions",
    "TestTime",
    "averaged_exits",
    "cheapest",
    "ensemble",
    "evaluate",
    "fit_temperatures",
    "generate",
    "predictions",
    "sample_losses",
    "sample_outcomes",
    "temperature",
]
