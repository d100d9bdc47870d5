"""What ends a command or a script: its exit code, and a line that says why."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from weightsmith.cli.crashing import crash_of
from weightsmith.distributed import launched_rank
from weightsmith.errors import ConfigurationError, RunStopped, WeightsmithError

__all__ = ["beginning", "guarded"]


def guarded(work: Callable[[], Any]) -> int:
    """Do what a command or a script does, and say in a few lines what keeps it from being done; the exit code. For the
    main function of a process: it sets up logging, and flushes what is printed line by line. Of several processes the
    first alone prints and warns; errors are told by each that has one, with its number.

    >>> guarded(lambda: None)
    0
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a line an epoch, also into a pipe
    _log_plainly()
    try:
        with _first_alone_printing():
            code = work()
        return code if isinstance(code, int) else 0
    except RunStopped as stopped:
        print(stopped, *getattr(stopped, "__notes__", ()), sep="\n", file=sys.stderr)
        return int(stopped.code or 0)
    except WeightsmithError as error:
        if not _is_of_first(error):  # which tells it
            lines = str(error).splitlines() if isinstance(error, ConfigurationError) else [str(error)]
            print(*(f"{_speaker()}error: {line}" for line in lines), sep="\n", file=sys.stderr)
            print(*(f"  {note}\n" for note in getattr(error, "__notes__", ())), sep="", end="", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) and not had_begun(error) else 1
    except BrokenPipeError:
        if not _reader_has_gone():
            traceback.print_exc()
            return 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("stopped before there was anything to save", file=sys.stderr)
        return 130
    except Exception as error:
        _tell(error)
        return 1


@contextlib.contextmanager
def _first_alone_printing() -> Iterator[None]:
    """While the context lasts, what other processes than the first print goes nowhere."""
    if not launched_rank():
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _is_of_first(error: Exception) -> bool:
    """Whether this process raises what the first one raised."""
    return bool(launched_rank()) and "raised on process 0" in getattr(error, "__notes__", ())


def _speaker() -> str:
    """How another process than the first begins its lines."""
    own = launched_rank()
    return f"process {own}: " if own else ""


def _tell(error: Exception) -> None:
    """A few lines on what a run raised, and where the whole traceback is; of anything else the traceback."""
    crash = crash_of(error)
    path = None if crash is None else crash.write(error)
    if crash is None or path is None:
        traceback.print_exc()
        return
    first, *others = crash.lines
    notes = [*others, *getattr(error, "__notes__", ()), f"the whole traceback is in {path}"]
    print(f"{_speaker()}error: {first}", *(f"  {note}" for note in notes), sep="\n", file=sys.stderr)


@contextlib.contextmanager
def beginning(has_begun: Callable[[], bool]) -> Iterator[None]:
    """Remember of what the block raises whether the run had begun by then, since nothing was refused then."""
    try:
        yield
    except ConfigurationError as error:
        vars(error)["had_begun"] = has_begun()
        raise


def had_begun(error: ConfigurationError) -> bool:
    """Whether a run had begun when the error was raised."""
    return bool(vars(error).get("had_begun"))


def _reader_has_gone() -> bool:
    try:
        print(end="", flush=True)
        sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False


def _log_plainly() -> None:
    """Warnings in a line each, of the first process alone; not what Ignite says of an exception that is reported
    here."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{_speaker()}%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.ERROR if launched_rank() else logging.WARNING, handlers=[handler])
    logging.getLogger("ignite").setLevel(logging.CRITICAL)
