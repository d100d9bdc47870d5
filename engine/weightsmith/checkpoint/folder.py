"""A checkpoint on the disk: a folder that is there as a whole or not at all, and that shows any damage.

::

    checkpoints/00000120/
    ├─ weights.safetensors   the models' weights and buffers, under the names of their state dicts
    ├─ state.pt              everything else, plain values alone: torch.load(…, weights_only=True) reads it
    └─ manifest.json         what it is, the size and SHA-256 of both files, and its own

One that several processes wrote has other files in place of the first two (:mod:`weightsmith.checkpoint.several`).

Written into a hidden folder beside its place, synced, renamed to its place, and the folder around it synced; what stood
there before goes last.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from weightsmith.checkpoint.finding import beside, newest_count, remove
from weightsmith.checkpoint.manifest import STATE, WEIGHTS, damaged, reason_of, sync, sync_and_sum, write_manifest
from weightsmith.distributed import is_first
from weightsmith.errors import CheckpointError, ConfigurationError

__all__ = ["Contents", "Source", "begin", "commit", "read_one", "reading", "refuse_to_replace", "write", "writing"]

_OURS = re.compile(r"weights\.safetensors|state\.pt|manifest\.json|index\.json|tensors-\d+\.safetensors|rank-\d+\.pt")


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds.

    Attributes:
        weights: tensors by name.
        state: plain values.
        manifest: what can be read without reading the rest: numbers, texts, lists and dicts.
        source: where the tensors lie that are only outlined, on the ``meta`` device; ``None`` if all are here.
    """

    weights: Mapping[str, Tensor]
    state: Any
    manifest: Mapping[str, Any]
    source: Source | None = None

    @property
    def processes(self) -> int:
        """How many processes saved it."""
        return int(self.manifest.get("processes", 1))


class Source(Protocol):
    """A checkpoint of several processes, whose tensors can be read one by one, whole or in part."""

    def holds(self, key: str) -> bool:
        """Whether there is a tensor under a key."""

    def load(self, targets: Mapping[str, Tensor]) -> None:
        """Fill tensors with what is saved under these keys; of a sharded one, the part that is here."""

    def trees(self) -> Iterator[Any]:
        """What each process saved, shared tensors outlined, in the order of their ranks."""


def write(path: Path, contents: Contents, *, is_good: bool) -> None:
    """Write a checkpoint; one that is there already is replaced, and stays if anything goes wrong.

    Args:
        path: where.
        contents: what.
        is_good: whether a run may go on from it by itself.

    Raises:
        CheckpointError: it cannot be written, as when the disk is full; what was at ``path`` is there still, or, if
            the very last step failed, beside it, where :func:`find` finds it.
        ConfigurationError: something else than a checkpoint is there.
    """
    refuse_to_replace(path)
    with writing(path) as partial:
        begin(partial)
        safetensors.torch.save_file(dict(contents.weights), partial / WEIGHTS)
        with (partial / STATE).open("wb") as file:
            torch.save(contents.state, file)
        shutil.copymode(partial / STATE, partial / WEIGHTS)  # safetensors lets nobody else read
        files = {name: sync_and_sum(partial / name) for name in (WEIGHTS, STATE)}
        commit(partial, path, contents.manifest, files, is_good=is_good)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """While the context lasts, a checkpoint is written into a hidden folder, whose path this gives; what is left of it
    then is removed.

    Raises:
        CheckpointError: it cannot be written.
    """
    partial = beside(path, "partial")
    try:
        yield partial
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # torch and safetensors wrap the system's
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the checkpoint {path} cannot be written: {reason_of(error)}") from error
    finally:
        if is_first():
            remove(partial)


def begin(partial: Path) -> None:
    """Make the hidden folder, empty."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    remove(partial)
    partial.mkdir()


def commit(
    partial: Path, path: Path, facts: Mapping[str, Any], files: Mapping[str, dict[str, Any]], *, is_good: bool
) -> None:
    """Seal what was written and synced, and put it in its place."""
    order = {"is_good": is_good, "saves": newest_count(path.parent) + 1}
    write_manifest(partial, {**order, **facts, "files": files})
    sync(partial)
    _put_in_place(partial, path)


def refuse_to_replace(path: Path) -> None:
    """Raise where something else than a checkpoint is at ``path``."""
    if path.is_dir():
        others = {inside.name for inside in path.iterdir() if not _OURS.fullmatch(inside.name)}
    else:
        others = {path.name} if path.exists() else set()
    if others:
        raise ConfigurationError(
            f"{path} is no checkpoint that could be replaced, as it holds {sorted(others)[0]!r}: give a path of its own"
        )


def _put_in_place(partial: Path, path: Path) -> None:
    previous = beside(path, "previous")
    if path.exists():
        remove(previous)
        path.rename(previous)
    try:
        partial.rename(path)
    except OSError:
        if previous.exists():
            previous.rename(path)
        raise
    sync(path.parent)
    remove(previous)


def read_one(path: Path, manifest: Mapping[str, Any]) -> Contents:
    """Read a checkpoint that one process wrote."""
    with reading(path):
        weights = safetensors.torch.load_file(path / WEIGHTS)
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    return Contents(weights, state, manifest)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise what happens, while the context lasts, as :func:`~weightsmith.checkpoint.read` does."""
    try:
        yield
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"the checkpoint {path} is refused: reading it could run code ({reason})") from error
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise damaged(path, error) from error
