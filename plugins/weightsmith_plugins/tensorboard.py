"""TensorBoard as a sink: it writes what probes measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Events
from torch.utils.tensorboard import SummaryWriter
from weightsmith import ConfigurationError, Histogram, Plugin, WeightEvents

if TYPE_CHECKING:
    from weightsmith import Trainer

__all__ = ["TensorBoard"]


class TensorBoard(Plugin):
    """Writes every measurement to TensorBoard's event files: numbers as scalars, distributions as histograms.

    View them with ``tensorboard --logdir`` on the folder, or on one above it to compare runs.

    Args:
        log_dir: the folder, made if missing. Default: the trainer's ``run_dir``.

    Raises:
        ConfigurationError: neither ``log_dir`` nor the trainer's ``run_dir`` is given, or the folder cannot be written.
    """

    log_dir: str | None = None

    def subscriptions(self, trainer: Trainer) -> Iterator[tuple[Any, Any]]:
        folder = self.log_dir if self.log_dir is not None else trainer.run_dir
        if folder is None:
            raise ConfigurationError(f"{self!r}: give log_dir=…, or the Trainer run_dir=…")
        try:
            writer = SummaryWriter(str(folder))
        except OSError as error:
            raise ConfigurationError(f"{self!r}: cannot write to {folder}: {error}") from error

        def write() -> None:
            measurements = trainer.state.measurements
            if measurements is None:
                return
            for tag, value in measurements.values.items():
                if isinstance(value, Histogram):
                    _write_histogram(writer, tag, value, measurements.step)
                else:
                    writer.add_scalar(tag, float(value), measurements.step)
            writer.flush()

        yield WeightEvents.MEASURED, write
        yield Events.COMPLETED, writer.close


def _write_histogram(writer: SummaryWriter, tag: str, histogram: Histogram, step: int) -> None:
    filled = torch.nonzero(histogram.counts).flatten()
    # As SummaryWriter.add_histogram: only the filled stretch, with one empty bucket before it to mark where it begins.
    first, last = max(int(filled[0]) - 1, 0), int(filled[-1])
    writer.add_histogram_raw(
        tag,
        min=float(histogram.minimum),
        max=float(histogram.maximum),
        num=histogram.count,
        sum=float(histogram.total),
        sum_squares=float(histogram.total_squares),
        bucket_limits=histogram.limits[first : last + 1].tolist(),
        bucket_counts=histogram.counts[first : last + 1].tolist(),
        global_step=step,
    )
