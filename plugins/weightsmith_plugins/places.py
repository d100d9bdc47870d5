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
        self._runs = 0
        self._goes_on = False

    def begin_run(self) -> bool:
        """Call when a run starts: one that begins anew leaves the place of the run before. Says whether it does."""
        self._goes_on = self._trainer.state.iteration > 0
        leaves = self._runs > 0 and not self._goes_on
        if leaves:
            self._chosen = None
        self._runs += 1
        return leaves

    def path(self) -> Path:
        """The place of the run in progress."""
        if self._chosen is None:
            unused = next(n for n in itertools.count(1) if not self._is_used(self._nth(n)))
            self._chosen = self._nth(max(1, unused - 1) if self._goes_on else unused)
            if unused > 1 and not self._goes_on:
                logger.warning("%s holds another run: this one is written to %s", self._nth(1), self._chosen)
        return self._chosen
