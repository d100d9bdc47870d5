"""Every built-in plugin on one process, on several with a copy each, and on several that share the weights out."""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

warnings.filterwarnings("ignore", category=DeprecationWarning)

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402
from weightsmith import Trainer  # noqa: E402
from weightsmith.distributed import rank, world_size  # noqa: E402
from weightsmith.shards import gather  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from worlds import together  # noqa: E402

BATCH = 8


def cases(folder):
    sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
    with mock.patch("tempfile.mkdtemp", return_value=str(folder)):
        from test_conformance import CASES
    return CASES


def network(case):
    """The suite's network for a case, the same on every process."""
    torch.manual_seed(0)
    if case.layer is None:
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
    return nn.Sequential(case.layer(), nn.Tanh(), case.layer())


def parallel(model, how):
    if how == "copies":
        return DistributedDataParallel(model)
    if how == "shards":
        return fully_shard(model, mesh=init_device_mesh("cpu", (world_size(),)), reshard_after_forward=True)
    return model


def trained(case, how, updates, run_dir):
    """The weights after some updates on the same global batches."""
    model = parallel(network(case), how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(BATCH, *case.inputs[1:], generator=generator)[rank() :: world_size()] for _ in range(3)]

    def step(trainer, batch):
        return trainer.update(lambda: model(batch).square().mean())

    trainer = Trainer(model, optimizer, step=step, plugins=[case.plugin], seed=0, run_dir=run_dir)
    trainer.run(batches, max_iters=updates)
    return {name: gather(weight.detach()).clone() for name, weight in trainer.weights().items()}


def all_trained(folder, how, updates, chosen):
    """Case to the weights, or to what went wrong. (One that fails on one process fails on all.)"""
    ends = {}
    for number, case in enumerate(cases(folder)):
        if chosen and type(case.plugin).__name__ not in chosen:
            continue
        try:
            ends[str(case)] = trained(case, how, updates, Path(folder) / f"{how}-{world_size()}-{number}")
        except Exception as error:
            if chosen:
                raise
            ends[str(case)] = f"{type(error).__name__}: {error}"
    return ends


def differences(one, others):
    """For each case, the largest difference between two runs' weights; or what went wrong in one of them."""
    for case, weights in one.items():
        problems = [end for end in (weights, others[case]) if isinstance(end, str)]
        if problems:
            yield case, problems[0]
        else:
            yield case, max(float((weights[name] - others[case][name]).abs().max()) for name in weights)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[], help="plugin classes")
    parser.add_argument("--worlds", nargs="*", default=["copies:2", "copies:4", "shards:2"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one = all_trained(folder, "one", options.updates, options.only)
        table = {case: [] for case in one}
        for world in options.worlds:
            how, size = world.split(":")
            ends = together(int(size), all_trained, folder, how, options.updates, options.only)
            for case, difference in differences(one, ends[0]):
                table[case].append(difference)
    for case, row in table.items():
        print("  ".join(f"{v:.1e}" if isinstance(v, float) else v[:150] for v in row), case)


if __name__ == "__main__":
    main()
