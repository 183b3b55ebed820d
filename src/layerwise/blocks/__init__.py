"""Any network as an ordered chain of blocks."""

from layerwise.blocks.chain import Blocks

__all__ = ["Blocks"]
