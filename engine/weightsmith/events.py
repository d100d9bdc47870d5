"""The events of a weight's life, and the state that counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ignite.engine import EventEnum, State

if TYPE_CHECKING:
    from torch import Tensor

    from weightsmith.handlers import PluginHandler
    from weightsmith.measurements import Measurements

__all__ = ["TrainingState", "WeightEvents"]


class WeightEvents(EventEnum):
    """What happens to the weights between Ignite's own events.

    ::

        run
        ├─ Events.STARTED
        │    ├─ INITIALIZING        once in a Trainer's life; never on resume     Initializer
        │    └─ WEIGHTS_EDITED      so that step 0 is already feasible            Constraint
        │  for every epoch, for every batch
        │    step(trainer, batch)   the default: forward, loss, one update
        │    └─ trainer.update(loss, optimizer="name")       any number of times a step
        │         ├─ backward, into this optimizer's weights only
        │         ├─ MICROBATCH_COMPLETED
        │         │  at the end of the accumulation window:
        │         ├─ mean over the micro-batches, unscaled
        │         ├─ GRADIENTS_COMPUTED                                           Penalty
        │         ├─ GRADIENTS_READY                                              GradientEditor,
        │         │                                                               decoupled penalties
        │         ├─ optimizer.step()
        │         ├─ STEP_COMPLETED                                               proximal penalties,
        │         │                                                               WeightEditor
        │         ├─ WEIGHTS_EDITED                                               Constraint
        │         └─ UPDATE_COMPLETED                                             Average
        ├─ Events.EPOCH_COMPLETED                                                 Probe
        └─ Events.COMPLETED

    ``MEASURED`` fires whenever measurements are ready in ``state.measurements``; sinks (TensorBoard) listen to it.
    ``PLUGIN_STARTED`` and ``PLUGIN_COMPLETED`` fire around every handler of a plugin that has something to do, which is
    then ``state.acting``, if anybody listens: to see what each one does. (What layers do in their forward pass, such as
    ``mode="forward"``, is no handler.)

    Ignite's filters work on every member, and see ``state.update``: the 1-based number of the update in progress,
    counted for each optimizer on its own. At the start, before any update, it is 0.

    An optimizer that evaluates its closure several times a step (LBFGS) fires MICROBATCH_COMPLETED, GRADIENTS_COMPUTED
    and GRADIENTS_READY at every evaluation, since each of these gradients may be the one that it steps along.
    """

    INITIALIZING = "initializing"
    MICROBATCH_COMPLETED = "microbatch_completed"
    GRADIENTS_COMPUTED = "gradients_computed"
    GRADIENTS_READY = "gradients_ready"
    STEP_COMPLETED = "step_completed"
    WEIGHTS_EDITED = "weights_edited"
    UPDATE_COMPLETED = "update_completed"
    MEASURED = "measured"
    PLUGIN_STARTED = "plugin_started"
    PLUGIN_COMPLETED = "plugin_completed"


class TrainingState(State):
    """Ignite's state, and what the update pipeline adds to it.

    Attributes:
        updates: the updates completed by each optimizer, by name. Saved and restored.
        update: the 1-based number of the update in progress, else of the last one; 0 before the first.
        optimizer: the name of the optimizer whose update is in progress; ``None`` between updates.
        window: how many accumulation windows have been opened, by all optimizers together.
        evaluation: the evaluation within the update in progress: 0 where there is but one; counted from 1 for
            optimizers that evaluate their closure several times a step (LBFGS); 2 while an update is evaluated again.
        losses: the last loss of each optimizer, by name; 0-d, detached, on the device.
        measurements: the measurements published last, while ``MEASURED`` fires and after.
        acting: the handler of a plugin that runs now, with ``plugin``, ``binding`` (its weights) and ``event``;
            ``None`` between them, and where nobody listens to ``PLUGIN_STARTED`` or ``PLUGIN_COMPLETED``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.updates: dict[str, int] = {}
        self.update = 0
        self.optimizer: str | None = None
        self.window = 0
        self.evaluation = 0
        self.losses: dict[str, Tensor] = {}
        self.measurements: Measurements | None = None
        self.acting: PluginHandler | None = None

    def stand_for(self, state: State) -> None:
        """Have the very attributes of another state from now on, with nothing updated yet where it counted no updates:
        who holds on to this one sees the other."""
        if state is not self:
            self.__dict__ = {**vars(type(self)()), **vars(state)}
            state.__dict__ = self.__dict__

    @property
    def share(self) -> float | None:
        """The part of the planned run that is done with this iteration; ``None`` if its length is unknown."""
        if self.max_iters is None and self.max_epochs is None:
            return 0.0  # nothing runs yet
        if self.max_iters is not None:
            return self.iteration / self.max_iters
        if self.max_epochs is None or self.epoch_length is None:
            return None
        return self.iteration / (self.max_epochs * self.epoch_length)

    def get_event_attrib_value(self, event_name: Any) -> int:
        """The number that an event's filter sees. (Ignite's own map is global to the process: it stays untouched.)"""
        if event_name in _WEIGHT_EVENTS:
            return self.update
        return super().get_event_attrib_value(event_name)


_WEIGHT_EVENTS = frozenset(WeightEvents)
