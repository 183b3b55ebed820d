"""Learning rules. One rule per file; no rule imports another."""

from layerwise.rules.backprop import Backprop
from layerwise.rules.dgl import DGL
from layerwise.rules.greedy import Greedy

__all__ = ["DGL", "Backprop", "Greedy"]
