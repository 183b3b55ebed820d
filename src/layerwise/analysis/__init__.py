"""Questions about a network, one per file. No answer changes the network."""

from layerwise.analysis.alignment import Alignment, gradient_alignment
from layerwise.analysis.cka import cka, linear_cka
from layerwise.analysis.class_variance import class_variance, class_variance_bound
from layerwise.analysis.difficulty import Difficulty, difficulty
from layerwise.analysis.effective_rank import EffectiveRank, effective_rank
from layerwise.analysis.feedback_angles import feedback_angles, pseudo_inverse_angles
from layerwise.analysis.information import Information, information
from layerwise.analysis.label_correlation import correlation_ratio, label_correlation
from layerwise.analysis.memorization import memorization
from layerwise.analysis.probe import linear_probe
from layerwise.analysis.separability import linear_separability

__all__ = [
    "Alignment",
    "Difficulty",
    "EffectiveRank",
    "Information",
    "cka",
    "class_variance",
    "class_variance_bound",
    "correlation_ratio",
    "difficulty",
    "effective_rank",
    "feedback_angles",
    "gradient_alignment",
    "information",
    "label_correlation",
    "linear_cka",
    "linear_probe",
    "linear_separability",
    "memorization",
    "pseudo_inverse_angles",
]
