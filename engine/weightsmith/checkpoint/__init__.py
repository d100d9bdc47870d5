"""Checkpoints: what a run consists of, and how it stands on the disk."""

from weightsmith.checkpoint.contents import collect, restore
from weightsmith.checkpoint.folder import Contents, find, link, read, read_manifest, saved_in, sweep, write

__all__ = [
    "Contents",
    "collect",
    "find",
    "link",
    "read",
    "read_manifest",
    "restore",
    "saved_in",
    "sweep",
    "write",
]
