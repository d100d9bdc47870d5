"""What is measured of weights and of the run. Sinks, such as TensorBoard, write it down."""

from weightsmith_plugins.probes.distributions import histogram
from weightsmith_plugins.probes.images import FilterImages
from weightsmith_plugins.probes.run import Hyperparameters, LearningRates, Losses, PenaltyCosts, Violations
from weightsmith_plugins.probes.updates import UpdateHistograms, UpdateRatio
from weightsmith_plugins.probes.weights import (
    GradientHistograms,
    GradientNorms,
    Sparsity,
    SpectralNorms,
    WeightHistograms,
    WeightStatistics,
)

__all__ = [
    "FilterImages",
    "GradientHistograms",
    "GradientNorms",
    "Hyperparameters",
    "LearningRates",
    "Losses",
    "PenaltyCosts",
    "Sparsity",
    "SpectralNorms",
    "UpdateHistograms",
    "UpdateRatio",
    "Violations",
    "WeightHistograms",
    "WeightStatistics",
    "histogram",
]
