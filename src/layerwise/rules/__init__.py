"""Learning rules. One rule per file; no rule imports another."""

from layerwise.rules.aug_local import AugLocal
from layerwise.rules.backprop import Backprop
from layerwise.rules.deep_supervision import DeepSupervision
from layerwise.rules.dgl import DGL
from layerwise.rules.difference_target_propagation import DifferenceTargetPropagation
from layerwise.rules.diffusion_blocks import DiffusionBlocks
from layerwise.rules.direct_feedback_alignment import DirectFeedbackAlignment
from layerwise.rules.direct_global import DirectGlobal
from layerwise.rules.direct_random_target_projection import DirectRandomTargetProjection
from layerwise.rules.dni import DNI
from layerwise.rules.equilibrium_propagation import EquilibriumPropagation
from layerwise.rules.feedback_alignment import FeedbackAlignment
from layerwise.rules.forward_forward import ForwardForward
from layerwise.rules.forward_gradient import ForwardGradient
from layerwise.rules.greedy import Greedy
from layerwise.rules.kolen_pollack import KolenPollack
from layerwise.rules.last_block import LastBlock
from layerwise.rules.ldrl import LDRL
from layerwise.rules.local_critic import LocalCritic
from layerwise.rules.local_forward_gradient import LocalForwardGradient
from layerwise.rules.man import MAN
from layerwise.rules.mono_forward import MonoForward
from layerwise.rules.noprop import NoProp
from layerwise.rules.overlap import Overlap
from layerwise.rules.pepita import PEPITA
from layerwise.rules.predictive_coding import PredictiveCoding
from layerwise.rules.sequential import Sequential
from layerwise.rules.sgr import SGR
from layerwise.rules.shared_readout import SharedReadout
from layerwise.rules.sign_symmetry import SignSymmetry
from layerwise.rules.spsa import SPSA

__all__ = [
    "DGL",
    "DNI",
    "LDRL",
    "MAN",
    "PEPITA",
    "SGR",
    "SPSA",
    "AugLocal",
    "Backprop",
    "DeepSupervision",
    "DifferenceTargetPropagation",
    "DiffusionBlocks",
    "DirectFeedbackAlignment",
    "DirectGlobal",
    "DirectRandomTargetProjection",
    "EquilibriumPropagation",
    "FeedbackAlignment",
    "ForwardForward",
    "ForwardGradient",
    "Greedy",
    "KolenPollack",
    "LastBlock",
    "LocalCritic",
    "LocalForwardGradient",
    "MonoForward",
    "NoProp",
    "Overlap",
    "PredictiveCoding",
    "Sequential",
    "SharedReadout",
    "SignSymmetry",
]
