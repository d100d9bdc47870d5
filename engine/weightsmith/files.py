"""Tensors in files: read without running any code that a file may hold."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from weightsmith.errors import ConfigurationError

__all__ = ["read_tensors", "write_tensors"]


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, by name, in main memory.

    Args:
        path: a ``.safetensors`` file, or one that :func:`torch.save` wrote, which is read with ``weights_only=True``.
            Of nested dicts and lists the names are joined by dots: ``{"model": {"fc.weight": …}}`` holds
            ``model.fc.weight``.

    Raises:
        ConfigurationError: there is no such file, it is damaged, it would run code, or it holds no tensor.
    """
    path = Path(path).expanduser()
    try:
        _refuse_other_files(path)
        found = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ConfigurationError:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"{path}: refused, for it holds more than tensors, numbers and texts, and reading those could run code "
            f"({reason}): save its state dict alone, best as .safetensors"
        ) from error
    except Exception as error:  # a damaged file fails wherever its damage is met
        raise ConfigurationError(f"{path}: is no whole file of tensors: {error or type(error).__name__}") from error
    if not found:
        raise ConfigurationError(f"{path}: holds no tensor")
    return found


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors.

    Raises:
        ConfigurationError: the name does not end in ``.safetensors``, or the file cannot be written.
    """
    if Path(path).suffix != ".safetensors":
        raise ConfigurationError(f"{path}: give a name that ends in .safetensors")
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        safetensors.torch.save_file(plain, Path(path).expanduser())
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigurationError(f"{path}: cannot be written: {error}") from error


def _refuse_other_files(path: Path) -> None:
    """Say what a file is that is no file of tensors; a safetensors file begins with eight bytes of length."""
    with path.open("rb") as file:
        head = file.read(40)
    if head.startswith(b"version https://git-lfs"):
        raise ConfigurationError(f"{path}: is a Git LFS pointer: fetch the file itself with `git lfs pull`")
    if path.suffix != ".safetensors" and not head.startswith((b"PK", b"\x80")):
        raise ConfigurationError(f"{path}: is no file that torch.save wrote: it begins with {head!r}")


def _unpickled(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in _named("", torch.load(path, map_location="cpu", weights_only=True)):
        if name in found:
            raise ConfigurationError(f"{path}: holds two tensors that are both called {name!r}")
        found[name] = tensor
    return found


def _named(prefix: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield prefix or "weight", value.detach()
    elif isinstance(value, (Mapping, list, tuple)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _named(f"{prefix}.{key}" if prefix else str(key), item)
