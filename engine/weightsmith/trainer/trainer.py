"""The Trainer: an Ignite engine whose every update of the weights is a sequence of events."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from ignite.utils import convert_tensor, manual_seed
from torch import Tensor, nn
from torch.optim import Optimizer

from weightsmith.attachments import Attachments
from weightsmith.binding import Binding
from weightsmith.debugging import WriteGuard
from weightsmith.errors import ConfigurationError
from weightsmith.evaluation import EvaluationStep, evaluator, pair, scalars
from weightsmith.events import WeightEvents
from weightsmith.faults import blaming
from weightsmith.finiteness import NonFinite
from weightsmith.handlers import ANNOUNCEMENTS
from weightsmith.kinds import Average, Constraint, Penalty, WeightPlugin
from weightsmith.lending import lendable, lending, renew_statistics
from weightsmith.measurements import Measurement, Measurements
from weightsmith.plain import write_plain
from weightsmith.plan import Plan
from weightsmith.plugin import Plugin
from weightsmith.selection import Where, everything, select
from weightsmith.trainer.arguments import named, refuse_misfits, settle
from weightsmith.trainer.pipeline import Precision
from weightsmith.trainer.run import DurableRun
from weightsmith.weights import inventory, raw_weights

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)

Step: TypeAlias = "Callable[[Trainer, Any], Any]"


class Trainer(DurableRun):
    """Trains a model, or several, firing :class:`WeightEvents` around everything that touches a weight.

    It is an :class:`ignite.engine.Engine`: Ignite's handlers, metrics and loggers attach unchanged, and ``run`` is
    Ignite's. The loop is drawn in :class:`WeightEvents`.

    Args:
        model: a module, or several by name, such as ``{"generator": G, "discriminator": D}``.
        optimizer: an optimizer, or several by name.
        loss_fn: ``loss_fn(model(inputs), targets)`` gives the loss, 0-d. Needed unless ``step`` is given.
        step: ``step(trainer, batch)`` does an iteration and calls :meth:`update` as often as it likes; what it returns
            becomes ``state.output``. Default: forward, loss, one update, for a batch ``(inputs, targets)``.
        plugins: attached in this order.
        run_dir: the folder of this run, for plugins that write; default none.
        device: where to move the models, and each batch of the default step; default where the first weight is.
        precision: ``"float32"`` (default), or ``"bfloat16"`` or ``"float16"`` by autocast around the step, the latter
            with one gradient scaler per optimizer.
        accumulate: micro-batches per update; the gradient is their mean. Default 1.
        seed: seeds Python's, NumPy's and torch's global generators now, and every plugin's draws. Default: the plugins'
            draws follow torch's initial seed, and nothing is seeded.
        keep: what else to save and restore with the run, each with a ``state_dict`` and a ``load_state_dict``: a
            scheduler, a metric, an Ignite handler; several in a list, or by name.
        nonfinite: what to do when a loss, a gradient or, at an epoch's end, a weight is infinite or no number:
            ``"raise"`` (default) an error that names the update and the first weight; ``"skip"`` the update, with a
            warning; ``"restore"`` the last good checkpoint in ``run_dir``, with half the learning rate, at most 3
            times, or as a :class:`~weightsmith.finiteness.Restore` says; or ``"ignore"``.
        debug: compare copies of all weights and gradients around each handler, and name who wrote where it should
            not. Slow. Default false.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
        >>> state = trainer.run([(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))] * 3, max_epochs=2)
        >>> trainer.state.updates
        {'optimizer': 6}

    Raises:
        ConfigurationError: the arguments do not fit together; the message says which and what to do.
        ConflictError: two optimizers hold one weight, or two constraints claim one.
        SelectionError: a plugin's ``where`` matches nothing.
        UnsupportedWeightError: a plugin selects a weight on which it cannot act correctly.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module],
        optimizer: Optimizer | Mapping[str, Optimizer],
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        *,
        step: Step | None = None,
        plugins: Iterable[Plugin] = (),
        run_dir: str | Path | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "float32",
        accumulate: int = 1,
        seed: int | None = None,
        keep: Mapping[str, Any] | Iterable[Any] = (),
        nonfinite: NonFinite = "raise",
        debug: bool = False,
    ) -> None:
        models = named(model, nn.Module, "model", "")
        optimizers = named(optimizer, Optimizer, "optimizer", "optimizer")
        refuse_misfits(models, optimizers, loss_fn, step, precision, accumulate)
        if seed is not None:
            manual_seed(seed)
        super().__init__(
            models,
            optimizers,
            supervised_step if step is None else step,
            device=settle(models, device),
            precision=precision,
            accumulate=accumulate,
            run_dir=run_dir,
            seed=seed,
            keep=keep,
            nonfinite=nonfinite,
        )
        self.loss_fn = loss_fn
        self._validated: list[str] = []
        self.debug = debug
        self._guard = WriteGuard(self.weights) if debug else None
        inventory(self.models, self.optimizers)  # refuses, by name, a weight that two optimizers hold
        self._attachments = Attachments(self)
        for plugin in [plugins] if isinstance(plugins, Plugin) else plugins:
            self.attach(plugin)

    # ---------------------------------------------------------------- plugins

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """The attached plugins, in their order."""
        return self._attachments.plugins

    def attach(self, plugin: Plugin) -> None:
        """Attach a plugin. Inside an update it takes effect at the next one.

        Raises:
            ConfigurationError: it cannot work here; the message names plugin, weight and mend. Nothing is attached.
        """
        self._attachments.attach(plugin)

    def detach(self, plugin: Plugin) -> None:
        """Detach a plugin, or one that equals it. Inside an update it takes effect at the next one.

        Raises:
            ConfigurationError: no such plugin is attached.
        """
        self._attachments.detach(plugin)

    def bind(self, plugin: WeightPlugin) -> Binding:
        """The weights that a plugin selects, and its memory of them; for :meth:`Plugin.subscriptions`."""
        return self._attachments.bind(plugin)

    def add_event_handler(self, event_name: Any, handler: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As Ignite's. With ``debug``, handlers of weight events are watched for writing where they should not."""
        guard = getattr(self, "_guard", None)
        if guard is not None and guard.concerns(event_name, handler):
            handler = guard.watching(handler, event_name)
        handle = super().add_event_handler(event_name, handler, *args, **kwargs)
        self._settle_announcing()
        return handle

    def remove_event_handler(self, handler: Callable[..., Any], event_name: Any) -> None:
        """As Ignite's."""
        super().remove_event_handler(handler, event_name)
        self._settle_announcing()

    def _settle_announcing(self) -> None:
        self._announces = any(self._event_handlers.get(event) for event in ANNOUNCEMENTS)

    def _charged(self) -> Tensor | float:
        """The costs of the penalties that add their gradients in the update in progress."""
        return sum(cost for binding, cost in self._costs() if "gradient" in binding.plugin.writes and binding.due())

    def _between_updates(self) -> None:
        self._attachments.settle()

    def _look_again(self) -> None:
        self._attachments.follow_optimizers()

    # ---------------------------------------------------------------- looking

    @property
    def model(self) -> nn.Module:
        """The model, where there is only one."""
        if len(self.models) != 1:
            raise ConfigurationError(f"there are {len(self.models)} models: use trainer.models[name]")
        (model,) = self.models.values()
        return model

    def weights(self, where: Where = everything) -> dict[str, nn.Parameter]:
        """Name to raw parameter, for the weights that ``where`` selects.

        Raises:
            SelectionError: nothing is selected.
        """
        found = raw_weights(inventory(self.models, self.optimizers))
        return {weight.name: weight.parameter for weight in select(where, found)}

    def plan(self, epochs: int | None = None, epoch_length: int | None = None) -> Plan:
        """Who touches which weight, on which event, in which order, and which weights nobody shapes. Print it.

        Args:
            epochs: of the run to come; with the length of an epoch, the plan says what schedules will give.
            epoch_length: updates in an epoch.
        """
        return self._attachments.plan(epochs, epoch_length)

    @torch.no_grad()
    def violations(self) -> dict[tuple[Constraint, str], float]:
        """How far each constrained weight, as its layer computes with it, is outside the set: 0 if it is inside, to
        within the constraint's tolerance."""
        measured: dict[tuple[Constraint, str], float] = {}
        for binding in self._attachments.bindings(Constraint):
            plugin = binding.current()
            for target in binding.each(binding.all_targets()):
                with blaming(plugin, f"asked for its violation, weight {target.weight.name!r}"):
                    key: Any = (binding.plugin, target.weight.name)
                    measured[key] = plugin.measured_violation(target.effective, target.site)
        return measured

    def penalty_costs(self) -> dict[Penalty, Tensor]:
        """What each penalty charges now, on all its weights that are trained, 0-d on the device; 0 before its ``after``
        and from its ``before`` on. Equal penalties that are attached several times count together."""
        costs: dict[Penalty, Tensor] = {}
        for binding, charge in self._costs():
            penalty: Any = binding.plugin
            cost = charge if binding.is_in_force() else torch.zeros_like(charge)
            costs[penalty] = costs[penalty] + cost if penalty in costs else cost
        return costs

    def _costs(self) -> Iterator[tuple[Binding, Tensor]]:
        for binding in self._attachments.bindings(Penalty):
            penalty, charges = binding.current(), []
            for target in binding.each():
                with torch.no_grad(), blaming(binding.plugin, f"asked for its cost, weight {target.weight.name!r}"):
                    charges.append(penalty.charge(target))
            if charges:
                yield binding, torch.stack(charges).sum()

    def publish(self, values: Mapping[str, Measurement], step: int) -> None:
        """Hand measurements to the sinks: sets ``state.measurements`` and fires MEASURED.

        Args:
            values: tag to a number, a 0-d tensor, a :class:`~weightsmith.measurements.Histogram`, a
                :class:`~weightsmith.measurements.Picture` or :class:`~weightsmith.measurements.Settings`.
            step: where they belong on the horizontal axis.

        Raises:
            PluginContractError: a value is something else.
        """
        self.published.record(values, step)
        self.state.measurements = Measurements(dict(values), step)
        self._announce(WeightEvents.MEASURED)

    # ---------------------------------------------------------------- evaluating

    def to_device(self, batch: Any) -> Any:
        """A batch, moved to the trainer's device."""
        if type(batch) in (tuple, list):
            for part in batch:
                if type(part) is not Tensor or part.device != self.device:
                    break
            else:
                return batch
        return convert_tensor(batch, self.device, non_blocking=True)

    def evaluate(
        self, data: Iterable[Any], metrics: Mapping[str, Metric], *, step: EvaluationStep | None = None
    ) -> dict[str, Any]:
        """Metrics of the models on ``data``, now, in evaluation mode; each module's mode is restored after.

        Args:
            data: batches.
            metrics: name to an Ignite metric.
            step: ``step(trainer, batch)`` gives what the metrics take; default ``(model(inputs), targets)``.
        """
        engine = evaluator(self, metrics, step)
        with torch.random.fork_rng(devices=[]):
            engine.run(data)
        return dict(engine.state.metrics)

    @property
    def awaited_metrics(self) -> list[str]:
        """The names that ``state.metrics`` will have by :meth:`validate_on` and by what plugins say; handlers may put
        others there."""
        return [*self._validated, *(name for plugin in self.plugins for name in plugin.metrics_given())]

    def validate_on(
        self,
        data: Iterable[Any],
        metrics: Mapping[str, Metric],
        *,
        every: int = 1,
        step: EvaluationStep | None = None,
        averaged: bool | Average = False,
        statistics_from: Iterable[Any] | None = None,
    ) -> Engine:
        """Evaluate at the end of every ``every``-th epoch; fills ``state.metrics``, and publishes those that are
        numbers (a confusion matrix is none) as ``metrics/<name>``.

        Args:
            data: batches.
            metrics: name to an Ignite metric.
            every: epochs from one evaluation to the next. Default 1.
            step: as for :meth:`evaluate`.
            averaged: whether to evaluate the means of the average that is attached, or which average's. Default false.
                As long as it has no mean yet, the weights in training are evaluated, and the log says so.
            statistics_from: as for :meth:`averaged`; batches that can be gone through again.

        Returns:
            The evaluator, an Ignite engine: attach early stopping or checkpoints to its ``COMPLETED``. With
            ``averaged`` that event fires while the means are lent, so a model saved there holds the means, which is
            often what one wants. To save the weights in training, save on the trainer's ``EPOCH_COMPLETED`` in a
            handler added after this call: it finds this validation's numbers in ``trainer.state.metrics``.
        """
        if averaged:
            # Refuses if there is none.
            self._attachments.the(Average, averaged if isinstance(averaged, Plugin) else None)
        engine = evaluator(self, metrics, step)
        self._validated += metrics
        average, said = averaged if isinstance(averaged, Average) else None, False

        def validate() -> None:
            nonlocal said
            lends = bool(averaged and lendable(self._attachments.the(Average, average)))
            if averaged and not lends and not said:
                said = True
                logger.warning("validate_on: there is no mean yet, so the weights in training are evaluated")
            lent = self.averaged(average, statistics_from=statistics_from) if lends else contextlib.nullcontext()
            with lent, torch.random.fork_rng(devices=[]):  # training draws the same with and without validation
                engine.run(data)
            self.state.metrics.update(engine.state.metrics)
            self.publish(scalars(engine.state.metrics), step=self.state.epoch)

        self.add_event_handler(Events.EPOCH_COMPLETED(every=every), validate)
        return engine

    def export(self, path: str | Path, *, averaged: bool | Average = False) -> list[str]:
        """Write the weights and buffers as safetensors, under the names of plain models: of a parametrized weight what
        its layer computes with, masks baked in; of several models as ``"generator.fc.weight"``. Several processes must
        export together: the first writes, and sharded weights are gathered for it one at a time.

        Args:
            path: a name that ends in ``.safetensors``.
            averaged: whether to write the means of the average that is attached, or which average's. Default false.

        Returns:
            The names that were written.

        Raises:
            ConfigurationError: no such average is attached, it has not seen a weight, or the file cannot be written.
        """
        average = averaged if isinstance(averaged, Average) else None
        with self.averaged(average) if averaged else contextlib.nullcontext():
            return write_plain(path, self.models)

    @contextlib.contextmanager
    def averaged(
        self, average: Average | None = None, *, statistics_from: Iterable[Any] | None = None
    ) -> Iterator[None]:
        """Lend an average's means to the models while the context lasts.

        Args:
            average: which; may be left out if only one is attached.
            statistics_from: batches from which to compute the running statistics of batch norm anew, for the means;
                by default those of the weights in training are used. They come back with the weights, as all buffers
                do. A batch norm in evaluation mode keeps its own.

        A mean of points of a convex set is in it; of other sets (unit norms) it need not be, so the constraints that
        are in force now have the last word here too. Weights of which there is no mean, frozen ones among them, stay
        as they are. Inside an update, the means of all optimizers' weights are lent.

        Raises:
            ConfigurationError: no such average is attached, it has not seen a weight yet, ``statistics_from`` has no
                batch, or statistics are asked of several models.
        """
        with lending(self, self._attachments.the(Average, average), self._attachments.bindings(Constraint)):
            if statistics_from is not None:
                renew_statistics(self, statistics_from)
            yield


def supervised_step(trainer: Trainer, batch: Any) -> Tensor:
    """The default step: forward, loss, one update, for a batch ``(inputs, targets)``."""
    inputs, targets = trainer.to_device(pair(batch, "training: give the Trainer"))

    def loss() -> Tensor:
        return trainer.loss_fn(trainer.model(inputs), targets)  # type: ignore[misc]

    return trainer.update(loss)
