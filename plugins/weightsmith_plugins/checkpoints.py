"""Checkpoints of the run, from time to time."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ignite.engine import Events
from weightsmith import CheckpointError, ConfigurationError, Plugin, WeightEvents
from weightsmith.checkpoint import link, sweep
from weightsmith.distributed import first_does, from_first
from weightsmith.finiteness import first_nonfinite_of_all
from weightsmith.plugin import KEPT, Notes
from weightsmith.schedules import Span, parse_span
from weightsmith.spelling import nearest

if TYPE_CHECKING:
    from weightsmith import Trainer

__all__ = ["Checkpoints"]

logger = logging.getLogger(__name__)


class Checkpoints(Plugin):
    """Saves the whole run, as ``trainer.save`` does, from time to time and at its end: ``checkpoints/00000120`` in the
    trainer's ``run_dir``, by iteration. ``trainer.resume(run_dir)`` goes on from the newest good one.

    A checkpoint is there as a whole or not at all, and older ones go only when a newer one is safe. One with weights
    that are not finite is not saved. Where a save fails, as when the disk is full, the log says so, training goes on,
    and the next save is tried in its time. Several processes save together, and what the first has measured says which
    is the best.

    Args:
        every: updates from one save to the next, or ``"2 epochs"``. Default ``"1 epochs"``.
        keep: how many of the newest are kept. Default 3.
        best: the name in ``state.metrics``, such as ``"accuracy"`` of ``validate_on(data, {"accuracy": …})``, by which
            one checkpoint is the best: it is kept besides, and ``best`` beside the others leads to it. A NaN is never
            the best. Default none.
        mode: whether the best has the ``"max"`` (default) or the ``"min"``.

    Raises:
        ConfigurationError: the trainer has no ``run_dir``, or it cannot be written; in a recipe, no metric has that
            name; in a script, the same once an epoch has ended, since anything may put it there until then. Where
            :meth:`validate_on` measures others, the log says so at the start.
    """

    order: ClassVar[int] = 95

    every: Span = "1 epochs"
    keep: int = 3
    best: str | None = None
    mode: Literal["max", "min"] = "max"

    def validate(self) -> None:
        if parse_span(self.every)[0] < 1 or self.keep < 1:
            raise ConfigurationError(f"{self!r}: every and keep must be at least 1")

    def metrics_needed(self) -> Sequence[str]:
        return () if self.best is None else (self.best,)

    def subscriptions(self, trainer: Trainer) -> Iterator[tuple[Any, Any]]:
        if trainer.run_dir is None:
            raise ConfigurationError(f"{self!r}: give the Trainer run_dir=…")
        folder = trainer.run_dir / "checkpoints"
        first_does(lambda: self._make(folder))
        saves = _Saves(self, trainer, folder)
        number, unit = parse_span(self.every)
        event = Events.EPOCH_COMPLETED if unit == "epochs" else WeightEvents.UPDATE_COMPLETED
        yield KEPT, saves.notes
        if self.best is not None:
            yield Events.STARTED, saves.look_ahead
        yield event(every=number), saves.ask
        yield Events.COMPLETED, saves.ask

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{self!r}: cannot write to {folder}: {error.strerror}") from error


class _Saves:
    """Saves one trainer's run, and keeps count of the best."""

    def __init__(self, plugin: Checkpoints, trainer: Trainer, folder: Path) -> None:
        self.notes = Notes()
        self._plugin = plugin
        self._trainer = trainer
        self._folder = folder

    def look_ahead(self) -> None:
        """Warn where the best is to be told by a metric that nothing is known to measure."""
        name, awaited = self._plugin.best, self._trainer.awaited_metrics
        if name is not None and awaited and name not in (*awaited, *self._trainer.state.metrics):
            near = nearest(name, awaited)
            logger.warning("best=%r: no metric of validate_on(…) is called that, nor of a plugin%s", name, near)

    def ask(self) -> None:
        """Save, once nothing of the iteration or the epoch is left to do."""
        self._trainer.at_safe_point(self.save)

    def save(self) -> None:
        """Save now."""
        culprit = first_nonfinite_of_all(self._trainer.models, self._trainer.optimizers)
        if culprit is not None:
            logger.error("not saved at iteration %d: %s is not finite", self._trainer.state.iteration, culprit)
            return
        if not from_first(self._folder.exists()):
            logger.warning("%s was taken away: it is made anew", self._folder)
        before, score = {"score": self.notes.get("score")}, first_does(self._best_score)
        path = self._folder / f"{self._trainer.state.iteration:08d}"
        try:
            if score is not None:
                self.notes["score"] = score
            self._trainer.save(path)
            first_does(lambda: self._tidy(path, is_best=score is not None))
        except CheckpointError as error:
            self.notes.update(before)
            logger.error("%s; training goes on, and older checkpoints stay", error)

    def _tidy(self, path: Path, *, is_best: bool) -> None:
        if is_best:
            link(path, "best")
        sweep(self._folder, self._plugin.keep)

    def _best_score(self) -> float | None:
        """The metric, if it was measured in this epoch and is better than ever."""
        name, state = self._plugin.best, self._trainer.state
        if name is None or self._trainer.published.get(f"metrics/{name}", state.epoch) != state.epoch:
            return None
        if name not in state.metrics:
            if self._trainer.is_in_epoch and state.epoch == 1:
                return None  # nothing can have been validated yet
            near = nearest(name, state.metrics) or ", which is empty: trainer.validate_on(…) fills it"
            raise ConfigurationError(f"best={name!r} is no metric in state.metrics{near}")
        score = float(state.metrics[name])
        return None if math.isnan(score) or not self._is_better(score, self.notes.get("score")) else score

    def _is_better(self, score: float, than: float | None) -> bool:
        return than is None or (score > than if self._plugin.mode == "max" else score < than)
