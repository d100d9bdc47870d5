"""Where a run writes: a folder of its own, and in it what the run was configured to be."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from weightsmith.errors import ConfigurationError
from weightsmith.plugin import Plugin

__all__ = ["new_run_dir", "save_configuration"]


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


def save_configuration(folder: Path, options: Mapping[str, Any], plugins: Iterable[Plugin]) -> Path:
    """Write ``config.yaml``: the options of the run and its plugins, every default resolved where it was given."""
    path = folder / "config.yaml"
    configuration = {"options": dict(options), "plugins": [plugin.to_plain() for plugin in plugins]}
    path.write_text(yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path
