"""The distribution of a tensor's values, at the cost of reading them a few times."""

from __future__ import annotations

import functools
import itertools
import math
import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from weightsmith import Histogram, Site
from weightsmith.tensors import accurate_dtype, keep_

__all__ = ["histogram", "joint_histogram"]


def histogram(values: Tensor) -> Histogram:
    """The distribution of a tensor's finite values, in the buckets that TensorBoard's histograms use.

    Buckets grow by a tenth from 1e-12 to 1e20 on both sides of zero, so that tails keep their shape. On a CPU, a
    value's bucket is looked up by the top 16 bits of the number, a range that holds at most one edge, and one
    comparison with that; elsewhere it is searched for on the device, and only the counts travel. Complex numbers count
    by magnitude.

    Args:
        values: any shape, any float or complex dtype; may be empty, may hold NaN and infinities.

    >>> found = histogram(torch.tensor([1.0, 2.0, 0.0, float("nan")]))
    >>> found.count, found.zeros, found.nonfinite, found.total.item()
    (3, 1, 1, 3.0)
    """
    flat = _in_memory_order(values.detach().abs() if values.is_complex() else values.detach())
    flat = flat if flat.dtype in _BITS else flat.float()
    limits = _limits(flat.device)
    counts = _counted_by_key(flat) if flat.is_cpu and flat.dtype in _BITS else _counted_by_search(flat)
    nonfinite = int(counts[-1])
    finite = flat[flat.isfinite()] if nonfinite else flat
    near_zero = int(counts[_NEAR_ZERO].sum())
    is_coarse = torch.finfo(flat.dtype).smallest_normal > _NEAREST  # float16, whose subnormal numbers are not tiny
    zeros, subnormal = _zeros_and_subnormals(finite) if near_zero or is_coarse else (0, 0)
    total, total_squares = _sums(finite, with_subnormals=bool(subnormal) and not is_coarse)
    least, most = torch.aminmax(finite) if finite.numel() else (finite.new_zeros(()), finite.new_zeros(()))
    return Histogram(
        limits=limits,
        counts=counts[:-1],
        minimum=least.double(),
        maximum=most.double(),
        total=total,
        total_squares=total_squares,
        count=finite.numel(),
        nonfinite=nonfinite,
        zeros=zeros,
        subnormal=subnormal,
    )


def joint_histogram(values: Tensor, site: Site) -> Histogram:
    """The distribution of a whole weight, of which ``values`` are what is in hand: :func:`histogram` of the part, with
    the counts of all parts added up."""
    found = histogram(values)
    if site.is_whole:
        return found
    counts = torch.tensor([found.count, found.nonfinite, found.zeros, found.subnormal], device=values.device)
    sums = torch.cat([found.counts.to(values.device), counts, torch.stack([found.total, found.total_squares])])
    *buckets, count, nonfinite, zeros, subnormal, total, total_squares = site.total(sums.double()).unbind()
    ends = torch.stack([-found.minimum, found.maximum]).to(values.device)
    ends = site.most(ends if found.count else torch.full_like(ends, -torch.inf))
    return Histogram(
        limits=found.limits,
        counts=torch.stack(buckets).to(found.counts),
        minimum=-ends[0] if count else found.minimum,
        maximum=ends[1] if count else found.maximum,
        total=total,
        total_squares=total_squares,
        count=int(count),
        nonfinite=int(nonfinite),
        zeros=int(zeros),
        subnormal=int(subnormal),
    )


def _in_memory_order(values: Tensor) -> Tensor:
    """All values, as they lie in memory where they lie together: a histogram knows no order."""
    by_stride = sorted(range(values.ndim), key=values.stride, reverse=True)
    flat = values.permute(by_stride).reshape(-1)
    return flat if flat.numel() else flat.new_empty(0)  # NumPy's empty ones have a stride of 0, and no other view


class Bits(NamedTuple):
    """How a dtype's numbers are written.

    Attributes:
        whole: the integer dtype of the same size.
        exponent: the bits of the exponent; all 0 for zeros and subnormal numbers, all 1 for what is not finite.
        magnitude: all bits but the sign.
    """

    whole: torch.dtype
    exponent: int
    magnitude: int


_BITS = {
    torch.float64: Bits(torch.int64, 0x7FF0000000000000, 0x7FFFFFFFFFFFFFFF),
    torch.float32: Bits(torch.int32, 0x7F800000, 0x7FFFFFFF),
    torch.bfloat16: Bits(torch.int16, 0x7F80, 0x7FFF),
    torch.float16: Bits(torch.int16, 0x7C00, 0x7FFF),
}


def _zeros_and_subnormals(flat: Tensor) -> tuple[int, int]:
    """How many values are zero, and how many are nearer to it than the smallest normal number."""
    bits, other_than_zero, normal = _BITS[flat.dtype], 0, 0
    size = _BLOCK if flat.is_cpu else flat.numel()  # each block is read back
    for block in torch.split(flat.view(bits.whole), size):  # as integers: subnormal numbers are slow
        other_than_zero += int((block & bits.magnitude).count_nonzero())
        normal += int((block & bits.exponent).count_nonzero())
    return flat.numel() - other_than_zero, other_than_zero - normal


def _sums(flat: Tensor, *, with_subnormals: bool) -> tuple[Tensor, Tensor]:
    """Σw and Σw² in float64. Where there are subnormal values, with which arithmetic is slow, they count as 0, which
    changes nothing but rounding."""
    if flat.numel() <= _SUMMED or not flat.is_cpu:
        return _block_sums(_normal(flat) if with_subnormals else flat)
    sums = [_block_sums(_normal(block) if with_subnormals else block) for block in torch.split(flat, _SUMMED)]
    total, squares = (torch.stack(column).sum() for column in zip(*sums, strict=True))
    return total, squares


