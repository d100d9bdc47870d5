"""Weights that are trained as if they had few bits."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from weightsmith import ConfigurationError, Parametrization, Site
from weightsmith.tensors import accurate_dtype, unit_peaks

__all__ = ["FakeQuantize"]


class FakeQuantize(Parametrization):
    """The layer computes with s · clamp(round(w / s), −q, q), q = 2^(bits − 1) − 1: the weight as it will be with so
    few bits. The gradient goes straight through, and is 0 where the clamp acts, that is where |round(w / s)| > q.

    Jacob et al. (2018), "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
    arXiv:1712.05877; Bengio, Léonard & Courville (2013), arXiv:1308.3432, for the gradient. Symmetric, without a zero
    point, as weights are quantized for integer matrix products. :func:`to_int8` makes integers of it.

    Args:
        bits: bits per value, the sign among them, from 2 to 64; a schedule may lower it, rounded. Default 8.
        per_unit: whether every unit has a scale s of its own, or the weight one. Default true.
        observer: how s is found from the weight, anew in every forward pass: ``"minmax"`` (default), max|w| / q; or
            ``"mse"``, the one of 32 fractions of that with the least squared error. Never below the least normal
            number.

    >>> FakeQuantize(2)(torch.tensor([[0.9, -1.0, 0.4]]))
    tensor([[ 1., -1.,  0.]])
    """

    keeps_zeros: ClassVar[bool] = True

    bits: int = 8
    per_unit: bool = True
    observer: Literal["minmax", "mse"] = "minmax"

    def validate(self) -> None:
        if not 2 <= self.bits <= 64:
            raise ConfigurationError(f"{self!r}: bits must be from 2 to 64")

    def forward(self, weight: Tensor, site: Site) -> Tensor:
        accurate = weight.to(accurate_dtype(weight.dtype))
        scale, most = self.scale(accurate, site.unit_dims), self._most()
        whole = (accurate.detach() / scale).round()
        passed = accurate * (whole.abs() <= most)
        return ((whole.clamp(-most, most) * scale) + (passed - passed.detach())).to(weight.dtype)

    def right_inverse(self, weight: Tensor, site: Site) -> Tensor:
        return weight

    @torch.no_grad()
    def scale(self, weight: Tensor, dims: tuple[int, ...]) -> Tensor:
        """s, with the axes over which it is shared kept; above 0; float32 for half precisions."""
        weight = weight.to(accurate_dtype(weight.dtype))
        if not self.per_unit:
            dims = tuple(range(weight.ndim))
        peaks = unit_peaks(weight, dims)
        widest = _normal(torch.where(peaks > 0, peaks, 1) / self._most())
        return widest if self.observer == "minmax" else self._least_error(weight, widest, dims)

    def _least_error(self, weight: Tensor, widest: Tensor, dims: tuple[int, ...]) -> Tensor:
        best, least = widest, torch.full_like(widest, torch.inf)
        for part in range(32, 0, -1):
            scale = _normal(widest * (part / 32))
            error = (weight - (weight / scale).round().clamp(-self._most(), self._most()) * scale).square()
            error = error.sum(dim=dims, keepdim=True) if dims else error
            best = torch.where(error < least, scale, best)
            least = torch.minimum(error, least)
        return best

    def _most(self) -> int:
        return int(2 ** (round(self.bits) - 1)) - 1


def _normal(scale: Tensor) -> Tensor:
    """At least the smallest normal number, so that nothing is divided by 0."""
    return scale.clamp(min=torch.finfo(scale.dtype).tiny)
