"""Passes over many weights and their masks at once, compiled by Numba (the extra ``fast``).

Magnitudes are compared by their bits without the sign, as integers: these are in the numbers' order, NaN being above
infinity.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from weightsmith.ranking import Passes, Values

from weightsmith_plugins.native.addresses import Memory, memory_of, on_threads, pass_over
from weightsmith_plugins.native.compiling import compiled
from weightsmith_plugins.native.pointers import bits_at, fetch, kept_at, share_of

__all__ = ["keep_of_fours_", "masked_", "passes_over", "refuse_trouble"]

_kernel = functools.partial(compiled, error_model="numpy")
"""Options stand in this file, as Numba does not look at others. What these kernels add up in a loop over values is made
as small again after each step, as Numba makes sums of whole numbers 64 bits wide, of which a vector holds few."""

_DTYPES = torch.float32, torch.bool
_MAGNITUDE = np.int32(0x7FFFFFFF)


# -------------------------------------------------------------------- masks


def masked_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Sequence[int]:
    """Put 0 wherever a mask is false, whatever stood there.

    Args:
        weights: written in place.
        masks: boolean, of the same shapes.

    Returns:
        The places of those that are left to torch: what
        :func:`~weightsmith_plugins.native.addresses.memory_of` leaves out.
    """
    return pass_over(_mask_all, weights, masks, settings=[], dtypes=_DTYPES)


@_kernel
def _mask_all(table: Any, share: int, shares: int) -> None:
    sizes, weights, masks = table[0], table[2], table[3]
    for place in range(len(weights)):
        first, last = share_of(sizes[place], share, shares)
        _mask(bits_at(weights[place], first, last), kept_at(masks[place], first, last))


@_kernel
def _mask(bits: Any, kept: Any) -> None:
    for place in range(len(bits)):
        bits[place] = bits[place] if kept[place] else np.int32(0)


# -------------------------------------------------------------------- the largest of four


def keep_of_fours_(weights: Sequence[Tensor], count: int, *, by_rows: Sequence[object]) -> Sequence[int]:
    """Of every four values after one another keep so many of the largest magnitudes, the first of equal ones, and put 0
    for the others: as :func:`~weightsmith.ranking.largest_of_groups` tells them, for which NaN is an infinity.

    Args:
        weights: with a number of values that four divides.
        count: how many.
        by_rows: of each, whether it is for this.

    Returns:
        As :func:`masked_`.
    """
    return pass_over(_keep_of_all_fours, weights, settings=[int(count)], by_rows=by_rows)


@_kernel
def _keep_of_all_fours(table: Any, count: int, share: int, shares: int) -> None:
    sizes, addresses = table[0], table[2]
    for place in range(len(addresses)):
        first, last = share_of(sizes[place] // 4, share, shares)
        _keep_of_fours(bits_at(addresses[place], 4 * first, 4 * last), count)


@_kernel
def _keep_of_fours(bits: Any, count: int) -> None:
    """Each is compared with the three others: one stays that fewer come before than are kept. LLVM makes no vectors of
    a loop that skips places."""
    for four in range(len(bits) // 4):
        place = 4 * four
        a, b = _magnitude(bits[place]), _magnitude(bits[place + 1])
        c, d = _magnitude(bits[place + 2]), _magnitude(bits[place + 3])
        before_a = np.int32(b > a) + np.int32(c > a) + np.int32(d > a)
        before_b = np.int32(a >= b) + np.int32(c > b) + np.int32(d > b)
        before_c = np.int32(a >= c) + np.int32(b >= c) + np.int32(d > c)
        before_d = np.int32(a >= d) + np.int32(b >= d) + np.int32(c >= d)
        bits[place] = bits[place] if before_a < count else np.int32(0)
        bits[place + 1] = bits[place + 1] if before_b < count else np.int32(0)
        bits[place + 2] = bits[place + 2] if before_c < count else np.int32(0)
        bits[place + 3] = bits[place + 3] if before_d < count else np.int32(0)


@_kernel
def _magnitude(bits: Any) -> Any:
    magnitude = bits & _MAGNITUDE
    return _INFINITY if magnitude > _INFINITY else magnitude


_INFINITY = np.int32(0x7F800000)


# -------------------------------------------------------------------- the largest of all


def passes_over(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Passes | None:
    """Passes for :func:`~weightsmith.ranking.keep_largest_`, as :func:`~weightsmith.ranking.in_blocks` makes them;
    ``None`` if :func:`~weightsmith_plugins.native.addresses.memory_of` leaves one out."""
    memory = memory_of(weights, masks, dtypes=_DTYPES)
    return None if memory is None or len(memory.places) < len(weights) else _Compiled(memory, [*weights, *masks])


class _Compiled:
    def __init__(self, memory: Memory, written: Sequence[Tensor]) -> None:
        self.total, self._table, self._written = memory.values, memory.table, written

    def settle(self, count: int) -> bool:
        if sum(on_threads(functools.partial(_count_kept, self._table), self.total)) != count:
            return False
        found = sum(on_threads(functools.partial(_mask_and_count, self._table), self.total))
        torch.autograd.graph.increment_version(self._written)
        return bool(found == count)

    def sample(self, step: int) -> tuple[Values, int]:
        looked_at = -(-self.total // step)
        found = np.empty(looked_at, np.int32)
        return found[: _sample(self._table, step, found)].view(np.float32), looked_at

    def between(self, low: float, high: float) -> tuple[int, Values]:
        least, most = (np.float32(end).view(np.int32) for end in (low, high))
        shares = on_threads(functools.partial(self._between, least, most), self.total)
        return sum(passed for passed, _ in shares), np.concatenate([found for _, found in shares]).view(np.float32)

    def _between(self, least: Any, most: Any, share: int, shares: int) -> tuple[int, Any]:
        room = self.total // (16 * shares)  # several times as much as is expected; what is not needed takes no memory
        while True:
            found = np.empty(room + _BLOCK, np.int32)
            passed, count = _look_between(self._table, least, most, found, share, shares)
            if count <= room:
                return passed, found[:count]
            room = count

    def keep(self, least: float, ties: int | None) -> None:
        bits = np.float32(least).view(np.int32)
        if ties is None:
            on_threads(functools.partial(_keep_all, self._table, bits, self.total), self.total)
        else:  # in their order
            _keep_all(self._table, bits, ties, 0, 1)
        torch.autograd.graph.increment_version(self._written)


@_kernel
def _count_kept(table: Any, share: int, shares: int) -> int:
    """How many are kept. Bytes above 1, which stand for true as well, become 1: the other passes rely on it."""
    sizes, masks, count = table[0], table[3], 0
    for place in range(len(masks)):
        first, last = share_of(sizes[place], share, shares)
        for start in range(first, last, _BLOCK):
            kept = kept_at(masks[place], start, min(last, start + _BLOCK))
            if _largest(kept) > 1:
                kept[:] = kept != 0
            count += _sum(kept)
    return count


@_kernel
def _largest(kept: Any) -> Any:
    found = np.uint8(0)
    for place in range(len(kept)):
        found = max(found, kept[place])
    return found


@_kernel
def _sum(kept: Any) -> Any:
    """Of a block of 0 and 1, which stays below the largest number of 16 bits."""
    total = np.uint16(0)
    for place in range(len(kept)):
        total = np.uint16(total + np.uint16(kept[place]))
    return total


@_kernel
def _mask_and_count(table: Any, share: int, shares: int) -> int:
    """Put 0 where nothing is kept; how many values are other than 0."""
    sizes, weights, masks, count = table[0], table[2], table[3], 0
    for place in range(len(weights)):
        first, last = share_of(sizes[place], share, shares)
        for start in range(first, last, _BLOCK):
            end = min(last, start + _BLOCK)
            count += _mask_block(bits_at(weights[place], start, end), kept_at(masks[place], start, end))
    return count


@_kernel
def _mask_block(bits: Any, kept: Any) -> Any:
    """:func:`_mask_and_count` of a block, so that 32 bits are enough for the count."""
    found = np.int32(0)
    for place in range(len(bits)):
        left = bits[place] if kept[place] else np.int32(0)
        bits[place] = left
        found = np.int32(found + np.int32((left & _MAGNITUDE) != 0))
    return found


@_kernel
def _sample(table: Any, step: int, found: Any) -> int:
    """Every ``step``-th magnitude, of all weights as one row, where it is kept; how many these are."""
    sizes, weights, masks = table[0], table[2], table[3]
    count = before = 0
    for place in range(len(weights)):
        bits, kept = bits_at(weights[place], 0, sizes[place]), kept_at(masks[place], 0, sizes[place])
        for number in range(-before % step, sizes[place], step):
            found[count] = bits[number] & _MAGNITUDE
            count += kept[number] != 0
        before += sizes[place]
    return count


_BLOCK = 2**12
"""Values whose flags stay in the cache."""


@_kernel
def _look_between(table: Any, low: Any, high: Any, found: Any, share: int, shares: int) -> tuple[int, int]:
    """How many of those kept are above, and how many between; which are written down as long as there is room for a
    block more."""
    sizes, weights, masks = table[0], table[2], table[3]
    passed = count = 0
    flags = np.zeros(_BLOCK, np.uint8)
    for place in range(len(weights)):
        first, last = share_of(sizes[place], share, shares)
        for start in range(first, last, _BLOCK):
            end = min(last, start + _BLOCK)
            bits, kept = bits_at(weights[place], start, end), kept_at(masks[place], start, end)
            passed += _flag_between(bits, kept, low, high, flags)
            if count + _BLOCK <= len(found):
                count += _pick(bits, flags, found[count:], weights[place] + 4 * end, masks[place] + end)
            else:
                count += int(np.sum(flags[: end - start]))
    return passed, count


@_kernel
def _flag_between(bits: Any, kept: Any, low: Any, high: Any, flags: Any) -> Any:
    """Flag those kept that are from low to high, which is no less; how many are above."""
    above, reach = np.int32(0), np.uint32(high - low)
    for place in range(len(bits)):
        magnitude, is_kept = bits[place] & _MAGNITUDE, np.int32(kept[place])
        above = np.int32(above + (is_kept & np.int32(magnitude > high)))
        flags[place] = is_kept & np.int32(np.uint32(magnitude - low) <= reach)  # what is below 0 becomes large
    return above


@_kernel
def _pick(bits: Any, flags: Any, found: Any, following: int, following_kept: int) -> Any:
    """The magnitudes of those flagged, which are few: of eight flags at once it is asked whether there is one.
    Meanwhile the next block comes from memory, from the addresses that follow."""
    count, eights = np.int64(0), len(bits) // 8
    together = flags.view(np.uint64)
    for eight in range(eights):
        fetch(following + 32 * eight)
        if eight % 8 == 0:
            fetch(following_kept + 8 * eight)
        if together[eight]:
            for place in range(8 * eight, 8 * eight + 8):
                found[count] = bits[place] & _MAGNITUDE
                count += flags[place]
    for place in range(8 * eights, len(bits)):
        found[count] = bits[place] & _MAGNITUDE
        count += flags[place]
    return count


@_kernel
def _keep_all(table: Any, least: Any, ties: int, share: int, shares: int) -> None:
    """Of those that are equal to the least, the first so many."""
    sizes, weights, masks = table[0], table[2], table[3]
    for place in range(len(weights)):
        first, last = share_of(sizes[place], share, shares)
        for start in range(first, last, _BLOCK):
            end = min(last, start + _BLOCK)
            bits, kept = bits_at(weights[place], start, end), kept_at(masks[place], start, end)
            equal = _keep(bits, kept, least)
            if equal > ties:
                _let_go(bits, kept, least, ties)
            ties -= min(equal, ties)


@_kernel
def _keep(bits: Any, kept: Any, least: Any) -> Any:
    """How many of those that stay are equal to the least. Two loops that write to one place each take half the time of
    one that writes to both."""
    equal = np.int32(0)
    for place in range(len(bits)):
        magnitude, is_kept = bits[place] & _MAGNITUDE, np.int32(kept[place])
        equal = np.int32(equal + (is_kept & np.int32(magnitude == least)))
        kept[place] = is_kept & np.int32(magnitude >= least)
    _mask(bits, kept)
    return equal


@_kernel
def _let_go(bits: Any, kept: Any, magnitude: Any, ties: int) -> None:
    """Those of a magnitude, which are all kept, but the first so many."""
    for place in range(len(bits)):
        if (bits[place] & _MAGNITUDE) == magnitude:
            kept[place] = ties > 0
            bits[place] *= np.int32(ties > 0)
            ties -= 1


# -------------------------------------------------------------------- whether it works


def refuse_trouble(name: str) -> None:
    """Try a function of this module: each is to put 0 where nothing is kept, or is not to be, of 1, -2, …, -20.

    Raises:
        ArithmeticError: it does not.
    """
    with torch.inference_mode(False):
        places = torch.arange(20, device="cpu")
        weight = torch.where(places % 2 == 0, 1.0, -1.0).to(torch.float32) * (places + 1)
        mask, wanted = _TRIALS[name](weight, places)
        right = torch.where(wanted, torch.where(places % 2 == 0, 1.0, -1.0) * (places + 1), 0.0)
    if weight.tolist() != right.tolist() or mask.tolist() != wanted.tolist():
        kept = int(mask.count_nonzero())
        raise ArithmeticError(f"{name} made {weight.tolist()} of 1 to 20 with changing signs, and keeps {kept}")


def _try_masks(weight: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Every third is kept."""
    mask = places % 3 == 0
    masked_([weight], [mask])
    return mask, places % 3 == 0


def _try_fours(weight: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The last of each four stays."""
    keep_of_fours_([weight.view(5, 4)], 1, by_rows=[True])
    return places % 4 == 3, places % 4 == 3


def _try_passes(weight: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """All but the third are kept, of which 8 to 20 stay. Every kernel is compiled, lest one fail in a training."""
    mask = places != 2
    passes = passes_over([weight], [mask])
    if passes is None or passes.settle(7) or not passes.settle(19) or passes.sample(10)[0].tolist() != [1, 11]:
        raise ArithmeticError("passes_over does not find what is kept of 1 to 20")
    above, between = passes.between(2.0, 18.0)
    if above != 2 or between.tolist() != [2, *range(4, 19)]:
        raise ArithmeticError(f"passes_over found {above} above {between.tolist()}, of 1, 2 and 4 to 20")
    passes.keep(8.0, 1)
    return mask, places >= 7


_TRIALS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "keep_of_fours_": _try_fours,
    "masked_": _try_masks,
    "passes_over": _try_passes,
}
