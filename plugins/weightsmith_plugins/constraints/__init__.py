"""Sets that weights are kept in."""

from weightsmith_plugins.constraints.bounds import Clamp, NonNegative
from weightsmith_plugins.constraints.discrete import Grid, NofM, TopK
from weightsmith_plugins.constraints.intersection import Intersection
from weightsmith_plugins.constraints.norms import MaxNorm, MinMaxNorm, UnitNorm
from weightsmith_plugins.constraints.spectra import LowRank, Orthonormal, PositiveDefinite, SpectralBound
from weightsmith_plugins.constraints.subspaces import LowerTriangular, SkewSymmetric, Symmetric
from weightsmith_plugins.constraints.sums import L1Ball, Simplex, ZeroMean

__all__ = [
    "Clamp",
    "Grid",
    "Intersection",
    "L1Ball",
    "LowRank",
    "LowerTriangular",
    "MaxNorm",
    "MinMaxNorm",
    "NofM",
    "NonNegative",
    "Orthonormal",
    "PositiveDefinite",
    "Simplex",
    "SkewSymmetric",
    "SpectralBound",
    "Symmetric",
    "TopK",
    "UnitNorm",
    "ZeroMean",
]
