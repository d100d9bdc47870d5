"""Which values are largest: exact, of equal ones the first. NaN counts as infinite, so that it is kept, and found."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weightsmith.tensors import accurate_dtype, copy_, is_small

__all__ = ["FEWEST_SAMPLED", "Passes", "Values", "in_blocks", "keep_largest_", "largest", "largest_of_groups"]

Values: TypeAlias = npt.NDArray[Any]


def largest(rows: Tensor, count: int) -> Tensor:
    """Which ``count`` values of every row are largest, the first of equal ones; boolean, of the same shape.

    >>> largest(torch.tensor([[1.0, 3.0, 1.0], [2.0, 0.0, 5.0]]), 2)
    tensor([[ True,  True, False],
            [ True, False,  True]])
    """
    size = rows.shape[1]
    if not 0 < count < size:
        return torch.full_like(rows, count >= size, dtype=torch.bool)
    rows = _without_nan(rows.detach()).to(accurate_dtype(rows.dtype))
    if size <= _FEW and rows.is_cpu:
        top = rows.topk(count + 1, dim=1)
        if bool((top.values[:, count - 1] > top.values[:, count]).all()):  # no ties to decide
            return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, top.indices[:, :count], True)
    least = _least_of_largest(rows, count)
    if rows.is_cpu:
        kept = rows.numpy() >= least.numpy()
        if np.count_nonzero(kept) == count * len(rows):
            return torch.from_numpy(kept)
    above, equal = rows > least, rows == least
    room = count - above.sum(dim=1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=1) <= room))


def largest_of_groups(values: Tensor, axis: int, count: int, size: int) -> Tensor:
    """Which ``count`` of every ``size`` consecutive values along an axis are largest, the first of equal ones; boolean,
    of the same shape.

    >>> largest_of_groups(torch.tensor([[1.0, 3.0, 1.0, 0.0]]), 1, 1, 2)
    tensor([[False,  True,  True, False]])
    """
    groups: Tensor = _without_nan(values).unflatten(axis, (-1, size))  # type: ignore[no-untyped-call]
    within = axis + 1
    if not values.is_cpu or min(count, size + 1 - count) * size > _MANY:
        rows = groups.movedim(within, -1)
        return largest(rows.reshape(-1, size), count).reshape(rows.shape).movedim(-1, within).reshape(values.shape)
    kept = groups >= _nth_largest(groups.unbind(within), count).unsqueeze(within)
    if int(kept.count_nonzero()) * size != count * kept.numel():  # equal ones, of which the first are kept
        wrong = kept.sum(dim=within) != count
        kept.movedim(within, -1)[wrong] = largest(groups.movedim(within, -1)[wrong], count)
    return kept.reshape(values.shape)


def keep_largest_(passes: Passes, count: int) -> bool:
    """Of what is kept of several weights, keep the ``count`` largest magnitudes, the first of equal ones: put the
    others to 0, and out of the masks, in place. As :func:`largest` of all magnitudes in one row, in which what is not
    kept is 0, but without such a row where there are many: by a sample and two passes.

    Args:
        passes: over the weights and their masks: :func:`in_blocks`.
        count: how many to keep of all together.

    Returns:
        Whether it was done. Not where the least to keep is 0 or infinite, or where a sample misleads; then nothing was
        changed, but that what was not kept may be 0 already. Where so many are kept and none of them is 0, that is all
        there is to do.

    >>> weight, mask = torch.arange(-50_000.0, 50_000.0), torch.ones(100_000, dtype=torch.bool)
    >>> keep_largest_(in_blocks([weight], [mask]), 1000)
    True
    >>> int(mask.sum()), weight[mask].abs().min(), weight[~mask].abs().max(), mask[500], mask[-500]
    (1000, tensor(49500.), tensor(0.), tensor(True), tensor(False))
    """
    if passes.settle(count):
        return True
    if not 0 < count < passes.total:
        return False
    for step in _steps(passes.total):
        least, ties = _least_kept(passes, count, step)
        if 0 < least < math.inf:
            passes.keep(least, ties)
            return True
    return False


class Passes(Protocol):
    """Passes over the values of several weights, in their order, and over masks of what is kept of them.

    Attributes:
        total: how many values, kept or not.
    """

    total: int

    def settle(self, count: int) -> bool:
        """Whether just so many are kept, and none of them is 0. If so many are, put the others to 0.

        Writing to weights and masks counts their versions up, here and in :meth:`keep`."""

    def sample(self, step: int) -> tuple[Values, int]:
        """Of every ``step``-th value, the magnitudes of those kept; and how many were looked at."""

    def between(self, low: float, high: float) -> tuple[int, Values]:
        """How many of those kept exceed ``high``, as NaN does; and the magnitudes of those from ``low`` to ``high``."""

    def keep(self, least: float, ties: int | None) -> None:
        """Keep those of at least this magnitude, of equal ones the first so many or all, and put the others to 0."""


def _steps(total: int) -> Sequence[int]:
    """How far apart the values of a sample are: two tries; the sample is all of fewer than ``FEWEST_SAMPLED``. No step
    has a factor with what is usual in shapes, lest a sample see but one place of every kernel, or some of the
    columns."""
    if total < FEWEST_SAMPLED:
        return [1]
    first = _coprime(max(17, total // _SAMPLE))
    return [first, _coprime(first + 1)]


def _coprime(step: int) -> int:
    """The next that has no factor up to 13."""
    return next(number for number in itertools.count(step) if math.gcd(number, math.prod((2, 3, 5, 7, 11, 13))) == 1)


def _least_kept(passes: Passes, count: int, step: int) -> tuple[float, int | None]:
    """The ``count``-th largest magnitude of those kept, and how many of those equal to it there is room for, if not
    for all; 0 if it is not found by a sample of every ``step``-th."""
    sample, looked_at = passes.sample(step)
    if not len(sample):  # hardly any is kept
        return 0.0, None
    sample[np.isnan(sample)] = np.inf
    ends = None if step == 1 else _bracket(sample, looked_at, count / passes.total)
    passed, among = (0, sample) if ends is None else passes.between(*ends)
    nth = len(among) - (count - passed)
    if not 0 <= nth < len(among):
        return 0.0, None
    least = np.partition(among, nth)[nth]
    ties = count - passed - int(np.count_nonzero(among > least))
    return least, None if ties == np.count_nonzero(among == least) else ties


def _bracket(sample: Values, looked_at: int, share: float) -> tuple[float, float]:
    """Magnitudes between which the one is expected that this share of all exceeds. The low end is the smallest number
    above 0 where the place may lie beyond the sample, or is among zeros, of which there may be very many.

    Args:
        sample: the magnitudes of those kept among those that were looked at; hardly ever off by more than five standard
            deviations of what is drawn.
        looked_at: how many these are.
        share: the share.
    """
    place, last = int(share * looked_at), len(sample) - 1
    room = 16 + round(5 * math.sqrt(looked_at * share * (1 - share)))
    ends = [min(max(0, last - place + side), last) for side in (-room, room)]
    low, high = np.partition(sample, ends)[ends]
    low = max(low if ends[0] else 0.0, np.nextafter(sample.dtype.type(0), sample.dtype.type(1)))
    return low, max(low, high)


FEWEST_SAMPLED = 2**14
"""Values, from which on a sample saves more than it costs."""
_SAMPLE = 2**18
"""About how many values a sample has at most; of fewer than 17 times as many it is every 17th."""


def in_blocks(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Passes | None:
    """Passes by NumPy, through blocks that stay in the processor's cache.

    Args:
        weights: of any shapes.
        masks: what is kept of each; boolean, of the same shapes.

    Returns:
        ``None`` where the weights are of several dtypes, or others than float32 and float64, or where one, or a mask,
        lies elsewhere than in one stretch of main memory.
    """
    alike = len({weight.dtype for weight in weights}) == 1
    plain = all(tensor.is_cpu and tensor.is_contiguous() for tensor in (*weights, *masks))
    return _InBlocks(weights, masks) if plain and alike and weights[0].dtype in _BITS else None


class _InBlocks:
    def __init__(self, weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        self.total = sum(weight.numel() for weight in weights)
        self._weights, self._masks = weights, masks

    @cached_property
    def _rows(self) -> list[_Row]:
        return list(_rows(self._weights, self._masks))

    @cached_property
    def _parts(self) -> list[tuple[Values, Values]]:
        return [part for row in self._rows for part in row.parts()]

    def settle(self, count: int) -> bool:
        if sum(int(np.count_nonzero(mask.numpy())) for mask in self._masks) != count:
            return False
        other_than_zero = 0
        for values, kept in self._parts:
            _put_zeros(values, kept)
            other_than_zero += int(np.count_nonzero(values != 0))  # 4 times as fast as of the values
        self._write_back()
        return other_than_zero == count

    def sample(self, step: int) -> tuple[Values, int]:
        found = np.concatenate([values[::step][kept[::step]] for values, kept in self._parts])
        return np.abs(found), sum(len(values[::step]) for values, _ in self._parts)

    def between(self, low: float, high: float) -> tuple[int, Values]:
        passed, between = 0, []
        for values, kept in self._parts:
            magnitudes = np.abs(values)
            up_to_high = magnitudes <= high
            passed += int(np.count_nonzero(kept > up_to_high))
            between.append(magnitudes[kept & (up_to_high > (magnitudes < low))])
        return passed, np.concatenate(between)

    def keep(self, least: float, ties: int | None) -> None:
        for values, kept in self._parts:
            magnitudes = np.abs(values)
            below = magnitudes < least
            if ties is not None:
                equal = np.flatnonzero((magnitudes == least) & kept)
                below[equal[ties:]] = True
                ties = max(0, ties - len(equal))
            np.greater(kept, below, out=kept)
            _put_zeros(values, kept)
        self._write_back()

    def _write_back(self) -> None:
        for row in self._rows:
            row.write_back()


def _put_zeros(values: Values, kept: Values) -> None:
    bits = values.view(_BITS[torch.from_numpy(values).dtype])
    np.multiply(bits, kept, out=bits)


_BITS = {torch.float32: np.int32, torch.float64: np.int64}
"""The integers as which their numbers are multiplied by 0 or 1, so that an infinity leaves no NaN."""


def _rows(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Iterator[_Row]:
    for are_small, pairs in itertools.groupby(zip(weights, masks, strict=True), lambda pair: is_small(pair[0])):
        some = list(pairs)
        yield from [_Row(some)] if are_small else [_Row([pair]) for pair in some]


class _Row:
    """A large weight and its mask as rows; or several small ones that follow one another, copied together."""

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        weights, masks = zip(*pairs, strict=True)
        self._weights = [weight.detach().view(-1) for weight in weights]  # which count the same versions
        self._masks = [mask.view(-1) for mask in masks]
        self._is_copy = len(weights) > 1
        self._weight = torch.cat(self._weights) if self._is_copy else self._weights[0]
        self._mask = torch.cat(self._masks) if self._is_copy else self._masks[0]

    def parts(self) -> Iterator[tuple[Values, Values]]:
        values, kept = self._weight.numpy(), self._mask.numpy()
        for start in range(0, len(values), _PART):
            yield values[start : start + _PART], kept[start : start + _PART]

    def write_back(self) -> None:
        if self._is_copy:
            sizes = [weight.numel() for weight in self._weights]
            copy_(self._weights, self._weight.split_with_sizes(sizes))
            copy_(self._masks, self._mask.split_with_sizes(sizes))
        else:
            torch.autograd.graph.increment_version([*self._weights, *self._masks])  # which NumPy does not know of


_PART = 2**17
"""Values that stay in a processor's cache while they are looked at."""


