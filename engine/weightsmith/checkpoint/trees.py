"""Nested dicts, lists and tuples with tensors at their ends."""

from __future__ import annotations

import collections
import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

__all__ = ["Place", "copied", "key_of", "replaced", "tensors_in"]

Place = tuple[Any, ...]
"""The keys and places that lead to an end."""


def tensors_in(tree: Any, path: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """All tensors, with the paths to them.

    >>> [(path, int(tensor)) for path, tensor in tensors_in({"a": [torch.tensor(1), 2]})]
    [(('a', 0), 1)]
    """
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from tensors_in(value, (*path, key))
    elif isinstance(tree, (list, tuple)):
        for place, value in enumerate(tree):
            yield from tensors_in(value, (*path, place))


def replaced(tree: Any, change: Callable[[Place, Any], Any], path: Place = ()) -> Any:
    """The same tree, with something else in the place of each end; the ends are what is no dict, list or tuple.

    >>> replaced({"a": [1, (2,)]}, lambda path, value: (len(path), value))
    {'a': [(2, 1), ((3, 2),)]}
    """
    if isinstance(tree, Mapping):
        pairs = {key: replaced(value, change, (*path, key)) for key, value in tree.items()}
        return collections.Counter(pairs) if isinstance(tree, collections.Counter) else pairs
    if isinstance(tree, (list, tuple)):
        return type(tree)(replaced(value, change, (*path, place)) for place, value in enumerate(tree))
    return change(path, tree)


def copied(tree: Any) -> Any:
    """A tree that shares no memory with this one. (Of some sharded tensors torch makes no deep copy.)"""
    return replaced(tree, lambda _, value: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value))


def key_of(path: Place) -> str:
    """A path as one text; another path has another.

    >>> key_of(("weights", "0.weight")), key_of((0, "0"))
    ('weights/0.weight', "0/'0'")
    """
    return "/".join(part if isinstance(part, str) and _is_simple(part) else repr(part) for part in path)


def _is_simple(part: str) -> bool:
    """Whether a text cannot be taken for another key's ``repr``, nor for two parts of a path."""
    return re.fullmatch(r"[\w.#-]*[A-Za-z_][\w.#-]*", part) is not None and not _LIKE_A_CONSTANT.fullmatch(part)


_LIKE_A_CONSTANT = re.compile(r"None|True|False|-?inf|nan|[\d.]+e-?\d+")
