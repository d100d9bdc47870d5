"""Plain values: what a file can hold that nobody needs to trust, since reading it runs no code."""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightsmith.errors import ConfigurationError
from weightsmith.measurements import Histogram
from weightsmith.shards import is_sharded

__all__ = ["bare", "from_values", "to_values"]


def to_values(value: Any, where: str) -> Any:
    """``value`` of tensors, numbers, texts, ``None``, and dicts, lists and tuples of these, ready for
    :func:`torch.save`; what :func:`torch.load` reads with ``weights_only=True``.

    Args:
        value: what to make plain; a :class:`Histogram` may be among it, and numbers of NumPy's.
        where: what to call it in an error.

    >>> to_values({"a": (1, np.float64(2.0))}, "state")
    {'a': (1, 2.0)}

    Raises:
        ConfigurationError: it holds something else, which would need pickle; the message says where.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        if is_sharded(value):
            return value.detach()
        is_part = value.layout is torch.strided and value.untyped_storage().nbytes() > value.nbytes
        return value.detach().clone() if is_part else value.detach()  # of which all would be saved
    value = bare(value)
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Histogram):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {_HISTOGRAM: to_values(fields, where)}
    if type(value) in (list, tuple, torch.Size):
        found = [to_values(item, f"{where}[{place}]") for place, item in enumerate(value)]
        return found if isinstance(value, list) else tuple(found)
    if type(value) in _DICTS:
        pairs = [(_key(key, where), to_values(item, f"{where}[{key!r}]")) for key, item in value.items()]
        return collections.Counter(dict(pairs)) if isinstance(value, collections.Counter) else dict(pairs)
    raise ConfigurationError(
        f"{where} is {_shown(value)}, which only pickle could save, and reading that back could run code: keep "
        "tensors, numbers, texts, and dicts, lists and tuples of these"
    )


def bare(value: Any) -> Any:
    """A number of NumPy's as one of Python's, and a number or text of a class of its own, such as jsonargparse's
    ``PositiveInt``, as a plain one; anything else as it is.

    >>> bare(np.float64(2.0)), bare(torch.Size([2]))
    (2.0, torch.Size([2]))
    """
    if isinstance(value, np.generic):
        return value.item()
    for kind in (int, float, str):
        if isinstance(value, kind) and not isinstance(value, (bool, enum.Enum)):
            return kind(value)
    return value


def from_values(value: Any, device: torch.device) -> Any:
    """What :func:`to_values` was given, its tensors moved to the device.

    >>> from_values(to_values((1, [None]), "state"), torch.device("cpu"))
    (1, [None])
    """
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, (list, tuple)):
        return type(value)(from_values(item, device) for item in value)
    if isinstance(value, Mapping) and value.keys() == {_HISTOGRAM}:
        return Histogram(**from_values(value[_HISTOGRAM], device))
    if isinstance(value, collections.Counter):
        return collections.Counter(value)
    if isinstance(value, Mapping):
        return {key: from_values(item, device) for key, item in value.items()}
    return value


_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_DICTS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
_HISTOGRAM = "weightsmith.Histogram"


def _key(key: Any, where: str) -> Any:
    return to_values(key, f"the key {key!r} of {where}")


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    return f"a {type(value).__module__}.{type(value).__qualname__}"
