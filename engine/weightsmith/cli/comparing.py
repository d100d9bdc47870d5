"""``compare``: what differs between two runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsmith.checkpoint import Contents, find, read
from weightsmith.errors import CheckpointError, ConfigurationError
from weightsmith.recipe import read_yaml
from weightsmith.runs import run_of

__all__ = ["compare"]


def compare(first: Path, second: Path) -> int:
    """Say what differs between two runs: their recipes, the metrics of their newest good checkpoints, and the weights
    there. The exit code is 0 if nothing does, 1 if something does, and 2 if one of them cannot be read.

    Args:
        first: a run's folder, or a checkpoint.
        second: another.
    """
    contents = [_contents(path) for path in (first, second)]
    sections = {
        "recipe": list(_differences(*(_recipe(path) for path in (first, second)))),
        "metrics": list(_differences(*(dict(_flat(found.state["metrics"], "")) for found in contents))),
        "weights": list(_other_weights(*(found.weights for found in contents))),
    }
    for title, lines in sections.items():
        print(title if lines else f"{title}: the same")
        for line in lines:
            print(f"  {line}")
    return int(any(sections.values()))


def _contents(path: Path) -> Contents:
    """What is in a run's newest good checkpoint. Without one there is nothing to compare, which is no difference."""
    try:
        return read(find(path))
    except CheckpointError as error:
        raise ConfigurationError(str(error)) from error


def _recipe(run: Path) -> dict[str, Any]:
    """What a run was configured to be, flat; nothing if it did not say."""
    folder = run_of(run)
    found = next((folder / name for name in ("recipe.yaml", "config.yaml") if (folder / name).is_file()), None)
    plain = {} if found is None else read_yaml(found)
    return {key: value for key, value in _flat(plain, "") if _PLACES.isdisjoint((key, key.partition(".")[0]))}


_PLACES = {"name", "runs", "paths", "options.runs", "options.resume"}
"""Where a run stands makes no other run of it."""


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    inner = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else None
    )
    if not inner:
        yield path, value
    for key, part in inner or ():
        yield from _flat(part, f"{path}.{key}" if path else str(key))


_NOTHING = object()


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*first, *second]):
        one, other = first.get(key, _NOTHING), second.get(key, _NOTHING)
        if not (one is other or _equal(one, other)):
            yield f"{key}: {_contrast(one, other)}"


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and _equal_elements(one, other)
    return type(one) is type(other) and bool(one == other or (one != one and other != other))


def _equal_elements(one: Tensor, other: Tensor) -> bool:
    """Whether tensors of one shape are equal; where both are no number, they are."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _contrast(one: Any, other: Any) -> str:
    are_tensors = isinstance(one, Tensor) and isinstance(other, Tensor) and one.numel() > 1
    return _distance(one, other) if are_tensors and one.shape == other.shape else f"{_shown(one)} | {_shown(other)}"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return _shown(value.item()) if value.numel() == 1 else _kind(value)
    return "nothing" if value is _NOTHING else f"{value:.6g}" if isinstance(value, float) else str(value)


def _other_weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Iterator[str]:
    for name in dict.fromkeys([*first, *second]):
        if name not in first or name not in second:
            yield f"{name}: only in the {'first' if name in first else 'second'}"
            continue
        one, other = first[name], second[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            yield f"{name}: {_kind(one)} | {_kind(other)}"
        elif not _equal_elements(one, other):
            yield f"{name}: {_distance(one, other)}"


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _distance(one: Tensor, other: Tensor) -> str:
    wide = torch.complex128 if one.is_complex() else torch.float64
    difference = (one.to(wide) - other.to(wide)).abs()
    norm = one.to(wide).abs().square().sum().sqrt()
    relative = difference.square().sum().sqrt() / norm
    return f"largest difference {difference.max():.4g}, ‖first − second‖ / ‖first‖ {relative:.4g}"
