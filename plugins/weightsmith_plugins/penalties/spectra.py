"""Penalties on weights as matrices: units are rows, and each gate of a recurrent layer is a matrix of its own."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import Penalty, Site
from weightsmith.site import Sharding
from weightsmith.tensors import accurate_dtype, from_unit_matrices, unit_matrices

from weightsmith_plugins.linear_algebra import symmetric_product, top_singular_vectors
from weightsmith_plugins.penalties.sizes import require_non_negative

__all__ = ["NuclearNorm", "Orthogonality", "SpectralPenalty"]


class NuclearNorm(Penalty):
    """strength · Σσᵢ, the sum of the singular values: pushes the rank down.

    Fazel (2002), "Matrix rank minimization with applications"; Cai, Candès & Shen (2010), "A singular value
    thresholding algorithm for matrix completion", arXiv:0810.3286. With W = UΣVᵀ the gradient is strength · UVᵀ
    over the singular values that are not zero; proximal map U · max(Σ − step · strength, 0) · Vᵀ.

    Args:
        strength: cost per unit of singular value, at least 0.

    >>> NuclearNorm(0.5)(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    tensor(3.5000)
    """

    strength: float

    def validate(self) -> None:
        require_non_negative(self, "strength", self.strength)

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        norms: Tensor = torch.linalg.matrix_norm(_matrices(weight, site), "nuc")
        return self.strength * norms.sum().to(weight.dtype)

    def gradient(self, weight: Tensor, site: Site) -> Tensor:
        left, values, right = torch.linalg.svd(_matrices(weight, site), full_matrices=False)
        kept = values > values[..., :1] * (max(left.shape[-2], right.shape[-1]) * torch.finfo(values.dtype).eps)
        return self.strength * from_unit_matrices(left * kept.unsqueeze(-2) @ right, weight, site.unit_dims)

    def proximal(self, weight: Tensor, step: Tensor | float, site: Site) -> Tensor:
        left, values, right = torch.linalg.svd(_matrices(weight, site), full_matrices=False)
        shrunk = (values - step * self.strength).clamp(min=0)
        return from_unit_matrices(left * shrunk.unsqueeze(-2) @ right, weight, site.unit_dims)


class Orthogonality(Penalty):
    """strength · ‖WWᵀ − I‖²: pushes rows to be orthonormal; or ‖WᵀW − I‖², columns, where there are more rows.

    Bansal, Chen & Wang (2018), "Can we gain more from orthogonality regularizations in training deep networks?",
    arXiv:1810.09102, equation 3. Gradient 4 · strength · (WWᵀ − I)W, or 4 · strength · W(WᵀW − I).

    Args:
        strength: cost per unit of ‖WWᵀ − I‖², at least 0.

    >>> Orthogonality(1.0)(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    tensor(9.)
    """

    strength: float

    def validate(self) -> None:
        require_non_negative(self, "strength", self.strength)

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        return (self.strength * _excess(_wide(_matrices(weight, site))).square().sum()).to(weight.dtype)

    def gradient(self, weight: Tensor, site: Site) -> Tensor:
        matrices = _matrices(weight, site)
        wide = _wide(matrices)
        slope = (4 * self.strength) * (_excess(wide) @ wide)
        return from_unit_matrices(slope if wide is matrices else slope.mT, weight, site.unit_dims)


class SpectralPenalty(Penalty):
    """strength · σ₁², the largest singular value squared: bounds how much a layer can amplify.

    Yoshida & Miyato (2017), "Spectral norm regularization for improving the generalizability of deep learning",
    arXiv:1705.10941. Gradient 2 · strength · σ₁ · uvᵀ. The singular vector is exact when the penalty first sees the
    weight, and follows it by one step of power iteration (v ← WᵀWv / ‖WᵀWv‖) per update.

    Args:
        strength: cost per unit of σ₁², at least 0.

    >>> SpectralPenalty(0.5)(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    tensor(8.)
    """

    sharding: ClassVar[Sharding] = "joint rows"

    strength: float

    def validate(self) -> None:
        require_non_negative(self, "strength", self.strength)

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        _, _, right = torch.linalg.svd(_matrices(site.whole(weight), site), full_matrices=False)
        return {"direction": right[..., 0, :]}

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        matrices = _matrices(weight, site)
        left, right, _ = top_singular_vectors(matrices.detach(), site.state["direction"], site.total)
        top = site.total((left.unsqueeze(-2) @ matrices @ right.unsqueeze(-1)).squeeze())
        return (self.strength * top.square().sum()).to(weight.dtype)

    def gradient(self, weight: Tensor, site: Site) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        matrices = _matrices(weight, site)
        left, right, largest = top_singular_vectors(matrices, site.state["direction"], site.total)
        slope = (2 * self.strength) * (largest * left).unsqueeze(-1) * right.unsqueeze(-2)
        return from_unit_matrices(slope, weight, site.unit_dims), {"direction": right}


def _matrices(weight: Tensor, site: Site) -> Tensor:
    matrices = unit_matrices(weight, site.unit_dims, site.gates).to(accurate_dtype(weight.dtype))
    return matrices.squeeze(0)  # one matrix on its own is faster than in a stack of one


def _wide(matrices: Tensor) -> Tensor:
    return matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT


def _excess(wide: Tensor) -> Tensor:
    """WWᵀ − I."""
    return symmetric_product(wide, wide.mT) - torch.eye(wide.shape[-2], dtype=wide.dtype, device=wide.device)
