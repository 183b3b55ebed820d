"""Local objectives: what one block is asked to do. One objective per file."""

from layerwise.objectives.classify import Classify, cross_entropy
from layerwise.objectives.objective import Objective, Site, Sum

__all__ = ["Classify", "Objective", "Site", "Sum", "cross_entropy"]
