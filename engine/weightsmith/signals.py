"""SIGTERM and SIGINT ask a run to stop, and do not tear it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["Signals", "exiting_on_sigterm"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """While the context lasts, the first SIGTERM or SIGINT calls ``ask``, once; the next one ends the process at once,
    as it would without. Elsewhere than in the main thread, and where somebody else handles a signal already, nothing
    changes.

    Args:
        ask: called with the signal, between two instructions of Python's.
    """

    def __init__(self, ask: Callable[[signal.Signals], None]) -> None:
        self._ask = ask
        self._process = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}
        self._was_asked = False

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        found = signal.Signals(number)
        if os.getpid() != self._process:  # in a worker that was forked meanwhile
            if found is signal.SIGTERM:
                self._end_at_once(found)
            return  # Ctrl-C reaches the whole group: the workers go on as long as the run needs them
        if self._was_asked:
            self._end_at_once(found)
            return
        self._was_asked = True
        self._ask(found)

    def _end_at_once(self, found: signal.Signals) -> None:
        signal.signal(found, signal.SIG_DFL)
        os.kill(os.getpid(), found)


@contextlib.contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """While the context lasts, SIGTERM raises ``SystemExit(143)``, so that what was begun is tidied up. Elsewhere than
    in the main thread, and where somebody else handles it already, nothing changes."""
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
