"""What Numba (the extra ``fast``) compiles, and what becomes of it where Numba is missing or fails."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["compiled", "working"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compiled by its first call, and kept on the disk if that can be written.

    Raises:
        ModuleNotFoundError: Numba is not installed, or told to compile nothing.
    """
    import numba

    made = numba.njit(nogil=True, **options)(function)
    if made is function:
        raise ModuleNotFoundError("Numba compiles nothing where NUMBA_DISABLE_JIT is set", name="numba")
    with contextlib.suppress(RuntimeError, OSError):  # there may be no place to write to
        made.enable_caching()
    return made


def working(what: str, load: Callable[[], T]) -> T | None:
    """What ``load`` gives, which imports something compiled and tries it; ``None`` where Numba is not installed, or
    does not work: its cache may be damaged, or its disk full.

    Args:
        what: what is then done the slower way: ``"distributions are found"``.
    """
    try:
        return load()
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "numba":
            return None
        logger.warning("%s the slower way, as Numba fails: %s: %s", what, type(error).__name__, error)
        return None
