"""Weights whose units are rows; of small ones those that are handled together, as the rows of one matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from weightsmith.errors import PluginContractError
from weightsmith.site import Site
from weightsmith.tensors import row_groups

__all__ = ["LEAST_TOGETHER", "Rows", "SiteOfRows", "Sites", "row_lengths", "rows_among"]


class Sites(tuple[Site, ...]):
    """The sites of several weights. What is found of them is found once, until they are others."""

    @cached_property
    def rows(self) -> tuple[list[Rows], list[int]]:
        """Which go together, and the places of those that go alone."""
        return _rows_among(self)

    @cached_property
    def row_lengths(self) -> list[int]:
        """See :func:`row_lengths`."""
        return _row_lengths(self)


class SiteOfRows(Site):
    """Stands for several weights, in a method that is unitwise."""


def _refused(attribute: str) -> property:
    def refuse(_: Site) -> Any:
        raise PluginContractError(
            f"a method of a plugin that is unitwise sees many weights at once, and site.{attribute} is one weight's: "
            "leave it out, or take `unitwise` away"
        )

    return property(refuse)


for _attribute in ("module", "optimizer", "update", "epoch", "learning_rate", "gradient", "generator"):
    setattr(SiteOfRows, _attribute, _refused(_attribute))


@dataclass(frozen=True)
class Rows:
    """Some of several weights, whose units are rows of one length.

    Attributes:
        places: which.
        site: stands for all of them in a method that asks for ``unit_dims`` alone.
    """

    places: Sequence[int]
    site: Site
    _are_all: bool
    _are_matrices: bool

    def of(self, column: Sequence[Tensor]) -> Sequence[Tensor]:
        """Theirs, of a column with a tensor for each of the several weights."""
        return column if self._are_all else [column[place] for place in self.places]

    def stack(self, column: Sequence[Tensor]) -> Tensor:
        """Theirs, as the rows of one new matrix."""
        tensors = self.of(column)
        return torch.cat(tuple(tensors) if self._are_matrices else [_as_rows(tensor) for tensor in tensors])

    def parts(self, rows: Tensor, column: Sequence[Tensor]) -> Sequence[Tensor]:
        """Views of a matrix's rows, in the shapes of theirs."""
        tensors = self.of(column)
        if self._are_matrices:
            return rows.split_with_sizes([tensor.size(0) for tensor in tensors])  # some are without their padding
        parts = rows.split_with_sizes([tensor.size(0) if tensor.ndim > 1 else 1 for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def rows_among(sites: Sequence[Site]) -> tuple[list[Rows], list[int]]:
    """Which of the weights at these sites go together, and the places of those that go alone."""
    return sites.rows if isinstance(sites, Sites) else _rows_among(sites)


def row_lengths(sites: Sequence[Site]) -> Sequence[int]:
    """How many values a unit of each of the weights at these sites has, if the units are its rows; else 0."""
    return sites.row_lengths if isinstance(sites, Sites) else _row_lengths(sites)


def _row_lengths(sites: Sequence[Site]) -> list[int]:
    return [site._row_length for site in sites]


def _rows_among(sites: Sequence[Site]) -> tuple[list[Rows], list[int]]:
    together, alone = row_groups([_kind(site) for site in sites], LEAST_TOGETHER)
    return [_rows(places, sites) for places in together], alone


LEAST_TOGETHER = 4
"""Small weights, from which on they go together: to stack them is faster from 3 on or from 8, as the method is."""


def _rows(places: list[int], sites: Sequence[Site]) -> Rows:
    chosen = [sites[place] for place in places]
    length = chosen[0]._row_length
    site = SiteOfRows.alone(torch.empty(0, length), name=_names(site.name for site in chosen))
    return Rows(places, site, len(chosen) == len(sites), all(len(site.shape) == 2 for site in chosen))


def _kind(site: Site) -> object:
    """What small weights that go together have in common; ``None`` for one that goes alone."""
    raw = site._weight.raw[0]
    return (site._row_length, raw.dtype, raw.device) if site._row_length and site._is_small else None


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.ndim > 1 else tensor.unsqueeze(0)


def _names(names: Iterable[str]) -> str:
    first = list(names)
    rest = len(first) - 3
    return ", ".join(first[:3]) + (f" and {rest} more" if rest > 0 else "")
