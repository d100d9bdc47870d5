"""What a run says on the terminal: a progress bar, a line per epoch, a summary."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from ignite.handlers import ProgressBar
from torch import Tensor
from torch.profiler import profile, schedule, tensorboard_trace_handler
from tqdm.contrib.logging import logging_redirect_tqdm

from weightsmith.cli.crashing import explaining
from weightsmith.cli.guarding import beginning
from weightsmith.distributed import from_first, is_first, mean_over_processes
from weightsmith.errors import RunStopped
from weightsmith.events import WeightEvents
from weightsmith.trainer import Trainer

__all__ = ["Console", "command", "profiled", "trained"]


class Console:
    """Listens to a trainer, and prints. The bar is shown on a terminal alone. Of several processes the first prints
    what all of them find out together."""

    def __init__(self, trainer: Trainer, epochs: int) -> None:
        self._trainer = trainer
        self._epochs = epochs
        self._begun = time.perf_counter()
        self._updates_before = sum(trainer.state.updates.values())
        self._epochs_before = trainer.state.epoch
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._best: dict[str, list[tuple[float, int]]] = {}
        self._progress = ProgressBar(persist=False, disable=None if is_first() else True, desc="epoch")
        self._progress.attach(trainer)
        trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, self._note_loss)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def _note_loss(self) -> None:
        name = str(self._trainer.state.optimizer)
        loss = self._trainer.state.losses[name].detach()
        self._sums[name] = self._sums[name] + loss if name in self._sums else loss.clone()
        self._counts[name] = self._counts.get(name, 0) + 1

    def _report(self) -> None:
        state = self._trainer.state
        taken = {*state.metrics, *self._trainer.awaited_metrics}
        numbers = {f"training {name}" if name in taken else name: loss for name, loss in self._losses().items()}
        for name, value in state.metrics.items():
            if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0):
                numbers[name] = float(value)
                self._best.setdefault(name, []).append((float(value), state.epoch))
        parts = [f"epoch {state.epoch:>{len(str(self._epochs))}}/{self._epochs}"]
        parts += [f"{name} {value:.4g}" for name, value in numbers.items()]
        violated = self._violated()
        if violated is not None:
            parts.append(f"violations {violated}")
        if is_first():
            self._progress.log_message("  ".join(parts))

    def _losses(self) -> dict[str, float]:
        """The mean loss of each optimizer's updates since it was asked last, over all processes."""
        is_one = len(self._trainer.optimizers) == 1
        means = {name: float(mean_over_processes(total / self._counts[name])) for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return {"loss" if is_one else f"loss {name}": loss for name, loss in means.items()}

    def _violated(self) -> int | None:
        """How many weights are outside their sets; ``None`` where there is no constraint."""
        violations = self._trainer.violations()
        return sum(value > 0 for value in violations.values()) if violations else None

    def close(self) -> None:
        """Take the bar away, so that what is printed next stands on a line of its own."""
        if self._progress.pbar is not None:
            self._progress.pbar.close()

    def summary(self, run_dir: Path) -> None:
        """Say what came of it, where it is, and how to look at it."""
        if not is_first():
            return
        state, seconds = self._trainer.state, time.perf_counter() - self._begun
        updates = sum(state.updates.values()) - self._updates_before
        since = f"since epoch {self._epochs_before + 1}, " if self._epochs_before else ""
        done = f"{updates} updates in {seconds:.1f} s, {since}up to epoch {state.epoch}"
        print(f"\n{done if updates else f'0 updates: there was nothing left to train after epoch {state.epoch}'}")
        for name, values in self._best.items():
            print(f"  {name} {values[-1][0]:.4g}  ({since}{_extremes(values)})")
        print(f"the run is in {run_dir}")
        for command, patterns in _READS.items():
            if any(any(run_dir.rglob(pattern)) for pattern in patterns):
                print(f"  {_command()} {command} {run_dir}")


_EVENTS = "events.out.tfevents.*"
_READS = {"view": [_EVENTS], "report": [_EVENTS, "measurements.jsonl"]}
"""The files that commands look at a run by; without one they refuse it."""


def _extremes(values: Sequence[tuple[float, int]]) -> str:
    """The least and the most of numbers by epoch, of those that are numbers."""
    finite = [pair for pair in values if math.isfinite(pair[0])]
    if not finite:
        return "never a finite number"
    least, most = min(finite), max(finite, key=lambda pair: pair[0])
    return f"least {least[0]:.4g} in epoch {least[1]}, most {most[0]:.4g} in {most[1]}"


def _command() -> str:
    """How this process's environment calls ``weightsmith``."""
    return "weightsmith" if shutil.which("weightsmith") else str(Path(sys.executable).with_name("weightsmith"))


def command() -> list[str]:
    """How Python is called to go on with this process's work, on as many processes."""
    here, all_of_them = (os.environ.get(name, "1") for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if all_of_them == "1":
        return [sys.executable]
    if here != all_of_them:  # several machines, each with options of its own
        return ["torchrun", "..."]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={here}"]


def trained(trainer: Trainer, batches: Iterable[Any], epochs: int, *, hint: str) -> None:
    """Train up to an epoch, tell of it on the terminal, and see to it that the end is saved.

    Args:
        trainer: with a folder for its run.
        batches: to train on.
        epochs: the last.
        hint: the command that goes on with the run when it is stopped.
    """
    console = Console(trainer, epochs)
    try:
        with logging_redirect_tqdm(), explaining(trainer), beginning(lambda: trainer.last_event_name is not None):
            trainer.run(batches, max_epochs=epochs)
    except RunStopped as stopped:
        stopped.add_note(f"go on with: {hint}")
        raise
    finally:
        console.close()
    path = trainer.checkpoint_path()
    if path is not None and not from_first(path.exists()):
        trainer.save(path)
    console.summary(Path(trainer.run_dir or "."))


@contextlib.contextmanager
def profiled(trainer: Trainer, folder: Path, planned: int | None) -> Iterator[None]:
    """Profile ten iterations after a few to warm up: a trace in the folder, for TensorBoard's plugin
    ``torch-tb-profiler`` or Perfetto; and a table of what took longest. Of several processes the first is profiled.

    Args:
        trainer: whose run it is.
        folder: where the trace goes.
        planned: iterations of the run; of a short one fewer are profiled. ``None`` if that is not known.
    """
    if not is_first():
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    wait, warmup, active = _phases(planned)
    plan = schedule(wait=wait, warmup=warmup, active=active, repeat=1)

    def save(tracer: profile) -> None:
        if tracer.step_num > wait + warmup:  # else there was nothing to profile
            tensorboard_trace_handler(str(folder))(tracer)

    with profile(activities=activities, schedule=plan, on_trace_ready=save) as tracer:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: tracer.step())
        yield
    traces = sorted(folder.glob("*.pt.trace.json"))
    if not traces:
        print(f"the run was too short for a profile, which begins after iteration {wait + warmup}")
        return
    print(tracer.key_averages().table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=40))
    print(f"the trace is in {traces[-1]}")


def _phases(planned: int | None) -> tuple[int, int, int]:
    """How many iterations to let pass, to warm up in, and to profile."""
    if planned is None:
        return 2, 3, 10
    warmup = max(1, min(3, planned - 1))
    wait = max(0, min(2, planned - 1 - warmup))
    return wait, warmup, max(1, min(10, planned - warmup - wait))
