"""What a weight's shape lacks, in words; empty if it lacks nothing."""

from __future__ import annotations

from torch import Tensor
from weightsmith import Site

__all__ = ["no_equal_groups", "no_matrix", "no_square", "no_units"]


def no_units(weight: Tensor) -> str:
    """Of a plugin for weights whose units have values of their own: not for biases and scales."""
    return "" if weight.ndim >= 2 else "needed are two axes or more, as named(…) & matrices selects"


def no_matrix(weight: Tensor) -> str:
    """Of a plugin for matrices."""
    return "" if weight.ndim == 2 else "needed are two axes"


def no_square(weight: Tensor) -> str:
    """Of a plugin for square matrices."""
    return "" if weight.ndim == 2 and weight.shape[0] == weight.shape[1] else "needed is a square matrix"


def no_equal_groups(weight: Tensor, site: Site, size: int) -> str:
    """Of a plugin for groups of ``size`` consecutive inputs."""
    inputs = next(iter(site.unit_dims), 0)
    if weight.ndim >= 2 and weight.shape[inputs] % size == 0:
        return ""
    return f"needed is a number of inputs (axis {inputs}) that {size} divides"
