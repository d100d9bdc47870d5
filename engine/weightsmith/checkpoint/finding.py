"""Which checkpoint of a run is meant, and which are kept."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from weightsmith.checkpoint.manifest import (
    MANIFEST,
    STATE,
    WEIGHTS,
    read_manifest,
    reason_of,
    sync,
    verified_manifest,
)
from weightsmith.checkpoint.parts import INDEX
from weightsmith.distributed import is_first
from weightsmith.errors import CheckpointError, ConfigurationError

__all__ = ["beside", "find", "itself", "link", "newest_count", "newest_good", "remove", "saved_in", "saved_of", "sweep"]

logger = logging.getLogger(__name__)

_UNREADABLE = 2**62


def find(path: Path) -> Path:
    """The checkpoint that ``path`` means: itself; or the newest good one of a run's folder, or of its ``checkpoints``.
    For each damaged one on the way there is a warning.

    Raises:
        CheckpointError: there is none.
    """
    return itself(path) or newest_good(path, saved_of(path), verified_manifest)[0]


def itself(path: Path) -> Path | None:
    """The checkpoint that stands at a path, or stood there when its replacement was interrupted."""
    if not path.exists() and beside(path, "previous").exists():
        logger.warning("%s is gone, as its replacement was interrupted: the one before it is taken", path)
        return beside(path, "previous")
    return path if any((path / name).exists() for name in (MANIFEST, WEIGHTS, STATE, INDEX)) else None


def newest_good(
    path: Path, saved: Sequence[Path], verified: Callable[[Path], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """The first of the checkpoints of a run that is whole, and that a run may go on from, and what it says of itself.

    Args:
        path: the run, for what is told.
        saved: its checkpoints, the newest first.
        verified: what a checkpoint says of itself, once its files are seen to be what was written.

    Raises:
        CheckpointError: there is none.
    """
    problems: list[str] = []
    for one in saved:
        try:
            manifest = verified(one)
            if manifest["is_good"]:
                _tell(problems, one)
                return one, manifest
            problems.append(f"{one} was saved when the run was not in order")
        except (CheckpointError, ConfigurationError, KeyError) as error:
            problems.append(str(error))
    raise CheckpointError(_nothing_found(path, problems))


def _tell(problems: Sequence[str], taken: Path) -> None:
    if problems and is_first():
        for problem in problems:
            logger.warning("%s", problem)
        logger.warning("the one before it is taken: %s", taken)


def _nothing_found(path: Path, problems: Sequence[str]) -> str:
    folder = _folder(path)
    if not path.is_dir():
        return f"there is no checkpoint {path}: {'it is a file' if path.exists() else 'there is no such folder'}"
    found = "".join(f"\n- {problem}" for problem in problems)
    crash = f"\n- {folder / 'crash'} holds what there was when the run crashed" if (folder / "crash").is_dir() else ""
    return f"there is no good checkpoint in {path}{':' if found or crash else ''}{found}{crash}"


def saved_of(path: Path) -> list[Path]:
    """The checkpoints of the run whose folder this is, or its ``checkpoints``, the newest first."""
    return saved_in(_folder(path))


def _folder(path: Path) -> Path:
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


def saved_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first, with those that a kill left beside their place."""
    found = [path for path in folder.iterdir() if path.is_dir() and _is_numbered(path)] if folder.is_dir() else []
    return sorted(found, key=_age, reverse=True)


def link(path: Path, name: str) -> None:
    """Let ``name`` beside a checkpoint lead to it.

    Raises:
        CheckpointError: it cannot.
    """
    place = path.with_name(name)
    partial = beside(place, "partial")
    try:
        partial.unlink(missing_ok=True)
        partial.symlink_to(path.name, target_is_directory=True)
        partial.rename(place)
        sync(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"{path.with_name(name)} cannot be made to lead to {path.name}: {reason_of(error)}"
        ) from error


def sweep(folder: Path, keep: int) -> None:
    """Remove what is older than the ``keep`` newest checkpoints, and what interrupted saves left."""
    kept = {best.resolve() for best in [folder / "best"] if best.is_symlink()}
    whole = [path for path in saved_in(folder) if not path.name.startswith(".") and _age(path)[0] < _UNREADABLE]
    for saved in whole[keep:]:
        if saved.resolve() not in kept:
            remove(saved)
    for left in folder.glob(".*.partial"):
        remove(left)
    for number in {int(path.name) for path in whole}:
        remove(folder / f".{number:08d}.previous")  # its replacement is there


def _is_numbered(path: Path) -> bool:
    return path.name.removeprefix(".").removesuffix(".previous").isdigit()


def _age(path: Path) -> tuple[int, int]:
    """When it was saved: by its own count, which goes on when a run goes on from an older checkpoint."""
    name = path.name.removeprefix(".").removesuffix(".previous")
    try:
        return int(read_manifest(path)["saves"]), int(name)
    except (CheckpointError, ConfigurationError, KeyError, TypeError, ValueError):
        return _UNREADABLE, int(name)  # looked at, warned of, and passed over


def newest_count(folder: Path) -> int:
    """The count that the newest checkpoint in a folder has."""
    return max((_age(path)[0] for path in saved_in(folder) if _age(path)[0] < _UNREADABLE), default=0)


def beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
