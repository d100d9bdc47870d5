"""Bounds on the singular values of weights as matrices: units are rows, each gate of a recurrent layer is a matrix."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Constraint, Site
from weightsmith.tensors import accurate_dtype, from_unit_matrices, unit_matrices

from weightsmith_plugins.constraints.subspaces import require_square

__all__ = ["LowRank", "Orthonormal", "PositiveDefinite", "SpectralBound"]


class Orthonormal(Constraint):
    """WWᵀ = I, or WᵀW = I where there are more rows than columns; the nearest point is UVᵀ of W = UΣVᵀ, the orthogonal
    factor of its polar decomposition.

    Higham (1986), "Computing the polar decomposition, with applications". Projected by singular values; with
    ``mode="forward"`` by the Newton–Schulz iteration X ← X(3I − XᵀX) / 2, whose gradient is finite everywhere (that of
    singular vectors is not where singular values are equal, as they are at every orthonormal matrix).

    >>> Orthonormal()(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    tensor([[1., 0.],
            [0., 1.]])
    """

    def project(self, weight: Tensor, site: Site) -> Tensor:
        matrices = _matrices(weight, site)
        if torch.is_grad_enabled() and matrices.requires_grad:
            return from_unit_matrices(_newton_schulz(matrices), weight, site.unit_dims)
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        return from_unit_matrices(left @ right, weight, site.unit_dims)

    def tolerance(self, projected: Tensor, site: Site) -> Tensor | float:
        return _tolerance(projected)

    def tangent(self, velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
        """Without the part that changes WWᵀ (or WᵀW): for rows, V − (VWᵀ + WVᵀ)W / 2."""
        matrices, moving = _matrices(weight, site), _matrices(velocity, site)
        tall = matrices.shape[-2] > matrices.shape[-1]
        rows, along = (matrices.mT, moving.mT) if tall else (matrices, moving)
        across = along @ rows.mT
        kept = along - (across + across.mT) / 2 @ rows
        return from_unit_matrices(kept.mT if tall else kept, velocity, site.unit_dims)


class SpectralBound(Constraint):
    """σ₁(W) ≤ limit, so that the layer amplifies no input by more; the nearest point is U · min(Σ, limit) · Vᵀ.

    Sedghi, Gupta & Long (2019), "The singular values of convolutional layers", arXiv:1805.10408, on the filters as a
    matrix.

    Args:
        limit: the largest singular value, above 0.

    >>> SpectralBound(1.0)(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    tensor([[1.0000, 0.0000],
            [0.0000, 0.5000]])
    """

    convex: ClassVar[bool] = True
    forward_gradient: ClassVar[Literal["autograd", "straight-through", "none"]] = "none"

    limit: float

    def validate(self) -> None:
        if not self.limit > 0:
            raise ConfigurationError(f"{self!r}: limit must be above 0")

    def project(self, weight: Tensor, site: Site) -> Tensor:
        matrices = _matrices(weight, site)
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        bounded = left * values.clamp(max=self.limit).unsqueeze(-2) @ right
        return from_unit_matrices(bounded, weight, site.unit_dims)

    def tolerance(self, projected: Tensor, site: Site) -> Tensor | float:
        return _tolerance(projected)


class LowRank(Constraint):
    """rank(W) ≤ rank; the nearest point keeps the ``rank`` largest singular values.

    Eckart & Young (1936), "The approximation of one matrix by another of lower rank".

    Args:
        rank: the largest rank, at least 1; of each gate, in a recurrent layer.

    >>> LowRank(1)(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    tensor([[3., 0.],
            [0., 0.]])
    """

    forward_gradient: ClassVar[Literal["autograd", "straight-through", "none"]] = "none"

    rank: int

    def validate(self) -> None:
        if self.rank < 1:
            raise ConfigurationError(f"{self!r}: rank must be at least 1")

    def project(self, weight: Tensor, site: Site) -> Tensor:
        left, values, right = torch.linalg.svd(_matrices(weight, site), full_matrices=False)
        kept = int(self.rank)
        low = left[..., :kept] * values[..., None, :kept] @ right[..., :kept, :]
        return from_unit_matrices(low, weight, site.unit_dims)

    def tolerance(self, projected: Tensor, site: Site) -> Tensor | float:
        return _tolerance(projected)


class PositiveDefinite(Constraint):
    """W = Wᵀ with all eigenvalues ≥ floor; the nearest point is Q · max(Λ, floor) · Qᵀ of (W + Wᵀ) / 2 = QΛQᵀ.

    Higham (1988), "Computing a nearest symmetric positive semidefinite matrix".

    Args:
        floor: the least eigenvalue, at least 0. Default 1e-6.

    Shapes: square matrices.

    >>> PositiveDefinite(0.1)(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    tensor([[1.0000, 0.0000],
            [0.0000, 0.1000]])
    """

    convex: ClassVar[bool] = True
    forward_gradient: ClassVar[Literal["autograd", "straight-through", "none"]] = "none"

    floor: float = 1e-6

    def validate(self) -> None:
        if not self.floor >= 0:
            raise ConfigurationError(f"{self!r}: floor must be at least 0")

    def project(self, weight: Tensor, site: Site) -> Tensor:
        require_square(self, weight, site)
        accurate = weight.to(accurate_dtype(weight.dtype))
        symmetric = accurate / 2 + accurate.mT / 2
        values, vectors = torch.linalg.eigh(symmetric)
        lacking = (self.floor - values).clamp(min=0)  # what is added, so that what is inside stays exact
        lifted = symmetric + vectors * lacking @ vectors.mT
        even: Tensor = lifted / 2 + lifted.mT / 2
        return even.to(weight.dtype)

    def tolerance(self, projected: Tensor, site: Site) -> Tensor | float:
        return _tolerance(projected)


def _matrices(weight: Tensor, site: Site) -> Tensor:
    return unit_matrices(weight, site.unit_dims, site.gates).to(accurate_dtype(weight.dtype))


def _tolerance(projected: Tensor) -> Tensor:
    """How far a projection may move a matrix of the set: decompositions are exact to within some units of rounding at
    the largest value of the whole matrix; in half precisions the rounding of the result alone counts."""
    limits = torch.finfo(projected.dtype)
    units = 2 if accurate_dtype(projected.dtype) != projected.dtype else 64
    return projected.detach().abs().amax().clamp(min=limits.tiny) * (units * limits.eps)


def _newton_schulz(matrices: Tensor) -> Tensor:
    """The orthogonal polar factor, differentiable: X ← X(3I − XᵀX) / 2 from W / ‖W‖₂, until it is orthonormal."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    turned = matrices.mT if tall else matrices
    with torch.no_grad():
        sizes = torch.linalg.matrix_norm(turned, 2, keepdim=True)
    turned = turned / torch.where(sizes > 0, sizes, 1)
    identity = torch.eye(turned.shape[-2], dtype=turned.dtype, device=turned.device)
    for _ in range(_MOST_STEPS):
        gram = turned @ turned.mT
        if bool((gram.detach() - identity).abs().amax() <= 4 * torch.finfo(turned.dtype).eps):
            break
        turned = (3 * identity - gram) @ turned / 2
    return turned.mT if tall else turned


_MOST_STEPS = 60
"""Singular values grow by half a step until near 1: from 1e-8 of the largest it takes about 50."""
