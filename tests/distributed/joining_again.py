"""What each process does in the test of groups one after another: it adds up over three of them, by sharded weights."""

import torch
import torch.distributed as dist
from parting import tell_what_is_left
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from weightsmith.distributed import joined, world_size


def total():
    """1 + 2, each of another process."""
    mesh = init_device_mesh("cpu", (world_size(),))
    summed = distribute_tensor(torch.tensor([1.0, 2.0]), mesh, [Shard(0)]).redistribute(placements=[Replicate()])
    dist.all_reduce(mine := torch.tensor(float(dist.get_rank() + 1)))
    assert summed.to_local().sum() == mine
    return mine.item()


if __name__ == "__main__":
    for number in range(3):
        with joined():
            print(f"group {number}: {total()}")
    tell_what_is_left()
