"""Many tensors by their addresses in memory, for passes over all of them at once."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, compress
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch._C import _get_tracing_state
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

TensorGuards: Any = None
with contextlib.suppress(ImportError):  # it is no public part of torch
    from torch._C._dynamo.guards import TensorGuards

__all__ = [
    "LEFT",
    "WRITTEN",
    "Memory",
    "are_suited",
    "is_watched",
    "memory_of",
    "on_threads",
    "others",
    "pass_over",
    "pass_that_tells",
    "picked",
]

T = TypeVar("T")
Numbers = npt.NDArray[np.int64]


class Memory(NamedTuple):
    """Where the values of many tensors are: of each one after another in main memory.

    Attributes:
        places: which of the tensors of a column these are.
        table: shape ``(2 + columns, places)``: how many values each has; how many rows, a vector being one; and the
            addresses of each column.
        values: of a column, how many.
    """

    places: Sequence[int]
    table: Numbers
    values: int


def pass_over(
    kernel: Callable[..., object],
    *columns: Sequence[Tensor],
    settings: Sequence[object],
    by_rows: Sequence[object] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
) -> Sequence[int]:
    """Call a kernel, which writes to the first column alone, for all tensors that are for it.

    Args:
        kernel: takes the table of a :class:`Memory`, the settings, and a share, as :func:`on_threads` gives it.
        columns, by_rows, dtypes: as for :func:`memory_of`.
        settings: numbers.

    Returns:
        The places of the others.
    """
    memory = memory_of(*columns, by_rows=by_rows, dtypes=dtypes)
    if memory is None:
        return range(len(columns[0]))
    on_threads(functools.partial(kernel, memory.table, *settings), memory.values)
    left = others(memory.places, len(columns[0]))
    torch.autograd.graph.increment_version(picked(columns[0], memory.places))
    return left


WRITTEN, LEFT = 1, 2
"""What may become of a unit. As of :mod:`~weightsmith_plugins.native.pointers`, Numba does not see when they change."""


def pass_that_tells(
    kernel: Callable[..., npt.NDArray[np.uint8]],
    weights: Sequence[Tensor],
    *,
    settings: Sequence[object],
    by_rows: Sequence[object],
) -> Sequence[int]:
    """As :func:`pass_over`, with a kernel that tells of each weight what became of its units: nothing, ``WRITTEN``,
    ``LEFT`` to others, or, of several, both.

    Returns:
        The places of the others, and of those that have a unit that is left; their other units may be written, which
        must not matter to who does them again.
    """
    memory = memory_of(weights, by_rows=by_rows)
    if memory is None:
        return range(len(weights))
    told = on_threads(functools.partial(kernel, memory.table, *settings), memory.values)
    became = functools.reduce(np.bitwise_or, told).tolist()
    are_done = max(became) < LEFT
    written = became if are_done else [each & WRITTEN for each in became]
    torch.autograd.graph.increment_version(list(compress(picked(weights, memory.places), written)))
    done = memory.places if are_done else [memory.places[i] for i, each in enumerate(became) if each < LEFT]
    return others(done, len(weights))


def others(places: Sequence[int], count: int) -> Sequence[int]:
    """Those of so many places that are not among these.

    >>> others([0, 2], 4)
    [1, 3]
    """
    return [] if len(places) == count else sorted(set(range(count)).difference(places))


def picked(column: Sequence[T], places: Sequence[int]) -> Sequence[T]:
    """What a column has at these places.

    >>> picked("abc", [0, 2])
    ['a', 'c']
    """
    return column if len(places) == len(column) else [column[place] for place in places]


def memory_of(
    *columns: Sequence[Tensor],
    by_rows: Sequence[object] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
) -> Memory | None:
    """Where the values are of those for which :func:`are_suited` says yes, in every column; ``None`` if there are none.
    Made for columns whose like was seen before.

    Args:
        columns: as many tensors in each; beside each other they have one shape, or are left out.
        by_rows: of each, whether its units are its rows, or it is left out; ``None`` where that does not matter.
        dtypes: of each column. Default float32.
    """
    if by_rows is not None and not all(by_rows):
        here = [place for place, is_by_rows in enumerate(by_rows) if is_by_rows]
        memory = memory_of(*([column[place] for place in here] for column in columns), dtypes=dtypes)
        return None if memory is None else Memory([here[place] for place in memory.places], *memory[1:])
    if len(columns) > 1 and len(set(map(len, columns))) > 1:
        return None
    tensors = columns[0] if len(columns) == 1 else list(chain(*columns))
    form = _form(tensors, (torch.float32,) * len(columns) if dtypes is None else tuple(dtypes))
    if not form.places or (form.asks_for_no_grad and torch.is_grad_enabled()):
        return None
    if len(form.places) < len(columns[0]):
        tensors = [column[place] for column in columns for place in form.places]
    return form.at(list(map(Tensor.data_ptr, tensors)))


def is_watched() -> bool:
    """Whether torch follows what is done to tensors by more than their versions: it compiles or traces, a mode sees
    each call, or a transformation or forward differentiation is under way."""
    return (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        or peek_interpreter_stack() is not None
        or getattr(forward_ad, "_current_level", -1) >= 0
        or _get_tracing_state() is not None
    )


def are_suited(tensors: Sequence[Tensor]) -> list[bool]:
    """Whether each is float32, its values one after another in main memory, and torch would let it be written."""
    asks_for_no_grad = torch.is_grad_enabled()
    return [_is_suited(tensor) and not (asks_for_no_grad and tensor.requires_grad) for tensor in tensors]


def _is_suited(tensor: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether it is, where gradients are not enabled."""
    return tensor.dtype is dtype and all(ask(tensor) == wanted for ask, wanted in _ASKS)


