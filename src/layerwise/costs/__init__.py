"""What training costs, measured side by side."""

from layerwise.costs.live_bytes import LiveBytes, Peak
from layerwise.costs.measure import Contender, measure
from layerwise.costs.steps import compare_steps
from layerwise.costs.table import Measured, StepTable, markdown

__all__ = [
    "Contender",
    "LiveBytes",
    "Measured",
    "Peak",
    "StepTable",
    "compare_steps",
    "markdown",
    "measure",
]
