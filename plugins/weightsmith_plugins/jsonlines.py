"""A text file as a sink, for scripts and tests, one measurement a line; and read back."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from weightsmith import ConfigurationError, Histogram, Picture, Plugin, Settings, WeightEvents
from weightsmith.plugin import KEPT

from weightsmith_plugins.places import Place
from weightsmith_plugins.probes.distributions import histogram
from weightsmith_plugins.series import Array, Distribution, Gathering, Series

if TYPE_CHECKING:
    from weightsmith import Trainer

__all__ = ["JSONLines", "read_lines"]

logger = logging.getLogger(__name__)


class JSONLines(Plugin):
    """Appends every measurement to a file, as one JSON object a line: ``{"step": 1, "tag": "loss/optimizer", "value":
    0.5}``; of a distribution, in place of ``"value"``, its ``"count"``, ``"minimum"``, ``"maximum"``, ``"total"``,
    ``"total_squares"``, ``"zeros"``, ``"subnormal"``, ``"nonfinite"`` and, of the buckets that hold something,
    ``"limits"`` (right edges) and ``"counts"``. A number that is not finite is ``null``; pictures are left out.
    Of settings, ``"settings"`` and ``"metrics"``. The file is complete after every batch of measurements. Of several
    processes the first writes. If the file cannot be written any more, as when the disk is full, the log says so once,
    and training goes on.

    Args:
        path: the file; its folder is made if missing. A run that begins anew where there is ``file.jsonl`` of another
            is written to ``file_2.jsonl``, and so on. Default: ``measurements.jsonl`` in the trainer's ``run_dir``,
            then in ``run_2`` in it.

    Raises:
        ConfigurationError: neither ``path`` nor the trainer's ``run_dir`` is given, or the file cannot be written.
    """

    order: ClassVar[int] = 90

    path: str | None = None

    def subscriptions(self, trainer: Trainer) -> Iterator[tuple[Any, Any]]:
        if self.path is None and trainer.run_dir is None:
            raise ConfigurationError(f"{self!r}: give path=…, or the Trainer run_dir=…")
        if idist.get_rank() != 0:  # has the same handlers, as those who look at what plugins do settle it together
            for event in (Events.STARTED, WeightEvents.MEASURED):
                yield event, lambda: None
            return
        path = Path(self.path) if self.path is not None else Path(str(trainer.run_dir)) / "measurements.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
        except OSError as error:
            raise ConfigurationError(f"{self!r}: cannot write to {path}: {error.strerror}") from error
        lines = _Lines(self, trainer, functools.partial(self._nth, path))
        yield KEPT, lines
        yield Events.STARTED, lines.begin_run
        yield WeightEvents.MEASURED, lines.write

    def _nth(self, path: Path, number: int) -> Path:
        """Where the run of this number writes."""
        if number == 1:
            return path
        return (
            path.parent / f"run_{number}" / path.name if self.path is None else path.with_stem(f"{path.stem}_{number}")
        )


class _Lines:
    """Writes a trainer's measurements, each run's into a file of its own."""

    def __init__(self, plugin: JSONLines, trainer: Trainer, nth: Callable[[int], Path]) -> None:
        self._plugin = plugin
        self._trainer = trainer
        self._place = Place(trainer, nth, lambda path: [path] if path.exists() else [])
        self._works = True

    def begin_run(self) -> None:
        self._place.begin_run()

    def write(self) -> None:
        measurements = self._trainer.state.measurements
        if measurements is None or not self._works:
            return
        values = {tag: v for tag, v in measurements.values.items() if not isinstance(v, Picture)}
        lines = [_line(tag, value, measurements.step) for tag, value in values.items()]
        path = self._place.path()
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            self._works = False
            logger.error("%r: nothing more is written to %s: %s", self._plugin, path, error.strerror)

    def state_dict(self) -> dict[str, Any]:
        return self._place.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._place.load_state_dict(state)


def _line(tag: str, value: Any, step: int) -> str:
    if isinstance(value, Settings):
        settings = {key: _number(v) if isinstance(v, float) else v for key, v in value.values.items()}
        found: dict[str, Any] = {"settings": settings, "metrics": list(value.metrics)}
    else:
        found = _distribution(value) if isinstance(value, Histogram) else {"value": _number(value)}
    return json.dumps({"step": step, "tag": tag, **found}, allow_nan=False) + "\n"


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _distribution(histogram: Histogram) -> dict[str, Any]:
    filled = histogram.counts.nonzero().flatten()
    return {
        "count": histogram.count,
        "minimum": _number(histogram.minimum),
        "maximum": _number(histogram.maximum),
        "total": _number(histogram.total),
        "total_squares": _number(histogram.total_squares),
        "zeros": histogram.zeros,
        "subnormal": histogram.subnormal,
        "nonfinite": histogram.nonfinite,
        "limits": histogram.limits[filled].tolist(),
        "counts": histogram.counts[filled].tolist(),
    }


# -------------------------------------------------------------------- reading


def read_lines(path: Path) -> Series:
    """The numbers and distributions in a file that :class:`JSONLines` wrote: what a resumed run measured again replaces
    what it went back behind. A line that is cut or damaged is passed over. Settings are left out.
    """
    gathering = Gathering()
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            # whatever damage makes of it
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
                _gather(json.loads(line), gathering)
    return gathering.series()


def _gather(found: Mapping[str, Any], gathering: Gathering) -> None:
    tag, step = str(found["tag"]), int(found["step"])
    if "value" in found:
        gathering.add_number(tag, step, _read(found["value"]))
    elif "counts" in found:
        limits, minimum = np.asarray(found["limits"], np.float64), _read(found["minimum"])
        if limits.shape != (len(found["counts"]),):
            raise ValueError("a bucket lacks its limit or its count")
        distribution = Distribution(
            step=step,
            starts=_starts(limits, minimum),
            limits=limits,
            counts=np.asarray(found["counts"], np.float64),
            minimum=minimum,
            maximum=_read(found["maximum"]),
            count=int(found["count"]),
            zeros=int(found["zeros"]),
        )
        gathering.add_distribution(tag, distribution)


def _read(number: float | None) -> float:
    return math.nan if number is None else float(number)


def _starts(limits: Array, minimum: float) -> Array:
    """Left edges: the file tells the right ones of filled buckets only. In other buckets than TensorBoard's, a bucket
    is taken to begin where the filled one before it ends."""
    known = _known_limits()
    places = np.searchsorted(known, limits).clip(max=len(known) - 1)
    if np.array_equal(known[places], limits):
        return np.where(places > 0, known[places - 1], minimum)
    return np.concatenate([[minimum], limits])[: len(limits)]


@functools.cache
def _known_limits() -> Array:
    limits: Array = histogram(torch.zeros(0)).limits.numpy()
    return limits
