"""Train PyTorch networks without end-to-end backpropagation.

A learning rule replaces `loss.backward()`: it fills `.grad`, and everything else stays PyTorch.
"""

from layerwise import analysis, heads, models, objectives, rules, runtime
from layerwise.blocks import Blocks, ReceptiveField, cut, receptive_fields
from layerwise.errors import InputError
from layerwise.objectives.batch import Batch
from layerwise.rules.base import Done, LocalRule, Needs, Report, Rule
from layerwise.version import VERSION as __version__

__all__ = [
    "Batch",
    "Blocks",
    "Done",
    "InputError",
    "LocalRule",
    "Needs",
    "ReceptiveField",
    "Report",
    "Rule",
    "__version__",
    "analysis",
    "cut",
    "heads",
    "models",
    "objectives",
    "receptive_fields",
    "rules",
    "runtime",
]
