"""Tensors of which several processes have parts, on the disk: torch's distributed checkpointing, without its pickle.

::

    tensors-00000.safetensors …   what each process wrote: its parts of sharded tensors, and its share of the others
    index.json                    of each tensor the dtype, the shape, and which part is in which file

torch plans who writes what and who reads what. Its own files need ``pickle``, which may run code when it is read;
these do not.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from weightsmith.distributed import rank

__all__ = ["INDEX", "Parts", "is_storable", "write_parts"]

INDEX = "index.json"


def is_storable(value: Any) -> bool:
    """Whether safetensors can hold it."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
        return False
    return value.dtype not in (torch.complex128, torch.complex32)


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors, all processes together: of sharded ones each its part, of the others each some.

    Returns:
        The name of the file that this process wrote.

    Raises:
        OSError: any process could not.
    """
    writer, planner = _Writer(folder), DefaultSavePlanner(flatten_state_dict=False)
    try:
        save(dict(tensors), storage_writer=writer, planner=planner)
    except CheckpointException as error:
        number, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"process {number}: {cause}") from error
    return writer.name


class _Writer(StorageWriter):
    """Writes what torch plans."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = f"tensors-{rank():05d}.safetensors"

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:  # noqa: ARG003 - torch asks so
        return True

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        held: dict[str, Any] = {_name(item.index): planner.resolve_data(item) for item in plan.items}
        safetensors.torch.save_file(dict(_apart(held)), self._folder / self.name)
        results = [WriteResult(item.index, held[_name(item.index)].nbytes, self.name) for item in plan.items]
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files = {_name(result.index): result.storage_data for written in results for result in written}
        index = {key: _entry(key, facts, files) for key, facts in metadata.state_dict_metadata.items()}
        (self._folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _entry(key: str, facts: Any, files: Mapping[str, str]) -> dict[str, Any]:
    parts = [
        {"offsets": list(c.offsets), "sizes": list(c.sizes), "file": files[_part_name(key, c.offsets)]}
        for c in facts.chunks
        if _part_name(key, c.offsets) in files
    ]
    return {"dtype": str(facts.properties.dtype).removeprefix("torch."), "shape": list(facts.size), "parts": parts}


def _apart(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors in main memory, copied where they share it, as tied weights do, which safetensors refuses."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        storage = held.untyped_storage()
        yield name, held.clone() if storage.data_ptr() in seen or storage.nbytes() > held.nbytes else held
        seen.add(storage.data_ptr())


class Parts:
    """Tensors that :func:`write_parts` wrote, to be read whole or in part. Each process reads what it needs, and waits
    for no other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def index(self) -> dict[str, Any]:
        """Of each tensor its dtype, its shape and its parts."""
        found: dict[str, Any] = json.loads((self._folder / INDEX).read_text(encoding="utf-8"))
        return found

    def outline(self, key: str) -> Tensor:
        """A tensor without memory, of this one's dtype and shape."""
        entry = self.index[key]
        return torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")

    def load(self, targets: Mapping[str, Tensor]) -> None:
        """Fill tensors with what is saved under their names; of a sharded one, the part that is here."""
        planner = DefaultLoadPlanner(flatten_state_dict=False)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is .*assuming the intent", UserWarning)
                load(dict(targets), storage_reader=_Reader(self._folder, self.index), planner=planner, no_dist=True)
        except CheckpointException as error:
            cause, _ = next(iter(error.failures.values()))
            raise cause from error


class _Reader(StorageReader):
    """Reads what torch plans."""

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self._folder = folder
        self._index = index
        self._files = {
            _part_name(key, part["offsets"]): part["file"] for key, entry in index.items() for part in entry["parts"]
        }

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:  # noqa: ARG003 - torch asks so
        return True

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return Metadata({key: _facts(entry) for key, entry in self._index.items()})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file = defaultdict(list)
        for item in plan.items:
            by_file[self._files[_name(item.storage_index)]].append(item)
        for file, items in by_file.items():
            with safetensors.safe_open(self._folder / file, framework="pt") as held:
                for item in items:
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(_cut(held, item))
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def _cut(file: Any, item: Any) -> Tensor:
    name = _name(item.storage_index)
    if not item.lengths:
        whole: Tensor = file.get_tensor(name)
        return whole
    ranges = zip(item.storage_offsets, item.lengths, strict=True)
    part: Tensor = file.get_slice(name)[tuple(slice(start, start + length) for start, length in ranges)]
    return part


def _facts(entry: Mapping[str, Any]) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(p["offsets"]), torch.Size(p["sizes"])) for p in entry["parts"]]
    properties = TensorProperties(dtype=getattr(torch, entry["dtype"]))
    return TensorStorageMetadata(properties, torch.Size(entry["shape"]), chunks)


def _name(index: Any) -> str:
    return _part_name(index.fqn, index.offset or ())


def _part_name(key: str, offsets: Sequence[int]) -> str:
    """What a part is called in its file: where it begins in its tensor tells it from the others."""
    place = ",".join(map(str, offsets))
    return f"{key} @ {place}" if any(offsets) else key
