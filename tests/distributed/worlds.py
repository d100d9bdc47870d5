"""Several processes on this machine that do one piece of work together, over gloo on loopback."""

import os
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from parting import left_of_the_group
from torch.distributed.distributed_c10d import _world
from weightsmith.distributed.joining import _let_go_of

__all__ = ["together"]

_SECONDS = 120


def together(size, work, *arguments):
    """What ``work(*arguments)`` returns on each of ``size`` processes that have a group; tensors come back as they are.

    Raises what the first process that failed tells of it.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = mp.start_processes(
            _process, (size, folder, work, arguments), nprocs=size, join=False, start_method="spawn"
        )
        try:
            ends = context.join(timeout=_SECONDS * 2, grace_period=5)
            while not ends:
                ends = context.join(timeout=_SECONDS * 2, grace_period=5)
        except Exception:
            told = sorted(Path(folder).glob("*.failed"), key=lambda path: path.stat().st_mtime_ns)
            raise AssertionError(told[0].read_text() if told else traceback.format_exc()) from None
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _process(rank, size, folder, work, arguments):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", f"file://{folder}/meeting", rank=rank, world_size=size, timeout=timedelta(seconds=_SECONDS)
        )
        result = work(*arguments)
        torch.save(result, Path(folder) / f"{rank}.pt")
        dist.barrier()
        groups = set(_world.pg_map)
        dist.destroy_process_group()
        _let_go_of(groups)  # as joined() does: else a thread of gloo may abort the process as Python ends
        assert not left_of_the_group()
    except BaseException:
        (Path(folder) / f"{rank}.failed").write_text(f"process {rank} of {size}:\n{traceback.format_exc()}")
        raise
