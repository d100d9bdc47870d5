"""``weightsmith view``: TensorBoard on runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from weightsmith import ConfigurationError

__all__ = ["view"]


def view(runs: Path = Path("runs"), *, port: int = 6006, host: str = "localhost") -> int:
    """Show runs in TensorBoard until Ctrl-C: their numbers, distributions, pictures and, under Custom Scalars, the
    telling charts that the runs laid out.

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
    process = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *options])
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        process.terminate()
        process.wait()
