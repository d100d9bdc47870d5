"""Where a run's measurements are, and what they are."""

from __future__ import annotations

from pathlib import Path

from weightsmith import ConfigurationError

from weightsmith_plugins.jsonlines import read_lines
from weightsmith_plugins.series import Series
from weightsmith_plugins.tensorboard.reading import event_files, read_events

__all__ = ["find", "measured", "newest"]

_LINES = "measurements.jsonl"
_EVENTS = "events.out.tfevents.*"


def find(run: Path) -> Path:
    """The folder of the newest run that was written to a run folder: ``run_3`` in it before ``run_2``, and that before
    the folder itself, which goes by the name of ``run_1`` as well.

    Raises:
        ConfigurationError: there is no such folder, or nothing was measured in it.
    """
    if run.name == "run_1" and not run.exists() and run.parent.is_dir():
        candidates = [run.parent]
    elif not run.is_dir():
        what = "is a file" if run.exists() else "does not exist"
        raise ConfigurationError(f"report: {run} {what}: give the folder of a run, the Trainer's run_dir")
    else:
        numbered = {int(path.name[4:]): path for path in run.glob("run_*") if path.name[4:].isdecimal()}
        candidates = [*(numbered[number] for number in sorted(numbered, reverse=True)), run]
    for folder in candidates:
        if _has_measurements(folder):
            return folder
    raise ConfigurationError(f"report: {run} holds no measurements{_HINT}")


def newest(above: Path) -> Path:
    """The run in a folder that was measured last: the folder itself, or one below; itself if there is none."""
    files = [file for pattern in (_EVENTS, _LINES) for file in above.rglob(pattern) if file.stat().st_size]
    if not files:
        return above
    folder = max(files, key=lambda file: (file.stat().st_mtime_ns, file)).parent
    began_anew = folder != above and folder.name.startswith("run_") and folder.name[4:].isdecimal()
    return folder.parent if began_anew else folder


_HINT = ": train with the plugin TensorBoard() or JSONLines(), and with probes such as WeightHistograms() and Losses()"


def measured(folder: Path) -> Series:
    """What was measured in a run, from whatever files there are. What one has lost the other may have.

    Raises:
        ConfigurationError: the files cannot be read, or hold nothing.
    """
    lines = folder / _LINES
    try:
        series = read_lines(lines) if lines.is_file() else Series({}, {})
        series = series.completed_by(read_events(folder))
    except OSError as error:
        raise ConfigurationError(f"report: {folder} cannot be read: {error.strerror or error}") from error
    if not series:
        raise ConfigurationError(f"report: the files in {folder} hold no whole measurement{_HINT}")
    return series


def _has_measurements(folder: Path) -> bool:
    files = [*event_files(folder), folder / _LINES]
    return any(file.is_file() and file.stat().st_size for file in files)
