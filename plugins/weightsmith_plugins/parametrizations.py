"""Weights that a layer computes from others: over torch's parametrizations, put on and taken off by attaching."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Parametrization, Site
from weightsmith.tensors import accurate_dtype, from_unit_matrices, unit_matrices, unit_norms

from weightsmith_plugins.linear_algebra import top_singular_vectors
from weightsmith_plugins.shapes import no_units

__all__ = ["LowRankAdapter", "SpectralNorm", "WeightNorm"]


class MatrixParametrization(Parametrization, abstract=True):
    """A parametrization of weights whose units have values of their own: not of biases and scales."""

    def misfit(self, weight: Tensor, site: Site) -> str:
        return no_units(weight)


class WeightNorm(MatrixParametrization):
    """The layer computes with g_u · v_u / ‖v_u‖₂ for every unit u: its length g and its direction v are trained apart.

    Salimans & Kingma (2016), "Weight normalization: a simple reparameterization to accelerate training of deep neural
    networks", arXiv:1602.07868, equation 2; ``torch.nn.utils.parametrizations.weight_norm``, but with the units of
    transposed convolutions, and with a gradient for units that are zero.

    ``weight`` goes on as v, and ``weight.length``, of shape (units, 1, …), begins as ‖w_u‖: the model computes what it
    did before. At a zero unit g is 0, and v the unit whose values are all equal.

    >>> WeightNorm()(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[3., 4.],
            [0., 0.]])
    """

    def parameters(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        return {"length": unit_norms(weight, site.unit_dims).to(weight.dtype)}

    def forward(self, weight: Tensor, site: Site) -> Tensor:
        norms = unit_norms(weight, site.unit_dims)
        lengths = site.parameters["length"].to(norms.dtype)
        directed: Tensor = weight * (lengths / torch.where(norms > 0, norms, 1))
        return directed.to(weight.dtype)

    def right_inverse(self, weight: Tensor, site: Site) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        norms = unit_norms(weight, site.unit_dims)
        even = math.prod(weight.shape[axis] for axis in site.unit_dims) ** -0.5
        directed = torch.where(norms > 0, weight, even).to(weight.dtype)
        return directed, {"length": norms.to(weight.dtype)}


class SpectralNorm(MatrixParametrization):
    """The layer computes with w / σ₁(w), so that its largest singular value is about 1; units are rows, each gate of a
    recurrent layer is a matrix of its own.

    Miyato et al. (2018), "Spectral normalization for generative adversarial networks", arXiv:1802.05957. The singular
    vector is exact at the start of training and follows by ``iterations`` steps of power iteration (v ← WᵀWv / ‖WᵀWv‖)
    after every update, where ``torch.nn.utils.parametrizations.spectral_norm`` steps at every forward pass in training
    mode: here a forward pass changes nothing. No gradient flows through the vectors, as in the paper.

    Args:
        iterations: steps of power iteration per update, at least 1. Default 1.

    >>> SpectralNorm()(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
    tensor([[1.0000, 0.0000],
            [0.0000, 0.2500]])
    """

    remembers_start: ClassVar[bool] = True

    iterations: int = 1

    def validate(self) -> None:
        if not self.iterations >= 1:
            raise ConfigurationError(f"{self!r}: iterations must be at least 1")

    def init(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        _, _, right = torch.linalg.svd(_matrices(weight, site), full_matrices=False)
        return {"direction": right[..., 0, :]}

    def forward(self, weight: Tensor, site: Site) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        matrices = _matrices(weight, site)
        with torch.no_grad():
            right = site.state["direction"]
            for _ in range(self.iterations):
                left, right, _ = top_singular_vectors(matrices, right)
        largest = left.unsqueeze(-2) @ matrices @ right.unsqueeze(-1)
        normalized = matrices / torch.where(largest > 0, largest, 1)
        return from_unit_matrices(normalized, weight, site.unit_dims), {"direction": right}

    def right_inverse(self, weight: Tensor, site: Site) -> Tensor:
        return weight


class LowRankAdapter(MatrixParametrization):
    """The layer computes with w + (alpha / rank) · B A, with w frozen and B, of shape (units, rank), and A, of shape
    (rank, values per unit), trained in its place.

    Hu et al. (2021), "LoRA: low-rank adaptation of large language models", arXiv:2106.09685. A (``weight.down``) begins
    as in its authors' code, uniform in ±1 / √(values per unit), and B (``weight.up``) as zeros: the model computes what
    it did before. Both join the optimizer's group of the weight. Detaching merges them into w, which is trained again.
    What else is to stay as it is, ``Freeze(where=~added)`` holds.

    Args:
        rank: of the change, from 1 to the least side of the matrix; a whole number.
        alpha: the change's scale, times rank; ``None`` (default) for the rank itself, which makes the factor 1.

    >>> LowRankAdapter(1)(torch.tensor([[3.0, 4.0]]))
    tensor([[3., 4.]])
    """

    trains_raw: ClassVar[bool] = False

    rank: int
    alpha: float | None = None

    def validate(self) -> None:
        if not self.rank >= 1:
            raise ConfigurationError(f"{self!r}: rank must be at least 1")

    def misfit(self, weight: Tensor, site: Site) -> str:
        if no_units(weight):
            return no_units(weight)
        most = min(unit_matrices(weight, site.unit_dims)[0].shape)
        return f"its rank is at most {most}: give a lower one" if self.rank > most else ""

    def parameters(self, weight: Tensor, site: Site) -> dict[str, Tensor]:
        units, values = unit_matrices(weight, site.unit_dims)[0].shape
        drawn = torch.rand(self.rank, values, generator=site.generator, device=weight.device, dtype=torch.float32)
        down = ((2 * drawn - 1) / math.sqrt(values)).to(weight.dtype)
        return {"down": down, "up": weight.new_zeros(units, self.rank)}

    def forward(self, weight: Tensor, site: Site) -> Tensor:
        return weight + self._change(weight, site)

    def right_inverse(self, weight: Tensor, site: Site) -> Tensor:
        return weight - self._change(weight, site)

    def _change(self, weight: Tensor, site: Site) -> Tensor:
        factor = 1.0 if self.alpha is None else self.alpha / self.rank
        change = factor * (site.parameters["up"] @ site.parameters["down"])
        return from_unit_matrices(change, weight, site.unit_dims)


def _matrices(weight: Tensor, site: Site) -> Tensor:
    return unit_matrices(weight, site.unit_dims, site.gates).to(accurate_dtype(weight.dtype))
