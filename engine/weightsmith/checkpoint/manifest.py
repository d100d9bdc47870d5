"""What a checkpoint says of itself, and whether its files are what was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightsmith.checkpoint.parts import INDEX
from weightsmith.errors import CheckpointError, ConfigurationError, DamagedCheckpointError

__all__ = [
    "FORMAT",
    "MANIFEST",
    "STATE",
    "WEIGHTS",
    "damaged",
    "read_manifest",
    "reason_of",
    "refuse_damage",
    "sync",
    "sync_and_sum",
    "verified_manifest",
    "write_manifest",
]

FORMAT = 1
"""The version of the form in which checkpoints are written."""

WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.pt", "manifest.json"
_BLANK = "0" * 64


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write down what a checkpoint is, sealed by its own SHA-256, and see it to the disk."""
    manifest = {"sha256": _BLANK, "format": FORMAT, **facts}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(_sealed(json.dumps(manifest, indent=1)))
    sync(folder / MANIFEST)


def read_manifest(path: Path) -> dict[str, Any]:
    """What the checkpoint says of itself. Raises as :func:`~weightsmith.checkpoint.read` does."""
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
        is_whole = text == _sealed(text.replace(manifest.pop("sha256"), _BLANK, 1))
    except FileNotFoundError as error:
        if any((path / name).exists() for name in (WEIGHTS, STATE, INDEX)):
            raise damaged(path, error) from error
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise damaged(path, error, MANIFEST) from error
    if not is_whole:
        raise DamagedCheckpointError(f"the checkpoint {path} is damaged: {MANIFEST} is not what was written")
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


def verified_manifest(path: Path) -> dict[str, Any]:
    """What the checkpoint says of itself, once its files are seen to be what was written. Raises as
    :func:`~weightsmith.checkpoint.read`."""
    manifest = read_manifest(path)
    refuse_damage(path, manifest)
    return manifest


def refuse_damage(path: Path, manifest: Mapping[str, Any], *, share: int = 0, shares: int = 1) -> None:
    """Raise where a file is not what was written.

    Args:
        path: the checkpoint.
        manifest: what it says of itself.
        share: which of the shares into which the files fall, of about the same size, to look at.
        shares: how many there are.

    Raises:
        DamagedCheckpointError: one is not.
    """
    try:
        files = manifest["files"]
        for name in sorted(_files_of(manifest), key=lambda name: -int(files[name]["bytes"]))[share::shares]:
            found, expected = _sum(path / name), files[name]
            if found != expected:
                raise DamagedCheckpointError(
                    f"the checkpoint {path} is damaged: {name} has {found['bytes']} bytes with the SHA-256 "
                    f"{found['sha256'][:12]}…, where {expected['bytes']} with {expected['sha256'][:12]}… were written"
                )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise damaged(path, error) from error


def _files_of(manifest: Mapping[str, Any]) -> list[str]:
    """The names of the files besides the manifest."""
    return [WEIGHTS, STATE] if "processes" not in manifest else sorted(manifest["files"])


def sync_and_sum(path: Path) -> dict[str, Any]:
    """See a file to the disk, and give its size and SHA-256."""
    sync(path)
    return _sum(path)


def _sum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sealed(text: str) -> str:
    """A manifest with its own SHA-256 in the place left blank for it."""
    return text.replace(_BLANK, hashlib.sha256(text.encode()).hexdigest(), 1)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason_of(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__


def damaged(path: Path, error: Exception, name: str = "") -> DamagedCheckpointError:
    missing = [file for file in [*_expected(path), MANIFEST] if not (path / file).is_file()]
    what = f"{missing[0]} is missing" if missing else f"{name or 'it'} cannot be read ({reason_of(error)})"
    return DamagedCheckpointError(f"the checkpoint {path} is damaged: {what}")


def _expected(path: Path) -> list[str]:
    """The files that a checkpoint should have, as far as that can be told."""
    try:
        return _files_of(json.loads((path / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return [INDEX] if (path / INDEX).is_file() else [WEIGHTS, STATE]
