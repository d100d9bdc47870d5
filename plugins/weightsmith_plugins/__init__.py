"""The built-in plugins of weightsmith."""

from weightsmith_plugins.averaging import EMA
from weightsmith_plugins.constraints import Clamp, MaxNorm, NonNegative, UnitNorm
from weightsmith_plugins.gradient_editors import AdaptiveClip, Centralize, ClipNorm
from weightsmith_plugins.initializers import Constant, KaimingNormal, Orthogonal, Scale
from weightsmith_plugins.penalties import L1, L2, GroupLasso
from weightsmith_plugins.probes import (
    GradientHistograms,
    LearningRates,
    Losses,
    PenaltyCosts,
    Violations,
    WeightHistograms,
)
from weightsmith_plugins.tensorboard import TensorBoard
from weightsmith_plugins.weight_editors import Decay, GradientStep, Perturb

__all__ = [
    "EMA",
    "L1",
    "L2",
    "AdaptiveClip",
    "Centralize",
    "Clamp",
    "ClipNorm",
    "Constant",
    "Decay",
    "GradientHistograms",
    "GradientStep",
    "GroupLasso",
    "KaimingNormal",
    "LearningRates",
    "Losses",
    "MaxNorm",
    "NonNegative",
    "Orthogonal",
    "PenaltyCosts",
    "Perturb",
    "Scale",
    "TensorBoard",
    "UnitNorm",
    "Violations",
    "WeightHistograms",
]
