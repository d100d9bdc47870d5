"""What Numba (the extra ``fast``) compiles, and what becomes of it where Numba is missing or fails."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["compiled", "in_one_pass", "working"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compiled by its first call, and kept on the disk if that can be written. Dividing by 0 gives what it gives torch.

    Raises:
        ModuleNotFoundError: Numba is not installed, or told to compile nothing.
    """
    import numba

    made = numba.njit(nogil=True, error_model="numpy", **options)(function)
    if made is function:
        raise ModuleNotFoundError("Numba compiles nothing where NUMBA_DISABLE_JIT is set", name="numba")
    with contextlib.suppress(RuntimeError, OSError):  # there may be no place to write to
        made.enable_caching()
    return made


def in_one_pass(name: str, tensors: Sequence[Tensor]) -> Callable[..., Any] | None:
    """A function of :mod:`weightsmith_plugins.one_pass`, once it was tried; ``None`` where Numba is not installed or
    does not work, and if the first tensor says that these are not float32 on a CPU."""
    is_for_it = len(tensors) > 0 and tensors[0].is_cpu and tensors[0].dtype is torch.float32
    return _tried(name) if is_for_it else None


@functools.cache
def _tried(name: str) -> Callable[..., Any] | None:
    def load() -> Callable[..., Any]:
        one_pass = importlib.import_module("weightsmith_plugins.one_pass")
        one_pass.refuse_trouble(name)
        function: Callable[..., Any] = getattr(one_pass, name)
        return function

    return working(f"{name.strip('_')} works", load)


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
