"""The costs of training: FLOPs, bytes and time of blocks, of steps and of stages."""

from layerwise.costs.blocks import Costs
from layerwise.costs.compare_steps import compare_steps
from layerwise.costs.live_bytes import LiveBytes, Peak
from layerwise.costs.measure import Contender, measure
from layerwise.costs.step_table import Measured, StepTable, markdown

__all__ = [
    "Contender",
    "Costs",
    "LiveBytes",
    "Measured",
    "Peak",
    "StepTable",
    "compare_steps",
    "markdown",
    "measure",
]
