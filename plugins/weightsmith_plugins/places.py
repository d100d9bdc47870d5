"""Where a sink writes: two runs never share a place, and one that is resumed goes on in its own."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightsmith import Trainer

__all__ = ["Place"]

logger = logging.getLogger(__name__)


class Place:
    """A file or folder of one run. A run that begins anew takes the first place that no run has written to; one that
    goes on, the last that one has; one that was resumed its own, in which what came after the checkpoint is cut off.

    Args:
        trainer: whose runs.
        nth: the place of the n-th run that writes here, from 1 on.
        files: what is written at a place.
    """

    def __init__(self, trainer: Trainer, nth: Callable[[int], Path], files: Callable[[Path], Iterable[Path]]) -> None:
        self._trainer = trainer
        self._nth = nth
        self._files = files
        self._number: int | None = None
        self._runs = 0
        self._goes_on = False
        self._saved: Mapping[str, Any] = {}

    def begin_run(self) -> bool:
        """Call when a run starts: one that begins anew leaves the place of the run before. Says whether the place is
        another."""
        saved, self._saved = self._saved, {}
        self._goes_on = self._trainer.state.iteration > 0
        leaves = self._runs > 0 and not self._goes_on
        if leaves:
            self._number = None
        self._runs += 1
        if saved:
            self._number = self._return_to(saved)
        return leaves or bool(saved and self._number is None)

    def _is_used(self, place: Path) -> bool:
        return any(file.stat().st_size for file in self._files(place))

    def path(self) -> Path:
        """The place of the run in progress."""
        if self._number is None:
            unused = next(n for n in itertools.count(1) if not self._is_used(self._nth(n)))
            self._number = max(1, unused - 1) if self._goes_on else unused
            if unused > 1 and not self._goes_on:
                logger.warning("%s holds another run: this one is written to %s", self._nth(1), self._nth(self._number))
        return self._nth(self._number)

    def state_dict(self) -> dict[str, Any]:
        """How far the place is written; empty if nothing is."""
        if self._number is None:
            return {}
        return {"number": self._number, "files": {file.name: _extent(file) for file in self._files(self.path())}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there when the next run starts."""
        self._saved = state

    def _return_to(self, saved: Mapping[str, Any]) -> int | None:
        """The number of the place, cut off where the checkpoint was saved; ``None`` if what is there is another's."""
        place, extents = self._nth(saved["number"]), saved["files"]
        there = {file.name: file for file in self._files(place)}
        if not extents or any(not _begins_with(there.get(name), extent) for name, extent in extents.items()):
            self._goes_on = False
            return None
        for name, file in there.items():
            if name in extents:
                os.truncate(file, extents[name]["bytes"])
            else:
                file.unlink()  # begun after the checkpoint
        return int(saved["number"])


def _extent(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    return {"bytes": size, "end": _digest(file, size)}


def _begins_with(file: Path | None, extent: Mapping[str, Any]) -> bool:
    """Whether a file holds what it held when the extent was taken."""
    if file is None or file.stat().st_size < extent["bytes"] or not extent["bytes"]:
        return False
    return bool(_digest(file, extent["bytes"]) == extent["end"])


def _digest(file: Path, size: int) -> str:
    """Of the last bytes before this size."""
    with file.open("rb") as opened:
        opened.seek(max(0, size - 4096))
        return hashlib.sha256(opened.read(min(size, 4096))).hexdigest()
