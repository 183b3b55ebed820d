"""Recipes of auxiliary networks. One family per file; none knows a loss."""

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
