"""The distribution of a tensor's values, at the cost of reading them a few times."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from weightsmith import Histogram, Site
from weightsmith.tensors import accurate_dtype, keep_

from weightsmith_plugins.native.compiling import working
from weightsmith_plugins.probes.buckets import BITS, BLOCK, NEAR_ZERO, Summary, by_lookup, by_search, limits

__all__ = ["histogram", "joint_histogram"]


def histogram(values: Tensor) -> Histogram:
    """The distribution of a tensor's finite values, in the buckets that TensorBoard's histograms use.

    Buckets grow by a tenth from 1e-12 to 1e20 on both sides of zero, so that tails keep their shape. On a CPU, a
    value's bucket is looked up by the bits of the number; elsewhere it is searched for on the device, and only the
    counts and sums travel. Complex numbers count by magnitude.

    Args:
        values: any shape, any float or complex dtype; may be empty, may hold NaN and infinities.

    >>> found = histogram(torch.tensor([1.0, 2.0, 0.0, float("nan")]))
    >>> found.count, found.zeros, found.nonfinite, found.total.item()
    (3, 1, 1, 3.0)
    """
    flat = _in_memory_order(values.detach().abs() if values.is_complex() else values.detach())
    flat = flat if flat.dtype in BITS else flat.float()
    found = _summary(flat)
    nonfinite = int(found.counts[-1])
    count = flat.numel() - nonfinite
    ends = (found.minimum, found.maximum) if count else (0.0, 0.0)
    numbers = torch.from_numpy(np.array([*ends, found.total, found.total_squares], dtype=np.float64))
    minimum, maximum, total, total_squares = numbers.unbind()
    return Histogram(
        limits=limits(_CPU),
        counts=torch.from_numpy(found.counts[:-1]),
        minimum=minimum,
        maximum=maximum,
        total=total,
        total_squares=total_squares,
        count=count,
        nonfinite=nonfinite,
        zeros=found.zeros,
        subnormal=found.subnormal,
    )


def _summary(flat: Tensor) -> Summary:
    """In one pass where Numba is installed, which compiles it."""
    in_one_pass = _compiled(flat.dtype) if flat.is_cpu and flat.dtype in (torch.float32, torch.float64) else None
    return in_several_passes(flat) if in_one_pass is None else in_one_pass(flat.contiguous())


@functools.cache
def _compiled(dtype: torch.dtype) -> Callable[[Tensor], Summary] | None:
    def load() -> Callable[[Tensor], Summary]:
        from weightsmith_plugins.probes.one_pass import in_one_pass

        in_one_pass(torch.ones(1, dtype=dtype, device="cpu"))
        return in_one_pass

    return working("distributions are found", load)


def in_several_passes(flat: Tensor) -> Summary:
    """What a distribution tells of a row of numbers, of a dtype of ``BITS``."""
    counts = by_lookup(flat) if flat.is_cpu else by_search(flat)
    finite = flat[flat.isfinite()] if counts[-1] else flat
    is_coarse = flat.dtype == torch.float16  # whose subnormal numbers are not tiny
    zeros, subnormal = _zeros_and_subnormals(finite) if is_coarse or counts[NEAR_ZERO].any() else (0, 0)
    total, squares = _sums(finite, with_subnormals=bool(subnormal) and not is_coarse)
    ends = torch.aminmax(finite) if finite.numel() else (total, total)
    numbers = torch.stack([*(end.double() for end in ends), total, squares])
    least, most, *sums = numbers.tolist()  # a device is waited for once
    return Summary(counts, least, most, sums[0], sums[1], zeros, subnormal)


_CPU = torch.device("cpu")


def joint_histogram(values: Tensor, site: Site) -> Histogram:
    """The distribution of a whole weight, of which ``values`` are what is in hand: :func:`histogram` of the part, with
    the counts of all parts added up."""
    found = histogram(values)
    if site.is_whole:
        return found
    counts = torch.tensor([found.count, found.nonfinite, found.zeros, found.subnormal], device=_CPU)
    sums = torch.cat([found.counts, counts, torch.stack([found.total, found.total_squares])]).to(values.device)
    *buckets, count, nonfinite, zeros, subnormal, total, total_squares = site.total(sums).cpu().unbind()
    ends = torch.stack([-found.minimum, found.maximum]).to(values.device)
    ends = site.most(ends if found.count else torch.full_like(ends, -torch.inf)).cpu()
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
    if values.is_contiguous() and values.numel():
        return values.view(-1)
    by_stride = sorted(range(values.ndim), key=values.stride, reverse=True)
    flat = values.permute(by_stride).reshape(-1)
    return flat if flat.numel() else flat.new_empty(0)  # NumPy's empty ones have a stride of 0, and no other view


def _zeros_and_subnormals(flat: Tensor) -> tuple[int, int]:
    """How many values are zero, and how many are nearer to it than the smallest normal number."""
    bits, other_than_zero, normal = BITS[flat.dtype], 0, 0
    size = BLOCK if flat.is_cpu else flat.numel()  # each block is read back
    for block in torch.split(flat.view(bits.whole), size):  # as integers: subnormal numbers are slow
        other_than_zero += int((block & bits.magnitude).count_nonzero())
        normal += int((block & bits.exponent).count_nonzero())
    return flat.numel() - other_than_zero, other_than_zero - normal


def _sums(flat: Tensor, *, with_subnormals: bool) -> tuple[Tensor, Tensor]:
    """Σw and Σw² in float64."""
    sums_of, size = (_sums_with_subnormals, BLOCK) if with_subnormals else (_block_sums, _SUMMED)
    if flat.numel() <= size or not flat.is_cpu:
        return sums_of(flat)
    total, squares = (torch.stack(column).sum() for column in zip(*map(sums_of, torch.split(flat, size)), strict=True))
    return total, squares


def _sums_with_subnormals(block: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`_block_sums`, of subnormal values, with which arithmetic is slow, by their bits: without the sign,
    these say how many times the smallest number of all each is."""
    bits, limits, normal = BITS[block.dtype], torch.finfo(block.dtype), block.clone()
    whole, least = block.view(bits.whole), limits.smallest_normal * limits.eps
    is_normal = (whole & bits.exponent) != 0
    keep_(normal, is_normal)
    total, squares = _block_sums(normal)
    minus = whole >> (limits.bits - 1)  # all bits of negative ones
    steps = (whole & bits.magnitude).bitwise_xor_(minus).sub_(minus)
    keep_(steps, ~is_normal)
    times = steps.double()
    return total + least * times.sum(), squares + least**2 * times.dot(times)


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
