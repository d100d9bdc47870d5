"""Weights as pictures."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad
from weightsmith import ConfigurationError, Measurement, Picture, Probe, Selector, Site, matrices
from weightsmith.tensors import unit_matrices

from weightsmith_plugins.shapes import no_units

__all__ = ["FilterImages"]


class FilterImages(Probe):
    """Every selected weight as a picture at every epoch, as its layer computes with it: ``images/…``, and the magnitude
    of its strongest colour, the largest there is in the weight: ``image_scale/…``.

    White is 0, red positive, blue negative, and full colour ± the scale. A convolution of images with one channel is
    drawn filter by filter; one with three channels, too, with a channel's weight in its own colour, middle grey for 0.
    Anything else is a matrix with units as rows. NaN is black.

    Args:
        most: pixels of a side, above which neighbours are averaged. Default 1024. What is smaller than 256 is enlarged
            by a whole number, each side of a matrix by its own.

    >>> FilterImages()(torch.tensor([[1.0, -1.0], [0.0, 0.5]]))["images"].pixels[0, [0, -1]]
    tensor([[255,   0,   0],
            [  0,   0, 255]], dtype=torch.uint8)
    """

    default_where: ClassVar[Selector] = matrices

    most: int = 1024

    def validate(self) -> None:
        if self.most < 1:
            raise ConfigurationError(f"{self!r}: most must be at least 1")

    def misfit(self, weight: Tensor, site: Site) -> str:
        return no_units(weight)

    def measure(self, weight: Tensor, site: Site) -> dict[str, Measurement]:
        if not weight.numel():
            return {}
        values = (weight.abs() if weight.is_complex() else weight).float()
        peak = values.nan_to_num(0.0, 0.0, 0.0).abs().amax()
        scale = torch.where(peak > 0, peak, 1)
        is_image = weight.ndim == 4 and site.unit_dims == (1, 2, 3) and weight.shape[1] in (1, 3)
        if is_image:
            colours = _averaged(_filters((values / scale).clamp(-1, 1), self.most), self.most)
        else:
            colours = _matrix(unit_matrices(values, site.unit_dims)[0], scale, self.most)
        pixels = (colours.nan_to_num(0.0) * 255).round().to(torch.uint8).cpu()
        return {"images": Picture(pixels.movedim(0, -1)), "image_scale": peak}


def _diverging(shares: Tensor) -> Tensor:
    """Blue at −1, white at 0, red at 1; shape ``(3, …)``."""
    return torch.stack([1 + shares.clamp(max=0), 1 - shares.abs(), 1 - shares.clamp(min=0)])


def _matrix(values: Tensor, scale: Tensor, most: int) -> Tensor:
    """Coloured, and each side enlarged by its own factor, so that none is thin; shape ``(3, …)``. Of a large matrix the
    positive and the negative parts are averaged first: their colours are linear."""
    positive, negative = (
        _averaged(part.unsqueeze(0), most) / scale for part in (values.clamp(min=0), values.clamp(max=0))
    )
    colours = torch.cat([1 + negative, 1 + negative - positive, 1 - positive]).clamp(0, 1)
    height, width = colours.shape[1:]
    return _enlarged(colours, _factor(height, most), _factor(width, most))


def _filters(shares: Tensor, most: int) -> Tensor:
    """The filters side by side, as nearly in a square as it goes, with a grey line between; shape ``(3, …)``."""
    tiles = (shares + 1).movedim(1, 0) / 2 if shares.shape[1] == 3 else _diverging(shares[:, 0])
    columns = math.ceil(math.sqrt(tiles.shape[1]))
    rows = math.ceil(tiles.shape[1] / columns)
    factor = _factor(max(rows * tiles.shape[2], columns * tiles.shape[3]), most)
    tiles = pad(_enlarged(tiles, factor, factor), (0, 1, 0, 1), value=0.5)
    missing = tiles.new_full((3, rows * columns - tiles.shape[1], *tiles.shape[2:]), 0.5)
    grid = torch.cat([tiles, missing], dim=1).unflatten(1, (rows, columns))  # type: ignore[no-untyped-call]
    drawn: Tensor = grid.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)[:, :-1, :-1]
    return drawn


def _factor(side: int, most: int) -> int:
    """By how much to enlarge a side that is short."""
    return max(1, min(256, most) // side)


def _enlarged(colours: Tensor, vertically: int, horizontally: int) -> Tensor:
    return colours.repeat_interleave(vertically, dim=-2).repeat_interleave(horizontally, dim=-1)


def _averaged(colours: Tensor, most: int) -> Tensor:
    """Averaged down to ``most`` a side."""
    height, width = colours.shape[1:]
    return adaptive_avg_pool2d(colours, (min(height, most), min(width, most)))
