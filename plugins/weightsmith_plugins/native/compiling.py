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
from weightsmith.tensors import are_large

from weightsmith_plugins.native.addresses import is_watched

__all__ = ["compiled", "compiled_function", "has_own", "in_one_pass", "working"]

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


def in_one_pass(name: str, *columns: Sequence[Tensor], **settings: Any) -> Sequence[int]:
    """Call a function that Numba compiles, where it is installed and works.

    Args:
        name: which, of those that :func:`compiled_function` knows.
        columns: of tensors, the first of them written in place.
        settings: what else it takes.

    Returns:
        The places of those that are left to do otherwise, perhaps all.
    """
    function = compiled_function(name, columns[0])
    left: Sequence[int] = range(len(columns[0])) if function is None else function(*columns, **settings)
    return left


def has_own(plugin: object, kind: type, method: str) -> bool:
    """Whether a subclass of a plugin's kind has a method of its own, of which nothing compiled knows.

    >>> has_own(True, int, "__add__"), has_own(True, int, "__repr__")
    (False, True)
    """
    return getattr(type(plugin), method) is not getattr(kind, method)


def compiled_function(name: str, tensors: Sequence[Tensor]) -> Callable[..., Any] | None:
    """The function of that name in a module that Numba compiles, once it was tried; ``None`` where Numba is not
    installed or does not work, or is not asked for: no tensor is float32 and on a CPU, there are so few and small ones
    that torch is faster, or torch watches what is done to them."""
    is_worth_it = len(tensors) >= _LEAST.get(name, 1) or are_large(tensors)
    return _tried(name) if is_worth_it and any(map(_may_be_for_it, tensors)) and not is_watched() else None


def _may_be_for_it(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.is_cpu


_LEAST = {"charged_": 16, "clamped_": 70, "norm_of": 16}
"""Small tensors, from which on what torch does in two or three calls for all of them is slower, between the steps of a
training, where little is in the processor's cache. To clamp 50 of 64 × 64 takes 175 µs there, and compiled 202; 100 of
44 × 44, 267 and 212; called in a row, 150 and 90."""


@functools.cache
def _tried(name: str) -> Callable[..., Any] | None:
    module, what = _USERS[name]

    def load() -> Callable[..., Any]:
        one_pass = importlib.import_module(module)
        one_pass.refuse_trouble(name)
        function: Callable[..., Any] = getattr(one_pass, name)
        return function

    return working(what, load)


_ANY, _SIMPLICES = "weightsmith_plugins.native.one_pass", "weightsmith_plugins.native.simplices"
_SPARSE = "weightsmith_plugins.sparsity.one_pass"
_USERS = {
    "bound_norms_": (_ANY, "MaxNorm, MinMaxNorm and UnitNorm work"),
    "charged_": (_ANY, "L1 and ElasticNet work"),
    "charged_by_rows_": (_ANY, "GroupLasso works"),
    "clamped_": (_ANY, "Clamp and ClipValue work"),
    "clipped_": (_ANY, "ClipUnitNorm works"),
    "clipped_adaptively_": (_ANY, "AdaptiveClip works"),
    "norm_of": (_ANY, "ClipNorm works"),
    "keep_of_fours_": (_SPARSE, "NofM works"),
    "masked_": (_SPARSE, "masks are applied"),
    "onto_simplices_": (_SIMPLICES, "L1Ball and Simplex work"),
    "passes_over": (_SPARSE, "MagnitudePruning and TopK work"),
}
"""In which module a function is, and whose work it does, for the log."""


def working(what: str, load: Callable[[], T]) -> T | None:
    """What ``load`` gives, which imports something compiled and tries it; ``None`` where Numba is not installed, or
    does not work: its cache may be damaged, or its disk full.

    Args:
        what: what is then done the slower way: ``"distributions are found"``.
    """
    try:
        return load()
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in ("numba", "llvmlite"):  # which comes with Numba
            return None
        logger.warning("%s the slower way, as Numba fails: %s: %s", what, type(error).__name__, error)
        return None
