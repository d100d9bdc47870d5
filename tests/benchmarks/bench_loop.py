"""Microseconds per iteration of the Trainer against a hand-written loop, as ratios; and of what else people use.

The contenders alternate in one process, in an order drawn for each round, and are made anew for each: where in memory a
network lies makes it up to 5 % faster or slower than its twin, which is why the hand-written loop takes part twice. The
figures are medians. Handlers do nothing: their cost is the engine's alone.
Lightning and Keras take part where they are installed (``pip install -e '.[bench]'``).
"""

import argparse
import importlib.util
import logging
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("KERAS_BACKEND", "torch")
warnings.filterwarnings("ignore", category=DeprecationWarning)

from ignite.engine import Engine, Events, create_supervised_trainer
from measuring import Times, keep, ratio
from weightsmith import Trainer, WeightEvents

Batches = list[tuple[Tensor, Tensor]]
Contender = Callable[[Batches], float]
"""Trains on all batches, and tells how many seconds that took."""

UPDATE = (
    WeightEvents.MICROBATCH_COMPLETED,
    WeightEvents.GRADIENTS_COMPUTED,
    WeightEvents.GRADIENTS_READY,
    WeightEvents.STEP_COMPLETED,
    WeightEvents.WEIGHTS_EDITED,
    WeightEvents.UPDATE_COMPLETED,
)


def network(*, fused: bool = False) -> tuple[nn.Module, torch.optim.Optimizer, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=fused or None)
    return model, optimizer, nn.CrossEntropyLoss()


def timed(run: Callable[[Batches], Any]) -> Contender:
    def contender(batches: Batches) -> float:
        start = time.perf_counter()
        run(batches)
        return time.perf_counter() - start

    return contender


def by_hand(*, fused: bool = False) -> Contender:
    model, optimizer, loss_fn = network(fused=fused)
    model.train()

    def run(batches: Batches) -> None:
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss_fn(model(inputs), targets).backward()
            optimizer.step()

    return timed(run)


def idle() -> None:
    """A handler that costs nothing."""


def with_handlers(engine: Engine, events: tuple[Any, ...]) -> Engine:
    """12 handlers over these events, and 10 when an iteration is completed."""
    for place in range(12):
        engine.add_event_handler(events[place % len(events)], idle)
    for _ in range(10):
        engine.add_event_handler(Events.ITERATION_COMPLETED, idle)
    return engine


def ignites() -> Engine:
    model, optimizer, loss_fn = network()
    return create_supervised_trainer(model, optimizer, loss_fn, output_transform=lambda x, y, y_pred, loss: loss)


def ignite(*, handlers: bool = False) -> Contender:
    engine = ignites()
    if handlers:
        with_handlers(engine, (Events.ITERATION_STARTED, Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED))
    return timed(lambda batches: engine.run(batches, max_epochs=1))


def weightsmith(*, handlers: bool = False, fused: bool = False) -> Contender:
    trainer = Trainer(*network(fused=fused))
    if handlers:
        with_handlers(trainer, UPDATE)
    return timed(lambda batches: trainer.run(batches, max_epochs=1))


def hooked() -> Contender:
    """Somebody hears of the optimizer's steps."""
    model, optimizer, loss_fn = network()
    optimizer.register_step_post_hook(lambda *_: None)
    trainer = Trainer(model, optimizer, loss_fn)
    return timed(lambda batches: trainer.run(batches, max_epochs=1))


def an_epoch_each(engine: Engine) -> Contender:
    """As of data that are one batch: an epoch for every iteration."""

    def run(batches: Batches) -> None:
        engine.state.max_epochs = None  # it begins anew
        engine.run(batches[:1], max_epochs=len(batches))

    return timed(run)


def lightning() -> Contender:
    import lightning as L

    for name in ("lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    model, optimizer, loss_fn = network()

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.seconds = model, 0.0

        def training_step(self, batch: Any, _: int) -> Tensor:
            inputs, targets = batch
            loss: Tensor = loss_fn(self.model(inputs), targets)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer

        def on_train_epoch_start(self) -> None:  # what a fit prepares is not timed
            self.start = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            self.seconds = time.perf_counter() - self.start

    module = Module()

    def contender(batches: Batches) -> float:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = L.Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, **quiet)
            trainer.fit(
                module, torch.utils.data.DataLoader(batches, batch_size=None)
            )  # a list would be several loaders
        return module.seconds

    return contender


def keras() -> Contender:
    import keras as K

    torch.manual_seed(0)
    model = K.Sequential([K.layers.Dense(64, activation="relu"), K.layers.Dense(10)])
    loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=K.optimizers.SGD(1e-3, momentum=0.9), loss=loss)

    def contender(batches: Batches) -> float:
        inputs, targets = (torch.cat(each).numpy() for each in zip(*batches, strict=True))
        start = time.perf_counter()
        model.fit(inputs, targets, batch_size=32, epochs=1, verbose=0, shuffle=False)
        return time.perf_counter() - start

    return contender


HAND = "hand-written"
CONTENDERS: dict[str, Callable[[], Contender]] = {
    HAND: by_hand,
    "hand-written, its twin": by_hand,
    "Trainer": weightsmith,
    "Trainer, 22 handlers": lambda: weightsmith(handlers=True),
    "Trainer, with a hook": hooked,
    "hand-written, fused": lambda: by_hand(fused=True),
    "Trainer, fused": lambda: weightsmith(fused=True),
    "Trainer, fused, 22 handlers": lambda: weightsmith(fused=True, handlers=True),
    "Trainer, an epoch each": lambda: an_epoch_each(Trainer(*network())),
    "Ignite": ignite,
    "Ignite, 22 handlers": lambda: ignite(handlers=True),
    "Ignite, an epoch each": lambda: an_epoch_each(ignites()),
}
PEERS = {"Lightning": ("lightning", lightning), "Keras on torch": ("keras", keras)}


def _same_by_hand(name: str) -> str:
    return "hand-written, fused" if "fused" in name else HAND


def main(iterations: int, rounds: int, threads: int, output: str | None) -> None:
    torch.set_num_threads(threads)
    batches = [(torch.randn(32, 64), torch.randint(0, 10, (32,)))] * iterations
    peers = {name: make for name, (module, make) in PEERS.items() if importlib.util.find_spec(module)}
    contenders = {**CONTENDERS, **peers}
    times: Times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in random.sample(list(contenders), len(contenders)):
            run = contenders[name]()
            run(batches[:20])
            times[name].append(run(batches) / iterations)
    print(f"64-64-10 network, batch 32, {threads} thread(s); median of {rounds} alternating rounds of {iterations}")
    for name, found in times.items():
        hand = _same_by_hand(name)
        print(
            f"{name:28s} {statistics.median(found) * 1e6:7.1f} µs/iteration   "
            f"{ratio(times, name, hand):5.2f} × {hand}   {ratio(times, name, 'Ignite'):5.2f} × Ignite"
        )
    rows = [
        {
            "name": name,
            "seconds": statistics.median(found),
            "ratio": ratio(times, name, HAND),
            "to the same by hand": ratio(times, name, _same_by_hand(name)),
            "to Ignite": ratio(times, name, "Ignite"),
        }
        for name, found in times.items()
    ]
    keep(output, threads=threads, rows=rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=300, help="iterations per round (default 300)")
    parser.add_argument("--rounds", type=int, default=60, help="alternating rounds (default 60)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--output", help="a file for the same as JSON")
    main(**vars(parser.parse_args()))
