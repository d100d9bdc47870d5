"""How weights start. Each draws a new weight from the one that is there; a layer's fans follow its units."""

from weightsmith_plugins.initializers.data_driven import LSUV
from weightsmith_plugins.initializers.direct import (
    Constant,
    Normal,
    Ones,
    Scale,
    TruncatedNormal,
    Uniform,
    Values,
    Zeros,
)
from weightsmith_plugins.initializers.scaled import (
    KaimingNormal,
    KaimingUniform,
    LecunNormal,
    LecunUniform,
    VarianceScaling,
    XavierNormal,
    XavierUniform,
)
from weightsmith_plugins.initializers.structured import DeltaOrthogonal, Dirac, Identity, Orthogonal, Sparse

__all__ = [
    "LSUV",
    "Constant",
    "DeltaOrthogonal",
    "Dirac",
    "Identity",
    "KaimingNormal",
    "KaimingUniform",
    "LecunNormal",
    "LecunUniform",
    "Normal",
    "Ones",
    "Orthogonal",
    "Scale",
    "Sparse",
    "TruncatedNormal",
    "Uniform",
    "Values",
    "VarianceScaling",
    "XavierNormal",
    "XavierUniform",
    "Zeros",
]
