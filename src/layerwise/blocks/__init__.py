"""Any network as an ordered chain of blocks."""

from layerwise.blocks.chain import Blocks
from layerwise.blocks.cut import cut
from layerwise.blocks.receptive import ReceptiveField, receptive_fields

__all__ = ["Blocks", "ReceptiveField", "cut", "receptive_fields"]