def _normal(block: Tensor) -> Tensor:
    """The values with 0 for subnormal ones."""
    bits, normal = _BITS[block.dtype], block.clone()
    keep_(normal, (block.view(bits.whole) & bits.exponent) != 0)
    return normal


def _block_sums(block: Tensor) -> tuple[Tensor, Tensor]:
    """Of few values directly, of many by way of float32 sums over rows of 256."""
    rows, peak = len(block) // _ROW, 0.0
    if block.dtype != torch.float64 and rows >= _ROW:
        peak = max(abs(end.item()) for end in torch.aminmax(block))
        if peak == 0:
            return block.new_zeros((), dtype=torch.float64), block.new_zeros((), dtype=torch.float64)
    if not 1e-15 < peak < 1e18:  # else squares may leave the float range
        exact = block.double()
        return exact.sum(), exact.dot(exact)
    accurate = accurate_dtype(block.dtype)
    many, rest = block[: rows * _ROW].view(rows, _ROW), block[rows * _ROW :].double()
    sums = many.sum(dim=1, dtype=accurate).double()
    norms = torch.linalg.vector_norm(many, dim=1, dtype=accurate).double()
    return sums.sum() + rest.sum(), norms.square().sum() + rest.square().sum()


_ROW = 256
_SUMMED = 2**20
"""Values of which the sums are taken at once."""


# -------------------------------------------------------------------- buckets


_NEAREST = 1e-12
"""The edge that is nearest to 0."""

_STEPS = math.ceil(math.log(1e20 / _NEAREST) / math.log(1.1))
_NEAR_ZERO = slice(_STEPS, _STEPS + 2)
"""The buckets on both sides of 0."""


@functools.cache
def _limits(device: torch.device) -> Tensor:
    """The buckets' right edges in float64, the last of them the largest number: those of ``SummaryWriter``."""
    ratios = itertools.repeat(1.1, _STEPS - 1)
    positive = list(itertools.accumulate(ratios, lambda edge, ratio: edge * ratio, initial=_NEAREST))
    negative = [-edge for edge in reversed(positive)]
    largest = torch.finfo(torch.float64).max
    return torch.tensor([*negative, 0.0, *positive, largest], dtype=torch.float64, device=device)


@functools.cache
def _edges(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The edges between buckets in ``dtype``, rounded up, so that comparing with them is the same as comparing with the
    float64 ones."""
    edges = _limits(device)[:-1]
    rounded = edges.to(dtype)
    up = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return torch.where(rounded.double() < edges, up, rounded)


def _counted_by_search(flat: Tensor) -> Tensor:
    """How many values fall into each bucket; in the last place, how many are not finite."""
    accurate = flat.to(accurate_dtype(flat.dtype))
    finite = accurate[accurate.isfinite()]
    edges = _edges(finite.dtype, finite.device)
    counts = torch.bincount(torch.bucketize(finite, edges, right=True), minlength=len(edges) + 1)
    return torch.cat([counts, counts.new_tensor([flat.numel() - finite.numel()])])


class Table(NamedTuple):
    """Where numbers fall, by their top 16 bits.

    Attributes:
        bucket: the first bucket that such numbers fall into; shape ``(65536,)``.
        edge: where the next begins, if it begins among them, else NaN; ``None`` for 16-bit numbers, of which each
            has an entry of its own.
    """

    bucket: Any
    edge: Any


@functools.cache
def _table(dtype: torch.dtype) -> Table:
    low_bits = 8 * (torch.finfo(dtype).bits // 8) - 16
    keys = torch.arange(65536, dtype=torch.int64)
    first, last = keys << low_bits, (keys << low_bits) | ((1 << low_bits) - 1)
    bits = _BITS[dtype]
    accurate = accurate_dtype(dtype)
    edges = _edges(accurate, torch.device("cpu"))
    ends = torch.stack([_wrapped(end, low_bits + 16).to(bits.whole).view(dtype).to(accurate) for end in (first, last)])
    is_finite = (first & bits.exponent) != bits.exponent
    found = torch.searchsorted(edges, torch.where(is_finite, ends, 0), right=True)  # negative ends change places
    low, high = found.amin(0), found.amax(0)
    bucket = torch.where(is_finite, low, len(edges) + 1).numpy()
    if not low_bits:
        return Table(bucket, None)
    holds_edge = is_finite & (high > low)
    edge = torch.where(holds_edge, edges[low.clamp(max=len(edges) - 1)], torch.nan)
    return Table(bucket, edge.numpy())


def _wrapped(unsigned: Tensor, size: int) -> Tensor:
    """Unsigned integers of so many bits as the signed ones that are written alike."""
    return unsigned if size == 64 else torch.where(unsigned >= 1 << (size - 1), unsigned - (1 << size), unsigned)


def _counted_by_key(flat: Tensor) -> Tensor:
    """As :func:`_counted_by_search`, block by block, so that what is looked up stays in the processor's cache."""
    table, parts = _table(flat.dtype), flat.element_size() // 2
    top = parts - 1 if sys.byteorder == "little" else 0
    keys = flat.view(torch.int16).numpy().view(np.uint16)[top::parts]
    numbers = None if table.edge is None else flat.numpy()
    size = len(_limits(torch.device("cpu"))) + 1
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(keys), _BLOCK):
        block = keys[start : start + _BLOCK]
        places = table.bucket.take(block)
        if numbers is not None:
            places += numbers[start : start + _BLOCK] >= table.edge.take(block)
        counts += np.bincount(places, minlength=size)
    return torch.from_numpy(counts)


_BLOCK = 2**16
