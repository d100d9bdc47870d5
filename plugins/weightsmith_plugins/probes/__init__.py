"""What is measured of weights and of the run. Sinks, such as TensorBoard, write it down."""

from weightsmith_plugins.probes.distributions import histogram
from weightsmith_plugins.probes.dormant import DormantUnits
from weightsmith_plugins.probes.images import FilterImages
from weightsmith_plugins.probes.plugins import GradientNorms, PluginEffect
from weightsmith_plugins.probes.run import Hyperparameters, LearningRates, Losses, PenaltyCosts, Violations
from weightsmith_plugins.probes.updates import UpdateHistograms, UpdateRatio
from weightsmith_plugins.probes.weights import (
    GradientHistograms,
    Sparsity,
    SpectralNorms,
    WeightHistograms,
    WeightStatistics,
)

__all__ = [
    "DormantUnits",
    "FilterImages",
    "GradientHistograms",
    "GradientNorms",
    "Hyperparameters",
    "LearningRates",
    "Losses",
    "PenaltyCosts",
    "PluginEffect",
    "Sparsity",
    "SpectralNorms",
    "UpdateHistograms",
    "UpdateRatio",
    "Violations",
    "WeightHistograms",
    "WeightStatistics",
    "histogram",
]
