"""Learning rules. One rule per file; no rule imports another."""

from layerwise.rules.backprop import Backprop
from layerwise.rules.dgl import DGL
from layerwise.rules.direct_global import DirectGlobal
from layerwise.rules.dni import DNI
from layerwise.rules.greedy import Greedy
from layerwise.rules.last_block import LastBlock

__all__ = ["DGL", "DNI", "Backprop", "DirectGlobal", "Greedy", "LastBlock"]
