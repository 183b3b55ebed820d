"""Recipes of auxiliary networks. One family per file; none knows a loss."""

from layerwise.heads.conv import Conv
from layerwise.heads.head import Head
from layerwise.heads.linear import Linear
from layerwise.heads.mlp import MLP
from layerwise.heads.mlp_sr import MLPSR

__all__ = ["MLP", "MLPSR", "Conv", "Head", "Linear"]
