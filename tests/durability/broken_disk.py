"""Lets every write, sync and rename of a save fail in turn, or the process die there, and fills the disk: a good
checkpoint remains each time."""

import argparse
import builtins
import contextlib
import errno
import io
import os
import resource
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

warnings.filterwarnings("ignore", category=DeprecationWarning)

import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import weightsmith_plugins as w  # noqa: E402
from weightsmith import CheckpointError  # noqa: E402
from weightsmith.checkpoint import find, read  # noqa: E402

import runs  # noqa: E402

CALLS = [
    (os, "mkdir"),
    (os, "rename"),
    (os, "fsync"),
    (os, "open"),
    (io, "open"),
    (builtins, "open"),
    (torch, "save"),
    (safetensors.torch, "save_file"),
]


class Disk:
    """Counts what a save asks of the disk, and breaks at one of the calls: half of what is written is there."""

    def __init__(self, breaks_at, break_):
        self.calls = 0
        self._breaks_at = breaks_at
        self._break = break_

    @contextlib.contextmanager
    def watched(self):
        with contextlib.ExitStack() as stack:
            for owner, name in CALLS:
                stack.enter_context(mock.patch.object(owner, name, self._counted(getattr(owner, name))))
            yield

    def _counted(self, original):
        def call(*arguments, **options):
            self.calls += 1
            if self.calls == self._breaks_at:
                self._half(original, arguments)
                self._break()
            return original(*arguments, **options)

        return call

    def _half(self, original, arguments):
        if original is torch.save:
            arguments[1].write(b"PK half of a file")
            arguments[1].flush()
        elif original is safetensors.torch.save_file:
            Path(arguments[1]).write_bytes(b"half of a file")


def fail():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def trainer_after(iterations):
    trainer = runs.make([w.EMA(0.9)])
    trainer.run(runs.loader(), max_iters=iterations)
    return trainer


def iteration_of(path):
    return read(find(path)).manifest["iteration"]


def failures(dies):
    """For each call of a save over another: whether what is found then is one of the two, whole. The call fails, or the
    process dies there."""
    earlier, later = trainer_after(3), trainer_after(7)
    place = 0
    while True:
        place += 1
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "saved"
            earlier.save(path)
            if not (die_while_saving if dies else fail_while_saving)(later, path, place):
                return
            found = iteration_of(path)
            later.save(path)
            yield found in (3, 7) and iteration_of(path) == 7 and len(list(Path(folder).iterdir())) == 1


def fail_while_saving(trainer, path, place):
    disk = Disk(place, fail)
    with disk.watched(), contextlib.suppress(CheckpointError):
        trainer.save(path)
    return disk.calls >= place


def die_while_saving(trainer, path, place):
    child = os.fork()
    if child == 0:
        with Disk(place, lambda: os._exit(9)).watched():
            trainer.save(path)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def fill(folder, megabytes):
    """In a process that may write no file longer than this: train, with checkpoints and measurements."""
    trainer = runs.make([w.WeightHistograms(), w.TensorBoard(), w.JSONLines(), w.Checkpoints()], run_dir=folder)
    limit = int(megabytes * 2**20)
    trainer.add_event_handler(
        runs.Events.EPOCH_COMPLETED(once=1),
        lambda: trainer.at_safe_point(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
    )
    trainer.run(runs.loader(), max_epochs=6)
    print("finite" if all(v.isfinite().all() for v in trainer.weights().values()) else "lost", trainer.state.epoch)


def full_disk():
    """What a run on a disk that is full from its second epoch on prints, and which checkpoint is left."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", __file__, "--fill", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done, iteration_of(Path(folder))


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--fill", metavar="FOLDER")
    options = arguments.parse_args()
    if options.fill:
        fill(options.fill, 0.002)
        return
    kept = True
    for dies, what in ((False, "failed"), (True, "killed the process")):
        found = list(failures(dies))
        kept = kept and all(found)
        print(f"{sum(found)} of {len(found)} calls that {what} left a checkpoint that is whole")
    done, iteration = full_disk()
    print(f"a full disk: {done.stdout.strip()!r}, a checkpoint of iteration {iteration} is left, and the log says")
    print(done.stderr.strip())
    raise SystemExit(not (kept and done.returncode == 0))


if __name__ == "__main__":
    main()
