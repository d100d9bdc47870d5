"""Every built-in plugin on one process, on several with a copy of the weights each, and on several that share them out.

Prints, for each, the largest difference between the weights, and what plugins measured and remember of them, after some
updates on the same global batches.
"""

import argparse
import json
import logging
import math
import sys
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", category=DeprecationWarning)

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from weightsmith import ConfigurationError, Trainer
from weightsmith.distributed import rank, world_size
from weightsmith.shards import gather
from weightsmith.testing.scenes import measured

sys.path.insert(0, str(Path(__file__).parent))
import tables
from worlds import together

WORLDS = ("copies:2", "copies:4", "shards:2", "shards:4")
BATCH = 8
SHARED = ("weights", "memory")


class Mixed(nn.Module):
    """Layers whose units lie otherwise: an embedding with padding, gates, transposed convolutions, tied weights."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=0)
        self.recurrent = nn.LSTM(4, 4, batch_first=True)
        self.up = nn.ConvTranspose1d(4, 6, 2)
        self.grouped = nn.ConvTranspose1d(6, 6, 2, groups=3)
        self.norm = nn.GroupNorm(2, 6)
        self.head = nn.Linear(6, 4)
        self.back = nn.Linear(4, 7, bias=False)
        self.back.weight = self.embedding.weight

    def forward(self, batch):
        tokens = (batch.abs() * 4).long().clamp(max=6)
        hidden = self.recurrent(self.embedding(tokens))[0]
        raised = self.norm(self.grouped(self.up(hidden.mT)))
        return self.back(torch.tanh(self.head(raised.mT)))


def cases():
    sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
    from test_conformance import CASES

    return CASES


def network(case, kind):
    """A network for a case, the same on every process."""
    torch.manual_seed(0)
    if kind == "mixed":
        return Mixed()
    if case.layer is None:
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
    return nn.Sequential(case.layer(), nn.Tanh(), case.layer())


def parallel(model, how):
    if how == "copies":
        return DistributedDataParallel(model)
    if how == "hybrid":  # copies of shards
        mesh = init_device_mesh("cpu", (2, world_size() // 2), mesh_dim_names=("copies", "shards"))
        return fully_shard(model, mesh=mesh, reshard_after_forward=True)
    if how == "shards":
        return fully_shard(model, mesh=init_device_mesh("cpu", (world_size(),)), reshard_after_forward=True)
    return model


def trained(case, kind, how, updates, run_dir):
    """What a run on the global batches ends with."""
    model = parallel(network(case, kind), how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    shape = (BATCH, *case.inputs[1:]) if kind == "suite" else (BATCH, 5)
    batches = [torch.randn(shape, generator=generator)[rank() :: world_size()] for _ in range(3)]

    def step(trainer, batch):
        return trainer.update(lambda: model(batch).square().mean())

    trainer = Trainer(model, optimizer, step=step, plugins=[case.plugin], seed=0, run_dir=run_dir)
    published = measured(trainer)
    trainer.run(batches, max_iters=updates)
    memory = [state["memory"] for state in trainer.own_state()["plugins"].values() if state.get("memory")]
    return {
        "weights": {name: gather(weight.detach()).clone() for name, weight in trainer.weights().items()},
        "memory": whole(memory),
        "measured": whole(published),
    }


def whole(value):
    if isinstance(value, Tensor):
        return gather(value).clone()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, (list, tuple)) else value


def all_trained(folder, how, kind, updates, chosen, dtype):
    """Case to what its run ends with, or to what went wrong. (What fails on one process fails on all.)"""
    torch.set_default_dtype(dtype)
    logging.disable(logging.ERROR)
    ends = {}
    for number, case in enumerate(cases()):
        if chosen and type(case.plugin).__name__ not in chosen:
            continue
        run_dir = Path(folder) / f"{how}-{world_size()}-{kind}-{dtype}-{number}"
        try:
            ends[str(case)] = trained(case, kind, how, updates, run_dir)
        except ConfigurationError as error:
            ends[str(case)] = f"{type(error).__name__}: {error}"
    return ends


def difference(one, other):
    """The largest between the numbers of two nested values, relative to the value where that is above 1; infinite where
    something else differs."""
    if isinstance(one, dict):
        pairs = [(one[key], other[key]) for key in one] if one.keys() == other.keys() else [("these", "those")]
    elif isinstance(one, (list, tuple)):
        pairs = list(zip(one, other, strict=True)) if len(one) == len(other) else [("these", "those")]
    elif isinstance(one, (Tensor, int, float)):
        return _distance(*(torch.as_tensor(value).double() for value in (one, other)))
    else:
        return 0.0 if one == other else math.inf
    return max((difference(*pair) for pair in pairs), default=0.0)


def _distance(one, other):
    one, other = one.reshape(-1), other.reshape(-1)
    if one.shape != other.shape or not torch.equal(one.isfinite(), other.isfinite()):
        return math.inf
    return float(((one - other).nan_to_num(0.0).abs() / one.abs().clamp(min=1)).max()) if one.numel() else 0.0


def compared(folder, kind, updates, chosen, dtype, worlds):
    """Case to a row: for each world the largest difference to one process, and between its own processes."""
    one = all_trained(folder, "one", kind, updates, chosen, dtype)
    rows = {case: {} for case, end in one.items() if not isinstance(end, str)}
    for world in worlds:
        how, size = world.split(":")
        ends = together(int(size), all_trained, folder, how, kind, updates, chosen, dtype)
        for case, row in rows.items():
            row[world] = difference(one[case], ends[0][case])
            row[f"{world} among themselves"] = max(
                difference([ends[0][case][part] for part in SHARED], [end[case][part] for part in SHARED])
                for end in ends[1:]
            )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[], help="plugin classes")
    parser.add_argument("--worlds", nargs="*", default=WORLDS)
    parser.add_argument("--kinds", nargs="*", default=["suite", "mixed"])
    parser.add_argument("--dtypes", nargs="*", default=["float64", "float32"])
    parser.add_argument("--page", action="store_true", help="write the table into docs/distributed.md")
    options = parser.parse_args()
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            for dtype in options.dtypes:
                rows = compared(folder, kind, options.updates, options.only, getattr(torch, dtype), options.worlds)
                for case, row in rows.items():
                    table.setdefault(case.replace(str(folder), "…"), {})[f"{kind} {dtype}"] = row
    for case, found in table.items():
        print(case, json.dumps(found))
    if options.page:
        tables.put("agreement", tables.agreement(table, options.worlds))


if __name__ == "__main__":
    main()
