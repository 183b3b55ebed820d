"""Recipes of auxiliary networks, one family per file. No recipe knows a loss.

A recipe (a frozen dataclass) holds widths and depths. Calling it with shapes makes the network:

    head.py                      Head, the base of classifiers, and the layers that they share
    linear.py, mlp.py, conv.py, mlp_sr.py, airbench.py    classifiers
    later_layers.py              layers that follow in the network, for AugLocal
    layout.py                    heads of outputs that their recipe does not read, such as (D, T)
    projector.py                 points on the unit sphere, for contrastive objectives
    decoder.py                   images, from a block's output
    inverse.py                   a block's input, from its output: target propagation
    synthesizer.py               a gradient, or a block's input: decoupled neural interfaces
"""

from layerwise.heads.airbench import Airbench
from layerwise.heads.conv import Conv
from layerwise.heads.decoder import Bilinear, Decoder, Same, Transposed
from layerwise.heads.head import Head
from layerwise.heads.inverse import Inverse
from layerwise.heads.linear import Linear
from layerwise.heads.mlp import MLP
from layerwise.heads.mlp_sr import MLPSR
from layerwise.heads.projector import Projector
from layerwise.heads.synthesizer import Synthesizer

__all__ = [
    "MLP",
    "MLPSR",
    "Airbench",
    "Bilinear",
    "Conv",
    "Decoder",
    "Head",
    "Inverse",
    "Linear",
    "Projector",
    "Same",
    "Synthesizer",
    "Transposed",
]
