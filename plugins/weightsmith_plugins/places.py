"""Where a sink writes: two runs never share a place."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weightsmith import Trainer

__all__ = ["Place"]

logger = logging.getLogger(__name__)


class Place:
    """A file or folder of one run. A run that begins anew takes the first place that no run has written to; one that
    goes on, or was resumed, the last that one has.

    Args:
        trainer: whose runs.
        nth: the place of the n-th run that writes here, from 1 on.
        is_used: whether a run has written there.
    """

    def __init__(self, trainer: Trainer, nth: Callable[[int], Path], is_used: Callable[[Path], bool]) -> None:
        self._trainer = trainer
        self._nth = nth
        self._is_used = is_used
        self._chosen: Path | None = None

    def leave(self) -> bool:
        """Let a run that begins anew have a place of its own. Call when a run starts; says whether it does."""
        is_new = self._trainer.state.epoch == 0
        if is_new:
            self._chosen = None
        return is_new

    def path(self) -> Path:
        """The place of the run in progress."""
        if self._chosen is None:
            unused = next(n for n in itertools.count(1) if not self._is_used(self._nth(n)))
            goes_on = self._trainer.state.epoch > 1
            self._chosen = self._nth(max(1, unused - 1) if goes_on else unused)
            if self._chosen != self._nth(1) and not goes_on:
                logger.warning("%s holds another run: this one is written to %s", self._nth(1), self._chosen)
        return self._chosen
