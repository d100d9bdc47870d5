"""Checkpoints: what a run consists of, and how it stands on the disk."""

from weightsmith.checkpoint.contents import collect, first_nonfinite, restore
from weightsmith.checkpoint.folder import Contents, find, read, read_manifest, sweep, write

__all__ = ["Contents", "collect", "find", "first_nonfinite", "read", "read_manifest", "restore", "sweep", "write"]
