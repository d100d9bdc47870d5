"""What is measured of weights and of the run. Sinks, such as TensorBoard, write it down."""

from __future__ import annotations

import functools
import itertools
import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ignite.engine import Events
from torch import Tensor
from weightsmith import Histogram, Measurement, Plugin, Probe, Site, WeightEvents
from weightsmith.kinds.probe import tag
from weightsmith.tensors import accurate_dtype

if TYPE_CHECKING:
    from weightsmith import Trainer

__all__ = [
    "GradientHistograms",
    "LearningRates",
    "Losses",
    "PenaltyCosts",
    "Violations",
    "WeightHistograms",
    "histogram",
]


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


class RunProbe(Plugin, abstract=True):
    """A probe of the run as a whole, at the end of every epoch."""

    order: ClassVar[int] = 65

    @abstractmethod
    def measured(self, trainer: Trainer) -> dict[str, Measurement]:
        """Tag to what was measured."""

    def subscriptions(self, trainer: Trainer) -> Iterator[tuple[Any, Any]]:
        yield Events.EPOCH_COMPLETED, functools.partial(self._publish, trainer)

    def _publish(self, trainer: Trainer) -> None:
        values = self.measured(trainer)
        if values:
            trainer.publish(values, step=trainer.state.epoch)


class LearningRates(RunProbe):
    """The learning rate of every parameter group at every epoch: ``learning_rate/<optimizer>``, with the group's number
    after it where there are several."""

    def measured(self, trainer: Trainer) -> dict[str, Measurement]:
        rates: dict[str, Measurement] = {}
        for name, optimizer in trainer.optimizers.items():
            groups = optimizer.param_groups
            for number, group in enumerate(groups):
                rates[f"learning_rate/{name}{f'.{number}' if len(groups) > 1 else ''}"] = group["lr"]
        return rates


class PenaltyCosts(RunProbe):
    """What each penalty charges at every epoch's end: ``penalties/<penalty>``, in units of the loss."""

    def measured(self, trainer: Trainer) -> dict[str, Measurement]:
        return {f"penalties/{penalty!r}": cost for penalty, cost in trainer.penalty_costs().items()}


class Violations(RunProbe):
    """How far outside its set each constrained weight is at every epoch's end: ``violations/<constraint>/<weight>``,
    in units of the weight. 0 is inside."""

    def measured(self, trainer: Trainer) -> dict[str, Measurement]:
        found = trainer.violations()
        return {
            tag(f"violations/{type(constraint).__name__}", name): value for (constraint, name), value in found.items()
        }


class Losses(Plugin):
    """The mean loss of every epoch: ``loss/<optimizer>``. Summed on the device; read once, at the end of the epoch."""

    order: ClassVar[int] = 65

    def subscriptions(self, trainer: Trainer) -> Iterator[tuple[Any, Any]]:
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}

        def add() -> None:
            name = str(trainer.state.optimizer)
            loss = trainer.state.losses[name]
            sums[name] = sums[name] + loss if name in sums else loss
            counts[name] = counts.get(name, 0) + 1

        def restart() -> None:
            sums.clear()
            counts.clear()

        def publish() -> None:
            means: dict[str, Measurement] = {f"loss/{name}": sums[name] / counts[name] for name in sums}
            restart()
            if means:
                trainer.publish(means, step=trainer.state.epoch)

        yield Events.STARTED, restart
        yield WeightEvents.MICROBATCH_COMPLETED, add
        yield Events.EPOCH_COMPLETED, publish


def histogram(values: Tensor) -> Histogram:
    """The distribution of a tensor's finite values, in the buckets that TensorBoard's histograms use.

    Buckets grow by a tenth from 1e-12 to 1e20 on both sides of zero, so that tails keep their shape. Counted on the
    tensor's device; only the counts travel. Half precisions are counted as float32, complex numbers by magnitude.

    Args:
        values: any shape, any float or complex dtype; may be empty, may hold NaN and infinities.

    >>> found = histogram(torch.tensor([1.0, 2.0, float("nan")]))
    >>> found.count, found.nonfinite, found.total.item()
    (2, 1, 3.0)
    """
    real = values.detach().abs() if values.is_complex() else values.detach()
    flat = real.to(accurate_dtype(real.dtype)).flatten()
    finite = flat[flat.isfinite()]
    limits, bounds = _limits(finite.dtype, finite.device)
    counts = torch.bincount(torch.bucketize(finite, bounds, right=True), minlength=len(limits))
    exact = finite.double()
    empty = finite.numel() == 0
    return Histogram(
        limits=limits,
        counts=counts,
        minimum=exact.new_zeros(()) if empty else exact.min(),
        maximum=exact.new_zeros(()) if empty else exact.max(),
        total=exact.sum(),
        total_squares=exact.square().sum(),
        count=finite.numel(),
        nonfinite=flat.numel() - finite.numel(),
    )


def _distribution(group: str, nonfinite_group: str, values: Tensor) -> dict[str, Measurement]:
    found = histogram(values)
    measured: dict[str, Measurement] = {group: found} if found.count else {}
    if found.nonfinite:
        measured[nonfinite_group] = float(found.nonfinite)
    return measured


@functools.cache
def _limits(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The buckets' right edges in float64, the last of them the largest number; and the edges between buckets in
    ``dtype``, rounded up, so that comparing with them is the same as comparing with the float64 ones."""
    steps = math.ceil(math.log(1e20 / 1e-12) / math.log(1.1))
    positive = list(
        itertools.accumulate(itertools.repeat(1.1, steps - 1), lambda edge, ratio: edge * ratio, initial=1e-12)
    )
    negative = [-edge for edge in reversed(positive)]
    largest = torch.finfo(dtype).max
    limits = torch.tensor([*negative, 0.0, *positive, largest], dtype=torch.float64, device=device)
    rounded = limits[:-1].to(dtype)
    up = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return limits, torch.where(rounded.double() < limits[:-1], up, rounded)
