"""TensorBoard as a sink: it writes what probes measured."""

from __future__ import annotations

import atexit
import contextlib
import io
import itertools
import logging
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import google_crc32c
import ignite.distributed as idist
from ignite.engine import Events
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from torch import Tensor
from torch.utils.tensorboard.summary import custom_scalars, hparams
from weightsmith import ConfigurationError, Histogram, Measurement, Picture, Plugin, Settings, WeightEvents
from weightsmith.plugin import DETACHED

from weightsmith_plugins.dashboard import charts
from weightsmith_plugins.places import Place

if TYPE_CHECKING:
    from weightsmith import Trainer

__all__ = ["EventFile", "TensorBoard"]

logger = logging.getLogger(__name__)


class TensorBoard(Plugin):
    """Writes every measurement to TensorBoard's event files: numbers, distributions, pictures, settings; and, of what
    the first epoch measured, the telling charts, for the Custom Scalars page.

    View them with ``tensorboard --logdir`` on the folder, or on one above it to compare runs. A thread in the
    background writes as soon as it can; everything is on the disk at the end of every epoch and of the run, and when an
    exception or Ctrl-C ends the process. Of several processes the first writes. If the folder cannot be written any
    more, as when the disk is full, the log says so once, and training goes on.

    Args:
        log_dir: the folder, made if missing. Default: the trainer's ``run_dir``. A run that begins anew where there are
            events of another is written to ``run_2`` in it, the next to ``run_3``.

    Raises:
        ConfigurationError: neither ``log_dir`` nor the trainer's ``run_dir`` is given, or the folder cannot be written.
    """

    order: ClassVar[int] = 90  # its flush follows what the probes of the same event measured

    log_dir: str | None = None

    def subscriptions(self, trainer: Trainer) -> Iterator[tuple[Any, Any]]:
        folder = self.log_dir if self.log_dir is not None else trainer.run_dir
        if folder is None:
            raise ConfigurationError(f"{self!r}: give log_dir=…, or the Trainer run_dir=…")
        if idist.get_rank() != 0:
            return
        writer = _Writer(trainer, self._writable(Path(folder)))
        yield Events.STARTED, writer.start
        yield WeightEvents.MEASURED, writer.write
        yield Events.EPOCH_COMPLETED, writer.end_epoch
        yield Events.COMPLETED, writer.file.close
        yield DETACHED, writer.file.close

    def _writable(self, folder: Path) -> Path:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{self!r}: cannot write to {folder}: {error.strerror}") from error
        if not os.access(folder, os.W_OK):
            raise ConfigurationError(f"{self!r}: cannot write to {folder}: no permission")
        return folder


class _Writer:
    """Writes a trainer's measurements, each run's in a folder of its own."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self._trainer = trainer
        self._place = Place(trainer, lambda n: folder if n == 1 else folder / f"run_{n}", _has_events)
        self._tags: dict[str, None] | None = {}  # of numbers; None once the charts are laid out
        self.file = EventFile(self._place.path)

    def start(self) -> None:
        if self._place.leave():
            self._tags = {}

    def write(self) -> None:
        measurements = self._trainer.state.measurements
        if measurements is None:
            return
        for summary in _summaries(measurements.values):
            self.file.write(summary, measurements.step)
        if self._tags is not None:
            numbers = (tag for tag, value in measurements.values.items() if isinstance(value, (Tensor, float, int)))
            self._tags.update(dict.fromkeys(numbers))

    def end_epoch(self) -> None:
        if self._tags:
            self.file.write(_layout(charts(self._tags)), self._trainer.state.epoch)
            self._tags = None
        self.file.flush()


class EventFile:
    """One of TensorBoard's event files, written by a thread of its own. Begun with the first event; after
    :meth:`close`, the next event begins another.

    Args:
        folder: tells where it stands, whenever one is begun; made if missing.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._folder = folder
        self._waiting: queue.Queue[Any] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def write(self, summary: Summary, step: int) -> None:
        """Hand an event to the thread; waits while too many wait there.

        Raises:
            Exception: what went wrong in the thread since the last call, other than an :class:`OSError`.
        """
        self._raise_failure()
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._write_all, args=(self._folder(),), name="weightsmith-tensorboard", daemon=True
            )
            self._thread.start()
            atexit.register(self.close)
        self._waiting.put(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Wait until everything is on the disk. Raises as :meth:`write` does."""
        if self._thread is not None:
            self._waiting.join()
        self._raise_failure()

    def close(self) -> None:
        """As :meth:`flush`; and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(_CLOSE)
            thread.join()
            atexit.unregister(self.close)
        self._raise_failure()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _write_all(self, folder: Path) -> None:
        """What the thread does until it is told to close. After a failure it takes what comes and writes nothing."""
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers):06d}"
        file: IO[bytes] | None = None
        works = True
        for item in iter(self._waiting.get, _CLOSE):
            try:
                if works and file is None:
                    folder.mkdir(parents=True, exist_ok=True)
                    file = (folder / name).open("wb")
                    _append(file, Event(wall_time=time.time(), file_version="brain.Event:2"))
                if works and file is not None:
                    _append(file, item)
                    if self._waiting.empty():
                        file.flush()
            except OSError as error:
                works = False
                logger.error("TensorBoard: nothing more is written to %s: %s", folder, error.strerror)
            except Exception as error:
                works, self._failure = False, error
            finally:
                self._waiting.task_done()
        if file is not None:
            with contextlib.suppress(OSError):  # said already
                file.close()
        self._waiting.task_done()


