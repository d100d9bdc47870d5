"""Bounds on the singular values of weights as matrices: units are rows, each gate of a recurrent layer is a matrix."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Constraint, Site
from weightsmith.kinds.base import copy_to
from weightsmith.tensors import accurate_dtype, are_large, from_unit_matrices, row_groups, unit_matrices

from weightsmith_plugins.linear_algebra import symmetric_product
from weightsmith_plugins.shapes import no_square

__all__ = ["LowRank", "Orthonormal", "PositiveDefinite", "SpectralBound"]


class SpectralConstraint(Constraint, abstract=True):
    """A set of matrices with certain singular values or eigenvalues, which are found for many matrices at once."""

    forward_gradient: ClassVar[Literal["autograd", "straight-through", "none"]] = "none"

    @abstractmethod
    def nearest(self, matrices: Tensor, rounding: float) -> Tensor:
        """The nearest matrices of the set, shape ``(..., rows, columns)``; those that are inside, to within
        ``rounding`` relative to their largest value, bit for bit as they are."""

    def project(self, weight: Tensor, site: Site) -> Tensor:
        matrices = _matrices(weight, site)
        return from_unit_matrices(self.nearest(matrices, _rounding(weight)), weight, site.unit_dims).clone()

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        kinds = [_kind(weight, site) for weight, site in zip(weights, sites, strict=True)]
        together, alone = row_groups(kinds)
        for places in together:
            try:
                stack = torch.stack([weights[i] for i in places])
                found = self.nearest(stack.to(accurate_dtype(stack.dtype)), _rounding(stack))
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                # whose? they are told apart one by one
                alone += places
                continue
            for place, matrix in zip(places, found.unbind(), strict=True):
                weights[place].copy_(matrix)
        picked = [weights[i] for i in alone]
        self._singly(self.project, copy_to, picked, [sites[i] for i in alone], picked)

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0


class Orthonormal(SpectralConstraint):
    """WWᵀ = I, or WᵀW = I where there are more rows than columns; the nearest point is UVᵀ of W = UΣVᵀ, the orthogonal
    factor of its polar decomposition.

    Higham (1986), "Computing the polar decomposition, with applications". Projected as W(WᵀW)^(−1/2), by the series of
    that root in WᵀW − I, where singular values are near 1, as after an update, and else by singular values; with
    ``mode="forward"`` by the Newton–Schulz iteration, X ← X(3I − XᵀX) / 2, whose gradient is finite everywhere (that of
    singular vectors is not where singular values are equal, as they are at every orthonormal matrix).

    >>> Orthonormal()(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    tensor([[1., 0.],
            [0., 1.]])
    """

    forward_gradient: ClassVar[Literal["autograd", "straight-through", "none"]] = "autograd"

    def nearest(self, matrices: Tensor, rounding: float) -> Tensor:
        if self.mode == "forward" or (torch.is_grad_enabled() and matrices.requires_grad):
            return self._differentiable(matrices)
        if not matrices.numel():
            return matrices
        excess = _gram_excess(matrices)
        outside = ~(excess.abs().amax(dim=(-2, -1)) <= rounding)
        return _where(outside, lambda: _polar_factors(matrices, excess), matrices)

    def _differentiable(self, matrices: Tensor) -> Tensor:
        found, converged = _newton_schulz(matrices)
        if not converged:
            raise ConfigurationError(
                f"{self!r}: a weight of shape {tuple(matrices.shape)} has too low a rank to have a nearest orthonormal "
                "one that a gradient could pass: start it otherwise, such as with Orthogonal()"
            )
        return found

    def tangent(self, velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
        """Without the part that changes WWᵀ (or WᵀW): for rows, V − (VWᵀ + WVᵀ)W / 2."""
        matrices, moving = _matrices(weight, site), _matrices(velocity, site)
        tall = matrices.shape[-2] > matrices.shape[-1]
        rows, along = (matrices.mT, moving.mT) if tall else (matrices, moving)
        across = along @ rows.mT
        kept = along - (across + across.mT) / 2 @ rows
        return from_unit_matrices(kept.mT if tall else kept, velocity, site.unit_dims)


class SpectralBound(SpectralConstraint):
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

    limit: float

    def validate(self) -> None:
        if not self.limit > 0:
            raise ConfigurationError(f"{self!r}: limit must be above 0")

    def nearest(self, matrices: Tensor, rounding: float) -> Tensor:
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        outside = ~(values[..., 0] <= self.limit * (1 + rounding))
        return _where(outside, lambda: left * values.clamp(max=self.limit).unsqueeze(-2) @ right, matrices)


class LowRank(SpectralConstraint):
    """rank(W) ≤ rank; the nearest point keeps the ``rank`` largest singular values.

    Eckart & Young (1936), "The approximation of one matrix by another of lower rank".

    Args:
        rank: the largest rank, at least 1; of each gate, in a recurrent layer.

    >>> LowRank(1)(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    tensor([[3., 0.],
            [0., 0.]])
    """

    rank: int

    def validate(self) -> None:
        if self.rank < 1:
            raise ConfigurationError(f"{self!r}: rank must be at least 1")

    def nearest(self, matrices: Tensor, rounding: float) -> Tensor:
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        kept = int(self.rank)
        outside = ~(values[..., kept:] <= values[..., :1] * rounding).all(-1)
        return _where(outside, lambda: left[..., :kept] * values[..., None, :kept] @ right[..., :kept, :], matrices)


class PositiveDefinite(SpectralConstraint):
    """W = Wᵀ with all eigenvalues ≥ floor; the nearest point is Q · max(Λ, floor) · Qᵀ of (W + Wᵀ) / 2 = QΛQᵀ. What is
    lifted is lifted by the rounding of the largest eigenvalue more, so that a Cholesky factor can be had.

    Higham (1988), "Computing a nearest symmetric positive semidefinite matrix".

    Args:
        floor: the least eigenvalue, at least 0. Default 1e-6.

    Shapes: square matrices.

    >>> PositiveDefinite(0.1)(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    tensor([[1.0000, 0.0000],
            [0.0000, 0.1000]])
    """

    convex: ClassVar[bool] = True

    floor: float = 1e-6

    def validate(self) -> None:
        if not self.floor >= 0:
            raise ConfigurationError(f"{self!r}: floor must be at least 0")

    def misfit(self, weight: Tensor, site: Site) -> str:
        return no_square(weight)

    def nearest(self, matrices: Tensor, rounding: float) -> Tensor:
        half = matrices / 2
        symmetric = half + half.mT
        values, vectors = torch.linalg.eigh(symmetric)
        least, largest = values[..., :1], torch.maximum(-values[..., :1], values[..., -1:])
        lifts = (self.floor + (self.floor + largest) * rounding - values).clamp_(min=0)
        lifted = ((vectors * lifts.div_(2).unsqueeze(-2)) @ vectors.mT).add_(half)
        return _where(~(least.squeeze(-1) >= self.floor), lambda: lifted + lifted.mT, symmetric)


def _where(outside: Tensor, moved: Callable[[], Tensor], matrices: Tensor) -> Tensor:
    """The matrices, those that are outside moved. What is not finite is outside, and becomes NaN."""
    if not bool(outside.any()):
        return matrices
    return moved() if bool(outside.all()) else torch.where(outside[..., None, None], moved(), matrices)


def _kind(weight: Tensor, site: Site) -> object:
    """What matrices that are decomposed together have in common; ``None`` for what is no plain and small matrix."""
    is_plain = weight.ndim == 2 and site.unit_dims == (1,) and site.gates == 1 and not are_large([weight])
    return (weight.shape, weight.dtype, weight.device) if is_plain else None


def _matrices(weight: Tensor, site: Site) -> Tensor:
    matrices = unit_matrices(weight, site.unit_dims, site.gates).to(accurate_dtype(weight.dtype))
    return matrices.squeeze(0)  # one matrix on its own is faster than in a stack of one


def _rounding(weight: Tensor) -> float:
    """How far singular values, relative to the largest, may be off by rounding: that of a decomposition, and in half
    precisions that of the weight itself."""
    units = 2 if accurate_dtype(weight.dtype) != weight.dtype else 32
    return units * torch.finfo(weight.dtype).eps


def _gram_excess(matrices: Tensor) -> Tensor:
    """WWᵀ − I, or WᵀW − I where there are more rows than columns."""
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    return symmetric_product(wide, wide.mT) - torch.eye(wide.shape[-2], dtype=wide.dtype, device=wide.device)


def _polar_factors(matrices: Tensor, excess: Tensor) -> Tensor:
    """UVᵀ of every matrix W = UΣVᵀ, given E = WWᵀ − I, or WᵀW − I where there are more rows than columns."""
    square = symmetric_product(excess, excess)
    bounds = torch.linalg.matrix_norm(square).sqrt()  # ‖E²‖_F ≥ ‖E‖₂², and far nearer than ‖E‖_F ≥ ‖E‖₂
    near = bounds <= _NEAR
    if bool(near.all()):
        bound = float(bounds.max())
        found = _rooted(matrices, _inverse_root(excess, square, bound))
        if matrices.dtype == torch.float64 or bound > _NEARER:  # sums are rounded by more than the set allows
            found = _rooted(found, _with_diagonal(_gram_excess(found) / -2, 1.0))
        return found
    if matrices.ndim == 2 or not bool(near.any()):
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        factors: Tensor = left @ right
        return factors
    found = torch.empty_like(matrices)
    for chosen in (near, ~near):
        found[chosen] = _polar_factors(matrices[chosen], excess[chosen])
    return found


_NEAR, _NEARER = 0.5, 0.25
"""‖E‖₂, up to which the series is used, which converges below 1; and up to which it is enough for float32 by itself."""


def _inverse_root(excess: Tensor, square: Tensor, bound: float) -> Tensor:
    """(I + E)^(−1/2) for symmetric E with ‖E‖₂ ≤ bound, given E²: by its series, Σ binom(−1/2, k) Eᵏ, to as many terms
    as count. Where these are too many, S = I − E/2 + 3E²/8 goes first, which leaves (I + E)S² − I =
    E³(5/8 − 15E/64 + 9E²/64) in the place of E: at most the cube of its norm. So nothing has to be looked at on the
    way, and of the weight there are two products alone."""
    degree = next((d for d in (2, 4, 6, 8, 10) if _is_enough(d, bound, torch.finfo(excess.dtype).eps)), None)
    if degree is not None:  # Horner's scheme in E²: every product adds two terms
        root = (square * _BINOMIALS[degree]).add_(excess, alpha=_BINOMIALS[degree - 1])
        for k in range(degree - 2, 0, -2):
            root = symmetric_product(square, _with_diagonal(root, _BINOMIALS[k])).add_(excess, alpha=_BINOMIALS[k - 1])
        return _with_diagonal(root, _BINOMIALS[0])
    step = _with_diagonal((square * 0.375).sub_(excess, alpha=0.5), 1.0)
    left = _with_diagonal((square * (9 / 64)).sub_(excess, alpha=15 / 64), 5 / 8)
    excess = symmetric_product(symmetric_product(excess, square), left)
    return symmetric_product(_inverse_root(excess, symmetric_product(excess, excess), bound**3), step)


_BINOMIALS = [math.prod((0.5 + i) / -(1 + i) for i in range(k)) for k in range(12)]
"""binom(−1/2, k)."""


def _is_enough(degree: int, bound: float, eps: float) -> bool:
    """Whether what a series of that degree leaves out is rounding."""
    return bound < 1 and abs(_BINOMIALS[degree + 1]) * bound ** (degree + 1) / (1 - bound) <= eps / 2


def _rooted(matrices: Tensor, root: Tensor) -> Tensor:
    return root @ matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices @ root


def _with_diagonal(matrices: Tensor, value: float) -> Tensor:
    """Add a multiple of I, in place."""
    matrices.diagonal(dim1=-2, dim2=-1).add_(value)
    return matrices


def _newton_schulz(matrices: Tensor) -> tuple[Tensor, bool]:
    """The orthogonal polar factor, differentiable: X ← X(3I − XᵀX) / 2 from W / ‖W‖₂, until it is orthonormal; and
    whether it became so."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    turned = matrices.mT if tall else matrices
    with torch.no_grad():
        sizes = torch.linalg.matrix_norm(turned, 2, keepdim=True)
    turned = turned / torch.where(sizes > 0, sizes, 1)
    identity = torch.eye(turned.shape[-2], dtype=turned.dtype, device=turned.device)
    room, excess = 8 * torch.finfo(turned.dtype).eps, torch.inf
    for _ in range(_MOST_STEPS):
        gram = turned @ turned.mT
        excess = float((gram.detach() - identity).abs().amax())
        if excess <= room:
            break
        turned = (3 * identity - gram) @ turned / 2
    return (turned.mT if tall else turned), excess <= 1000 * room


_MOST_STEPS = 60
"""Singular values grow by half a step until near 1: from 1e-8 of the largest it takes about 50."""
