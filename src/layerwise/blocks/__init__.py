"""Any network as an ordered chain of blocks.

A block is a stretch of the network's own forward. Nothing is traced: the forward runs as it is
written, and is paused where a block ends. The files, in the order in which to read them:

    chain.py       Blocks, a chain of modules given by hand, and Passes, a batch's way through it
    cut.py         cut, which makes such a chain of any network; cutting/ has its steps
    stretches.py   Stretches, the chain that cut returns, with its blocks (stretch.py) and the
                   places where they begin (boundary.py, nested.py)
    passes.py      how a batch runs through it: the forward, paused where a block ends, by
                   coroutine.py, intercept.py and contexts.py
    alone.py       a block by itself; placeholders.py stands in for the modules before it
    up_to.py       the network up to a block

    parts.py, pooling.py, inplace.py, copies.py        look into a block, or copy it
    receptive.py, layout.py, cost.py, balance.py, unchanged.py    measure blocks
"""

from layerwise.blocks.chain import Blocks
from layerwise.blocks.cut import cut
from layerwise.blocks.layout import ChannelsLastShape
from layerwise.blocks.receptive import ReceptiveField, receptive_fields

__all__ = ["Blocks", "ChannelsLastShape", "ReceptiveField", "cut", "receptive_fields"]
