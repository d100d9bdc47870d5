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

from weightsmith_plugins.addresses import Memory, memory_of, on_threads, pass_over
from weightsmith_plugins.compiling import compiled
from weightsmith_plugins.pointers import bits_at, kept_at, share_of

__all__ = ["masked_", "passes_over", "refuse_trouble"]

_kernel = functools.partial(compiled, error_model="numpy")
"""Options stand in this file, as Numba does not look at others."""

_DTYPES = torch.float32, torch.bool
_MAGNITUDE = np.int32(0x7FFFFFFF)


# -------------------------------------------------------------------- masks


def masked_(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Sequence[int]:
    """Put 0 wherever a mask is false, whatever stood there.

    Args:
        weights: written in place.
        masks: boolean, of the same shapes.

    Returns:
        The places of those that are left to torch: what :func:`~weightsmith_plugins.addresses.memory_of` leaves out.
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
        bits[place] *= np.int32(kept[place])


# -------------------------------------------------------------------- the largest


def passes_over(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Passes | None:
    """Passes for :func:`~weightsmith.ranking.keep_largest_`, as :func:`~weightsmith.ranking.in_blocks` makes them;
    ``None`` if :func:`~weightsmith_plugins.addresses.memory_of` leaves one out."""
    memory = memory_of(weights, masks, dtypes=_DTYPES)
    return None if memory is None or len(memory.places) < len(weights) else _Compiled(memory, [*weights, *masks])


class _Compiled:
    def __init__(self, memory: Memory, written: Sequence[Tensor]) -> None:
        self.total, self._table, self._written = memory.values, memory.table, written

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
def _sample(table: Any, step: int, found: Any) -> int:
    """Every ``step``-th magnitude, of all weights as one row, where it is kept; how many these are."""
    sizes, weights, masks = table[0], table[2], table[3]
    count = before = 0
    for place in range(len(weights)):
        bits, kept = bits_at(weights[place], 0, sizes[place]), kept_at(masks[place], 0, sizes[place])
        for number in range(-before % step, sizes[place], step):
            found[count] = bits[number] & _MAGNITUDE
            count += kept[number]
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
                count += _pick(bits, flags, found[count:])
            else:
                count += int(np.sum(flags[: end - start]))
    return passed, count


@_kernel
def _flag_between(bits: Any, kept: Any, low: Any, high: Any, flags: Any) -> Any:
    """Flag those kept that are between; how many are above."""
    above = np.int32(0)
    for place in range(len(bits)):
        magnitude, is_kept = bits[place] & _MAGNITUDE, np.int32(kept[place])
        above += is_kept & np.int32(magnitude > high)
        flags[place] = is_kept & np.int32(magnitude >= low) & np.int32(magnitude <= high)
    return above


@_kernel
def _pick(bits: Any, flags: Any, found: Any) -> Any:
    """The magnitudes of those flagged, which are few: of eight flags at once it is asked whether there is one."""
    count, eights = np.int64(0), len(bits) // 8
    together = flags.view(np.uint64)
    for eight in range(eights):
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
    """How many of those that stay are equal to the least."""
    equal = np.int32(0)
    for place in range(len(bits)):
        magnitude, is_kept = bits[place] & _MAGNITUDE, np.int32(kept[place])
        stays = is_kept & np.int32(magnitude >= least)
        equal += is_kept & np.int32(magnitude == least)
        kept[place] = stays
        bits[place] *= stays
    return equal


@_kernel
def _let_go(bits: Any, kept: Any, magnitude: Any, ties: int) -> None:
    """Those of a magnitude, but the first so many."""
    for place in range(len(bits)):
        if kept[place] and (bits[place] & _MAGNITUDE) == magnitude:
            kept[place] = ties > 0
            bits[place] *= np.int32(ties > 0)
            ties -= 1


# -------------------------------------------------------------------- whether it works


def refuse_trouble(name: str) -> None:
    """Try a function of this module: each is to take what is not among the two largest out of (3, 0, -4, 2), of which
    the last is out already.

    Raises:
        ArithmeticError: it does not.
    """
    with torch.inference_mode(False):
        weight = torch.tensor([3.0, -1.0, -4.0, 5.0], dtype=torch.float32, device="cpu")
        mask = torch.tensor([True, name != "masked_", True, False], device="cpu")
        _TRIALS[name](weight, mask)
    if weight.tolist() != [3.0, 0.0, -4.0, 0.0] or mask.tolist() != [True, False, True, False]:
        raise ArithmeticError(f"{name} made {weight.tolist()} of [3.0, -1.0, -4.0, 5.0], and not [3.0, 0.0, -4.0, 0.0]")


def _try_passes(weight: Tensor, mask: Tensor) -> None:
    passes = passes_over([weight], [mask])
    if passes is None or passes.sample(2)[0].tolist() != [3.0, 4.0] or passes.between(2.0, 3.5)[0] != 1:
        raise ArithmeticError("passes_over does not find what is kept of [3.0, -1.0, -4.0, 5.0]")
    (least,) = passes.between(2.0, 3.5)[1]
    passes.keep(least, None)


_TRIALS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "masked_": lambda weight, mask: masked_([weight], [mask]),
    "passes_over": _try_passes,
}
