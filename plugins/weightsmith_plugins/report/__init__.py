"""A run at a glance, for people who would rather look than browse: one page, or one picture. Draws with matplotlib:
``pip install "weightsmith[report]"``."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from pathlib import Path

from weightsmith import ConfigurationError

from weightsmith_plugins.report.finding import find, measured, newest

__all__ = ["report"]

_FORMS = (".html", ".png", ".svg", ".pdf")


def report(run: Path, to: Path | None = None, where: str = "*") -> Path:
    """Draw a run, finished or interrupted, on one page: metrics, losses, a ridge plot of every weight's distribution
    over the epochs, norms, sparsity, violations, penalties, gradients, and whatever else was measured.

    Reads what ``TensorBoard()`` or ``JSONLines()`` wrote. A page is one file without scripts and without anything from
    elsewhere. Of many weights, 24 are drawn in a section, spread evenly over the model, and the section says so.

    Args:
        run: the run's folder, or one above several, of which the newest is drawn. Of several runs that began anew in
            one folder, the newest, in run_2, run_3 and so on; run_1 names the first.
        to: the file to write, whose folder is made if missing: a page (.html) or one tall picture (.png, .svg, .pdf).
            What was there is replaced. Default: report.html in the run's folder.
        where: which weights, as a glob on their names; a module's name stands for all below it.

    Returns:
        The file.

    Raises:
        ConfigurationError: there is no such run, nothing was measured in it, no weight has such a name, the file cannot
            be written or is of another kind, or matplotlib is not installed.
    """
    run = newest(Path(run).expanduser())
    folder = find(run)
    path = Path(to).expanduser() if to is not None else (run if run.is_dir() else folder) / "report.html"
    form = path.suffix.lower()
    if form not in _FORMS:
        raise ConfigurationError(f"report: cannot write {path}: give a name that ends in {', '.join(_FORMS)}")
    try:
        from matplotlib import style

        from weightsmith_plugins.report import contents, page, picture
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ConfigurationError(
            'report: draws with matplotlib, which is not installed: pip install "weightsmith[report]"'
        ) from error
    with style.context("default"), warnings.catch_warnings():  # whatever the user's own matplotlib looks like
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in a script that the font lacks
        shown = contents.contents(_title(folder), measured(folder), where)
        data = page.page(shown).encode() if form == ".html" else picture.picture(shown, form[1:])
    _write(path, data)
    return path


_BARE = re.compile(r"run_\d+|\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?")
"""What a folder is called by a number or by the date alone, which says nothing of what was run."""


def _title(folder: Path) -> str:
    """The run's name: its folder's, with those above it as far as a bare one needs them."""
    folder = folder.resolve()
    return f"{_title(folder.parent)} / {folder.name}" if _BARE.fullmatch(folder.name) else folder.name


def _write(path: Path, data: bytes) -> None:
    """All or nothing: a reader never finds half a page."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise ConfigurationError(f"report: cannot write {path}: {error.strerror or error}") from error
