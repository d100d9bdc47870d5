"""The buckets of a distribution, those of TensorBoard, and how many values fall into each."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from weightsmith.tensors import accurate_dtype

__all__ = ["BITS", "BLOCK", "NEAR_ZERO", "Lookup", "Summary", "by_lookup", "by_search", "limits", "lookup"]


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


BITS = {
    torch.float64: Bits(torch.int64, 0x7FF0000000000000, 0x7FFFFFFFFFFFFFFF),
    torch.float32: Bits(torch.int32, 0x7F800000, 0x7FFFFFFF),
    torch.bfloat16: Bits(torch.int16, 0x7F80, 0x7FFF),
    torch.float16: Bits(torch.int16, 0x7C00, 0x7FFF),
}

_NEAREST = 1e-12
"""The edge that is nearest to 0."""

_STEPS = math.ceil(math.log(1e20 / _NEAREST) / math.log(1.1))
NEAR_ZERO = slice(_STEPS, _STEPS + 2)
"""The buckets on both sides of 0."""


@functools.cache
def limits(device: torch.device) -> Tensor:
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
    edges = limits(device)[:-1]
    rounded = edges.to(dtype)
    up = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return torch.where(rounded.double() < edges, up, rounded)


def by_search(flat: Tensor) -> npt.NDArray[Any]:
    """How many values fall into each bucket; in the last place, how many are not finite."""
    accurate = flat.to(accurate_dtype(flat.dtype))
    finite = accurate[accurate.isfinite()]
    edges = _edges(finite.dtype, finite.device)
    counts = torch.bincount(torch.bucketize(finite, edges, right=True), minlength=len(edges) + 1)
    return np.append(counts.cpu().numpy(), flat.numel() - finite.numel())


class Summary(NamedTuple):
    """What a distribution tells of some numbers.

    Attributes:
        counts: how many fall into each bucket; in the last place, how many are not finite.
        minimum, maximum: of the finite ones; anything where there are none.
        total, total_squares: of the finite ones.
        zeros, subnormal: how many of them are.
    """

    counts: npt.NDArray[Any]
    minimum: float
    maximum: float
    total: float
    total_squares: float
    zeros: int
    subnormal: int


class Lookup(NamedTuple):
    """Where numbers fall, by their bits: ``(entries[top 16 bits] + other bits) >> how many others``.

    The numbers that share their top 16 bits lie within 1/16 of each other, or so near to 0, that at most one edge is
    among them, and in the order of their other bits they move away from 0. So the high bits of an entry are the place
    of the first of them; its low bits are what the other bits lack, at the edge, to the next place.

    Negative numbers' places are their buckets from the last to the first, after those of the positive ones; and the
    last place is of what is not finite.

    Attributes:
        entries: shape ``(65536,)``, unsigned integers of the numbers' size.
        others: how many other bits there are.
        buckets: how many buckets.
    """

    entries: npt.NDArray[Any]
    others: int
    buckets: int

    def folded(self, places: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The counts of buckets, and of what is not finite, of those of places."""
        positive, negative, rest = places[: self.buckets], places[-2 : self.buckets - 1 : -1], places[-1:]
        return np.concatenate([positive + negative, rest])


@functools.cache
def lookup(dtype: torch.dtype) -> Lookup:
    """The table for a dtype of :data:`BITS`."""
    bits, size = BITS[dtype], torch.finfo(dtype).bits
    accurate, others = accurate_dtype(dtype), size - 16
    edges = _edges(accurate, torch.device("cpu"))
    buckets = len(edges) + 1
    top, rest = torch.arange(1 << 16, device="cpu"), (1 << others) - 1
    signed = torch.where(top >= 1 << 15, top - (1 << 16), top) << others
    ends = torch.stack([signed, signed | rest]).to(bits.whole).view(dtype).to(accurate)
    is_finite, is_negative = (signed & bits.exponent) != bits.exponent, signed < 0
    found = torch.searchsorted(edges, torch.where(is_finite, ends, 0), right=True)
    least, most = found.amin(0), found.amax(0)
    place = torch.where(is_negative, 2 * buckets - 1 - most, least)
    edge = edges[least.clamp(max=len(edges) - 1)].abs()
    # A number that is the edge is in the bucket above it: for negative ones, the one nearer to 0.
    reached = (edge.view(BITS[accurate].whole).long() & rest) + is_negative
    lacking = torch.where(is_finite & (most > least), (1 << others) - reached, 0)
    entries = (torch.where(is_finite, place, 2 * buckets) << others) + lacking
    return Lookup(entries.numpy().astype(f"u{size // 8}"), others, buckets)


def by_lookup(flat: Tensor) -> npt.NDArray[Any]:
    """As :func:`by_search`, on a CPU, from the numbers' bits, block by block, so that what is looked up stays in the
    processor's cache."""
    table = lookup(flat.dtype)
    bits = _as_bits(flat)
    places = np.zeros(2 * table.buckets + 1, dtype=np.int64)
    for start in range(0, len(bits), BLOCK):
        block = bits[start : start + BLOCK]
        found = table.entries.take((block >> table.others).astype(np.intp))
        if table.others:
            found += block & ((1 << table.others) - 1)
            found >>= table.others
        places += np.bincount(found.astype(np.intp, copy=False), minlength=len(places))
    return table.folded(places)


def _as_bits(flat: Tensor) -> npt.NDArray[Any]:
    """The numbers' bits as unsigned integers, sharing memory with a tensor of main memory."""
    return flat.view(BITS[flat.dtype].whole).numpy().view(f"u{flat.element_size()}")


BLOCK = 2**16
"""Values of a block, as many as stay in the processor's cache."""
