"""A run that cannot be lost: saved, resumed, stopped by signals, kept from other processes."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import torch
from ignite.engine import Events
from torch import nn
from torch.optim import Optimizer

from weightsmith.attachments import Attachments
from weightsmith.checkpoint import (
    collect,
    find_together,
    open_checkpoint,
    restore,
    saved_in,
    write,
    write_together,
)
from weightsmith.distributed import (
    LateMaximum,
    first_does,
    from_first,
    in_common,
    is_distributed,
    is_first,
    rank,
    refuse_disagreement,
)
from weightsmith.errors import ConfigurationError, GoBack, NonFiniteError, RunStopped
from weightsmith.finiteness import Restore, first_nonfinite_of_all, scale_learning_rates
from weightsmith.measurements import Published
from weightsmith.randomness import seed_from
from weightsmith.shards import is_sharded
from weightsmith.signals import Signals
from weightsmith.trainer.arguments import kept
from weightsmith.trainer.pipeline import UpdatePipeline

__all__ = ["DurableRun"]

logger = logging.getLogger(__name__)


class DurableRun(UpdatePipeline):
    """An update pipeline whose run can be saved at every iteration, and gone on with in another process.

    With a ``run_dir``, SIGTERM and SIGINT let the iteration in progress end, save, and end the process with the exit
    code 143 or 130; an exception saves what there is as ``checkpoints/crash``; and no two processes run in one folder.

    Several processes save, resume and stop together, and the first alone writes what is not its own part of a
    checkpoint. What one meets alone, an exception, it meets without asking the others.
    """

    _attachments: Attachments

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        step: Callable[[Any, Any], Any],
        *,
        run_dir: str | Path | None,
        seed: int | None,
        keep: Mapping[str, Any] | Iterable[Any],
        **options: Any,
    ) -> None:
        super().__init__(models, optimizers, step, **options)
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.seed = from_first(torch.initial_seed()) if seed is None else seed
        self.has_own_seed = seed is not None
        self.keep = kept(keep)
        self.logger.addFilter(_is_no_stop)
        self.published = Published()
        self._stop_asked: signal.Signals | None = None
        """The signal at which the run ends; of several processes, once all know of it."""
        self._signal = 0
        """The signal that this process of several got."""
        self._signals_of_all: LateMaximum | None = None
        self._is_at_home = False
        """Whether the checkpoints in the run's folder are this run's."""
        self._restored = 0
        """How often the run went back to a checkpoint because something was not finite."""
        if isinstance(self._finiteness.policy, Restore) and self.run_dir is None:
            raise ConfigurationError("nonfinite='restore' goes back to a checkpoint: give run_dir=, and Checkpoints()")
        self.add_event_handler(Events.ITERATION_COMPLETED, self._exchange_signals)

    def _start(self) -> None:
        if self.state.iteration == 0:
            self.published.clear()
        if not self._initialized and not is_first():
            seed_from(self.seed, "process", rank(), 0)  # so that noise and dropout differ from the first's
        super()._start()
        self._save_beginning()

    def save(self, path: str | Path) -> None:
        """Save the whole run: models, optimizers, gradient scalers, what is kept, what plugins remember, all counts,
        the position in the data and in the accumulation window, and all random states.

        Inside a run it is done when the iteration in progress, or the end of the epoch that follows it, has nothing
        more to do: after every handler. Then a run that goes on from the checkpoint ends where this one ends, bit for
        bit. Several processes must save together, to a folder that all of them see.

        Args:
            path: the folder that becomes the checkpoint. A checkpoint that is there is replaced, once the new one is
                whole; inside a run it is not there yet when this returns.

        Raises:
            CheckpointError: it cannot be written; what was there stays.
            ConfigurationError: something could only be saved by pickle, or something else than a checkpoint is there;
                the message says what.
        """
        self.at_safe_point(lambda: self._write(Path(path)))

    def resume(self, path: str | Path, *, allow_changes: bool = False) -> Path:
        """Go on with a saved run: call it on a trainer that was made as the saved one was, before ``run``, which is
        given the same data. All is loaded, or nothing. Several processes must resume together, and may be more or fewer
        than those that saved.

        Args:
            path: a checkpoint, or a run's folder, of which the newest good checkpoint is taken.
            allow_changes: whether the plugins, their code, and the settings may be others than the saved ones; what is
                remembered of a plugin that is not attached any more is dropped. Default false.

        Returns:
            The checkpoint.

        Raises:
            CheckpointError: there is none, or it is damaged.
            ConfigurationError: it is of another run; the message lists what is unknown, missing or another.
        """
        if self._is_running:
            raise ConfigurationError("resume() was called inside a run: call it before run()")
        found, manifest = find_together(Path(path))
        contents = in_common(lambda: open_checkpoint(found, manifest))
        if not contents.manifest.get("is_good"):
            logger.warning("%s was saved when the run was not in order: not at a safe point, or not finite", found)
        restore(self, contents, allow_changes=allow_changes)
        if self.run_dir is not None and found.resolve().is_relative_to(self.run_dir.resolve()):
            self._is_at_home = True
        logger.info("resumed from %s, at iteration %d", found, self.state.iteration)
        return found

    def checkpoint_path(self) -> Path | None:
        """Where a checkpoint of the run as it is now has its place; ``None`` without a ``run_dir``."""
        return None if self.run_dir is None else self.run_dir / "checkpoints" / f"{self.state.iteration:08d}"

    def run(
        self,
        data: Iterable[Any] | None = None,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        epoch_length: int | None = None,
    ) -> Any:
        """As Ignite's. After :meth:`resume` it goes on from there, given the same data, and trains nothing if the run
        was over."""
        self._stop_asked, self._signal = None, 0
        refuse_disagreement(
            "run_dir",
            None if self.run_dir is None else self.run_dir.resolve(),
            "new_run_dir() of weightsmith.runs makes one for all",
        )
        with contextlib.ExitStack() as stack:
            if self.run_dir is not None:
                first_does(lambda: self._take(stack))
                self._is_at_home = True
                self._signals_of_all = LateMaximum() if is_distributed() else None
                stack.enter_context(Signals(self._stop))
            while self._stop_asked is None:
                try:
                    state = super().run(data, max_epochs=max_epochs, max_iters=max_iters, epoch_length=epoch_length)
                    self._settle_signals()
                    if self._stop_asked is None:
                        return state
                except GoBack as reason:
                    self._go_back(str(reason))
            self._end()
        raise AssertionError("unreachable")

    def _take(self, stack: contextlib.ExitStack) -> None:
        """Keep the run's folder for this run."""
        assert self.run_dir is not None
        stack.enter_context(_held(self.run_dir))
        self._refuse_another_runs_checkpoints(self.run_dir)

    def _refuse_another_runs_checkpoints(self, run_dir: Path) -> None:
        if not self._is_at_home and saved_in(run_dir / "checkpoints"):
            raise ConfigurationError(
                f"{run_dir} holds the checkpoints of another run: go on with it, trainer.resume({str(run_dir)!r}), or "
                "give this one another run_dir (weightsmith.runs.new_run_dir makes one)"
            )

    def _go_back(self, reason: str) -> None:
        """To the last good checkpoint, with lower learning rates, as often as the policy has it."""
        policy, times = self._finiteness.policy, self._restored + 1
        assert isinstance(policy, Restore)
        assert self.run_dir is not None
        if times > policy.times:
            raise NonFiniteError(
                f"{reason}; the run went back to a checkpoint {policy.times} times already: if it was the same update "
                "each time, look at its data"
            )
        path = self.resume(self.run_dir, allow_changes=True)
        scale_learning_rates(self.optimizers, self.keep, policy.learning_rate ** (times - self._restored))
        self._restored = times
        logger.warning(
            "%s: back to %s, with the learning rates × %s (%d of %d times)",
            reason,
            path,
            policy.learning_rate,
            times,
            policy.times,
        )

    def _save_beginning(self) -> None:
        """So that there is something to go back to."""
        path = self.checkpoint_path()
        if not isinstance(self._finiteness.policy, Restore) or path is None:
            return
        if not first_does(lambda: saved_in(path.parent)):
            self.at_safe_point(lambda: self._write(path))

    def state_dict(self) -> Any:
        """Ignite's state of the loop, the count of updates, and what plugins remember."""
        state: Any = super().state_dict()
        state["weightsmith"] = self.own_state()
        return state

    def own_state(self) -> dict[str, Any]:
        """The counts of updates, and what plugins remember, as plain values."""
        self._take_over_state()
        return {
            "update": self.state.update,
            "updates": dict(self.state.updates),
            "window": self.state.window,
            "losses": dict(self.state.losses),
            "published": dict(self.published),
            "restored": self._restored,
            "skipped": self._finiteness.skipped,
            "initialized": self._initialized,
            "plugins": self._attachments.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; the same plugins must be attached. What another engine of Ignite's gave
        says where the loop is: it goes on from there, updates are counted on, and weights that have been trained are
        not initialised.

        Raises:
            ConfigurationError: the state belongs to other optimizers or plugins.
            ValueError: it is no engine's; Ignite's message says what is missing.
        """
        is_ours = "weightsmith" in state_dict
        if is_ours:
            self._refuse_misfitting_state(state_dict["weightsmith"])
        super().load_state_dict(state_dict)
        for window in self._windows:
            window.abandon()
        if is_ours:
            self.load_own_state(state_dict["weightsmith"], seed=self.seed)
        else:
            self._initialized = self._initialized or self.state.iteration > 0
            logger.warning("the state is of no Trainer: it says where the loop goes on, but nothing of its plugins")

    def _refuse_misfitting_state(self, ours: Mapping[str, Any]) -> None:
        if ours["updates"].keys() != self.optimizers.keys():
            raise ConfigurationError(f"this is not the state of a Trainer with the optimizers {list(self.optimizers)}")
        self._attachments.refuse_misfitting_state(ours["plugins"])

    def load_own_state(self, ours: Mapping[str, Any], *, seed: int) -> None:
        """Restore what :meth:`own_state` gave, in a run with this seed."""
        if seed != self.seed:
            self.seed = seed
            self._attachments.reseed()
        self._attachments.load_state_dict(ours["plugins"])
        self.state.update = ours["update"]
        self.state.updates = dict(ours["updates"])
        self.state.window = ours["window"]
        self.state.losses = {name: loss.to(self.device, copy=True) for name, loss in ours["losses"].items()}
        self.published.clear()
        self.published.update(ours["published"])
        self._restored, self._finiteness.skipped = ours["restored"], ours["skipped"]
        self._initialized = ours["initialized"]

    def _write(self, path: Path) -> None:
        """Save the run, with all its processes."""
        is_good = first_nonfinite_of_all(self.models, self.optimizers) is None
        contents = in_common(lambda: collect(self, in_order=True))
        if is_distributed():
            write_together(path, contents, is_good=is_good)
        else:
            write(path, contents, is_good=is_good)

    def _stop(self, number: signal.Signals) -> None:
        """Called inside a signal's handler, where nothing can be saved: perhaps something is being written now."""
        logger.warning("%s: the run is saved after this iteration, and ends; once more ends it now", number.name)
        if self._signals_of_all is None:
            self._agree_to_stop(number)
        else:
            self._signal = int(number)

    def _agree_to_stop(self, number: int) -> None:
        if self._stop_asked is None and number:
            self._stop_asked = signal.Signals(number)
            self._errands.append(self._end)

    def _exchange_signals(self) -> None:
        """After every iteration of several processes: stop, if any of them was asked to before the one before. Signals
        reach them in different iterations, and they must end in the same."""
        if self._signals_of_all is not None:
            self._agree_to_stop(self._signals_of_all.exchange(self._signal))

    def _settle_signals(self) -> None:
        """At the end of the run: whether any process was asked to stop."""
        if self._signals_of_all is not None and self._stop_asked is None:
            self._signals_of_all.exchange(self._signal)
            number = self._signals_of_all.wait()
            self._stop_asked = signal.Signals(number) if number else None

    def _end(self) -> None:
        """Save, and end the process as it was asked to."""
        number, path = self._stop_asked, self.checkpoint_path()
        assert number is not None
        assert path is not None
        self._write(path)
        raise RunStopped(number, path)

    def _handle_exception(self, error: BaseException) -> None:
        if isinstance(error, (RunStopped, GoBack)):
            raise error
        if isinstance(error, Exception):
            self._save_crash(error)
        super()._handle_exception(error)

    def _save_crash(self, error: Exception) -> None:
        """Save what there is when the run breaks off, once it has trained. Of several processes the first saves its
        copy, for others may be waiting, or gone."""
        if self.run_dir is None or "was_saved" in vars(error) or not self._may_have_trained():
            return
        vars(error)["was_saved"] = True
        if any(is_sharded(weight) for model in self.models.values() for weight in model.parameters()):
            error.add_note("each process holds a part of the weights alone: nothing is saved but the last checkpoint")
            return
        if not is_first():
            return
        path = self.run_dir / "checkpoints" / "crash"
        try:
            self._write_alone(path)
            error.add_note(f"the run as it was then is saved in {path}")
        except Exception as other:  # whatever it is, the crash itself is what the caller must see
            logger.error("what there was when the run crashed is lost: %s", other)

    def _write_alone(self, path: Path) -> None:
        """Save what there is in this process, and ask no other."""
        write(path, collect(self, in_order=False, alone=is_distributed()), is_good=False)


def _is_no_stop(_: logging.LogRecord) -> bool:
    """Whether Ignite has an exception to report that is one."""
    return not isinstance(sys.exc_info()[1], (RunStopped, GoBack))


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other processes from running in a folder. A process that is killed keeps nothing.

    Raises:
        ConfigurationError: another one runs there, or the folder cannot be written.
    """
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise ConfigurationError(
            f"another process runs in {folder}: wait for it, or give this one another run_dir (weightsmith.runs."
            "new_run_dir makes one)"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise ConfigurationError(f"cannot write to the run folder {folder}: {error}") from error
    try:
        yield
    finally:
        lock.release()
