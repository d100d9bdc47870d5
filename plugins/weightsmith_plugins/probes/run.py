"""What is measured of the run as a whole."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ignite.engine import Events
from weightsmith import ConfigurationError, Measurement, Plugin, Settings, WeightEvents
from weightsmith.distributed import total_over_processes
from weightsmith.kinds.probe import tag
from weightsmith.plugin import KEPT, Notes

if TYPE_CHECKING:
    from weightsmith import Trainer

__all__ = ["Hyperparameters", "LearningRates", "Losses", "PenaltyCosts", "Violations"]


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
    """The learning rate of every parameter group at every epoch: ``learning_rate/<optimizer>``, of the second group
    ``learning_rate/<optimizer>.1``."""

    def measured(self, trainer: Trainer) -> dict[str, Measurement]:
        rates: dict[str, Measurement] = {}
        for name, optimizer in trainer.optimizers.items():
            groups = optimizer.param_groups
            for number, group in enumerate(groups):
                rates[f"learning_rate/{name}{f'.{number}' if number else ''}"] = float(group["lr"])
        return rates


class Hyperparameters(Plugin):
    """What the run was configured to be, at its end, for TensorBoard's HParams page, beside its last metrics and losses
    (of a run that ends with an exception there is nothing): the
    values given; of every optimizer its class and the learning rates that it began with, as ``<optimizer>.class`` and
    ``<optimizer>.lr``; and how many micro-batches an update has, the precision and the seed.

    Args:
        values: name to number, text or truth value, such as ``{"batch_size": 32}``. Default none.
    """

    order: ClassVar[int] = 65

    values: tuple[tuple[str, Any], ...] = ()

    def validate(self) -> None:
        for pair in self.values:
            if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
                raise ConfigurationError(f"{self!r}: values takes a dict of name to number, text or truth value")
            if not isinstance(pair[1], (bool, int, float, str)):
                raise ConfigurationError(f"{self!r}: {pair[0]!r} is {pair[1]!r}: give a number, text or truth value")

    def subscriptions(self, trainer: Trainer) -> Iterator[tuple[Any, Any]]:
        started = Notes()

        def begin() -> None:
            if started and trainer.state.iteration:
                return  # the run goes on
            started.clear()
            started.update(accumulate=trainer.accumulate, precision=trainer.precision, seed=str(trainer.seed))
            for name, optimizer in trainer.optimizers.items():
                started[f"{name}.class"] = type(optimizer).__name__
                for place, group in enumerate(optimizer.param_groups):
                    started[f"{name}.lr{f'.{place}' if place else ''}"] = float(group["lr"])
            started.update(self.values)

        def publish() -> None:
            metrics = tuple(tag for tag in trainer.published if tag.startswith(("metrics/", "loss/")))
            trainer.publish({"hyperparameters": Settings(dict(started), metrics)}, step=trainer.state.epoch)

        yield KEPT, started
        yield Events.STARTED, begin
        yield Events.COMPLETED, publish


class PenaltyCosts(RunProbe):
    """What each penalty charges at every epoch's end, 0 while it is not in force: ``penalties/<class>``, in units of
    the loss. The second one of a class is ``penalties/<class>.1``, whatever its settings, so that runs with other
    settings share a chart."""

    def measured(self, trainer: Trainer) -> dict[str, Measurement]:
        seen: Counter[str] = Counter()
        costs: dict[str, Measurement] = {}
        for penalty, cost in trainer.penalty_costs().items():
            name = type(penalty).__name__
            costs[f"penalties/{name}{f'.{seen[name]}' if seen[name] else ''}"] = cost
            seen[name] += 1
        return costs


class Violations(RunProbe):
    """How far outside its set each constrained weight is at every epoch's end: ``violations/<constraint>/<weight>``,
    by default the most by which the projection moves one of its values. 0 is inside."""

    def measured(self, trainer: Trainer) -> dict[str, Measurement]:
        found = trainer.violations()
        return {
            tag(f"violations/{type(constraint).__name__}", name): value for (constraint, name), value in found.items()
        }


class Losses(Plugin):
    """The mean loss of every epoch, over all micro-batches and processes: ``loss/<optimizer>``; and, where there are
    any, how many were not finite and are left out of it: ``nonfinite_losses/<optimizer>``. Of an update that is
    evaluated several times (LBFGS, sharpness-aware), the first evaluation counts. Summed on the device; read once, at
    the end of the epoch."""

    order: ClassVar[int] = 65

    def subscriptions(self, trainer: Trainer) -> Iterator[tuple[Any, Any]]:
        sums = Notes()

        def add() -> None:
            if trainer.state.evaluation > 1:
                return
            name = str(trainer.state.optimizer)
            loss = trainer.state.losses[name].double()
            finite = loss.isfinite()
            seen = torch.stack([torch.where(finite, loss, 0.0), finite.double(), (~finite).double()])
            sums[name] = sums[name].add_(seen) if name in sums else seen

        def publish() -> None:
            measured: dict[str, Measurement] = {}
            for name, seen in sums.items():
                total, count, nonfinite = total_over_processes(seen).tolist()
                if count:
                    measured[f"loss/{name}"] = total / count
                if nonfinite:
                    measured[f"nonfinite_losses/{name}"] = nonfinite
            sums.clear()
            if measured:
                trainer.publish(measured, step=trainer.state.epoch)

        yield KEPT, sums
        yield Events.EPOCH_STARTED, lambda: sums.clear()  # Ignite reads signatures, which built-in functions lack
        yield WeightEvents.MICROBATCH_COMPLETED, add
        yield Events.EPOCH_COMPLETED, publish
