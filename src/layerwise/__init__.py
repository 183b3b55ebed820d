"""Train PyTorch networks without end-to-end backpropagation.

A learning rule replaces `loss.backward()`: it fills `.grad`, and everything else stays PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from layerwise.version import VERSION as __version__

if TYPE_CHECKING:
    from layerwise import analysis, heads, models, objectives, rules, runtime
    from layerwise.blocks import Blocks, ReceptiveField, cut, receptive_fields
    from layerwise.costs.memory_plan import plan
    from layerwise.errors import InputError
    from layerwise.experiment.fitting import fit
    from layerwise.objectives.batch import Batch
    from layerwise.rules.base import Done, LocalRule, Needs, Report, Rule

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
    "fit",
    "heads",
    "models",
    "objectives",
    "plan",
    "receptive_fields",
    "rules",
    "runtime",
]

# Imported when they are asked for: PyTorch takes seconds to import, in which the command line must
# be able to answer and to be interrupted.
HOMES = {
    "Batch": "objectives.batch",
    "Blocks": "blocks",
    "Done": "rules.base",
    "InputError": "errors",
    "LocalRule": "rules.base",
    "Needs": "rules.base",
    "ReceptiveField": "blocks",
    "Report": "rules.base",
    "Rule": "rules.base",
    "cut": "blocks",
    "plan": "costs.memory_plan",
    "fit": "experiment.fitting",
    "receptive_fields": "blocks",
}
ROOMS = ("analysis", "blocks", "costs", "data", "experiment", "heads", "models", "objectives")
ROOMS += ("report", "rules", "runs", "runtime", "trainer")


def __getattr__(name: str) -> Any:
    if name in ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
