"""How the processes that torchrun started meet, and how they part."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.distributed.comp_models.native import _NativeDistModel
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import _set_pg_timeout, _world
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.rendezvous import rendezvous

from weightsmith.errors import ConfigurationError, WeightsmithError

__all__ = ["joined", "launched_rank", "own_device"]

logger = logging.getLogger(__name__)

_TIMEOUT = "WEIGHTSMITH_TIMEOUT"
"""The environment variable with the seconds that a process waits for another one before it gives up."""
_SECONDS = 60.0
_ATTEMPTS = 4
_CONNECTING = timedelta(seconds=15)
"""How long an attempt to connect may take."""
_PARTING_SECONDS = 5.0
_COLLECTIONS = 8
"""The most that may be needed: what parts in C++ hold, into which the collector does not see, is garbage to it only
once what holds these parts is gone."""
_joins = itertools.count()
"""Numbers of the groups that this process joins, one after another."""


@contextlib.contextmanager
def joined(device: str | torch.device = "cpu", timeout: float | None = None) -> Iterator[None]:
    """While the context lasts, this process belongs to the group that torchrun's environment describes. Without such an
    environment, or with one process in it, or in a group already, nothing happens.

    At the end all wait for one another. No thread of the group stays, unless something holds it that is still in use,
    as a model on several processes does: train in a function that has ended by then. After an exception none waits: the
    process ends at once, with its error, and torchrun ends the others.

    Args:
        device: what is computed on: ``cuda`` is the GPU with this process's local rank (over NCCL, not run here), and
            anything else talks over gloo.
        timeout: seconds to wait for another process before giving up. Default: the environment's
            ``WEIGHTSMITH_TIMEOUT``, or 60. What one process does alone, while the others wait, must be over by then.

    Raises:
        WeightsmithError: the others cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    _join(torch.device(device), timedelta(seconds=_seconds() if timeout is None else timeout))
    try:
        yield
        _wait_for_all()
        groups = set(_world.pg_map)
        _part()
        _let_go_of(groups)
    except Exception as error:
        _tell_torchrun(error)  # first, so that it does not blame whom the leaving breaks
        raise
    finally:
        _leave()


def own_device(device: str) -> str:
    """The device that a process is to compute on: its own GPU, where torchrun started several for ``cuda``.

    >>> own_device("cpu")
    'cpu'
    """
    is_shared = device == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
    return f"cuda:{_local_rank()}" if is_shared else device


def launched_rank() -> int:
    """The number that torchrun gave this process, which it has before it has joined the others, and after; else 0."""
    return int(os.environ.get("RANK", "0"))


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _seconds() -> float:
    given = os.environ.get(_TIMEOUT, str(_SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ConfigurationError(f"{_TIMEOUT}={given!r}: give the seconds to wait for another process, such as 60")
    return seconds


def _join(device: torch.device, timeout: timedelta) -> None:
    """Meet the others; again if it fails on any process."""
    backend = "gloo"
    if device.type == "cuda":  # not run here
        torch.cuda.set_device(_local_rank() if device.index is None else device.index)
        backend = "nccl"
    try:
        whole, rank, size = next(rendezvous("env://", timeout=timeout))
        whole.set_timeout(timeout)
        # The store outlives a restart, and a group: without a name for each, gloo calls at the address of the dead.
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"restart_{restart}_of_{size}_group_{next(_joins)}", whole)
        for attempt in range(_ATTEMPTS):
            problem = _connect(backend, PrefixStore(f"attempt_{attempt}", store), rank, size, min(timeout, _CONNECTING))
            if _is_said_by_all(problem is None, PrefixStore(f"met_{attempt}", store), size):
                _set_pg_timeout(timeout)
                idist.utils._set_model(_Launched())
                return
            logger.warning("the processes could not connect (attempt %d of %d)", attempt + 1, _ATTEMPTS)
            if dist.is_initialized():  # here, but not on another
                dist.destroy_process_group()
    except dist.DistError as error:
        raise WeightsmithError(f"the other processes cannot be reached: {error}") from error
    raise WeightsmithError(
        f"the processes could not connect in {_ATTEMPTS} attempts: {problem or 'another one failed'}"
    ) from problem


def _connect(backend: str, store: Store, rank: int, size: int, timeout: timedelta) -> Exception | None:
    """Connect to all others; what went wrong."""
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except RuntimeError as error:
        return error
    return None


class _Launched(_NativeDistModel):
    """Ignite's view of the group, told by torchrun what it would else make a group of its own to find out."""

    def _identify_local_rank(self) -> None:
        self._local_rank = _local_rank()

    def _compute_nproc_per_node(self) -> int:
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _is_said_by_all(said: bool, store: Store, size: int) -> bool:
    """Whether it is so on every process. Over the store, as the group may not work on some."""
    store.add("failed", int(not said))
    if store.add("here", 1) == size:
        store.set("verdict", str(store.add("failed", 0)))
    return int(store.get("verdict")) == 0


def _wait_for_all() -> None:
    if dist.get_backend() == "nccl":  # not run here
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


def _tell_torchrun(error: Exception) -> None:
    """Write the error to the file in which torchrun looks for it, whole or not at all: half a file, of a process that
    it ends meanwhile, ends torchrun too."""
    path = os.environ.get(_ERROR_FILE)
    if path is None:
        return
    os.environ[_ERROR_FILE] = f"{path}.new"
    try:
        get_error_handler().record_exception(error)
        with contextlib.suppress(OSError):  # torchrun may have cleaned up
            Path(f"{path}.new").replace(path)
    finally:
        os.environ[_ERROR_FILE] = path


_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def _leave() -> None:
    """Leave the group without waiting for anybody. What another process was promised and never gets would keep gloo
    from parting until the timeout, so a thread that ends with the process does it."""
    if not dist.is_initialized():
        return
    parting = threading.Thread(target=_part, name="leaving the process group", daemon=True)
    parting.start()
    parting.join(_PARTING_SECONDS)


def _part() -> None:
    with contextlib.suppress(Exception):  # the group may be broken, which is why it is left
        idist.finalize()


def _let_go_of(groups: set[dist.ProcessGroup]) -> None:
    """Let go of what would keep groups that were left, and so their threads: models on several processes that are
    garbage, in cycles, and meshes that torch's caches of sharded tensors hold for good. A thread of gloo that frees a
    tensor while Python ends aborts the process, as is described in https://github.com/pytorch/pytorch/pull/179291."""
    meshes = [each for each in gc.get_objects() if issubclass(type(each), DeviceMesh)]
    for registry in [getattr(mesh, "_pg_registry", {}) for mesh in meshes]:  # torch 2.6 has none
        for name in [name for name, group in registry.items() if group in groups]:
            del registry[name]
    del meshes
    groups.clear()  # which the caller has too
    for _ in range(_COLLECTIONS):
        if not gc.collect():
            break
