"""TensorBoard as a sink: it writes what probes measured."""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
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
from weightsmith.plugin import DETACHED, KEPT

from weightsmith_plugins.dashboard import charts
from weightsmith_plugins.places import Place

if TYPE_CHECKING:
    from weightsmith import Trainer

__all__ = ["EventFile", "TensorBoard"]

logger = logging.getLogger(__name__)


class TensorBoard(Plugin):
    """Writes every measurement to TensorBoard's event files: numbers, distributions, pictures, settings; and the
    telling charts of what is measured, for the Custom Scalars page.

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
        if idist.get_rank() != 0:  # has the same handlers, as those who look at what plugins do settle it together
            for event in (Events.STARTED, WeightEvents.MEASURED, Events.EPOCH_COMPLETED, Events.COMPLETED):
                yield event, lambda: None
            return
        writer = _Writer(trainer, self._writable(Path(folder)))
        yield KEPT, writer
        yield Events.STARTED, writer.begin_run
        yield WeightEvents.MEASURED, writer.write
        yield Events.EPOCH_COMPLETED, writer.end_epoch
        yield Events.COMPLETED, writer.end_run
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
        self._place = Place(trainer, lambda n: folder if n == 1 else folder / f"run_{n}", _event_files)
        self._numbers: dict[str, None] = {}
        self._laid_out: dict[str, dict[str, str]] = {}
        self.file = EventFile(self._place.path)

    def begin_run(self) -> None:
        if self._place.begin_run():
            self.file.close()
            self._numbers, self._laid_out = {}, {}

    def write(self) -> None:
        measurements = self._trainer.state.measurements
        if measurements is not None:
            for event in _events(measurements.values, measurements.step):
                self.file.write(event)
            found = (tag for tag, value in measurements.values.items() if isinstance(value, (Tensor, float, int)))
            self._numbers.update(dict.fromkeys(found))

    def end_epoch(self) -> None:
        self._lay_out()
        self.file.flush()

    def end_run(self) -> None:
        self._lay_out()
        self.file.close()

    def state_dict(self) -> dict[str, Any]:
        self.file.flush()
        return {"place": self._place.state_dict(), "numbers": list(self._numbers), "laid_out": self._laid_out}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.file.close()  # what is there will be cut off
        self._place.load_state_dict(state.get("place", {}))
        self._numbers, self._laid_out = dict.fromkeys(state.get("numbers", ())), dict(state.get("laid_out", {}))

    def _lay_out(self) -> None:
        """Say which charts there are, where there are new ones: TensorBoard takes what was said last."""
        found = charts(self._numbers)
        if found != self._laid_out:
            self._laid_out = found
            self.file.write(Event(step=self._trainer.state.epoch, summary=_layout(found)))


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
        self._failures: collections.deque[BaseException] = collections.deque()

    def write(self, event: Event) -> None:
        """Hand an event to the thread, which it belongs to from then on, as of now; waits while too many wait there.

        Raises:
            Exception: what went wrong in the thread since the last call, other than an :class:`OSError`.
        """
        self._raise_failure()
        if self._thread is None:
            records = _Records(self._folder())
            self._thread = threading.Thread(
                target=self._write_all, args=(records,), name="weightsmith-tensorboard", daemon=True
            )
            self._thread.start()
            atexit.register(self.close)
        event.wall_time = time.time()
        self._waiting.put(event)

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
        if self._failures:
            raise self._failures.popleft()

    def _write_all(self, records: _Records) -> None:
        """What the thread does until it is told to close: whatever happens, it goes on taking what waits."""
        is_open = True
        while is_open:
            item = self._waiting.get()
            try:
                if item is _CLOSE:
                    is_open = False
                    records.close()
                else:
                    records.append(item, flush=self._waiting.empty())
            except BaseException as error:
                self._failures.append(error)
            finally:
                self._waiting.task_done()


_CLOSE = object()
_MOST_WAITING = 32
"""Events of about a megabyte."""


class _Records:
    """A file of events. When it cannot be written any more, the log says so, once, and nothing is written."""

    def __init__(self, folder: Path) -> None:
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers):06d}"
        self._path = folder / f"events.out.tfevents.{name}"
        self._file: IO[bytes] | None = None
        self._works = True

    def append(self, event: Event, *, flush: bool) -> None:
        if not self._works:
            return
        with self._giving_up():
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("wb")
                _append(self._file, Event(wall_time=time.time(), file_version="brain.Event:2"))
            _append(self._file, event)
            if flush:
                self._file.flush()
                self._path.stat()  # whether it was taken away

    def close(self) -> None:
        if self._file is not None:
            if self._works:
                with self._giving_up():
                    self._file.flush()
            with contextlib.suppress(OSError):
                self._file.close()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._works = False
            logger.error("TensorBoard: nothing more is written to %s: %s", self._path.parent, error.strerror)
        except BaseException:
            self._works = False
            raise


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


def _events(measured: Mapping[str, Measurement], step: int) -> Iterator[Event]:
    """As few as it goes: what an event costs beside its values is most of what a small distribution does. Values are
    written into the event's own summary, as one that is made from a summary copies it."""
    event, size = Event(step=step), 0
    for tag, value in measured.items():
        if isinstance(value, Settings):
            make: Any = hparams
            for summary in make(dict(value.values), dict.fromkeys(value.metrics, 0.0)):
                yield Event(step=step, summary=summary)
            continue
        entry = event.summary.value.add(tag=tag)
        _fill_in(entry, value)
        size += entry.ByteSize()
        if size > _TOGETHER:
            yield event
            event, size = Event(step=step), 0
    if size:
        yield event


