"""Several processes that train together: how they meet, what they settle, and who has what of the model and the data.

Over ``torch.distributed`` by way of ``ignite.distributed``. With one process nothing here sends or waits.
"""

from weightsmith.distributed.joining import joined, launched_rank, own_device
from weightsmith.distributed.models import parallel
from weightsmith.distributed.processes import (
    LateMaximum,
    any_process,
    first_does,
    from_first,
    gathered_objects,
    in_common,
    is_distributed,
    is_first,
    mean_over_processes,
    rank,
    refuse_disagreement,
    told_by_any,
    total_over_processes,
    world_size,
)
from weightsmith.distributed.restarts import Job, is_restarted, this_job
from weightsmith.distributed.sharing import share, warn_of_same_batch, warn_of_unshared

__all__ = [
    "Job",
    "LateMaximum",
    "any_process",
    "first_does",
    "from_first",
    "gathered_objects",
    "in_common",
    "is_distributed",
    "is_first",
    "is_restarted",
    "joined",
    "launched_rank",
    "mean_over_processes",
    "own_device",
    "parallel",
    "rank",
    "refuse_disagreement",
    "share",
    "this_job",
    "told_by_any",
    "total_over_processes",
    "warn_of_same_batch",
    "warn_of_unshared",
    "world_size",
]
