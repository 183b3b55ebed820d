"""The contract of learning rules: base classes, and the tools to write a rule with."""

from layerwise.objectives.batch import OnBlock, Scale
from layerwise.rules.base.checks import explain
from layerwise.rules.base.differentiate import (
    differentiate,
    forget_casts,
    refuse_without_gradients,
)
from layerwise.rules.base.early import early_steps
from layerwise.rules.base.local import LocalRule
from layerwise.rules.base.objectives import criterion_of
from layerwise.rules.base.rule import Done, Needs, Report, Rule, alone

__all__ = [
    "Done",
    "LocalRule",
    "Needs",
    "OnBlock",
    "Report",
    "Rule",
    "Scale",
    "alone",
    "criterion_of",
    "differentiate",
    "early_steps",
    "explain",
    "forget_casts",
    "refuse_without_gradients",
]