_TOGETHER = 2**20
"""Bytes of values, up to which they share an event."""


def _event_files(folder: Path) -> list[Path]:
    return list(folder.glob("events.out.tfevents.*"))


def _layout(found: Mapping[str, Mapping[str, str]]) -> Summary:
    """Category to title to a regular expression of tags, as the Custom Scalars page reads it."""
    make: Any = custom_scalars
    summary: Summary = make({c: {t: ["Multiline", [tags]] for t, tags in some.items()} for c, some in found.items()})
    return summary


def _fill_in(entry: Any, value: Tensor | float | Histogram | Picture) -> None:
    if isinstance(value, Histogram):
        _fill_in_histogram(entry.histo, value)
    elif isinstance(value, Picture):
        entry.image.CopyFrom(_image_proto(value))
    else:
        entry.simple_value = float(value)


def _fill_in_histogram(proto: HistogramProto, histogram: Histogram) -> None:
    proto.min, proto.max = float(histogram.minimum), float(histogram.maximum)
    proto.num, proto.sum = histogram.count, float(histogram.total)
    proto.sum_squares = float(histogram.total_squares)
    limits, counts = histogram.limits.cpu().numpy(), histogram.counts.cpu().numpy()
    # As SummaryWriter.add_histogram: only the filled stretch, with one empty bucket before it to mark where it begins.
    filled = (counts > 0).nonzero()[0]
    stretch = slice(max(int(filled[0]) - 1, 0), int(filled[-1]) + 1) if len(filled) else slice(0, 1)
    proto.MergeFromString(_packed(_BUCKET_LIMIT, limits[stretch]) + _packed(_BUCKET, counts[stretch]))


def _image_proto(picture: Picture) -> Any:
    height, width, channels = picture.pixels.shape
    file = io.BytesIO()
    Image.fromarray(picture.pixels.numpy()).save(file, format="PNG")
    return Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=file.getvalue())


def _packed(field: int, numbers: Any) -> bytes:
    """A repeated double as protobuf packs it on the wire: many times as fast as handing numbers over one by one."""
    data: bytes = numbers.astype("<f8", copy=False).tobytes()
    return _head(field, len(data)) + data


@functools.lru_cache(4096)
def _head(field: int, rest: int) -> bytes:
    """What stands before packed numbers: the field's tag, and how many bytes follow, seven bits of it in each byte."""
    length = b""
    while rest >= 128:
        length, rest = length + bytes([rest & 127 | 128]), rest >> 7
    return bytes([field << 3 | 2]) + length + bytes([rest])


_BUCKET_LIMIT = HistogramProto.BUCKET_LIMIT_FIELD_NUMBER
_BUCKET = HistogramProto.BUCKET_FIELD_NUMBER
