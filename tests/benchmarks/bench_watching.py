"""Milliseconds of an epoch's weight distributions, written to TensorBoard and on the disk, with the extra ``fast`` and
without, against Ignite's own handler, ``torch.histc`` of every tensor and one bare read of the weights; and the peak of
extra memory.

All alternate in one process; the figures are medians. Five networks: two layers, 100 small tensors, a million weights
in four layers, the weights of a ResNet-18 (11 million), and those of a transformer of 85 million; the last also with
all weights subnormal.
"""

import argparse
import resource
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

warnings.filterwarnings("ignore", category=DeprecationWarning, module="ignite")

import networks
from ignite.engine import Engine, Events
from ignite.handlers.tensorboard_logger import TensorboardLogger, WeightsHistHandler
from measuring import Times, alternate, keep, ratio
from weightsmith import Trainer
from weightsmith_plugins import TensorBoard, WeightHistograms
from weightsmith_plugins.probes import distributions

NETWORKS = {"million": networks.million, **networks.NETWORKS}


def ours(network: nn.Module, folder: Path) -> Callable[[], object]:
    """In one pass, which Numba compiles."""
    from weightsmith_plugins.probes.one_pass import in_one_pass  # here: importing Numba takes memory

    return written(network, folder, lambda dtype: in_one_pass)


def without_numba(network: nn.Module, folder: Path) -> Callable[[], object]:
    return written(network, folder, lambda dtype: None)


def written(network: nn.Module, folder: Path, way: Callable[[torch.dtype], Any]) -> Callable[[], object]:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    plugins = [WeightHistograms(), TensorBoard(str(folder))]
    step, nonfinite = (lambda t, b: None), "ignore"  # else it looks at the weights once more
    trainer = Trainer(network, optimizer, step=step, plugins=plugins, nonfinite=nonfinite)

    def act() -> None:
        distributions._compiled = way
        trainer.state.epoch += 1
        trainer._fire_event(Events.EPOCH_COMPLETED)

    return act


def ignites(network: nn.Module, folder: Path) -> Callable[[], object]:
    engine, log = Engine(lambda e, b: None), TensorboardLogger(log_dir=str(folder))
    handler = WeightsHistHandler(network)

    def act() -> None:
        handler(engine, log, Events.EPOCH_COMPLETED)
        log.writer.flush()

    return act


def histc(network: nn.Module, _: Path) -> Callable[[], object]:
    weights = [parameter.detach() for parameter in network.parameters()]
    return lambda: [torch.histc(weight, 100) for weight in weights]


def read(network: nn.Module, _: Path) -> Callable[[], object]:
    weights = [parameter.detach() for parameter in network.parameters()]
    return lambda: [weight.sum() for weight in weights]


WAYS = {"weightsmith[fast]": ours, "weightsmith": without_numba, "Ignite": ignites, "histc": histc, "read": read}


def measure(network: nn.Module, least: float, skip: set[str]) -> Times:
    with tempfile.TemporaryDirectory() as folder:
        acts = {name: make(network, Path(folder) / name) for name, make in WAYS.items() if name not in skip}
        return alternate(acts, seconds=least * len(acts), most=1000)


def extra_memory(network: nn.Module) -> float:
    """By how many MiB the peak of the process grows while the distributions are written."""
    with tempfile.TemporaryDirectory() as folder:
        act = without_numba(network, Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        act()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main(sizes: list[str], seconds: float, threads: list[int], output: str | None) -> None:
    rows = []
    memory = {size: extra_memory(NETWORKS[size]()) for size in sizes}  # first: a peak never falls
    print(
        f"{'network':18s} {'threads':>7s} "
        + " ".join(f"{name + ' ms':>20s}" for name in WAYS)
        + f" {'Ignite / ours':>14s}"
    )
    for count in threads:
        torch.set_num_threads(count)
        for size in sizes:
            torch.manual_seed(0)
            for kind in ("", " subnormal") if size == "large" else ("",):
                network = NETWORKS[size]()
                if kind:
                    with torch.no_grad():
                        for parameter in network.parameters():
                            parameter.mul_(1e-37).mul_(1e-3)
                times = measure(network, seconds, {"Ignite"} if kind else set())
                found = {name: statistics.median(taken) for name, taken in times.items()}
                rows.append({"network": size + kind, "threads": count, **found})
                shown = " ".join(f"{found[name] * 1e3:20.2f}" if name in found else f"{'-':>20s}" for name in WAYS)
                faster = f"{ratio(times, 'Ignite', 'weightsmith[fast]'):13.1f}x" if "Ignite" in found else ""
                print(f"{size + kind:18s} {count:7d} {shown} {faster}", flush=True)
    print("extra memory:", ", ".join(f"{size} {mebibytes:.0f} MiB" for size, mebibytes in memory.items()))
    keep(output, threads=threads, rows=rows, extra_memory=memory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="default all")
    parser.add_argument("--seconds", type=float, default=3.0, help="time per way and network (default 3)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch threads (default 1 2)")
    parser.add_argument("--output", help="a file for the same as JSON")
    main(**vars(parser.parse_args()))
