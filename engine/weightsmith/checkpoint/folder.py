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
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from weightsmith.checkpoint.parts import INDEX
from weightsmith.distributed import is_first
from weightsmith.errors import CheckpointError, ConfigurationError, DamagedCheckpointError

__all__ = [
    "FORMAT",
    "Contents",
    "Source",
    "find",
    "link",
    "read_manifest",
    "read_one",
    "reading",
    "saved_in",
    "sweep",
    "verified_manifest",
    "write",
    "writing",
]

logger = logging.getLogger(__name__)

FORMAT = 1
"""The version of the form in which checkpoints are written."""

_UNREADABLE = 2**62
_BLANK = "0" * 64
_WEIGHTS, _STATE, _MANIFEST = "weights.safetensors", "state.pt", "manifest.json"
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
        safetensors.torch.save_file(dict(contents.weights), partial / _WEIGHTS)
        with (partial / _STATE).open("wb") as file:
            torch.save(contents.state, file)
        shutil.copymode(partial / _STATE, partial / _WEIGHTS)  # safetensors lets nobody else read
        files = {name: sync_and_sum(partial / name) for name in (_WEIGHTS, _STATE)}
        commit(partial, path, contents.manifest, files, is_good=is_good)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """While the context lasts, a checkpoint is written into a hidden folder, whose path this gives; what is left of it
    then is removed.

    Raises:
        CheckpointError: it cannot be written.
    """
    partial = _beside(path, "partial")
    try:
        yield partial
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # torch and safetensors wrap the system's
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the checkpoint {path} cannot be written: {_reason(error)}") from error
    finally:
        if is_first():
            _remove(partial)


def begin(partial: Path) -> None:
    """Make the hidden folder, empty."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    partial.mkdir()


def commit(
    partial: Path, path: Path, facts: Mapping[str, Any], files: Mapping[str, dict[str, Any]], *, is_good: bool
) -> None:
    """Seal what was written and synced, and put it in its place."""
    order = {"is_good": is_good, "saves": _saves(path.parent) + 1}
    manifest = {"format": FORMAT, **order, **facts, "files": files}
    with (partial / _MANIFEST).open("w", encoding="utf-8") as file:
        file.write(_sealed(json.dumps({"sha256": _BLANK, **manifest}, indent=1)))
    _sync(partial / _MANIFEST)
    _sync(partial)
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
    previous = _beside(path, "previous")
    if path.exists():
        _remove(previous)
        path.rename(previous)
    try:
        partial.rename(path)
    except OSError:
        if previous.exists():
            previous.rename(path)
        raise
    _sync(path.parent)
    _remove(previous)


def read_one(path: Path, manifest: Mapping[str, Any]) -> Contents:
    """Read a checkpoint that one process wrote."""
    with reading(path):
        weights = safetensors.torch.load_file(path / _WEIGHTS)
        state = torch.load(path / _STATE, map_location="cpu", weights_only=True)
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
        raise _damaged(path, error) from error


def verified_manifest(path: Path) -> dict[str, Any]:
    """What the checkpoint says of itself, once its files are seen to be what was written. Raises as
    :func:`~weightsmith.checkpoint.read`."""
    manifest = read_manifest(path)
    try:
        for name in _files_of(manifest):
            found, expected = _sum(path / name), manifest["files"][name]
            if found != expected:
                raise DamagedCheckpointError(
                    f"the checkpoint {path} is damaged: {name} has {found['bytes']} bytes with the SHA-256 "
                    f"{found['sha256'][:12]}…, where {expected['bytes']} with {expected['sha256'][:12]}… were written"
                )
    except (KeyError, TypeError, OSError) as error:
        raise _damaged(path, error) from error
    return manifest


def _files_of(manifest: Mapping[str, Any]) -> list[str]:
    """The names of the files besides the manifest."""
    return [_WEIGHTS, _STATE] if "processes" not in manifest else sorted(manifest["files"])


def read_manifest(path: Path) -> dict[str, Any]:
    """What the checkpoint says of itself. Raises as :func:`~weightsmith.checkpoint.read` does."""
    try:
        text = (path / _MANIFEST).read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
        is_whole = text == _sealed(text.replace(manifest.pop("sha256"), _BLANK, 1))
    except FileNotFoundError as error:
        if any((path / name).exists() for name in (_WEIGHTS, _STATE, INDEX)):
            raise _damaged(path, error) from error
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise _damaged(path, error, _MANIFEST) from error
    if not is_whole:
        raise DamagedCheckpointError(f"the checkpoint {path} is damaged: {_MANIFEST} is not what was written")
    if manifest.get("format") != FORMAT:
        raise ConfigurationError(
            f"the checkpoint {path} has the form {manifest.get('format')!r}, where this version of weightsmith reads "
            f"{FORMAT}: go on with the version that wrote it, {manifest.get('versions', {}).get('weightsmith')}"
        )
    if path.parent.name == "checkpoints" and path.name.isdigit() and int(path.name) != manifest.get("iteration"):
        raise DamagedCheckpointError(
            f"the checkpoint {path} is another: it was saved at iteration {manifest.get('iteration')}"
        )
    return manifest


def saved_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first, with those that a kill left beside their place."""
    found = [path for path in folder.iterdir() if path.is_dir() and _is_numbered(path)] if folder.is_dir() else []
    return sorted(found, key=_age, reverse=True)


