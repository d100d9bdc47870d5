"""Microseconds per iteration of the Trainer against a hand-written loop and Ignite's trainer, as ratios.

The contenders alternate in one process, so that a noisy machine disturbs all alike; the figures are medians.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

warnings.filterwarnings("ignore", category=DeprecationWarning, module="ignite")

from ignite.engine import create_supervised_trainer  # noqa: E402
from weightsmith import Trainer  # noqa: E402

Batches = list[tuple[Tensor, Tensor]]
Contender = Callable[[Batches], None]


def network() -> tuple[nn.Module, torch.optim.Optimizer, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9), nn.CrossEntropyLoss()


def by_hand() -> Contender:
    model, optimizer, loss_fn = network()
    model.train()

    def run(batches: Batches) -> None:
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss_fn(model(inputs), targets).backward()
            optimizer.step()

    return run


def ignite() -> Contender:
    model, optimizer, loss_fn = network()
    engine = create_supervised_trainer(model, optimizer, loss_fn, output_transform=lambda x, y, y_pred, loss: loss)
    return lambda batches: engine.run(batches, max_epochs=1) and None


def weightsmith() -> Contender:
    trainer = Trainer(*network())
    return lambda batches: trainer.run(batches, max_epochs=1) and None


def main(iterations: int, rounds: int, threads: int) -> None:
    torch.set_num_threads(threads)
    batches = [(torch.randn(32, 64), torch.randint(0, 10, (32,)))] * iterations
    contenders = {"hand-written": by_hand(), "weightsmith Trainer": weightsmith(), "Ignite's trainer": ignite()}
    for run in contenders.values():
        run(batches)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run(batches)
            times[name].append((time.perf_counter() - start) / iterations * 1e6)
    print(f"64-64-10 network, batch 32, {threads} thread(s); median of {rounds} alternating rounds of {iterations}")
    for name, found in times.items():
        ratios = [mine / hand for mine, hand in zip(found, times["hand-written"], strict=True)]
        print(
            f"{name:22s} {statistics.median(found):7.1f} µs/iteration   {statistics.median(ratios):5.2f} × hand-written"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=500, help="iterations per round (default 500)")
    parser.add_argument("--rounds", type=int, default=15, help="alternating rounds (default 15)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    main(**vars(parser.parse_args()))
