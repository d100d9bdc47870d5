"""What a process that left its group tells of it."""

from pathlib import Path

__all__ = ["left_of_the_group", "tell_what_is_left"]


def left_of_the_group():
    """Which threads of gloo live on: they may abort the process as Python ends."""
    threads = {task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
    return sorted(name for name in threads if "gloo" in name)


def tell_what_is_left():
    """Print it."""
    print(f"left of the group: {left_of_the_group()}")
