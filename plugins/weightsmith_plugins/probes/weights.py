"""What is measured of weights and of their gradients, at every epoch."""

from __future__ import annotations

from torch import Tensor
from weightsmith import Measurement, Probe, Site

from weightsmith_plugins.probes.distributions import histogram

__all__ = ["GradientHistograms", "WeightHistograms"]


class WeightHistograms(Probe):
    """The distribution of every selected weight at every epoch, as its layer computes with it.

    Measures ``weights/<module>/<parameter>``, a histogram of the finite values; and, only where there are any,
    ``nonfinite/<module>/<parameter>``, the number of NaN and infinite ones. Complex weights by their magnitude.
    """

    def measure(self, weight: Tensor, site: Site) -> dict[str, Measurement]:
        return _distribution("weights", "nonfinite", weight)


class GradientHistograms(Probe):
    """The distribution of every selected weight's last gradient, after all edits, at every epoch.

    Measures ``gradients/<module>/<parameter>``, and ``nonfinite_gradients/<module>/<parameter>`` where there are any.
    A weight that got no gradient (a frozen one) has none. Of a parametrized weight, the raw parameter's.
    """

    def measure(self, weight: Tensor, site: Site) -> dict[str, Measurement]:
        gradient = site.gradient
        if gradient is None:
            return {}
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        return _distribution("gradients", "nonfinite_gradients", values)


def _distribution(group: str, nonfinite_group: str, values: Tensor) -> dict[str, Measurement]:
    found = histogram(values)
    measured: dict[str, Measurement] = {group: found} if found.count else {}
    if found.nonfinite:
        measured[nonfinite_group] = float(found.nonfinite)
    return measured
