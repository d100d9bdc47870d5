"""Edits of the gradient between backward and the optimizer's step."""

from weightsmith_plugins.gradient_editors.clipping import AdaptiveClip, ClipNorm, ClipUnitNorm, ClipValue
from weightsmith_plugins.gradient_editors.directions import (
    Centralize,
    Noise,
    Normalize,
    Orthogonalize,
    ScaleGradient,
    Sign,
)
from weightsmith_plugins.gradient_editors.gates import Freeze, SkipNonFinite, Unfreeze
from weightsmith_plugins.gradient_editors.sharpness import SharpnessAware

__all__ = [
    "AdaptiveClip",
    "Centralize",
    "ClipNorm",
    "ClipUnitNorm",
    "ClipValue",
    "Freeze",
    "Noise",
    "Normalize",
    "Orthogonalize",
    "ScaleGradient",
    "SharpnessAware",
    "Sign",
    "SkipNonFinite",
    "Unfreeze",
]
