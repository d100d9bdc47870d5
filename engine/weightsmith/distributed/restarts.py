"""Which job of torchrun's this process belongs to, so that a process that it restarted finds its forerunner's run."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Job", "is_restarted", "this_job"]

_FILE = ".torchrun.json"
"""In a run's folder: the job that trained it last."""


@dataclass(frozen=True)
class Job:
    """One call of torchrun, told from all others by its agent: the process that starts this one, and starts it again.

    The name that torchrun gives a job does not tell: it is ``none`` by default, and a user's own is given again from
    call to call, as are address and port. A process is told by its number only together with when it started.

    Attributes:
        run_id: torchrun's name for it.
        host: where the agent runs.
        agent: the agent's process number.
        started: when the agent started, in ticks since the machine did; empty where the system does not tell.
    """

    run_id: str
    host: str
    agent: int
    started: str

    def sign(self, folder: Path) -> None:
        """Note in a run's folder that this job trains it."""
        new = folder / f"{_FILE}.new"
        new.write_text(json.dumps(asdict(self)), encoding="utf-8")
        new.replace(folder / _FILE)

    def has_signed(self, folder: Path) -> bool:
        """Whether the run in a folder was trained by this job last."""
        try:
            return bool(json.loads((folder / _FILE).read_text(encoding="utf-8")) == asdict(self))
        except (OSError, ValueError):
            return False


def this_job() -> Job | None:
    """The job of torchrun's that this process belongs to; ``None`` if torchrun did not start it."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None:
        return None
    agent = os.getppid()
    return Job(run_id, socket.gethostname(), agent, _started(agent))


def is_restarted() -> bool:
    """Whether torchrun started this process in place of one that it had started before (``--max-restarts``)."""
    return this_job() is not None and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def _started(process: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return fields[19]  # the 22nd of all
    return ""
