"""What is measured of weights and of their gradients, at every epoch."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from weightsmith import Histogram, Measurement, Probe, Selector, Site, matrices
from weightsmith.joint import size_of
from weightsmith.site import Sharding
from weightsmith.tensors import accurate_dtype, unit_matrices

from weightsmith_plugins.probes.distributions import joint_histogram
from weightsmith_plugins.shapes import no_units

__all__ = [
    "GradientHistograms",
    "Sparsity",
    "SpectralNorms",
    "WeightHistograms",
    "WeightStatistics",
]


class WeightHistograms(Probe):
    """The distribution of every selected weight at every epoch, as its layer computes with it.

    Measures ``weights/<module>/<parameter>``, a histogram of the finite values; and, only where there are any,
    ``nonfinite/<module>/<parameter>``, the number of NaN and infinite ones. Complex weights by their magnitude. Of a
    weight that a parametrization computes, the raw parameters too: ``raw_weights/…``, ``raw_nonfinite/…``.

    Args:
        statistics: whether to measure what :class:`WeightStatistics` does besides, in the same passes over the
            weights. Default false.
    """

    sharding: ClassVar[Sharding] = "joint"
    measures_raw: ClassVar[bool] = True

    statistics: bool = False

    def measure(self, weight: Tensor, site: Site) -> dict[str, Measurement]:
        found = joint_histogram(weight, site)
        numbers = _statistics(found, weight, site) if self.statistics else {}
        return _distribution("weights", "nonfinite", found) | numbers


class GradientHistograms(Probe):
    """The distribution of every selected parameter's last gradient, after all edits, at every epoch.

    Measures ``gradients/<module>/<parameter>``, and ``nonfinite_gradients/<module>/<parameter>`` where there are any.
    What got no gradient (a frozen weight) has none. Of a weight that a parametrization computes, the raw parameters are
    measured.
    """

    sharding: ClassVar[Sharding] = "joint"
    sees_effective_weights: ClassVar[bool] = False

    def measure(self, weight: Tensor, site: Site) -> dict[str, Measurement]:
        gradient = site.gradient
        if gradient is None:
            return {}
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        return _distribution("gradients", "nonfinite_gradients", joint_histogram(values, site))


class WeightStatistics(Probe):
    """Numbers of every selected weight at every epoch, as its layer computes with it, of its finite values: the least
    and the largest, their mean, standard deviation (of all values, without Bessel's correction), L2 norm, and the
    shares of zeros, of values that are subnormal (nearer to zero than their dtype's smallest normal number: slow to
    compute with), and of values that are NaN or infinite.

    Measures ``weight_min/…``, ``weight_max/…``, ``weight_mean/…``, ``weight_std/…``, ``weight_norm/…``,
    ``weight_zeros/…``; and, only where there are any, ``weight_subnormal/…`` and ``weight_nonfinite/…``.
    Of a weight that a parametrization computes, the raw parameters too, as ``raw_weight_mean/…`` and so on.

    >>> WeightStatistics()(torch.tensor([3.0, -4.0]))["weight_norm"]
    5.0
    """

    sharding: ClassVar[Sharding] = "joint"
    measures_raw: ClassVar[bool] = True

    def measure(self, weight: Tensor, site: Site) -> dict[str, Measurement]:
        return _statistics(joint_histogram(weight, site), weight, site)


class Sparsity(Probe):
    """The share of zeros in every selected weight at every epoch, as its layer computes with it: ``sparsity/…``. By
    default of ``matrices``.

    >>> Sparsity()(torch.tensor([[3.0, 0.0, 0.0, 1.0]]))
    {'sparsity': 0.5}
    """

    sharding: ClassVar[Sharding] = "joint"
    default_where: ClassVar[Selector] = matrices

    def measure(self, weight: Tensor, site: Site) -> dict[str, Measurement]:
        size = size_of(site)
        return {"sparsity": 1 - int(site.total(weight.count_nonzero())) / size} if size else {}


class SpectralNorms(Probe):
    """The largest singular value σ₁ of every selected weight at every epoch, as its layer computes with it, and its
    stable rank Σσ² / σ₁²: how many directions share its size (Vershynin, 2018, "High-dimensional probability", 7.6).

    Measures ``spectral_norm/…`` and ``stable_rank/…``. Units are rows; of a recurrent layer the largest of its gates'.
    By default of ``matrices``. The singular values are computed in full: of a matrix of n by m it takes some
    n · m · min(n, m) steps, so measure large ones only ``every`` few epochs. A weight with a value that is not finite
    has none.

    >>> SpectralNorms()(torch.diag(torch.tensor([2.0, 2.0, 1.0])))
    {'spectral_norm': tensor(2.), 'stable_rank': tensor(2.2500)}
    """

    default_where: ClassVar[Selector] = matrices

    def misfit(self, weight: Tensor, site: Site) -> str:
        return no_units(weight)

    def measure(self, weight: Tensor, site: Site) -> dict[str, Measurement]:
        if not weight.numel() or not weight.isfinite().all():
            return {}
        gates = unit_matrices(weight, site.unit_dims, site.gates).to(accurate_dtype(weight.dtype))
        values = torch.linalg.svdvals(gates)
        largest = values[:, 0]
        ranks = torch.where(largest > 0, (values / largest.unsqueeze(1)).square().sum(1), 0.0)
        return {"spectral_norm": largest.amax(), "stable_rank": ranks[largest.argmax()]}


def _statistics(found: Histogram, weight: Tensor, site: Site) -> dict[str, Measurement]:
    """What a distribution says in numbers."""
    measured: dict[str, Measurement] = {}
    size = max(1, size_of(site))
    if found.count:
        mean, square = found.total.item() / found.count, found.total_squares.item() / found.count
        variance = square - mean * mean
        if variance <= _CANCELLED * square:  # little is left of the difference but rounding
            values = weight.abs() if weight.is_complex() else weight
            finite = values[values.isfinite()].double()
            off = finite - site.total(finite.sum()) / found.count
            variance = site.total(off.square().sum()).item() / found.count
        measured = {
            "weight_min": found.minimum.item(),
            "weight_max": found.maximum.item(),
            "weight_mean": mean,
            "weight_std": math.sqrt(max(0.0, variance)),
            "weight_norm": math.sqrt(found.total_squares.item()),
            "weight_zeros": found.zeros / size,
        }
    shares = {"weight_subnormal": found.subnormal / size, "weight_nonfinite": found.nonfinite / size}
    return measured | {name: share for name, share in shares.items() if share}


_CANCELLED = 1e-3
"""The share of the mean square below which a variance that is a difference is not exact enough."""


def _distribution(group: str, nonfinite_group: str, found: Histogram) -> dict[str, Measurement]:
    measured: dict[str, Measurement] = {group: found} if found.count else {}
    if found.nonfinite:
        measured[nonfinite_group] = float(found.nonfinite)
    return measured
