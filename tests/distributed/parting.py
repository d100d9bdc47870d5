"""What a process that left its group tells of it."""

from pathlib import Path

__all__ = ["tell_what_is_left"]


def tell_what_is_left():
    """Print which threads of gloo live on: they may abort the process as Python ends."""
    threads = {task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
    print(f"left of the group: {sorted(name for name in threads if 'gloo' in name)}")
