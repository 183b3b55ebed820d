"""What every learning rule is made of."""

from layerwise.rules.base.differentiate import (
    Scale,
    differentiate,
    forget_casts,
    refuse_without_gradients,
)
from layerwise.rules.base.local import LocalRule, ObjectiveRule, one_per_block
from layerwise.rules.base.rule import ForwardRule, Needs, OnBlock, Rule, alone, checked

__all__ = [
    "ForwardRule",
    "LocalRule",
    "Needs",
    "ObjectiveRule",
    "OnBlock",
    "Rule",
    "Scale",
    "alone",
    "checked",
    "differentiate",
    "forget_casts",
    "one_per_block",
    "refuse_without_gradients",
]
