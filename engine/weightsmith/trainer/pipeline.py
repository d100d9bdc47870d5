"""One update of the weights, from the loss to the last word of the constraints, readable from top to bottom."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim import Optimizer

from weightsmith.distributed import mean_over_processes, refuse_disagreement, warn_of_same_batch, warn_of_unshared
from weightsmith.errors import ConfigurationError
from weightsmith.events import TrainingState, WeightEvents
from weightsmith.finiteness import FinitenessWatch, NonFinite
from weightsmith.replicas import Replicas
from weightsmith.shards import reshard, sharded_modules
from weightsmith.trainer.loop import ResumableLoop
from weightsmith.window import Window, Windows

__all__ = ["Precision", "UpdatePipeline"]

logger = logging.getLogger(__name__)

Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]

_AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class UpdatePipeline(ResumableLoop):
    """A loop whose every update of the weights is a sequence of events.

    Knows no plugin: what they add to a closure's loss, and what must wait for the end of an update, a subclass says.
    """

    state: TrainingState

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        step: Callable[[Any, Any], Any],
        *,
        device: torch.device,
        precision: Precision,
        accumulate: int,
        nonfinite: NonFinite,
    ) -> None:
        super().__init__(step)  # which refuses one that takes no trainer and batch
        self._step, self._process_function = step, self._iterate
        self.register_events(*WeightEvents)
        self.models = dict(models)
        self.optimizers = dict(optimizers)
        self.device = device
        self.precision = precision
        self._cast_dtype = _AUTOCAST[precision]
        """What autocast casts to; ``None`` if it does not run."""
        self.accumulate = accumulate
        self._training_state = TrainingState()
        self._take_over_state()
        self._initialized = False
        self._closure: Callable[[], Tensor] | None = None
        self._skipping = False
        self._updates_before: dict[str, int] = {}
        self._iterations_before = 0
        parameters = [p for model in self.models.values() for p in model.parameters()]
        reshard(self.models.values())
        self._sharded_modules = sharded_modules(self.models.values())
        self._replicas = Replicas(self.models, self.optimizers)
        self._windows = Windows(
            self.optimizers, parameters, device, self._replicas, scaled=precision == "float16", accumulate=accumulate
        )
        self._finiteness = FinitenessWatch(nonfinite, self)
        self._follow_the_run()

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
        self._closure = loss if callable(loss) else None
        try:
            if window.evaluates_repeatedly:
                return self._update_by_closure(window, loss)
            value = loss() if callable(loss) else loss
            window.refuse_loss(value)
            if self._cast_dtype is None:
                return self._add_microbatch(window, value)
            with self._autocast(enabled=False):
                return self._add_microbatch(window, value)
        except BaseException:
            window.abandon()
            raise
        finally:
            self._leave(window)

    def _add_microbatch(self, window: Window, loss: Tensor) -> Tensor:
        """Add a micro-batch to the window, and end that if it is full."""
        detached = self._backward(window, loss)
        if self.accumulate > 1:
            self._finiteness.look_at_microbatch(window)
        if window.microbatches == self.accumulate:
            self._finish(window)
        return detached

    def _backward(self, window: Window, loss: Tensor) -> Tensor:
        window.backward(loss)
        self.state.losses[window.name] = detached = loss.detach()
        self._fire_event(WeightEvents.MICROBATCH_COMPLETED)
        return detached

    def _finish(self, window: Window) -> None:
        if not window.close():  # float16 met an infinity: nothing fires, and the next update takes this number
            return
        self._fire_event(WeightEvents.GRADIENTS_COMPUTED)
        if self._skipping or not self._finiteness.passes(window):
            window.abandon()
            return
        self._fire_event(WeightEvents.GRADIENTS_READY)
        window.step()
        self._complete(window)

    def _complete(self, window: Window) -> None:
        self.state.updates[window.name] = self.state.update
        for event in _AFTER_STEP:
            if self._cast_dtype is not None:
                self._forget_casts()  # of the weights as they were before
            self._fire_event(event)
        self._forget_casts()

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
            self._forget_casts()  # the optimizer has moved the weights since the last evaluation
            with torch.enable_grad():
                loss: Tensor = closure()
            with self._autocast(enabled=False):
                self._backward(window, loss)
                window.close()
                self._fire_event(WeightEvents.GRADIENTS_COMPUTED)
                self._fire_event(WeightEvents.GRADIENTS_READY)
                return mean_over_processes(loss.detach()) + self._charged()  # by which all go the same way

        window.step(evaluation)
        self._finiteness.look_at_loss(window)
        with self._autocast(enabled=False):
            self._complete(window)
        return self.state.losses[window.name]

    def reevaluate(self) -> None:
        """Evaluate the update in progress once more, with the weights as they are now: forward, backward, reduction and
        penalties. Its gradient replaces the one that is there; ``state.evaluation`` is 2 meanwhile. For a handler of
        GRADIENTS_COMPUTED, such as sharpness-aware minimisation's.

        Raises:
            ConfigurationError: the update was given a loss instead of a function that computes it, or
                :meth:`require_reevaluation` says that there is no second evaluation.
        """
        self.require_reevaluation()
        if self.state.evaluation == 2:
            raise ConfigurationError("reevaluate() was called inside reevaluate(): test `state.evaluation` before")
        window = self._windows.named(self.state.optimizer)
        if self._closure is None:
            raise ConfigurationError(
                "the loss is needed a second time: pass update() a function that computes it, such as "
                "trainer.update(lambda: loss_fn(model(inputs), targets))"
            )
        evaluation, loss = self.state.evaluation, self.state.losses[window.name]
        self.state.evaluation = 2
        try:
            window.clear()
            self._forget_casts()
            with torch.enable_grad(), self._autocast():
                again = self._closure()
            with self._autocast(enabled=False):
                self._backward(window, again)
                window.close()
                self._fire_event(WeightEvents.GRADIENTS_COMPUTED)
        finally:
            self.state.evaluation, self.state.losses[window.name] = evaluation, loss
            self._forget_casts()

    def require_reevaluation(self) -> None:
        """Raise where an update cannot be evaluated twice.

        Raises:
            ConfigurationError: with accumulation, float16, or an optimizer that evaluates repeatedly by itself.
        """
        if self.accumulate > 1 or self.precision == "float16" or any(w.evaluates_repeatedly for w in self._windows):
            raise ConfigurationError(
                "a second evaluation in one update is not defined with accumulate > 1, precision='float16' or an "
                "optimizer that evaluates repeatedly (LBFGS)"
            )

    @property
    def is_skipping(self) -> bool:
        """Whether somebody called :meth:`skip_update` in the update in progress."""
        return self._skipping

    def skip_update(self) -> None:
        """Let the update in progress end without a step: nothing fires after GRADIENTS_COMPUTED, and its number is used
        again. For handlers of that event: from GRADIENTS_READY on, weights may have been edited.

        Raises:
            ConfigurationError: the event in progress is another, or the optimizer evaluates repeatedly.
        """
        elsewhere = self.state.optimizer is None or self.last_event_name != WeightEvents.GRADIENTS_COMPUTED
        if elsewhere or self._windows.named(self.state.optimizer).evaluates_repeatedly:
            raise ConfigurationError(
                "there is no update to skip here: call it from a handler of GRADIENTS_COMPUTED; an optimizer that "
                "evaluates repeatedly (LBFGS) can skip none"
            )
        self._skipping = True

    def _open(self, window: Window) -> None:
        if self.state.optimizer is not None:
            raise ConfigurationError(
                f"update() was called inside the update of optimizer {self.state.optimizer!r}: call it from the step"
            )
        if not window.microbatches:
            self.state.window += 1
        self.state.optimizer = window.name
        self.state.update = self.state.updates[window.name] + 1
        self.state.evaluation = 0
        self._skipping = False

    def _leave(self, window: Window) -> None:
        self.state.optimizer = None
        self._closure = None
        if not window.microbatches:
            self.state.update = self.state.updates[window.name]
        self._between_updates()

    def _flush(self) -> None:
        """End the windows that are still open, with fewer micro-batches: an epoch or the run ends."""
        current = self.last_event_name
        self._replicas.begin_iteration(ends_window=False)  # no wrapper has averaged what is in them
        for window in self._windows:
            if window.microbatches:
                self._open(window)
                try:
                    self._finish(window)
                except BaseException:
                    window.abandon()
                    raise
                finally:
                    self._leave(window)
        self._replicas.average_statistics()
        self.last_event_name = current

    def _announce(self, event: WeightEvents) -> None:
        """Fire an event inside another, which stays the one in progress, if anybody listens."""
        if self._event_handlers.get(event):
            current = self.last_event_name
            self._fire_event(event)
            self.last_event_name = current

    def _charged(self) -> Tensor | float:
        """What penalties add to the loss that a closure returns."""
        return 0.0

    def _between_updates(self) -> None:
        """Called when no update is in progress any more."""

    # ---------------------------------------------------------------- the run around it

    def _follow_the_run(self) -> None:
        self.add_event_handler(Events.STARTED, self._start)
        self.add_event_handler(Events.EPOCH_STARTED, self._look_again)
        self.add_event_handler(Events.EPOCH_STARTED, self._forget_gradients)
        for end in (Events.TERMINATE_SINGLE_EPOCH, Events.EPOCH_COMPLETED, Events.TERMINATE, Events.COMPLETED):
            self.add_event_handler(end, lambda *_, **__: self._flush())
        self.add_event_handler(Events.EPOCH_COMPLETED, self._finiteness.look_at_weights)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._replicas.refuse_drift)
        self.add_event_handler(Events.COMPLETED, self._warn_if_idle)

    def _look_again(self) -> None:
        """Called when a run and when an epoch starts: optimizers may hold other weights than before."""

    def _forget_gradients(self) -> None:
        """What the epoch before left to be looked at."""
        for window in self._windows:
            window.clear()

    def _warn_if_idle(self) -> None:
        if self.state.iteration == self._iterations_before:
            return
        idle = [name for name, updates in self.state.updates.items() if updates == self._updates_before.get(name)]
        if len(idle) == len(self.optimizers):
            logger.warning(
                "no optimizer was updated in this run, so plugins had no updates to act on: "
                "does the step call trainer.update(loss)?"
            )
        elif idle:
            logger.warning(
                "optimizers not updated in this run: %s. Does the step call trainer.update(loss, optimizer=%r)?",
                ", ".join(map(repr, idle)),
                idle[0],
            )

    def _may_have_trained(self) -> bool:
        """Whether this run has updated a weight; a step that does so by itself, as long as its first one has ended."""
        return self.state.updates != self._updates_before or self.state.iteration > self._iterations_before + 1

    def _start(self) -> None:
        self._take_over_state()
        self._updates_before, self._iterations_before = dict(self.state.updates), self.state.iteration
        self._look_again()
        length = {name: getattr(self.state, name) for name in ("epoch_length", "max_epochs", "max_iters")}
        refuse_disagreement("the length of the run", length, "share(loader) gives all as many batches")
        warn_of_unshared(self.state.dataloader)
        if not self._initialized:
            self._announce(WeightEvents.INITIALIZING)
            self._initialized = True
        if not self._goes_on_inside_a_run():
            self._announce(WeightEvents.WEIGHTS_EDITED)

    def _take_over_state(self) -> None:
        """Count updates in the state that is there: anybody may put a new one in place of an engine's, while plugins
        hold on to ours."""
        self._training_state.stand_for(self.state)
        self.state = self._training_state
        for name in self.optimizers:
            self.state.updates.setdefault(name, 0)

    def _iterate(self, _: Engine, batch: Any) -> Any:
        for model in self.models.values():
            if not model.training:  # cheaper than model.train(), which walks every module
                model.train()
        if self.state.iteration == self._iterations_before + 1:
            warn_of_same_batch(batch)
        for module in self._sharded_modules:  # whoever looked at an output left the weights whole, as they were then
            module.reshard()
        if self._replicas.has_wrappers:
            self._replicas.begin_iteration(ends_window=self._windows.ends_with_next(self.accumulate))
        if self._cast_dtype is None:
            output = self._step(self, batch)
        else:
            with self._autocast():
                output = self._step(self, batch)
        self._replicas.average_statistics()
        return output

    def _forget_casts(self) -> None:
        """Autocast keeps its half-precision copies of the weights until the step ends; call it where they change."""
        if self._cast_dtype is not None:
            torch.clear_autocast_cache()

    def _autocast(self, *, enabled: bool = True) -> contextlib.AbstractContextManager[Any]:
        if self._cast_dtype is None:
            return _NOTHING
        return torch.autocast(self.device.type, self._cast_dtype, enabled=enabled)

    def _make_runnable_again(self) -> None:
        for window in self._windows:
            window.abandon()
        super()._make_runnable_again()


_AFTER_STEP = (WeightEvents.STEP_COMPLETED, WeightEvents.WEIGHTS_EDITED, WeightEvents.UPDATE_COMPLETED)
_NOTHING: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
