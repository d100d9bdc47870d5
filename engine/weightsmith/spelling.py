"""The end of a message about a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["closest", "guess", "nearest", "plain_word"]

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
    """As :func:`nearest`, but empty if none is near."""
    close = closest(name, known)
    return "" if close is None else f": did you mean {close!r}?"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The nearest name that is known; ``None`` if none is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return close[0] if close else None


_BOOLS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
"""Words of YAML 1.1, which are texts since."""


def plain_word(value: object) -> str:
    """What to write for a text where true or false is wanted; empty if it means neither.

    >>> plain_word("yes"), plain_word("wide")
    (': write true', '')
    """
    meant = _BOOLS.get(value.lower()) if isinstance(value, str) else None
    return "" if meant is None else f": write {meant}"
