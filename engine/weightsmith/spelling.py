"""The end of a message about a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["guess", "nearest"]

_FEW = 12


def nearest(name: str, known: Iterable[str]) -> str:
    """The nearest name that is known; if none is near, all that are, or the first of many;
    empty if none is.

    >>> nearest("limt", ["limit", "where"]), nearest("x", ["limit", "where"])
    (": did you mean 'limit'?", '; there are limit, where')
    """
    known = list(known)
    if not known:
        return ""
    return guess(name, known) or f"; there are {', '.join(known[:_FEW])}{', …' if len(known) > _FEW else ''}"


def guess(name: str, known: Iterable[str]) -> str:
    """The nearest name that is known; empty if none is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else ""
