"""Many tensors by their addresses in memory, for passes over all of them at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

TensorGuards: Any = None
with contextlib.suppress(ImportError):  # it is no public part of torch
    from torch._C._dynamo.guards import TensorGuards

__all__ = ["Memory", "are_suited", "memory_of", "on_threads"]

T = TypeVar("T")
Numbers = npt.NDArray[np.int64]


class Memory(NamedTuple):
    """Where the values of many tensors are: float32, of each one after another in main memory.

    Attributes:
        addresses: shape ``(columns, tensors)``.
        sizes: of each tensor, how many values.
        units: of each, how many rows; a vector is one.
    """

    addresses: Numbers
    sizes: Numbers
    units: Numbers


def memory_of(*columns: Sequence[Tensor]) -> Memory | None:
    """Where the values are of several columns of tensors, each of one shape with those beside it; ``None`` if
    :func:`are_suited` says no of one, or shapes differ. Made for columns whose like was seen before."""
    tensors = list(chain(*columns))
    form = _known(tensors, len(columns)) or _new(tensors, len(columns))
    if form is None or (form.asks_for_no_grad and torch.is_grad_enabled()):
        return None
    addresses = np.fromiter(map(Tensor.data_ptr, tensors), np.int64, len(tensors))
    return Memory(addresses.reshape(len(columns), -1), form.sizes, form.units)


def are_suited(tensors: Sequence[Tensor]) -> list[bool]:
    """Whether each is float32, its values one after another in main memory, and torch would let it be written."""
    asks = _ASKS if torch.is_grad_enabled() else _ASKS[:-1]
    if all(wanted.issuperset(map(ask, tensors)) for ask, wanted in asks):
        return [True] * len(tensors)
    answers = [map(wanted.__contains__, map(ask, tensors)) for ask, wanted in asks]
    return [all(row) for row in zip(*answers, strict=True)]


def _has_address(tensor: Tensor) -> bool:
    """Whether it has memory of its own; what stands for it inside a transformation of torch.func has none."""
    try:
        return tensor.data_ptr() != 0 or not tensor.numel()
    except RuntimeError:
        return False


_ASKS: tuple[tuple[Callable[[Tensor], object], set[object]], ...] = (
    (type, {Tensor, nn.Parameter}),
    (attrgetter("dtype"), {torch.float32}),
    (attrgetter("is_cpu"), {True}),
    (attrgetter("layout"), {torch.strided}),
    (Tensor.is_contiguous, {True}),
    (Tensor.is_inference, {False}),
    (Tensor.is_neg, {False}),
    (_has_address, {True}),
    (attrgetter("requires_grad"), {False}),
)


class _Form:
    """What several tensors are like, apart from their values and where these are."""

    def __init__(self, tensors: Sequence[Tensor], columns: int) -> None:
        shapes = [tensor.shape for tensor in tensors[: len(tensors) // columns]]
        self.columns = columns
        self.sizes = np.array([shape.numel() for shape in shapes], np.int64)
        self.units = np.array([shape[0] if len(shape) > 1 else 1 for shape in shapes], np.int64)
        self.asks_for_no_grad = any(tensor.requires_grad for tensor in tensors)
        self.fits = _fits(tensors)


def _known(tensors: Sequence[Tensor], columns: int) -> _Form | None:
    for form in _FORMS.get(len(tensors), ()):
        if form.columns == columns and form.fits(*tensors):
            return form
    return None


def _new(tensors: Sequence[Tensor], columns: int) -> _Form | None:
    if not tensors or not all(are_suited(tensors)):
        return None
    count = len(tensors) // columns
    shapes = [tensor.shape for tensor in tensors]
    if any(shapes[start : start + count] != shapes[:count] for start in range(count, len(tensors), count)):
        return None
    form = _Form(tensors, columns)
    _FORMS[len(tensors)] = [form, *_FORMS.get(len(tensors), ())][:_REMEMBERED]
    return form


_FORMS: dict[int, list[_Form]] = {}
_REMEMBERED = 8
"""Forms of one number of tensors: to ask of one takes 5 µs for 50 tensors, and to make one 200."""


def _fits(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """Whether others are like these: what torch.compile asks, of type, dtype, device, shape, strides, and whatever else
    decides what torch does with a tensor. One call for all of them is ten times as fast as asking each."""
    sizes, strides = [list(tensor.shape) for tensor in tensors], [list(tensor.stride()) for tensor in tensors]
    if TensorGuards is None:
        return lambda *others: [list(other.shape) for other in others] == sizes and all(are_suited(others))
    found: Callable[..., bool] = TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
    return found


def on_threads(work: Callable[[int, int], T], values: int) -> list[T]:
    """What ``work(share, shares)`` gives for each share, on as many threads as torch has, if there are so many values
    that it saves time.

    >>> on_threads(lambda share, shares: (share, shares), 10)
    [(0, 1)]
    """
    threads = torch.get_num_threads()
    if threads == 1 or values <= _ONE_THREAD:
        return [work(0, 1)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(threads), [threads] * threads))


_ONE_THREAD = 2**19
"""Values, up to which starting threads costs more than they save."""
