"""Trains for thousands of updates with every probe, both sinks and checkpoints on, and watches memory, threads and open
files: they must not grow."""

import argparse
import logging
import os
import statistics
import tempfile
import threading
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", category=DeprecationWarning)

import torch  # noqa: E402
import weightsmith_plugins as w  # noqa: E402
from ignite.metrics import Accuracy  # noqa: E402

import runs  # noqa: E402

PLUGINS = [
    w.L2(1e-4),
    w.ClipNorm(1.0),
    w.MaxNorm(2.0, where="conv.weight"),
    w.EMA(0.99),
    w.WeightHistograms(statistics=True),
    w.GradientHistograms(),
    w.UpdateHistograms(),
    w.UpdateRatio(),
    w.WeightStatistics(),
    w.GradientNorms(),
    w.PluginEffect(),
    w.PluginEffect("epoch"),
    w.DormantUnits(),
    w.Sparsity(),
    w.SpectralNorms(),
    w.FilterImages(),
    w.Losses(),
    w.LearningRates(),
    w.PenaltyCosts(),
    w.Violations(),
    w.Hyperparameters(),
    w.TensorBoard(),
    w.JSONLines(),
    w.Checkpoints("5 epochs"),
]


def usage():
    """Resident memory in MiB, threads, and open files."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return memory, threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


def soaked(updates, epoch=100):
    """The usage after every epoch."""
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = runs.make(PLUGINS, run_dir=folder, schedules=False)
        trainer.validate_on(runs.loader(), {"accuracy": Accuracy()})
        trainer.add_event_handler(runs.Events.EPOCH_COMPLETED, lambda: found.append(usage()))
        trainer.run(runs.loader(), max_epochs=max(1, updates // epoch), epoch_length=epoch)
    return found


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--updates", type=int, default=20_000)
    updates = arguments.parse_args().updates
    logging.disable(logging.WARNING)
    found = soaked(updates)
    quarter = len(found) // 4
    early = statistics.median(memory for memory, _, _ in found[quarter : 2 * quarter])
    late = statistics.median(memory for memory, _, _ in found[-quarter:])
    threads, files = ({row[place] for row in found[quarter:]} for place in (1, 2))
    change = f"{late / early - 1:+.1%}"
    print(f"{updates} updates: {early:.1f} MiB in the second quarter, {late:.1f} MiB in the last ({change})")
    print(f"threads {sorted(threads)}, open files {sorted(files)}")
    raise SystemExit(not (late < 1.05 * early and len(threads) == 1 and len(files) == 1))


if __name__ == "__main__":
    main()
