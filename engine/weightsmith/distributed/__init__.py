"""Several processes that train together: how they meet, what they settle, and who has what of the model and the data.

Over ``torch.distributed`` by way of ``ignite.distributed``. With one process nothing here sends or waits.
"""

from weightsmith.distributed.joining import joined, launched_rank, own_device
from weightsmith.distributed.models import parallel
from weightsmith.distributed.processes import (
    any_process,
    from_first,
    gathered_objects,
    is_distributed,
    is_first,
    mean,
    on_first,
    own_seed,
    rank,
    total_over_processes,
    world_size,
)
from weightsmith.distributed.restarts import Job, is_restarted, this_job
from weightsmith.distributed.sharing import share, warn_of_same_batch

__all__ = [
    "Job",
    "any_process",
    "from_first",
    "gathered_objects",
    "is_distributed",
    "is_first",
    "is_restarted",
    "joined",
    "launched_rank",
    "mean",
    "on_first",
    "own_device",
    "own_seed",
    "parallel",
    "rank",
    "share",
    "this_job",
    "total_over_processes",
    "warn_of_same_batch",
    "world_size",
]