def find(path: Path) -> Path:
    """The checkpoint that ``path`` means: itself; or the newest good one of a run's folder, or of its ``checkpoints``.
    For each damaged one on the way there is a warning.

    Raises:
        CheckpointError: there is none.
    """
    if not path.exists() and _beside(path, "previous").exists():
        logger.warning("%s is gone, as its replacement was interrupted: the one before it is taken", path)
        return _beside(path, "previous")
    if any((path / name).exists() for name in (_MANIFEST, _WEIGHTS, _STATE, INDEX)):
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    problems: list[str] = []
    for saved in saved_in(folder):
        try:
            if verified_manifest(saved)["is_good"]:
                for problem in problems:
                    logger.warning("%s", problem)
                if problems:
                    logger.warning("the one before it is taken: %s", saved)
                return saved
            problems.append(f"{saved} was saved when the run was not in order")
        except (CheckpointError, ConfigurationError, KeyError) as error:
            problems.append(str(error))
    raise CheckpointError(_nothing_found(path, folder, problems))


def _nothing_found(path: Path, folder: Path, problems: Sequence[str]) -> str:
    if not path.is_dir():
        return f"there is no checkpoint {path}: {'it is a file' if path.exists() else 'there is no such folder'}"
    found = "".join(f"\n- {problem}" for problem in problems)
    crash = f"\n- {folder / 'crash'} holds what there was when the run crashed" if (folder / "crash").is_dir() else ""
    return f"there is no good checkpoint in {path}{':' if found or crash else ''}{found}{crash}"


def link(path: Path, name: str) -> None:
    """Let ``name`` beside a checkpoint lead to it.

    Raises:
        CheckpointError: it cannot.
    """
    place = path.with_name(name)
    partial = _beside(place, "partial")
    try:
        partial.unlink(missing_ok=True)
        partial.symlink_to(path.name, target_is_directory=True)
        partial.rename(place)
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"{path.with_name(name)} cannot be made to lead to {path.name}: {_reason(error)}"
        ) from error


def sweep(folder: Path, keep: int) -> None:
    """Remove what is older than the ``keep`` newest checkpoints, and what interrupted saves left."""
    kept = {best.resolve() for best in [folder / "best"] if best.is_symlink()}
    whole = [path for path in saved_in(folder) if not path.name.startswith(".") and _age(path)[0] < _UNREADABLE]
    for saved in whole[keep:]:
        if saved.resolve() not in kept:
            _remove(saved)
    for left in folder.glob(".*.partial"):
        _remove(left)
    for number in {int(path.name) for path in whole}:
        _remove(folder / f".{number:08d}.previous")  # its replacement is there


def _is_numbered(path: Path) -> bool:
    return path.name.removeprefix(".").removesuffix(".previous").isdigit()


def _age(path: Path) -> tuple[int, int]:
    """When it was saved: by its own count, which goes on when a run goes on from an older checkpoint."""
    name = path.name.removeprefix(".").removesuffix(".previous")
    try:
        return int(read_manifest(path)["saves"]), int(name)
    except (CheckpointError, ConfigurationError, KeyError, TypeError, ValueError):
        return _UNREADABLE, int(name)  # looked at, warned of, and passed over


def _saves(folder: Path) -> int:
    """The count that the newest checkpoint in a folder has."""
    return max((_age(path)[0] for path in saved_in(folder) if _age(path)[0] < _UNREADABLE), default=0)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")


def sync_and_sum(path: Path) -> dict[str, Any]:
    """See a file to the disk, and give its size and SHA-256."""
    _sync(path)
    return _sum(path)


def _sum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sealed(text: str) -> str:
    """A manifest with its own SHA-256 in the place left blank for it."""
    return text.replace(_BLANK, hashlib.sha256(text.encode()).hexdigest(), 1)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__


def _damaged(path: Path, error: Exception, name: str = "") -> DamagedCheckpointError:
    missing = [file for file in [*_expected(path), _MANIFEST] if not (path / file).is_file()]
    what = f"{missing[0]} is missing" if missing else f"{name or 'it'} cannot be read ({_reason(error)})"
    return DamagedCheckpointError(f"the checkpoint {path} is damaged: {what}")


def _expected(path: Path) -> list[str]:
    """The files that a checkpoint should have, as far as that can be told."""
    try:
        return _files_of(json.loads((path / _MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return [INDEX] if (path / INDEX).is_file() else [_WEIGHTS, _STATE]
