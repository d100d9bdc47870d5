"""What a report is made of: figures, and sections of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import FigureBase

__all__ = ["MOST_BLOCKS", "Block", "Section", "left_out", "unit_of"]

MOST_BLOCKS = 24
"""Figures in a section."""


@dataclass(frozen=True)
class Block:
    """A figure.

    Attributes:
        title: what it shows.
        told: the same in words, for who cannot see it.
        height: in inches; all are of one width.
        draw: draws it.
    """

    title: str
    told: str
    height: float
    draw: Callable[[FigureBase], None]


@dataclass(frozen=True)
class Section:
    """Figures under a heading.

    Attributes:
        note: what is left out, or needs to be said; may be empty.
        is_folded: whether a page that can fold shows it on demand.
    """

    title: str
    note: str
    blocks: Sequence[Block]
    is_folded: bool = False


def left_out(count: int, things: str, which: str) -> str:
    """What a section says of figures that it has no room for; nothing if it has room for all."""
    if count <= MOST_BLOCKS:
        return ""
    return (
        f"{MOST_BLOCKS} of {count} {things} are drawn, {which}; a glob on the names of weights, where, chooses others."
    )


def unit_of(last_step: int, last_epoch: int) -> str:
    """What steps count: what goes on beyond the last epoch was measured at updates."""
    return "epoch" if last_step <= last_epoch else "update"
