"""Where a run writes: a folder of its own, and in it what the run was configured to be."""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from weightsmith.checkpoint import read_manifest, saved_in
from weightsmith.errors import ConfigurationError, WeightsmithError
from weightsmith.plugin import Plugin
from weightsmith.recipe import written

__all__ = ["choose_run_dir", "new_run_dir", "provisional_run_dir", "save_configuration"]


logger = logging.getLogger(__name__)


def new_run_dir(parent: str | Path) -> Path:
    """Make and return ``parent/<date>_<time>``; two runs never get the same folder.

    Raises:
        ConfigurationError: the folder cannot be made.
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in itertools.count():
        folder = Path(parent) / (f"{stamp}_{attempt}" if attempt else stamp)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.is_dir():
                raise ConfigurationError(f"cannot make the run folder {folder}: a file is in the way") from None
            continue
        except OSError as error:
            raise ConfigurationError(f"cannot make the run folder {folder}: {error.strerror}") from error
        return folder
    raise AssertionError("unreachable")


@contextlib.contextmanager
def provisional_run_dir(parent: str | Path) -> Iterator[Path]:
    """As :func:`new_run_dir`; the folder, and those made above it, go again if the block raises: for what is done
    before a run begins."""
    missing = [folder for folder in [Path(parent), *Path(parent).parents] if not folder.exists()]
    folder = new_run_dir(parent)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder)
        for made in missing:
            with contextlib.suppress(OSError):  # another run has begun there
                made.rmdir()
        raise


def choose_run_dir(parent: str | Path, resume: str | Path | None = None) -> tuple[Path, bool]:
    """Where a script's run has its place, and whether it goes on with one that is there.

    Args:
        parent: the folder of all runs of the script.
        resume: ``None``: a new run; ``"auto"``: the run in ``parent`` that was saved last, or a new one if none was;
            else the folder of a run, or one of its checkpoints.

    Raises:
        ConfigurationError: there is no such run, or a folder cannot be made.
    """
    if resume is None:
        return new_run_dir(parent), False
    if str(resume) == "auto":
        saved = {run: _last_saved(run) for run in Path(parent).glob("*") if run.is_dir()}
        if any(saved.values()):
            return max(saved, key=lambda run: saved[run]), True
        logger.warning("there is no saved run in %s: a new one begins", parent)
        return new_run_dir(parent), False
    path = Path(resume)
    if not path.is_dir():
        raise ConfigurationError(f"there is no run {path} to go on with: give its folder, or 'auto'")
    return path.parent.parent if path.parent.name == "checkpoints" else path, True


def _last_saved(run: Path) -> str:
    """When the newest checkpoint of a run was saved; empty if there is none."""
    for path in saved_in(run / "checkpoints"):
        with contextlib.suppress(WeightsmithError):
            manifest = read_manifest(path)
            if manifest.get("is_good"):
                return str(manifest.get("saved_at", ""))
    return ""


def save_configuration(folder: Path, options: Mapping[str, Any], plugins: Iterable[Plugin]) -> Path:
    """Write ``config.yaml``: the options of the run and its plugins, every default resolved where it was given."""
    path = folder / "config.yaml"
    configuration = {"options": dict(options), "plugins": [plugin.to_plain() for plugin in plugins]}
    path.write_text(written(configuration), encoding="utf-8")
    return path
