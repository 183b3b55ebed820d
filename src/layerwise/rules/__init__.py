"""The learning rules, one per file. A new rule is one new file and one line here.

No rule imports another. Code that several rules share is in `base`, `families` and `calls`.
"""

import inspect

from layerwise.rules.aug_local import AugLocal as AugLocal
from layerwise.rules.backprop import Backprop as Backprop
from layerwise.rules.deep_supervision import DeepSupervision as DeepSupervision
from layerwise.rules.delayed_gradient import DelayedGradient as DelayedGradient
from layerwise.rules.dgl import DGL as DGL
from layerwise.rules.difference_target_propagation import (
    DifferenceTargetPropagation as DifferenceTargetPropagation,
)
from layerwise.rules.diffusion_blocks import DiffusionBlocks as DiffusionBlocks
from layerwise.rules.direct_difference_target_propagation import (
    DirectDifferenceTargetPropagation as DirectDifferenceTargetPropagation,
)
from layerwise.rules.direct_feedback_alignment import (
    DirectFeedbackAlignment as DirectFeedbackAlignment,
)
from layerwise.rules.direct_global import DirectGlobal as DirectGlobal
from layerwise.rules.direct_random_target_projection import (
    DirectRandomTargetProjection as DirectRandomTargetProjection,
)
from layerwise.rules.dni import DNI as DNI
from layerwise.rules.equilibrium_propagation import EquilibriumPropagation as EquilibriumPropagation
from layerwise.rules.feedback_alignment import FeedbackAlignment as FeedbackAlignment
from layerwise.rules.forward_forward import ForwardForward as ForwardForward
from layerwise.rules.forward_gradient import ForwardGradient as ForwardGradient
from layerwise.rules.greedy import Greedy as Greedy
from layerwise.rules.hpff import HPFF as HPFF
from layerwise.rules.kolen_pollack import KolenPollack as KolenPollack
from layerwise.rules.last_block import LastBlock as LastBlock
from layerwise.rules.ldrl import LDRL as LDRL
from layerwise.rules.local_critic import LocalCritic as LocalCritic
from layerwise.rules.local_forward_gradient import LocalForwardGradient as LocalForwardGradient
from layerwise.rules.man import MAN as MAN
from layerwise.rules.mono_forward import MonoForward as MonoForward
from layerwise.rules.noprop import NoProp as NoProp
from layerwise.rules.overlap import Overlap as Overlap
from layerwise.rules.pepita import PEPITA as PEPITA
from layerwise.rules.predictive_coding import PredictiveCoding as PredictiveCoding
from layerwise.rules.sequential import Sequential as Sequential
from layerwise.rules.sgr import SGR as SGR
from layerwise.rules.shared_readout import SharedReadout as SharedReadout
from layerwise.rules.sign_symmetry import SignSymmetry as SignSymmetry
from layerwise.rules.spsa import SPSA as SPSA
from layerwise.rules.truncated_bptt import TruncatedBPTT as TruncatedBPTT

__all__ = sorted(name for name, found in globals().items() if inspect.isclass(found))
