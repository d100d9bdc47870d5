"""Checkpoints: what a run consists of, and how it stands on the disk."""

from weightsmith.checkpoint.contents import collect
from weightsmith.checkpoint.finding import find, link, saved_in, sweep
from weightsmith.checkpoint.folder import Contents, write
from weightsmith.checkpoint.manifest import read_manifest
from weightsmith.checkpoint.restoring import restore
from weightsmith.checkpoint.several import find_together, open_checkpoint, read, write_together

__all__ = [
    "Contents",
    "collect",
    "find",
    "find_together",
    "link",
    "open_checkpoint",
    "read",
    "read_manifest",
    "restore",
    "saved_in",
    "sweep",
    "write",
    "write_together",
]
