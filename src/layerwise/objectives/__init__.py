"""Local objectives: what one block is asked to do. One objective per file."""

from layerwise.objectives.classify import Classify, cross_entropy
from layerwise.objectives.classify_groups import ClassifyGroups
from layerwise.objectives.colorize import Colorize
from layerwise.objectives.inpaint import Inpaint
from layerwise.objectives.kernel_separation import KernelSeparation
from layerwise.objectives.normalization import Normalization
from layerwise.objectives.objective import Objective, Site, Sum
from layerwise.objectives.predict_projection import PredictProjection
from layerwise.objectives.reconstruct import Reconstruct
from layerwise.objectives.rotation import Rotation
from layerwise.objectives.similarity_matching import SimilarityMatching

__all__ = [
    "Classify",
    "ClassifyGroups",
    "Colorize",
    "Inpaint",
    "KernelSeparation",
    "Normalization",
    "Objective",
    "PredictProjection",
    "Reconstruct",
    "Rotation",
    "SimilarityMatching",
    "Site",
    "Sum",
    "cross_entropy",
]
