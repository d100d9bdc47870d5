"""A run's measurements, read back from TensorBoard's event files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.summary_pb2 import HistogramProto

from weightsmith_plugins.series import Distribution, Gathering, Series

__all__ = ["event_files", "read_events"]


def event_files(folder: Path) -> list[Path]:
    """The event files that lie in a folder, not below it."""
    return sorted(folder.glob("events.out.tfevents.*"))


def read_events(folder: Path) -> Series:
    """The numbers and distributions in a folder's event files, which are taken in the order in which they were begun:
    what a resumed run measured again replaces what it went back behind.

    A file that was cut in the middle of a record, or is damaged there, is read up to there. Numbers have the precision
    of float32, in which TensorBoard keeps them. Pictures, settings and layouts are left out.
    """
    begun: list[tuple[float, str, Iterator[Any]]] = []
    for path in event_files(folder):
        events = LegacyEventFileLoader(str(path)).Load()
        first = next(events, None)
        if first is not None:
            begun.append((first.wall_time, path.name, itertools.chain([first], events)))
    gathering = Gathering()
    for *_, events in sorted(begun, key=lambda file: file[:2]):
        for event in events:
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                if kind == "simple_value":
                    gathering.add_number(value.tag, event.step, value.simple_value)
                elif kind == "histo":
                    gathering.add_distribution(value.tag, _distribution(event.step, value.histo))
    return gathering.series()


def _distribution(step: int, histogram: HistogramProto) -> Distribution:
    limits, counts = np.asarray(histogram.bucket_limit, np.float64), np.asarray(histogram.bucket, np.float64)
    starts = np.concatenate([[histogram.min], limits])[: len(limits)]
    filled = counts > 0
    return Distribution(
        step=step,
        starts=starts[filled],
        limits=limits[filled],
        counts=counts[filled],
        minimum=histogram.min,
        maximum=histogram.max,
        count=int(histogram.num),
        zeros=None,
    )