_CLOSE = object()
_MOST_WAITING = 1000
_numbers = itertools.count()


def _append(file: IO[bytes], event: Event) -> None:
    """One record: its length, the check sum of that, the event, the check sum of that (TensorFlow's TFRecord)."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    file.write(b"".join([length, _check_sum(length), data, _check_sum(data)]))


def _check_sum(data: bytes) -> bytes:
    """The CRC-32C, rotated by 15 bits and moved on, as TFRecord has it."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _summaries(measured: Mapping[str, Measurement]) -> Iterator[Summary]:
    """As few as it goes: what an event costs beside its values is most of what a small distribution does."""
    some: list[Summary.Value] = []
    for tag, value in measured.items():
        if isinstance(value, Settings):
            make: Any = hparams
            yield from make(dict(value.values), dict.fromkeys(value.metrics, 0.0))
            continue
        some.append(_summary_value(tag, value))
        if len(some) == _TOGETHER:
            yield Summary(value=some)
            some = []
    if some:
        yield Summary(value=some)


_TOGETHER = 50
"""How many values share an event."""


def _has_events(folder: Path) -> bool:
    return any(folder.glob("events.out.tfevents.*"))


def _layout(found: Mapping[str, Mapping[str, str]]) -> Summary:
    """Category to title to a regular expression of tags, as the Custom Scalars page reads it."""
    make: Any = custom_scalars
    summary: Summary = make({c: {t: ["Multiline", [tags]] for t, tags in some.items()} for c, some in found.items()})
    return summary


def _summary_value(tag: str, value: Tensor | float | Histogram | Picture) -> Any:
    if isinstance(value, Histogram):
        return Summary.Value(tag=tag, histo=_histogram_proto(value))
    if isinstance(value, Picture):
        return Summary.Value(tag=tag, image=_image_proto(value))
    return Summary.Value(tag=tag, simple_value=float(value))


def _histogram_proto(histogram: Histogram) -> HistogramProto:
    counts = histogram.counts.cpu().numpy()
    # As SummaryWriter.add_histogram: only the filled stretch, with one empty bucket before it to mark where it begins.
    filled = counts > 0
    stretch = slice(max(int(filled.argmax()) - 1, 0), len(filled) - int(filled[::-1].argmax()))
    if not histogram.count:
        stretch = slice(0, 1)
    proto = HistogramProto(
        min=float(histogram.minimum),
        max=float(histogram.maximum),
        num=histogram.count,
        sum=float(histogram.total),
        sum_squares=float(histogram.total_squares),
    )
    limits = histogram.limits.cpu().numpy()
    proto.MergeFromString(_packed(_BUCKET_LIMIT, limits[stretch]) + _packed(_BUCKET, counts[stretch]))
    return proto


def _image_proto(picture: Picture) -> Any:
    height, width, channels = picture.pixels.shape
    file = io.BytesIO()
    Image.fromarray(picture.pixels.numpy()).save(file, format="PNG")
    return Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=file.getvalue())


def _packed(field: int, numbers: Any) -> bytes:
    """A repeated double as protobuf packs it on the wire: the field's tag, the length in bytes, the numbers. Many times
    as fast as handing them over one by one."""
    data: bytes = numbers.astype("<f8").tobytes()
    length, rest = b"", len(data)
    while rest >= 128:
        length, rest = length + bytes([rest & 127 | 128]), rest >> 7
    return bytes([field << 3 | 2]) + length + bytes([rest]) + data


_BUCKET_LIMIT = HistogramProto.BUCKET_LIMIT_FIELD_NUMBER
_BUCKET = HistogramProto.BUCKET_FIELD_NUMBER
