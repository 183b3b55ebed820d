"""Recipes of optimizers, and schedules of the learning rate."""

from layerwise.trainer.optim.muon import ConvMuon, Muon
from layerwise.trainer.optim.optimizers import SGD, AdamW, Optimizer
from layerwise.trainer.optim.optimizers import OfFunction as OfFunction
from layerwise.trainer.optim.schedules import (
    Constant,
    Cosine,
    Linear,
    OneCycle,
    Schedule,
    Step,
)
from layerwise.trainer.optim.schedules import OfScheduler as OfScheduler

__all__ = [
    "SGD",
    "AdamW",
    "Constant",
    "ConvMuon",
    "Cosine",
    "Linear",
    "Muon",
    "OneCycle",
    "Optimizer",
    "Schedule",
    "Step",
]
