"""``weightsmith view`` and ``weightsmith report``, which the command line finds as it finds plugins."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from weightsmith import ConfigurationError

from weightsmith_plugins import report as reporting

__all__ = ["report", "view"]


def report(run: Path, *, to: Path | None = None, where: str = "*") -> None:
    """Draw a run on one page, for people who would rather look than browse: ridge plots of every weight's distribution
    over the epochs, norms, sparsity, violations, penalties, metrics. Needs ``pip install "weightsmith[report]"``.

    Args:
        run: the run's folder, or one above several, of which the newest is drawn.
        to: the file, whose suffix says what it is: ``.html``, or a tall picture as ``.png``, ``.svg`` or ``.pdf``.
            Default: ``report.html`` in the run's folder.
        where: a glob on names: which weights to draw.
    """
    print(f"the report is in {reporting.report(run, to, where)}")


def view(runs: Path = Path("runs"), *, port: int = 6006, host: str = "localhost") -> NoReturn:
    """Show runs in TensorBoard until Ctrl-C: their numbers, distributions, pictures and, under Custom Scalars, the
    telling charts that the runs laid out. TensorBoard takes this process's place.

    Args:
        runs: a run's folder, or one above several, which are then compared.
        port: where the page is served.
        host: on which of the machine's names; ``0.0.0.0`` shows it to the network.

    Raises:
        ConfigurationError: there is no such folder, or no run in it was logged.
    """
    if not runs.is_dir():
        raise ConfigurationError(f"there is no folder {runs}: give that of a run, or one above several")
    if not any(runs.rglob("events.out.tfevents.*")):
        raise ConfigurationError(f"nothing in {runs} was logged for TensorBoard: train with the plugin TensorBoard")
    options = [f"--logdir={runs}", f"--port={port}", f"--host={host}", "--reload_interval=5"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *options])  # so signals reach TensorBoard alone
