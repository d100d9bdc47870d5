"""Checkpoints: what a run consists of, and how it stands on the disk."""

from weightsmith.checkpoint.contents import collect
from weightsmith.checkpoint.folder import (
    Contents,
    find,
    link,
    read_manifest,
    saved_in,
    sweep,
    verified_manifest,
    write,
)
from weightsmith.checkpoint.restoring import restore
from weightsmith.checkpoint.several import open_checkpoint, read, write_together

__all__ = [
    "Contents",
    "collect",
    "find",
    "link",
    "open_checkpoint",
    "read",
    "read_manifest",
    "restore",
    "saved_in",
    "sweep",
    "verified_manifest",
    "write",
    "write_together",
]
