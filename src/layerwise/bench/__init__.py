"""What training costs, measured side by side."""

from layerwise.bench.live_bytes import LiveBytes, Peak
from layerwise.bench.measure import Contender, measure
from layerwise.bench.step import compare_steps
from layerwise.bench.table import Measured, StepTable, markdown

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
