"""Few weights, or few different values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from weightsmith import ConfigurationError, Constraint, Site
from weightsmith.joint import largest_of_all, size_of
from weightsmith.kinds.base import as_it_is
from weightsmith.ranking import FEWEST_SAMPLED, largest, largest_of_groups
from weightsmith.rows import row_lengths
from weightsmith.site import Sharding
from weightsmith.tensors import accurate_dtype, copy_, is_small, joined, keep_, parted, row_groups, unit_peaks

from weightsmith_plugins.native.compiling import in_one_pass
from weightsmith_plugins.shapes import no_equal_groups
from weightsmith_plugins.sparsity.masks import mask_smallest_

__all__ = ["Grid", "NofM", "TopK"]


class TopK(Constraint):
    """At most ⌈density · size⌉ values of the weight are not zero; the nearest point keeps the largest magnitudes, and
    of equal ones the first.

    Unlike a pruning, it remembers nothing: at every update any weight may be among the largest. (Blumensath & Davies,
    2009, "Iterative hard thresholding for compressed sensing", arXiv:0805.0510.)

    Args:
        density: the share that is kept, above 0, up to 1.

    >>> TopK(0.5)(torch.tensor([[3.0, -4.0], [0.5, 1.0]]))
    tensor([[ 3., -4.],
            [ 0.,  0.]])
    """

    sharding: ClassVar[Sharding] = "joint"

    density: float

    def validate(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigurationError(f"{self!r}: density must be above 0, up to 1")

    def project(self, weight: Tensor, site: Site) -> Tensor:
        return weight.masked_fill(~self._kept(weight, site), 0)

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        alike = [_row_kind(weight, site) for weight, site in zip(weights, sites, strict=True)]
        together, alone = row_groups(alike)
        for places in together:
            some = [weights[place] for place in places]
            rows = joined(some).view(len(some), -1)
            keep_(rows, largest(rows.abs(), self._count(size_of(sites[places[0]]))))
            copy_(some, parted(rows.view(-1), some))
        apart = [weights[place] for place in alone]
        self._singly(self._clear_, as_it_is, apart, [sites[place] for place in alone], apart)

    def _clear_(self, weight: Tensor, site: Site) -> Tensor:
        if not (site.is_whole and _is_plain(weight) and self._clear_smallest_(weight, self._count(size_of(site)))):
            keep_(weight, self._kept(weight, site))
        return weight

    def _clear_smallest_(self, weight: Tensor, count: int) -> bool:
        """Without a row of all magnitudes; whether that was done. What is not 0 already is counted by its bits, as a
        processor may be told to take subnormal numbers for 0."""
        bits = weight.detach().view(torch.int32 if weight.dtype == torch.float32 else torch.int64)
        if np.count_nonzero(bits.numpy()) <= count:
            return True
        return mask_smallest_([weight], [torch.ones_like(weight, dtype=torch.bool)], count)

    def _kept(self, weight: Tensor, site: Site) -> Tensor:
        row = weight.detach().abs().reshape(-1)
        return largest_of_all(row, [len(row)], [site], self._count(size_of(site))).reshape(weight.shape)

    def _count(self, size: int) -> int:
        return math.ceil(self.density * size - 1e-9)

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0  # zeros are exact


def _is_plain(weight: Tensor) -> bool:
    """Whether :func:`~weightsmith_plugins.sparsity.masks.mask_smallest_` can take it, and is faster."""
    is_followed = weight.requires_grad and torch.is_grad_enabled()
    has_bits = weight.is_cpu and weight.is_contiguous() and weight.dtype in (torch.float32, torch.float64)
    return has_bits and not is_followed and weight.numel() >= FEWEST_SAMPLED


def _row_kind(weight: Tensor, site: Site) -> object:
    """What small weights have in common of which each may be one row of a matrix; ``None`` for one that goes alone."""
    if not (is_small(weight) and site.is_whole):
        return None
    return size_of(site), weight.numel(), weight.dtype, weight.device  # of an embedding the padding is not in hand


class NofM(Constraint):
    """Of every m consecutive inputs at most n are not zero; the nearest point keeps the largest magnitudes. 2:4 is what
    sparse tensor cores compute with.

    Mishra et al. (2021), "Accelerating sparse deep neural networks", arXiv:2104.08378. Groups run along the input axis,
    at each place of a convolution's kernel on its own.

    Args:
        n: how many are kept, from 1 to m. Default 2.
        m: of how many, at least 1. Default 4.

    Shapes: weights with two axes or more, with a number of inputs that m divides.

    >>> NofM(2, 4)(torch.tensor([[3.0, -4.0, 0.5, 1.0]]))
    tensor([[ 3., -4.,  0.,  0.]])
    """

    unitwise: ClassVar[bool] = True  # of matrices

    n: int = 2
    m: int = 4

    def validate(self) -> None:
        if not 1 <= self.n <= self.m:
            raise ConfigurationError(f"{self!r}: needed is 1 <= n <= m")

    def misfit(self, weight: Tensor, site: Site) -> str:
        return no_equal_groups(weight, site, self.m)

    def project(self, weight: Tensor, site: Site) -> Tensor:
        return weight.masked_fill(~self._kept(weight, site), 0)

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        """The plural form. Of matrices, the groups of a unit are its own, so that many go together."""
        left = self._keep_of_fours_(weights, sites) if self.m == 4 else range(len(weights))
        for method, are_matrices in ((self._unitwise, True), (self._singly, False)):
            places = [place for place in left if (weights[place].ndim == 2) is are_matrices]
            some = [weights[place] for place in places]
            method(self._clear_, as_it_is, some, [sites[place] for place in places], some)

    def _keep_of_fours_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> Sequence[int]:
        """What the extra ``fast`` does, of matrices; and the places that it leaves."""
        pairs = zip(weights, row_lengths(sites), strict=True)
        of_matrices = [weight.ndim == 2 and length > 0 and length % 4 == 0 for weight, length in pairs]
        return in_one_pass("keep_of_fours_", weights, count=self.n, by_rows=of_matrices)

    def _clear_(self, weight: Tensor, site: Site) -> Tensor:
        keep_(weight, self._kept(weight, site))
        return weight

    def _kept(self, weight: Tensor, site: Site) -> Tensor:
        return largest_of_groups(weight.detach().abs(), site.unit_dims[0], self.n, self.m)

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0  # zeros are exact


class Grid(Constraint):
    """Every unit's values are whole multiples of s = max|w_u| / (2^(bits − 1) − 1); each goes to the nearest.

    Jacob et al. (2018), "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
    arXiv:1712.05877, symmetric and for every unit. With ``mode="forward"`` the gradient is straight-through (Bengio,
    Léonard & Courville, 2013, arXiv:1308.3432).

    Args:
        bits: bits per value, the sign among them, from 2 to 64.

    >>> Grid(2)(torch.tensor([[0.9, -1.0, 0.4]]))
    tensor([[ 1., -1.,  0.]])
    """

    forward_gradient: ClassVar[Literal["autograd", "straight-through", "none"]] = "straight-through"
    unitwise: ClassVar[bool] = True

    bits: int

    def validate(self) -> None:
        if not 2 <= self.bits <= 64:
            raise ConfigurationError(f"{self!r}: bits must be from 2 to 64")

    def project(self, weight: Tensor, site: Site) -> Tensor:
        return self._round_(weight.to(accurate_dtype(weight.dtype), copy=True), site).to(weight.dtype)

    def project_all_(self, weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
        if any(accurate_dtype(weight.dtype) != weight.dtype for weight in weights):
            super().project_all_(weights, sites)
        else:
            self._unitwise(self._round_, as_it_is, weights, sites, weights)

    def _round_(self, weight: Tensor, site: Site) -> Tensor:
        steps = 2 ** (int(self.bits) - 1) - 1
        peaks = unit_peaks(weight, site.unit_dims)
        # The last two in this order: a unit's largest value comes out as it was.
        return weight.mul_(steps / torch.where(peaks > 0, peaks, steps)).round_().div_(steps).mul_(peaks)

    def tolerance(self, projected: Tensor, site: Site) -> float:
        return 0.0  # what is on the grid is found at the same place again
