"""The Trainer: an Ignite engine whose every update of the weights is a sequence of events."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

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
from weightsmith.evaluation import EvaluationStep, evaluator
from weightsmith.events import TrainingState, WeightEvents
from weightsmith.kinds import Average, Constraint, Penalty, WeightPlugin
from weightsmith.measurements import Measurement, Measurements
from weightsmith.plan import Plan
from weightsmith.plugin import Plugin
from weightsmith.selection import Where, everything, select
from weightsmith.tensors import unit_view
from weightsmith.weights import inventory, raw_weights
from weightsmith.window import Window, Windows

__all__ = ["Trainer"]

Step: TypeAlias = "Callable[[Trainer, Any], Any]"
Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]

_AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Trainer(Engine):
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

    state: TrainingState

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
        debug: bool = False,
    ) -> None:
        super().__init__(self._iterate)
        self.state = TrainingState()
        self.register_events(*WeightEvents)
        self.models = {"": model} if isinstance(model, nn.Module) else dict(model)
        self.optimizers = {"optimizer": optimizer} if isinstance(optimizer, Optimizer) else dict(optimizer)
        self.loss_fn = loss_fn
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.accumulate = accumulate
        self.precision = precision
        self.debug = debug
        self.seed = torch.initial_seed() if seed is None else seed
        if seed is not None:
            manual_seed(seed)
        self._step: Step = supervised_step if step is None else step
        self._refuse_misfits(step)
        self.device = self._settle(device)
        self._initialized = False
        self._guard = WriteGuard(self.weights) if debug else None
        trained = [p for model in self.models.values() for p in model.parameters() if p.requires_grad]
        self._windows = Windows(
            self.optimizers, trained, self.device, scaled=precision == "float16", accumulate=accumulate
        )
        self.state.updates = dict.fromkeys(self.optimizers, 0)
        self._follow_the_run()
        self._attachments = Attachments(self)
        for plugin in plugins:
            self.attach(plugin)

    # ---------------------------------------------------------------- one update, from top to bottom

    def update(self, loss: Tensor | Callable[[], Tensor], optimizer: str | None = None) -> Tensor:
        """Add a micro-batch to an optimizer's window; at the window's end, update its weights.

        Args:
            loss: the loss, 0-d with its graph; or a closure that computes it, which optimizers that evaluate several
                times a step (LBFGS) need.
            optimizer: the optimizer's name; may be left out if there is only one.

        Returns:
            The loss, 0-d, detached, still on its device: nothing waits for it.

        Raises:
            ConfigurationError: no such optimizer; a loss where a closure is needed; or called inside another update.
        """
        window = self._windows.named(optimizer)
        self._open(window)
        try:
            if window.evaluates_repeatedly:
                return self._update_by_closure(window, loss)
            value = loss() if callable(loss) else loss
            with self._autocast(enabled=False):
                self._backward(window, value)
                if window.microbatches == self.accumulate:
                    self._finish(window)
            return value.detach()
        finally:
            self._leave()

    def _backward(self, window: Window, loss: Tensor) -> None:
        window.backward(loss)
        self.state.losses[window.name] = loss.detach()
        self._fire_event(WeightEvents.MICROBATCH_COMPLETED)

    def _finish(self, window: Window) -> None:
        if not window.close():  # float16 met an infinity: nothing fires, and the next update takes this number
            self.state.update = self.state.updates[window.name]
            return
        self._fire_event(WeightEvents.GRADIENTS_COMPUTED)
        self._fire_event(WeightEvents.GRADIENTS_READY)
        window.step()
        self._complete(window)

    def _complete(self, window: Window) -> None:
        self.state.updates[window.name] = self.state.update
        self._fire_event(WeightEvents.STEP_COMPLETED)
        self._fire_event(WeightEvents.WEIGHTS_EDITED)
        self._fire_event(WeightEvents.UPDATE_COMPLETED)

    def _update_by_closure(self, window: Window, closure: Any) -> Tensor:
        """One step of an optimizer that evaluates repeatedly: every evaluation is charged its penalties and edited, so
        that the optimizer sees one function throughout."""
        if not callable(closure):
            raise ConfigurationError(
                f"optimizer {window.name!r} ({type(window.optimizer).__name__}) evaluates the loss several times a "
                "step: pass update() a function that computes it"
            )

        def evaluation() -> Tensor:
            self.state.evaluation += 1
            window.clear()
            with torch.enable_grad():
                loss: Tensor = closure()
            with self._autocast(enabled=False):
                self._backward(window, loss)
                window.close()
                self._fire_event(WeightEvents.GRADIENTS_COMPUTED)
                self._fire_event(WeightEvents.GRADIENTS_READY)
                return loss.detach() + sum(self.penalty_costs("loss").values())

        window.step(evaluation)
        with self._autocast(enabled=False):
            self._complete(window)
        return self.state.losses[window.name]

    def _open(self, window: Window) -> None:
        if self.state.optimizer is not None:
            raise ConfigurationError(
                f"update() was called inside the update of optimizer {self.state.optimizer!r}: call it from the step"
            )
        self.state.optimizer = window.name
        self.state.update = self.state.updates[window.name] + 1
        self.state.evaluation = 0

    def _leave(self) -> None:
        self.state.optimizer = None
        self._attachments.settle()

    def _flush(self) -> None:
        """End the windows that are still open, with fewer micro-batches: an epoch or the run ends."""
        for window in self._windows:
            if window.microbatches:
                self._open(window)
                try:
                    self._finish(window)
                finally:
                    self._leave()

    def _fire_event(self, event_name: Any, *event_args: Any, **event_kwargs: Any) -> None:
        """As Ignite's, but free where nobody listens: Ignite formats a log line for every event."""
        if self._event_handlers.get(event_name):
            super()._fire_event(event_name, *event_args, **event_kwargs)
        else:
            self.last_event_name = event_name

    # ---------------------------------------------------------------- the run around it

    def _follow_the_run(self) -> None:
        self.add_event_handler(Events.STARTED, self._start)
        for end in (Events.TERMINATE_SINGLE_EPOCH, Events.EPOCH_COMPLETED, Events.TERMINATE, Events.COMPLETED):
            self.add_event_handler(end, lambda *_, **__: self._flush())

    def _start(self) -> None:
        if not self._initialized:
            self._fire_event(WeightEvents.INITIALIZING)
            self._initialized = True
        self._fire_event(WeightEvents.WEIGHTS_EDITED)

    def _iterate(self, _: Engine, batch: Any) -> Any:
        for model in self.models.values():
            if not model.training:  # cheaper than model.train(), which walks every module
                model.train()
        with self._autocast():
            return self._step(self, batch)

    def _autocast(self, *, enabled: bool = True) -> contextlib.AbstractContextManager[Any]:
        dtype = _AUTOCAST[self.precision]
        return _NOTHING if dtype is None else torch.autocast(self.device.type, dtype, enabled=enabled)

    def _internal_run(self) -> Any:
        try:
            return super()._internal_run()
        except BaseException:
            self._make_runnable_again()
            raise

    def _make_runnable_again(self) -> None:
        self._internal_run_generator = None
        for window in self._windows:
            window.clear()
        if self.state.epoch_length:
            self.state.epoch = self.state.iteration // self.state.epoch_length

    def _handle_exception(self, error: BaseException) -> None:
        """As Ignite, but a plugin's exception reaches the caller whatever handlers of EXCEPTION_RAISED do."""
        if not getattr(error, "raised_in_plugin", False):
            super()._handle_exception(error)
            return
        if not getattr(error, "was_announced", False):
            error.__dict__["was_announced"] = True
            self._fire_event(Events.EXCEPTION_RAISED, error)
        raise error

    def to_device(self, batch: Any) -> Any:
        """A batch, moved to the trainer's device."""
        return convert_tensor(batch, self.device, non_blocking=True)

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
        if guard is not None and event_name in WeightEvents.__members__.values():
            handler = guard.watching(handler, event_name.name)
        return super().add_event_handler(event_name, handler, *args, **kwargs)

    # ---------------------------------------------------------------- looking

    @property
    def model(self) -> nn.Module:
        """The model, where there is only one."""
        if len(self.models) != 1:
            raise ConfigurationError(f"there are {len(self.models)} models: use trainer.models[name]")
        return next(iter(self.models.values()))

    def weights(self, where: Where = everything) -> dict[str, nn.Parameter]:
        """Name to raw parameter, for the weights that ``where`` selects.

        Raises:
            SelectionError: nothing is selected.
        """
        found = raw_weights(inventory(self.models, self.optimizers))
        return {weight.name: weight.parameter for weight in select(where, found)}

    def plan(self) -> Plan:
        """Who touches which weight, on which event, in which order. Print it."""
        return self._attachments.plan()

    @torch.no_grad()
    def violations(self) -> dict[tuple[Constraint, str], float]:
        """How far each constrained weight, as its layer computes with it, is outside the set: 0 if it is inside, to
        within the constraint's tolerance."""
        measured: dict[tuple[Constraint, str], float] = {}
        for binding in self._attachments.bindings(Constraint):
            plugin = binding.current()
            for weight, site in binding.all_targets():
                units = unit_view(weight.effective(), weight.module)
                violation = float(plugin.violation(units, site)) if units.numel() else 0.0
                inside = units.numel() == 0 or violation <= plugin.tolerance(units)
                measured[binding.plugin, weight.name] = 0.0 if inside else violation  # type: ignore[index]
        return measured

    @torch.no_grad()
    def penalty_costs(self, mode: str | None = None) -> dict[Penalty, Tensor]:
        """What each penalty charges now, 0-d on the device; those of the optimizer in progress, else of all."""
        costs: dict[Penalty, Tensor] = {}
        for binding in self._attachments.bindings(Penalty):
            plugin: Any = binding.plugin
            if binding.due() and mode in (None, plugin.mode):
                current = binding.current()
                targets = binding.targets()
                plugin._prepare(targets)
                units = [(unit_view(weight.effective(), weight.module), site) for weight, site in targets]
                if units:
                    costs[plugin] = torch.stack([current.cost(unit, site) for unit, site in units]).sum()
        return costs

    def publish(self, values: Mapping[str, Measurement], step: int) -> None:
        """Hand measurements to the sinks: sets ``state.measurements`` and fires MEASURED.

        Args:
            values: tag to a number, a 0-d tensor or a :class:`~weightsmith.measurements.Histogram`.
            step: where they belong on the horizontal axis.
        """
        self.state.measurements = Measurements(dict(values), step)
        self._fire_event(WeightEvents.MEASURED)

    @contextlib.contextmanager
    def averaged(self, average: Average | None = None) -> Iterator[None]:
        """Lend an average's means to the models while the context lasts.

        Args:
            average: which; may be left out if only one is attached.

        Raises:
            ConfigurationError: no such average is attached.
        """
        binding = self._attachments.the(Average, average)
        targets = [t for t in binding.all_targets() if "mean" in t.site.state]
        kept = [target.tensor.detach().clone() for target in targets]
        try:
            with torch.no_grad():
                for target in targets:
                    target.tensor.copy_(target.site.state["mean"])
            yield
        finally:
            with torch.no_grad():
                for target, weight in zip(targets, kept, strict=True):
                    target.tensor.copy_(weight)

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
        engine.run(data)
        return dict(engine.state.metrics)

    def validate_on(
        self,
        data: Iterable[Any],
        metrics: Mapping[str, Metric],
        *,
        every: int = 1,
        step: EvaluationStep | None = None,
    ) -> Engine:
        """Evaluate at the end of every ``every``-th epoch; publishes ``metrics/<name>`` and fills ``state.metrics``.

        Returns:
            The evaluator, an Ignite engine: attach early stopping or checkpoints to its ``COMPLETED``.
        """
        engine = evaluator(self, metrics, step)

        def validate() -> None:
            engine.run(data)
            self.state.metrics.update(engine.state.metrics)
            self.publish({f"metrics/{name}": engine.state.metrics[name] for name in metrics}, step=self.state.epoch)

        self.add_event_handler(Events.EPOCH_COMPLETED(every=every), validate)
        return engine

    # ---------------------------------------------------------------- state

    def state_dict(self) -> Any:
        """Ignite's state of the loop, the count of updates, and what plugins remember."""
        state: Any = super().state_dict()
        state["weightsmith"] = {
            "updates": dict(self.state.updates),
            "initialized": self._initialized,
            "plugins": self._attachments.state_dict(),
        }
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; the same plugins must be attached.

        Raises:
            ConfigurationError: the state is not a Trainer's, or belongs to other optimizers or plugins.
        """
        ours = state_dict.get("weightsmith")
        if ours is None or ours["updates"].keys() != self.optimizers.keys():
            raise ConfigurationError(f"this is not the state of a Trainer with the optimizers {list(self.optimizers)}")
        super().load_state_dict(state_dict)
        self._attachments.load_state_dict(ours["plugins"])
        self.state.updates = dict(ours["updates"])
        self._initialized = ours["initialized"]

    # ---------------------------------------------------------------- setting up

    def _refuse_misfits(self, step: Step | None) -> None:
        if self.precision not in _AUTOCAST:
            raise ConfigurationError(f"precision={self.precision!r}: give one of {', '.join(map(repr, _AUTOCAST))}")
        if self.accumulate < 1:
            raise ConfigurationError(f"accumulate={self.accumulate}: an update takes at least 1 micro-batch")
        if not self.models or not self.optimizers:
            raise ConfigurationError("give at least one model and one optimizer")
        if step is None and (len(self.models) > 1 or len(self.optimizers) > 1):
            raise ConfigurationError("several models or optimizers need step=: the default step knows only one of each")
        if step is None and self.loss_fn is None:
            raise ConfigurationError("give loss_fn=, which the default step needs, or step=")

    def _settle(self, device: str | torch.device | None) -> torch.device:
        if device is None:
            weights = (parameter for model in self.models.values() for parameter in model.parameters())
            first = next(weights, None)
            return torch.device("cpu") if first is None else first.device
        for model in self.models.values():
            model.to(device)
        return torch.device(device)


def supervised_step(trainer: Trainer, batch: Any) -> Tensor:
    """The default step: forward, loss, one update, for a batch ``(inputs, targets)``."""
    inputs, targets = trainer.to_device(batch)

    def loss() -> Tensor:
        return trainer.loss_fn(trainer.model(inputs), targets)  # type: ignore[misc]

    return trainer.update(loss)


_NOTHING: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
