"""How the cost of a plugin grows: with the weights, from 1 to 300 million in ten tensors; and with the tensors, from 10
to 10,000 of 16 × 16.

A line is fitted to each by least squares, relative to what was measured; printed are its slope, what is left at 0, and
the exponent with which the cost grows over the upper half (1: in proportion).
"""

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

warnings.filterwarnings("ignore", category=DeprecationWarning, module="ignite")

import weightsmith_plugins as w
from ignite.engine import Events
from measuring import alternate, keep
from weightsmith import Constraint, Plugin, Trainer, WeightEvents, linear

MILLIONS = (1, 3, 10, 30, 100, 300)
TENSORS = (10, 30, 100, 300, 1_000, 3_000, 10_000)

PLUGINS: dict[str, Callable[[], Plugin]] = {
    "Clamp": lambda: w.Clamp(-0.02, 0.02),
    "MaxNorm": lambda: w.MaxNorm(0.1),  # below the norms of all these units
    "L1": lambda: w.L1(1e-4),
    "L2": lambda: w.L2(1e-4),
    "GroupLasso": lambda: w.GroupLasso(1e-4),
    "ClipNorm": lambda: w.ClipNorm(0.01),
    "AdaptiveClip": w.AdaptiveClip,
    "EMA": w.EMA,
    "MagnitudePruning": lambda: w.MagnitudePruning(linear(0.7, 0.9, over=300)),  # with other masks at each update
    "WeightHistograms": w.WeightHistograms,
}


class Weights(nn.Module):
    """Weights without layers, for there are no forward passes here."""

    def __init__(self, shapes: Iterator[tuple[int, int]]) -> None:
        super().__init__()
        self.held = nn.ParameterList(nn.Parameter(torch.randn(shape) * 0.05) for shape in shapes)
        for parameter in self.held:
            parameter.grad = torch.randn_like(parameter) * 1e-3


def seconds_of(name: str, model: nn.Module, least: float) -> float:
    """The median time of one act of a plugin; of a histogram, with TensorBoard's file on the disk. What it changes is
    put back before each: to a constraint, weights that were inside, and moved as by an update."""
    plugin = PLUGINS[name]()
    with tempfile.TemporaryDirectory() as folder:
        sinks = [w.TensorBoard(folder)] if isinstance(plugin, w.WeightHistograms) else []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        trainer = Trainer(model, optimizer, step=lambda t, b: None, plugins=[plugin, *sinks], seed=0)
        trainer._start()
        if sinks:
            event = Events.EPOCH_COMPLETED
        else:
            trainer.state.optimizer, trainer.state.evaluation = "optimizer", 1
            event = WeightEvents[plugin.at or plugin.event.name]

        def act() -> None:
            trainer.state.update += 1
            trainer.state.epoch += 1
            trainer._fire_event(event)

        changed = [p.detach() if isinstance(plugin, Constraint) else p.grad for p in model.parameters()]
        if isinstance(plugin, Constraint):
            act()
            for weight in changed:
                weight.add_(torch.randn_like(weight), alpha=0.01 * weight.std().item())
        kept = [tensor.clone() for tensor in changed]
        act()
        if not isinstance(plugin, (w.EMA, w.WeightHistograms)) and all(map(torch.equal, changed, kept)):
            raise SystemExit(f"{plugin!r} has nothing to do at {len(kept)} tensors: give it a tighter bound in PLUGINS")

        def put_back() -> None:
            for tensor, values in zip(changed, kept, strict=True):
                tensor.copy_(values)

        return statistics.median(alternate({name: act}, seconds=least, prepare=put_back)[name])


def line(sizes: tuple[int, ...], seconds: list[float]) -> tuple[float, float]:
    """The slope, and what is left at 0, of the line with the least relative squares."""
    of, found = np.asarray(sizes, float), np.asarray(seconds)
    terms = np.stack([of, np.ones_like(of)], axis=1) / found[:, None]
    (slope, rest), *_ = np.linalg.lstsq(terms, np.ones_like(of), rcond=None)
    return float(slope), float(rest)


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    upper = len(sizes) // 2 if len(sizes) > 3 else 0
    return float(np.polyfit(np.log(sizes[upper:]), np.log(seconds[upper:]), 1)[0])


def grow(what: str, sizes: tuple[int, ...], make: Callable[[int], nn.Module], unit: float, only: str, least: float):
    """Rows of plugins, with the seconds at each size."""
    seconds: dict[str, list[float]] = {name: [] for name in PLUGINS if only.lower() in name.lower()}
    for size in sizes:
        for name, found in seconds.items():
            found.append(seconds_of(name, make(size), least))
    print(f"\n{'with ' + what:18s}" + "".join(f"{size:>10,}" for size in sizes) + "  (ms)   slope      at 0  exponent")
    for name, found in seconds.items():
        slope, rest = line(sizes, found)
        shown = "".join(f"{taken * 1e3:10.2f}" for taken in found)
        print(
            f"{name:18s}{shown}        {slope * unit:6.2f} {rest * 1e6:6.0f} µs {exponent(sizes, found):6.2f}",
            flush=True,
        )
        yield {
            "plugin": name,
            "sizes": sizes,
            "seconds": found,
            "slope": slope,
            "rest": rest,
            "exponent": exponent(sizes, found),
        }


def main(only: str, millions: int, tensors: int, seconds: float, threads: int, output: str | None) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    print(f"{threads} thread(s); medians; the slope is in ns for a weight, and in µs for a tensor")
    weights = tuple(size for size in MILLIONS if size <= millions)
    counts = tuple(size for size in TENSORS if size <= tensors)
    with_weights = [
        *grow(
            "million weights", weights, lambda size: Weights((1000, 100 * size) for _ in range(10)), 1e3, only, seconds
        )
    ]
    with_tensors = [*grow("tensors", counts, lambda size: Weights((16, 16) for _ in range(size)), 1e6, only, seconds)]
    keep(output, threads=threads, weights=with_weights, tensors=with_tensors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="plugins whose name contains this")
    parser.add_argument("--millions", type=int, default=300, help="the most weights, in millions (default 300)")
    parser.add_argument("--tensors", type=int, default=10_000, help="the most tensors (default 10,000)")
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each figure (default 0.5)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--output", help="a file for the same as JSON")
    main(**vars(parser.parse_args()))