def _without_nan(values: Tensor) -> Tensor:
    if values.is_cpu and not bool(values.sum().isnan()):  # much faster than to look at each
        return values
    return values.nan_to_num(torch.inf, torch.inf, -torch.inf)


_MANY = 512
"""Comparisons for a group, up to which they cost less than sorting its values out."""


def _nth_largest(tensors: Sequence[Tensor], count: int) -> Tensor:
    """The ``count``-th largest of several tensors, place by place: a bubble sort that ends with the one it is for."""
    if count > (len(tensors) + 1) // 2:
        least = _nth_largest([-tensor for tensor in tensors], len(tensors) + 1 - count)
        return -least
    left = list(tensors)
    for _ in range(count):
        top, rest = left[0], []
        for tensor in left[1:]:
            rest.append(torch.minimum(top, tensor))
            top = torch.maximum(top, tensor)
        left = rest
    return top


def _least_of_largest(rows: Tensor, count: int) -> Tensor:
    """The ``count``-th largest value of every row, with the reduced axis kept.

    Of a long row on its own: a sample brackets it, and only what lies between is sorted out; exact all the same.
    """
    size = rows.shape[1]
    if len(rows) == 1 and size > _LONG and rows.is_cpu:
        sample = rows[0, :: size // (2**16 if size > 2**20 else 2**12)].sort(descending=True).values
        place, room = count * len(sample) // size, 4 * math.isqrt(len(sample))
        high = sample[max(0, place - room)]
        low = sample[min(len(sample) - 1, place + room)]
        values = rows[0].numpy()  # whose comparisons and counts are several times as fast as torch's
        above_low, above_high = values > low.numpy(), values > high.numpy()
        reached, passed = int(np.count_nonzero(above_low)), int(np.count_nonzero(above_high))
        if passed < count <= reached:
            between, nth = values[above_low ^ above_high], reached - count
            return torch.from_numpy(np.partition(between, nth)[nth : nth + 1]).reshape(1, 1)
        if reached < count <= np.count_nonzero(values >= low.numpy()):  # many equal ones, such as zeros
            return low.reshape(1, 1)
    if rows.is_cpu:  # much faster than torch's kthvalue
        return torch.from_numpy(np.partition(rows.numpy(), size - count, axis=1)[:, size - count, None])
    return rows.kthvalue(size - count + 1, dim=1, keepdim=True).values


_LONG = 2**16
"""Values in a row, above which a sample saves more than it costs."""

_FEW = 8
"""Values in a row, up to which sorting out the largest is faster than counting from the least of them."""
