"""A checkpoint that several processes write together.

::

    checkpoints/00000120/
    ├─ tensors-00000.safetensors …   the tensors of the run, each once (:mod:`weightsmith.checkpoint.parts`)
    ├─ index.json                    what is where in these
    ├─ rank-00000.pt …               of each process everything else, and the tensors that no other has alike
    └─ manifest.json                 what it is, how many processes wrote it, the size and SHA-256 of every file

A tensor that all processes have alike is found by its content, so that nobody need say what is shared and what is a
process's own: random states, gradients that are still to be averaged, running statistics between two means.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsmith.checkpoint.finding import itself, newest_good, saved_of
from weightsmith.checkpoint.folder import Contents, begin, commit, read_one, reading, refuse_to_replace, writing
from weightsmith.checkpoint.manifest import read_manifest, refuse_damage, sync_and_sum, verified_manifest
from weightsmith.checkpoint.parts import INDEX, Parts, is_storable, write_parts
from weightsmith.checkpoint.trees import Place, key_of, replaced, tensors_in
from weightsmith.distributed import first_does, from_first, gathered_objects, in_common, is_first, rank, world_size
from weightsmith.shards import is_sharded

__all__ = ["find_together", "open_checkpoint", "read", "write_together"]

_SHARED = "weightsmith.Shared"
"""In a process's file, the key of a dict that stands in the place of a shared tensor."""


# -------------------------------------------------------------------- writing


def write_together(path: Path, contents: Contents, *, is_good: bool) -> None:
    """As :func:`~weightsmith.checkpoint.write`, by all processes together: there as a whole, or on none."""
    tree = {"weights": contents.weights, **contents.state}
    first_does(lambda: refuse_to_replace(path))
    with writing(path) as partial:
        first_does(lambda: begin(partial))
        shared = _shared(tree)
        names = [write_parts(partial, shared), _rank_file(rank())]
        in_common(lambda: _save_own(_without(tree, shared), partial, names))
        names += [INDEX] if is_first() else []
        written = in_common(lambda: {name: sync_and_sum(partial / name) for name in names})
        files = {name: facts for each in gathered_objects(written) for name, facts in each.items()}
        facts = {"processes": world_size(), **contents.manifest}
        first_does(lambda: commit(partial, path, facts, files, is_good=is_good))


def _save_own(tree: Any, partial: Path, names: list[str]) -> None:
    parts, own = names
    torch.save(tree, partial / own)
    shutil.copymode(partial / own, partial / parts)  # safetensors lets nobody else read


def _rank_file(number: int) -> str:
    return f"rank-{number:05d}.pt"


def _shared(tree: Any) -> dict[str, Tensor]:
    """The sharded tensors, and those that all processes have alike."""
    tensors = {key_of(path): tensor for path, tensor in tensors_in(tree) if is_storable(tensor)}
    sharded = {key for key, tensor in tensors.items() if is_sharded(tensor)}
    facts = {key: _content(tensor) for key, tensor in tensors.items() if key not in sharded}
    of_first = from_first(facts)
    others = {key for key in facts.keys() | of_first.keys() if facts.get(key) != of_first.get(key)}
    own = set().union(*gathered_objects(others))
    return {key: tensor for key, tensor in tensors.items() if key not in own}


def _content(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    """What tells a tensor from another: its dtype, its shape, and a digest of its bytes."""
    held = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    values = held.reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.blake2b(values, digest_size=16).digest()  # type: ignore[arg-type]  # NumPy's arrays are buffers
    return str(tensor.dtype), tuple(tensor.shape), digest


def _without(tree: Any, shared: Mapping[str, Tensor]) -> Any:
    """The tree with a mark in the place of each shared tensor."""

    def marked(path: Place, value: Any) -> Any:
        return {_SHARED: key_of(path)} if isinstance(value, Tensor) and key_of(path) in shared else value

    return replaced(tree, marked)


# -------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Saved:
    """What lies in the folder of such a checkpoint."""

    path: Path
    processes: int

    @functools.cached_property
    def _parts(self) -> Parts:
        return Parts(self.path)

    def holds(self, key: str) -> bool:
        """Whether there is a shared tensor under a key."""
        return key in self._parts.index

    def load(self, targets: Mapping[str, Tensor]) -> None:
        """Fill tensors with what is saved under these keys; of a sharded one, the part that is here."""
        with reading(self.path):
            self._parts.load(targets)

    def trees(self) -> Iterator[Any]:
        """What each process saved, shared tensors outlined, in the order of their ranks."""
        return map(self.tree, range(self.processes))

    def tree(self, number: int) -> Any:
        """What one process saved."""
        with reading(self.path):
            found = torch.load(self.path / _rank_file(number), map_location="cpu", weights_only=True, mmap=True)
        return self._outlined(found)

    def _outlined(self, tree: Any) -> Any:
        if isinstance(tree, dict):
            if tree.keys() == {_SHARED}:
                return self._parts.outline(tree[_SHARED])
            return type(tree)({key: self._outlined(value) for key, value in tree.items()})
        if isinstance(tree, (list, tuple)):
            return type(tree)(map(self._outlined, tree))
        return tree


def find_together(path: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that ``path`` means, as :func:`~weightsmith.checkpoint.find` has it, and what it says of itself,
    once its files are seen to be what was written: by all processes, each of which reads its share of them. Raises as
    :func:`read`, on every one."""
    direct = first_does(lambda: itself(path))
    if direct is not None:
        return direct, _verified_together(direct)
    return newest_good(path, first_does(lambda: saved_of(path)), _verified_together)


def _verified_together(path: Path) -> dict[str, Any]:
    manifest = first_does(lambda: read_manifest(path))
    in_common(lambda: refuse_damage(path, manifest, share=rank(), shares=world_size()))
    return manifest


def open_checkpoint(path: Path, manifest: Mapping[str, Any]) -> Contents:
    """What this process goes on from, of a checkpoint whose files are what was written. Of what several processes
    wrote, the shared tensors are outlined only: each process reads the parts that it needs."""
    if "processes" not in manifest:
        return read_one(path, manifest)
    saved = _Saved(path, int(manifest["processes"]))
    state = saved.tree(rank() if saved.processes == world_size() else 0)
    return Contents(state.pop("weights"), state, manifest, saved)


def read(path: Path) -> Contents:
    """Read a whole checkpoint, and see that it is what was written. Of what several processes wrote, it is what the
    first has, with all shared tensors whole.

    Raises:
        DamagedCheckpointError: it is not.
        CheckpointError: there is none.
        ConfigurationError: it was written in another form, or would run code.
    """
    contents = open_checkpoint(path, verified_manifest(path))
    if contents.source is None:
        return contents
    source, targets = contents.source, dict[str, Tensor]()

    def whole(place: Place, value: Any) -> Any:
        if not (isinstance(value, Tensor) and source.holds(key_of(place))):
            return value
        return targets.setdefault(key_of(place), torch.empty(value.shape, dtype=value.dtype))

    tree = replaced({"weights": contents.weights, **contents.state}, whole)
    source.load(targets)
    return replace(contents, weights=tree.pop("weights"), state=tree, source=None)