def _has_address(tensor: Tensor) -> bool:
    """Whether it has memory of its own; what stands for it inside a transformation of torch.func has none."""
    try:
        return tensor.data_ptr() != 0 or not tensor.numel()
    except RuntimeError:
        return False


_PLAIN: set[type] = {Tensor, nn.Parameter}
_ASKS: tuple[tuple[Callable[[Tensor], object], object], ...] = (
    (lambda tensor: type(tensor) in _PLAIN, True),
    (attrgetter("is_cpu"), True),
    (attrgetter("layout"), torch.strided),
    (attrgetter("is_nested"), False),
    (Tensor.is_contiguous, True),
    (Tensor.is_inference, False),
    (Tensor.is_neg, False),
    (_has_address, True),
)


# -------------------------------------------------------------------- what was seen before


class _Form:
    """What several tensors are like, apart from their values and where these are: which are suited, and their sizes."""

    def __init__(self, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> None:
        count = len(tensors) // len(dtypes)
        beside = [tensors[start::count] for start in range(count)]
        are_suited = [all(map(_is_suited, row, dtypes)) and _have_one_shape(row) for row in beside]
        self.places = [place for place, is_suited in enumerate(are_suited) if is_suited]
        chosen = [beside[place] for place in self.places]
        self.asks_for_no_grad = any(tensor.requires_grad for row in chosen for tensor in row)
        shapes = [row[0].shape for row in chosen]
        sizes, units = [shape.numel() for shape in shapes], [shape[0] if len(shape) > 1 else 1 for shape in shapes]
        self._values, self._sizes_and_units = sum(sizes), [sizes, units]
        self._last: tuple[list[int], Memory] | None = None

    def at(self, addresses: list[int]) -> Memory:
        """The suited, given their addresses, column after column: mostly those of the last update."""
        last = self._last
        if last is None or last[0] != addresses:
            columns = np.array(addresses, np.int64).reshape(-1, len(self.places))
            table = np.concatenate([np.array(self._sizes_and_units, np.int64), columns])
            self._last = last = addresses, Memory(self.places, table, self._values)
        return last[1]


def _have_one_shape(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.shape == tensors[0].shape for tensor in tensors)


def _form(tensors: Sequence[Tensor], dtypes: tuple[torch.dtype, ...]) -> _Form:
    """One that was made before, if it fits."""
    if not tensors or any(map(_is_nested, tensors)):  # at which guards would end the process
        return _Form(tensors, dtypes)
    try:
        key = dtypes, len(tensors), tensors[0].shape, tensors[-1].shape
    except RuntimeError:  # of a parameter that is not initialized yet
        return _Form(tensors, dtypes)
    known = _FORMS.get(key, ())
    for fits, form in known:
        if fits(*tensors):
            return form
    form, check = _Form(tensors, dtypes), _fits(tensors)
    if check is not None:
        if len(_FORMS) >= _KEYS:
            _FORMS.clear()
        _FORMS[key] = ((check, form), *known)[:_FORMS_OF_A_KEY]
    return form


_is_nested = attrgetter("is_nested")
_FORMS: dict[object, tuple[tuple[Callable[..., bool], _Form], ...]] = {}
_KEYS, _FORMS_OF_A_KEY = 256, 4
"""How many are remembered, by what is quickly told apart: to ask of one takes 5 µs for 50 tensors, to make one 200."""


def _fits(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """Whether others are like these: what torch.compile asks, of type, dtype, device, shape, strides, and whatever else
    decides what torch does with a tensor. One call for all of them is ten times as fast as asking each. ``None`` where
    it knows no answer."""
    if len(set(map(id, tensors))) < len(tensors):  # which it takes for a difference
        return None
    try:
        sizes, strides = [list(tensor.shape) for tensor in tensors], [list(tensor.stride()) for tensor in tensors]
        guards = TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
    except (RuntimeError, TypeError):  # a layout without strides, or a torch that has other guards or none
        return None
    check: Callable[..., bool] = guards.check
    return check


# -------------------------------------------------------------------- threads


def on_threads(work: Callable[[int, int], T], values: int) -> list[T]:
    """What ``work(share, shares)`` gives for each share, on no more threads than torch has, and on so few that each has
    enough to do.

    >>> on_threads(lambda share, shares: (share, shares), 10)
    [(0, 1)]
    """
    shares = 1 if values < 2 * _SHARE else min(torch.get_num_threads(), values // _SHARE)
    if shares == 1:
        return [work(0, 1)]
    elsewhere: list[Future[T]] = []
    with contextlib.suppress(RuntimeError):  # at the interpreter's end nothing is given to other threads
        for share in range(1, shares):
            elsewhere.append(_pool(shares - 1).submit(work, share, shares))
    here = [work(share, shares) for share in (0, *range(1 + len(elsewhere), shares))]
    return [*here, *(future.result() for future in elsewhere)]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="weightsmith")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads

_SHARE = 2**21
"""Values, below which a thread of its own costs more than it saves: to give it work takes 0.25 ms."""
