"""What weights are charged for. Each says its cost, its gradient and, where known, its proximal map in closed form."""

from weightsmith_plugins.penalties.anchors import L2SP, ElasticConsolidation, fisher_information
from weightsmith_plugins.penalties.sizes import L1, L2, ElasticNet, GroupLasso, Hoyer
from weightsmith_plugins.penalties.spectra import NuclearNorm, Orthogonality, SpectralPenalty

__all__ = [
    "L1",
    "L2",
    "L2SP",
    "ElasticConsolidation",
    "ElasticNet",
    "GroupLasso",
    "Hoyer",
    "NuclearNorm",
    "Orthogonality",
    "SpectralPenalty",
    "fisher_information",
]
