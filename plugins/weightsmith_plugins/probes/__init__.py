"""What is measured of weights and of the run. Sinks, such as TensorBoard, write it down."""

from weightsmith_plugins.probes.distributions import histogram
from weightsmith_plugins.probes.run import LearningRates, Losses, PenaltyCosts, Violations
from weightsmith_plugins.probes.weights import GradientHistograms, WeightHistograms

__all__ = [
    "GradientHistograms",
    "LearningRates",
    "Losses",
    "PenaltyCosts",
    "Violations",
    "WeightHistograms",
    "histogram",
]
