"""Linear structure of square matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import Constraint, Site

from weightsmith_plugins.shapes import no_matrix, no_square

__all__ = ["LowerTriangular", "SkewSymmetric", "Symmetric"]


class Symmetric(Constraint):
    """W = Wᵀ; the nearest point is (W + Wᵀ) / 2.

    Shapes: square matrices.

    >>> Symmetric()(torch.tensor([[1.0, 2.0], [4.0, 3.0]]))
    tensor([[1., 3.],
            [3., 3.]])
    """

    convex: ClassVar[bool] = True

    def misfit(self, weight: Tensor, site: Site) -> str:
        return no_square(weight)

    def project(self, weight: Tensor, site: Site) -> Tensor:
        half = weight / 2
        return half + half.mT

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        for weight in weights:
            half = weight / 2
            torch.add(half, half.mT, out=weight)

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0  # halves of equal values add up exactly

    def tangent(self, velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
        return self.project(velocity, site)


class SkewSymmetric(Constraint):
    """W = −Wᵀ; the nearest point is (W − Wᵀ) / 2.

    Shapes: square matrices.

    >>> SkewSymmetric()(torch.tensor([[1.0, 2.0], [4.0, 3.0]]))
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    """

    convex: ClassVar[bool] = True

    def misfit(self, weight: Tensor, site: Site) -> str:
        return no_square(weight)

    def project(self, weight: Tensor, site: Site) -> Tensor:
        half = weight / 2
        return half - half.mT

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        for weight in weights:
            half = weight / 2
            torch.sub(half, half.mT, out=weight)

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0  # halves of equal values add up exactly

    def tangent(self, velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
        return self.project(velocity, site)


class LowerTriangular(Constraint):
    """W_ij = 0 for j > i + diagonal: each output sees only the inputs up to its own (a causal mixing matrix).

    Args:
        diagonal: how far above the main diagonal values may stand. Default 0.

    Shapes: matrices.

    >>> LowerTriangular()(torch.ones(2, 2))
    tensor([[1., 0.],
            [1., 1.]])
    """

    convex: ClassVar[bool] = True

    diagonal: int = 0

    def misfit(self, weight: Tensor, site: Site) -> str:
        return no_matrix(weight)

    def project(self, weight: Tensor, site: Site) -> Tensor:
        return torch.tril(weight, self.diagonal)

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        for weight in weights:
            weight.tril_(self.diagonal)

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0  # zeros are exact

    def tangent(self, velocity: Tensor, weight: Tensor, site: Site) -> Tensor:
        return torch.tril(velocity, self.diagonal)
