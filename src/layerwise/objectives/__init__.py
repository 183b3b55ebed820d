"""Local objectives: the loss that one block minimises. One objective per file."""

from layerwise.objectives.activity import Activity
from layerwise.objectives.barlow_twins import BarlowTwins
from layerwise.objectives.clapp import CLAPP
from layerwise.objectives.clapp_2d import CLAPP2D
from layerwise.objectives.classify import Classify, cross_entropy
from layerwise.objectives.classify_groups import ClassifyGroups
from layerwise.objectives.cmc import CMC
from layerwise.objectives.colorize import Colorize
from layerwise.objectives.displacement import Displacement
from layerwise.objectives.distill import Distill
from layerwise.objectives.info_nce import InfoNCE
from layerwise.objectives.inpaint import Inpaint
from layerwise.objectives.kernel_separation import KernelSeparation
from layerwise.objectives.normalization import Normalization
from layerwise.objectives.nt_xent import NTXent
from layerwise.objectives.objective import Objective, Site, Sum
from layerwise.objectives.predict_projection import PredictProjection
from layerwise.objectives.reconstruct import Reconstruct
from layerwise.objectives.rotation import Rotation
from layerwise.objectives.similarity_matching import SimilarityMatching
from layerwise.objectives.supervised_contrastive import SupervisedContrastive

__all__ = [
    "CLAPP",
    "CLAPP2D",
    "CMC",
    "Activity",
    "BarlowTwins",
    "Classify",
    "ClassifyGroups",
    "Colorize",
    "Displacement",
    "Distill",
    "InfoNCE",
    "Inpaint",
    "KernelSeparation",
    "NTXent",
    "Normalization",
    "Objective",
    "PredictProjection",
    "Reconstruct",
    "Rotation",
    "SimilarityMatching",
    "Site",
    "Sum",
    "SupervisedContrastive",
    "cross_entropy",
]
