"""Ignite's loop, so that it can stop anywhere and go on later as if it had not."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ignite.engine import Engine, Events

from weightsmith.batches import Pass, length_of
from weightsmith.errors import ConfigurationError
from weightsmith.faults import is_blamed
from weightsmith.randomness import random_states, restore_random_states
from weightsmith.trainer.dispatch import Handlers, call

__all__ = ["ResumableLoop"]


logger = logging.getLogger(__name__)


class ResumableLoop(Engine):
    """An Ignite engine that knows its position in the data to the batch.

    A *safe point* is where nothing of an iteration, or of an epoch's end, is left to do: after all handlers of
    ITERATION_COMPLETED, unless an end of the epoch or the run is to follow; then after all those of EPOCH_COMPLETED, or
    of COMPLETED; and after those of STARTED. Positions are taken there.
    """

    def __init__(self, process: Callable[[Any, Any], Any]) -> None:
        super().__init__(process)
        self._event_handlers: Handlers = Handlers()
        self._is_watched = True
        """Whether events are fired by Ignite's own, slower way."""
        self._errands: list[Callable[[], None]] = []
        self._is_safe_now = False
        self._position: Mapping[str, Any] | None = None
        """Where the next run goes on; none once it is there."""
        self._is_running = False
        self._is_interrupted = False
        self._is_over = False
        """Whether COMPLETED has fired in the last run."""
        self._is_in_epoch = False
        self._epoch_began_at = 0
        """The iterations before the epoch in progress."""
        self._latest: Pass | None = None
        """The latest pass over data."""
        self._is_replaced = False
        """Whether set_data gave the run other data."""
        self._has_told_of_end = False
        self.add_event_handler(Events.EPOCH_STARTED, self._begin_epoch)
        self.add_event_handler(Events.DATALOADER_STOP_ITERATION, self._tell_of_early_end)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        self.add_event_handler(Events.COMPLETED, self._end_run)

    # ---------------------------------------------------------------- events

    def _fire_event(self, event_name: Any, *event_args: Any, **event_kwargs: Any) -> None:
        """As Ignite's, but without its log line for every event where nobody reads it, and with its handlers found
        faster (:mod:`weightsmith.trainer.dispatch`)."""
        if self._is_watched or event_args or event_kwargs:
            if self._position is not None and self._goes_on_from(event_name):
                return
            super()._fire_event(event_name, *event_args, **event_kwargs)
            self._look_who_watches()
        else:
            self.last_event_name = event_name
            try:
                handlers = self._event_handlers.by_id[id(event_name)]
            except KeyError:
                handlers = self._event_handlers.look_up(event_name)
            for handler, args, kwargs in handlers:
                if args or kwargs:
                    call(handler, args, kwargs)
                else:
                    handler()
        if self._errands and self._is_safe(event_name):
            self._run_errands()

    def _maybe_terminate_or_interrupt(self) -> Any:
        """As Ignite's, without a generator where there is nothing to do, as after nearly every event."""
        if self.should_terminate or self.should_terminate_single_epoch or self.should_interrupt:
            return super()._maybe_terminate_or_interrupt()
        return iter(())

    def _look_who_watches(self) -> None:
        """Whether a run goes on from somewhere, or a logger reads of every event, as is asked at the beginning of runs
        and epochs."""
        self._is_watched = self._position is not None or self.logger.isEnabledFor(logging.DEBUG)

    def at_safe_point(self, errand: Callable[[], None]) -> None:
        """Call ``errand``, once, when the iteration in progress, or the end of the epoch that follows it, has nothing
        more to do; now, if nothing runs. For what saves."""
        if self._is_safe_now or not self._is_running:
            errand()
        elif self._is_interrupted:
            raise ConfigurationError(
                "the run is interrupted, and not over: save in a handler of ITERATION_COMPLETED before interrupt(), or "
                "let it go on with run()"
            )
        elif errand not in self._errands:
            self._errands.append(errand)

    def _run_errands(self) -> None:
        self._is_safe_now = True
        try:
            while self._errands:
                self._errands.pop(0)()
        finally:
            self._is_safe_now = False

    def _is_safe(self, event: Any) -> bool:
        if event is Events.STARTED or event is Events.EPOCH_COMPLETED or event is Events.COMPLETED:
            return True
        return event is Events.ITERATION_COMPLETED and not self._ends_epoch()

    def _ends_epoch(self) -> bool:
        """Whether an end of the epoch or of the run follows the iteration that was completed."""
        state = self.state
        if self.should_terminate or self.should_terminate_single_epoch or state.iteration == state.max_iters:
            return True
        return state.epoch_length is not None and self._iterations_in_epoch() == state.epoch_length

    def _begin_epoch(self) -> None:
        self._is_in_epoch, self._epoch_began_at = True, self.state.iteration

    def _end_epoch(self) -> None:
        self._is_in_epoch, self._is_watched = False, True
        if isinstance(self._dataloader_iter, Pass):
            self._dataloader_iter.look_for_end()

    def _end_run(self) -> None:
        self._is_in_epoch, self._is_over = False, True

    @property
    def is_in_epoch(self) -> bool:
        """Whether an epoch is in progress, whose end has not begun."""
        return self._is_running and self._is_in_epoch

    def _iterations_in_epoch(self) -> int:
        return self.state.iteration - self._epoch_began_at

    # ---------------------------------------------------------------- the position

    def position(self) -> dict[str, Any]:
        """Where the run is, as plain values. To be asked at a safe point, or between runs."""
        if self._position is not None:  # it has not gone on yet
            return dict(self._position)
        state = self.state
        in_epoch = self.is_in_epoch
        batches = self._dataloader_iter.state_dict() if isinstance(self._dataloader_iter, Pass) else {}
        return {
            "iteration": state.iteration,
            "epoch": state.epoch - in_epoch,
            "iterations_in_epoch": self._iterations_in_epoch() if in_epoch else None,
            "epoch_length": state.epoch_length,
            "max_epochs": state.max_epochs,
            "max_iters": state.max_iters,
            "is_running": self._is_running and not self._is_over,
            "is_over": self._is_over,
            "should_terminate": self.should_terminate,
            "batches": batches,
            "data_length": length_of(state.dataloader),
            "is_replaced": self._is_replaced,
            "random": random_states(),
        }

    def go_on_from(self, position: Mapping[str, Any]) -> None:
        """Let the next :meth:`run` go on from a position."""
        state = self.state
        state.iteration, state.epoch = position["iteration"], position["epoch"]
        state.epoch_length = position["epoch_length"]
        state.max_epochs, state.max_iters = position["max_epochs"], position["max_iters"]
        if state.max_iters is not None:  # Ignite takes but one; it worked the other out
            state.max_epochs = None
        if position["is_replaced"]:
            logger.warning("set_data() gave the saved run other data: give run() those")
        self._internal_run_generator = None
        self._dataloader_iter = None
        self._is_over = position["is_over"]
        self.should_terminate = position["should_terminate"]
        self._position, self._is_watched = position, True
        restore_random_states(position["random"])

    def _goes_on_from(self, event: Any) -> bool:
        """What a run that goes on does before an event fires. Whether it fired already, before the run stopped."""
        position = self._position
        assert position is not None
        if event is Events.STARTED:
            if position["is_running"] and self._goes_on_to_its_end():
                self.should_terminate = position["should_terminate"]
            if self.state.max_iters is not None and not self._was_extended():
                self.state.max_epochs = position["max_epochs"]
        elif event is Events.TERMINATE or event is Events.COMPLETED:  # no epoch is left
            self._position = None
            restore_random_states(position["random"])
        elif event is Events.EPOCH_STARTED:
            self._return_to_data(position)
            self._position = None
            restore_random_states(position["random"])
            return self._returns_into_epoch(position)
        return False

    def _return_to_data(self, position: Mapping[str, Any]) -> None:
        length, may_differ = length_of(self.state.dataloader), "has_changed" in position
        if position["is_running"] and length != position["data_length"] and not may_differ:
            raise ConfigurationError(
                f"the data have {length} batches, and had {position['data_length']} in the saved run: give run() the "
                "same data, with the same batch size; where other data are meant, resume with allow_changes=True"
            )
        is_at_end = position["iteration"] == position["epoch"] * (position["epoch_length"] or 0)
        if position["is_running"] or is_at_end:  # of an epoch: a run that was over and is to go on
            self._dataloader_iter = batches = self._pass()
            try:
                if position["batches"]:
                    batches.load_state_dict(position["batches"])
            except ValueError as error:
                raise ConfigurationError(str(error)) from None
            self._init_iter = position["iterations_in_epoch"] or 0

    def _returns_into_epoch(self, position: Mapping[str, Any]) -> bool:
        """Whether an epoch is in progress there, whose start has been told."""
        if position["iterations_in_epoch"] is None:
            return False
        self._is_in_epoch = True
        self._epoch_began_at = self.state.iteration - position["iterations_in_epoch"]
        self.last_event_name = Events.ITERATION_COMPLETED
        return True

    def _tell_of_early_end(self) -> None:
        """Warn, once, where data end before the length that they state: the epoch goes on with the next pass."""
        stated = length_of(self.state.dataloader)
        taken = self._dataloader_iter.taken if isinstance(self._dataloader_iter, Pass) else 0
        if stated is not None and taken < stated and not self._has_told_of_end:
            self._has_told_of_end = True
            logger.warning(
                "the data said %d batches and gave %d: the epoch goes on from their beginning", stated, taken
            )

    def _pass(self) -> Pass:
        data: Any = self.state.dataloader
        if data is not None:
            self._latest = Pass(data, after=self._latest)
            return self._latest
        assert self.state.epoch_length is not None
        return Pass(itertools.repeat(None, self.state.epoch_length))

    def _setup_dataloader_iter(self) -> None:
        self._dataloader_iter = self._pass()

    def set_data(self, data: Iterable[Any]) -> None:
        """As Ignite's."""
        self.state.dataloader, self._is_replaced = data, True
        self._setup_dataloader_iter()

    # ---------------------------------------------------------------- the run

    def run(
        self,
        data: Iterable[Any] | None = None,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        epoch_length: int | None = None,
    ) -> Any:
        """As Ignite's; after :meth:`go_on_from`, it goes on from there, and trains nothing if the run was over."""
        position = self._position
        if position is None:
            return super().run(data, max_epochs=max_epochs, max_iters=max_iters, epoch_length=epoch_length)
        if max_epochs is not None and max_epochs < self.state.epoch:
            raise ConfigurationError(
                f"max_epochs={max_epochs} is less than the {self.state.epoch} epochs that the resumed run has trained"
            )
        if max_epochs is not None:
            self._check_and_set_max_epochs(max_epochs)
        if max_iters is not None:
            self._check_and_set_max_iters(max_iters)
        if position["is_over"] and not self._was_extended():
            self._position, self.state.dataloader = None, data
            logger.warning("the run was over at epoch %d: nothing is trained", self.state.epoch)
            return self.state
        if self._goes_on_to_its_end():
            self.state.dataloader = data
            return self._internal_run()
        return super().run(data, max_epochs=max_epochs, max_iters=max_iters, epoch_length=epoch_length)

    def _goes_on_inside_a_run(self) -> bool:
        """Whether a run that was stopped inside goes on, unchanged, so that what its start did is done."""
        position = self._position
        return position is not None and bool(position["is_running"]) and not position.get("has_changed")

    def _was_extended(self) -> bool:
        """Whether the run that goes on was given another end than the saved one had."""
        position, state = self._position, self.state
        assert position is not None
        if state.max_iters is not None:
            return bool(state.max_iters != position["max_iters"])
        return bool(state.max_epochs != position["max_epochs"])

    def _goes_on_to_its_end(self) -> bool:
        """Whether all was trained when the run stopped, but the end of the run had not been told."""
        position = self._position
        assert position is not None
        was_stopping = bool(position["should_terminate"]) and not self._was_extended()
        return bool(position["is_running"]) and (was_stopping or self._is_done(self.state))

    def _internal_run(self) -> Any:
        return self._followed(super()._internal_run)

    def _internal_run_legacy(self) -> Any:
        return self._followed(super()._internal_run_legacy)

    def _followed(self, run: Callable[[], Any]) -> Any:
        """Run, and know about it; a run that raised can be begun again."""
        self._is_running, self._is_interrupted, self._is_over = True, False, False
        self._is_watched = True
        try:
            state = run()
        except BaseException as error:
            self._make_runnable_again()
            vars(error).pop("was_announced", None)
            raise
        finally:
            self._is_running = self._is_interrupted = self._internal_run_generator is not None
        if not self._is_interrupted:
            self._is_over = True
            self._run_errands()  # where the run ended without COMPLETED
        return state

    def _make_runnable_again(self) -> None:
        self._internal_run_generator = None
        self._errands.clear()
        if self.state.epoch_length:
            self.state.epoch = self.state.iteration // self.state.epoch_length

    def _handle_exception(self, error: BaseException) -> None:
        """As Ignite, but a plugin's exception reaches the caller whatever handlers of EXCEPTION_RAISED do."""
        if not is_blamed(error):
            super()._handle_exception(error)
            return
        if "was_announced" not in vars(error):
            vars(error)["was_announced"] = True
            self._fire_event(Events.EXCEPTION_RAISED, error)
        raise error
