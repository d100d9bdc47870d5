"""Where a run writes: a folder of its own, and in it what the run was configured to be."""

from __future__ import annotations

import contextlib
import enum
import itertools
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from weightsmith.checkpoint import read_manifest, saved_in
from weightsmith.distributed import first_does, is_first, is_restarted, this_job
from weightsmith.errors import ConfigurationError, WeightsmithError
from weightsmith.plugin import Plugin
from weightsmith.recipe import read_text, read_yaml, written
from weightsmith.signals import exiting_on_sigterm
from weightsmith.trainer import Trainer
from weightsmith.values import bare

__all__ = [
    "RunFolder",
    "begun_by_this_job",
    "begun_options",
    "choose_run_dir",
    "new_run_dir",
    "provisional_run_dir",
    "refuse_other_options",
    "run_folder",
    "run_of",
    "save_configuration",
]


logger = logging.getLogger(__name__)


def new_run_dir(parent: str | Path) -> Path:
    """Make and return ``parent/<date>_<time>``; two runs never get the same folder, and all processes of one run do.

    Raises:
        ConfigurationError: the folder cannot be made.
    """
    return first_does(lambda: _made_run_dir(parent))


def _made_run_dir(parent: str | Path) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in itertools.count():
        folder = Path(parent) / (f"{stamp}_{attempt}" if attempt else stamp)
        try:
            folder.mkdir(parents=True)
            _sign(folder)
        except FileExistsError:
            if not folder.is_dir():
                raise ConfigurationError(f"cannot make the run folder {folder}: a file is in the way") from None
            continue
        except OSError as error:
            raise ConfigurationError(f"cannot make the run folder {folder}: {error.strerror}") from error
        return folder
    raise AssertionError("unreachable")


def _sign(folder: Path) -> None:
    """Note which job of torchrun's the run belongs to from now on, if any."""
    job = this_job()
    if job is not None:
        job.sign(folder)


def begun_by_this_job(parent: str | Path, resume: str | Path | None = None) -> Path | None:
    """In a process that torchrun has restarted: the run that it began, or went on with, before, if that can be gone on
    with; else ``None``.

    Args:
        parent: the folder of all runs of the script.
        resume: the run, or the checkpoint, that it was to go on with, if it is none of those in ``parent``.
    """
    return first_does(lambda: _begun_by_this_job(parent, resume)) if is_restarted() else None


def _begun_by_this_job(parent: str | Path, resume: str | Path | None) -> Path | None:
    job = this_job()
    assert job is not None
    named = [] if resume is None or str(resume) == "auto" else [run_of(Path(resume))]
    signed = [run for run in [*Path(parent).glob("*"), *named] if job.has_signed(run)]
    saved = {run: _last_saved(run) for run in signed}
    found = max(saved, key=lambda run: saved[run]) if any(saved.values()) else None
    if found is None:
        logger.warning(
            "torchrun has restarted the processes before the run was saved for the first time: it begins anew"
        )
    return found


@contextlib.contextmanager
def provisional_run_dir(parent: str | Path) -> Iterator[Path]:
    """As :func:`new_run_dir`; the folder, and those made above it, go again if the block raises: for what is done
    before a run begins. The first process makes it, and takes it away."""
    if not is_first():
        yield new_run_dir(parent)
        return
    above = Path(parent).absolute()  # whoever changes the current folder meanwhile
    missing = [folder for folder in [above, *above.parents] if not folder.exists()]
    folder = new_run_dir(parent)
    made_here = folder.absolute()
    try:
        with exiting_on_sigterm():
            yield folder
    except BaseException:
        if not any((made_here / "checkpoints").glob("*")):  # nobody trained in it
            shutil.rmtree(made_here, ignore_errors=True)
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
        newest = first_does(lambda: _newest(parent))
        if newest is not None:
            return newest, True
        logger.warning("there is no saved run in %s: a new one begins", parent)
        return new_run_dir(parent), False
    path = Path(resume)
    if not path.is_dir():
        raise ConfigurationError(f"there is no run {path} to go on with: give its folder, or 'auto'")
    return run_of(path), True


def run_of(path: Path) -> Path:
    """The run that a path means, wherever it is seen from: itself, or that of which it is a checkpoint."""
    resolved = path.resolve()
    if (resolved / "checkpoints").is_dir():
        return path
    above = [folder.parent for folder in (resolved, resolved.parent) if folder.name == "checkpoints"]
    return above[0] if above else path


def _newest(parent: str | Path) -> Path | None:
    """The run that was saved last."""
    saved = {run: _last_saved(run) for run in Path(parent).glob("*") if run.is_dir()}
    return max(saved, key=lambda run: saved[run]) if any(saved.values()) else None


def _last_saved(run: Path) -> str:
    """When the newest checkpoint of a run was saved; empty if there is none."""
    for path in saved_in(run / "checkpoints"):
        with contextlib.suppress(WeightsmithError):
            manifest = read_manifest(path)
            if manifest.get("is_good"):
                return str(manifest.get("saved_at", ""))
    return ""


_MAY_CHANGE = ("epochs", "device", "shard", "runs", "resume")
"""Options that may be others when a run goes on."""


