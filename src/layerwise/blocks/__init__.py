"""Any network as an ordered chain of blocks."""

from layerwise.blocks.chain import Blocks
from layerwise.blocks.cut import cut

__all__ = ["Blocks", "cut"]
