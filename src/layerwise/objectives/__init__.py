"""Local objectives: what one block is asked to do. One objective per file."""

from layerwise.objectives.classify import Classify, cross_entropy
from layerwise.objectives.classify_groups import ClassifyGroups
from layerwise.objectives.objective import Objective, Site, Sum
from layerwise.objectives.reconstruct import Reconstruct
from layerwise.objectives.rotation import Rotation

__all__ = [
    "Classify",
    "ClassifyGroups",
    "Objective",
    "Reconstruct",
    "Rotation",
    "Site",
    "Sum",
    "cross_entropy",
]