@dataclass(frozen=True)
class RunFolder:
    """Where a script's run has its place.

    Attributes:
        folder: the run's.
        options: the script's options, by name.
        resumed: the run, or the checkpoint, that this one goes on with; ``None`` for a new run.
    """

    folder: Path
    options: Mapping[str, Any]
    resumed: Path | None

    def begin(self, trainer: Trainer) -> None:
        """Write down what the run is configured to be; put the trainer where the other one was saved, if there is one.

        Raises:
            ConfigurationError: the other run began with other options, or with other plugins.
        """
        if self.resumed is not None:
            first_does(lambda: refuse_other_options(self.folder, self.options, but=_MAY_CHANGE))
            checkpoint = trainer.resume(self.resumed)
            if is_first():
                print(f"going on from {checkpoint}")
        first_does(lambda: self._write_down(trainer.plugins))

    def _write_down(self, plugins: Iterable[Plugin]) -> None:
        save_configuration(self.folder, self.options, plugins)
        _sign(self.folder)


@contextlib.contextmanager
def run_folder(parent: str | Path, resume: str | Path | None, options: Mapping[str, Any]) -> Iterator[RunFolder]:
    """The folder of a script's run. A new one goes again, with all that is in it, if the block raises: make the trainer
    in it. Where torchrun has restarted the processes, it is that of the run that they trained, if it was saved by then.

    Args:
        parent: the folder of all runs of the script.
        resume: as for :func:`choose_run_dir`.
        options: the script's options, by name.

    Raises:
        ConfigurationError: there is no such run, or a folder cannot be made.
    """
    begun = begun_by_this_job(parent, resume)
    if begun is not None:
        yield RunFolder(begun, options, begun)
        return
    is_auto = str(resume) == "auto"
    if resume is None or (is_auto and first_does(lambda: _newest(parent)) is None):
        if is_auto:
            logger.warning("there is no saved run in %s: a new one begins", parent)
        with provisional_run_dir(parent) as folder:
            yield RunFolder(folder, options, None)
        return
    folder, _ = choose_run_dir(parent, resume)
    yield RunFolder(folder, options, folder if is_auto else Path(resume))


def begun_options(parent: str | Path, resume: str | Path | None) -> dict[str, Any]:
    """The options that the run began with which is to go on, as plain values; none for a new run.

    Args:
        parent: the folder of all runs of the script.
        resume: as for :func:`choose_run_dir`.

    Raises:
        ConfigurationError: what the run's folder says of them is damaged.
    """
    return {} if resume is None else first_does(lambda: _begun_options(parent, resume))


def _begun_options(parent: str | Path, resume: str | Path) -> dict[str, Any]:
    folder = _newest(parent) if str(resume) == "auto" else run_of(Path(resume))
    return {} if folder is None else dict(_options_in(folder))


def _options_in(folder: Path) -> dict[str, Any]:
    """What :func:`save_configuration` wrote; nothing if it wrote nothing."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    found = read_yaml(path)
    begun = found.get("options") if isinstance(found, dict) else None
    if not isinstance(begun, dict):
        raise ConfigurationError(f"{path} does not say with which options the run began: it is damaged")
    return begun


def refuse_other_options(folder: Path, options: Mapping[str, Any], *, but: Iterable[str] = ()) -> None:
    """Raise where options are others than those that the run in the folder began with: going on with it, they would do
    nothing.

    Args:
        folder: of a run that :func:`save_configuration` described.
        options: by name.
        but: the names of those that may be others, such as ``"epochs"``.

    Raises:
        ConfigurationError: the message names each, with both values.
    """
    begun = _options_in(folder)
    now = read_text(written(_plain(options)), "options")
    others = [key for key in now if key not in but and key in begun and not _same(begun[key], now[key])]
    if others:
        shown = ", ".join(f"{key}={begun[key]!r}, not {now[key]!r}" for key in others)
        raise ConfigurationError(f"the run in {folder} began with {shown}: leave that out, or begin a new run")


def _same(one: Any, other: Any) -> bool:
    """Whether two plain values are the same; what is no number equals itself."""
    return bool(one == other) or written(one) == written(other)


def save_configuration(folder: Path, options: Mapping[str, Any], plugins: Iterable[Plugin]) -> Path:
    """Write ``config.yaml``: the options of the run and its plugins, every default resolved where it was given.

    Raises:
        ConfigurationError: an option is something that could not be read back; the message names it.
    """
    path = folder / "config.yaml"
    configuration = {"options": _plain(options), "plugins": [plugin.to_plain() for plugin in plugins]}
    new = folder / ".config.yaml"
    new.write_text(written(configuration), encoding="utf-8")
    return new.replace(path)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain_value(value, name) for name, value in options.items()}


def _plain_value(value: Any, option: str) -> Any:
    """An option's value, or a part of it, as YAML holds it: a path as its text, a member of an enum as its name."""
    value = bare(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (list, tuple)):
        return [_plain_value(item, option) for item in value]
    if isinstance(value, Mapping):
        return {_plain_value(key, option): _plain_value(item, option) for key, item in value.items()}
    raise ConfigurationError(
        f"the option {option}: {value!r} cannot be written to config.yaml: use numbers, texts, booleans, None, paths, "
        "and lists and mappings of these"
    )
