"""What every built-in plugin sends, and holds in memory, on one process and on several.

Counts the collectives of ``torch.distributed``, and the bytes that they are given, in a run with the plugin and in one
without: at the start, in every update, and at the end of an epoch. In one update torch's ``CommDebugMode`` counts too,
and must find as many.
"""

import argparse
import functools
import json
import logging
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

warnings.filterwarnings("ignore", category=DeprecationWarning)

import torch
from ignite.engine import Events
from torch import Tensor, nn
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode
from weightsmith import ConfigurationError, Parametrization, Trainer
from weightsmith.distributed import rank, world_size
from weightsmith.shards import own_part
from weightsmith_plugins import SharpnessAware

sys.path.insert(0, str(Path(__file__).parent))
import tables
from agreement import cases, network, parallel
from worlds import together

WORLDS = ("copies:2", "copies:4", "shards:2", "shards:4")
WIDTHS = (32, 64)
EPOCH, CHECKED = 6, 2
CONFUSING = (SharpnessAware, Parametrization)  # torch's counter loses its place where modules compute in between


class Sent(TorchDispatchMode):
    """Counts collectives, and the bytes that they are given: of the whole tensor that they reduce, gather or spread."""

    def __init__(self):
        super().__init__()
        self.found = Counter(messages=0, bytes=0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        is_sending = function.namespace in ("c10d", "_c10d_functional") and "wrap" not in str(function)
        if is_sending and "wait" not in str(function):
            self.found += Counter(messages=1, bytes=max(map(_bytes, [*args, result])))
        return result


def _bytes(argument):
    if isinstance(argument, (list, tuple)):
        return sum(map(_bytes, argument))
    return argument.nbytes if isinstance(argument, Tensor) else 0


def wide(width):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, width))


def counted(plugins, model, inputs, how, run_dir):
    """The messages and bytes of a run, by where in it they were sent; and the bytes of memory held at its end."""
    model = parallel(model, how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    sent, marks = Sent(), {}

    def step(trainer, batch):
        if trainer.state.iteration != CHECKED or any(isinstance(plugin, CONFUSING) for plugin in plugins):
            return trainer.update(lambda: model(batch).square().mean())
        before, seen = sent.found["messages"], CommDebugMode()
        with seen:
            loss = trainer.update(lambda: model(batch).square().mean())
        counts = seen.get_comm_counts()
        assert sum(counts.values()) == sent.found["messages"] - before
        return loss

    batches = [torch.randn(inputs)[rank() :: world_size()] for _ in range(EPOCH)]
    trainer = Trainer(model, optimizer, step=step, plugins=plugins, seed=0, run_dir=run_dir)

    def mark(name):
        marks[name] = sent.found.copy()

    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: mark("begun"))
    for iteration in (CHECKED, EPOCH - 1, EPOCH):
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), functools.partial(mark, iteration))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: mark("ended"))
    with sent:
        mark("before")
        trainer.run(batches, max_epochs=1)
    updates = EPOCH - 1 - CHECKED
    memory = [state.get("memory", {}) for state in trainer.own_state()["plugins"].values()]
    return {
        "start": _between(marks, "before", "begun"),
        "update": {name: value / updates for name, value in _between(marks, CHECKED, EPOCH - 1).items()},
        "epoch": _between(marks, EPOCH, "ended"),
        "held": sum(own_part(entry).nbytes for of in memory for site in of.values() for entry in site.values()),
    }


def _between(marks, first, last):
    return {name: marks[last][name] - marks[first][name] for name in ("messages", "bytes")}


def by_hand(how, width):
    """The messages and bytes of one update in a loop without the engine."""
    model = parallel(wide(width), how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        with Sent() as sent:
            optimizer.zero_grad()
            model(torch.randn(8, width)).square().mean().backward()
            optimizer.step()
    return sent.found["messages"], sent.found["bytes"]


def all_counted(folder, how, chosen, widths):
    """Case and width to what it sends; without a plugin under an empty name."""
    logging.disable(logging.ERROR)
    found = {}
    for number, case in enumerate([None, *cases()]):
        if case is not None and chosen and type(case.plugin).__name__ not in chosen:
            continue
        for width in widths:
            special = case is not None and case.layer is not None
            model = network(case, "suite") if special else wide(width)
            inputs = (8, *case.inputs[1:]) if special else (8, width)
            # Of one length for all, as it is sent.
            run_dir = Path(folder) / f"sent-{how}-{world_size()}-{number:03}-{width}"
            plugins = [] if case is None else [case.plugin]
            try:
                name = f"{'' if case is None else case}|{'own' if special else width}"
                found[name] = counted(plugins, model, inputs, how, run_dir)
                if special:
                    without = run_dir.with_name(f"none{run_dir.name[4:]}")
                    found[f"|{case}"] = counted([], network(case, "suite"), inputs, how, without)
            except ConfigurationError:
                continue
    return found


def with_and_without_engine(folder, how, chosen):
    """What these plugins send, and what torch does alone."""
    return all_counted(folder, how, chosen, WIDTHS), {width: by_hand(how, width) for width in WIDTHS}


def beyond(found):
    """For each case and width, what is sent beyond what the same run sends without the plugin."""
    for name, sent in found.items():
        case, width = name.split("|")
        if not case:
            continue
        without = found[f"|{case}" if width == "own" else f"|{width}"]
        yield (
            case,
            width,
            {
                "held": sent["held"],
                **{
                    when: {unit: sent[when][unit] - without[when][unit] for unit in ("messages", "bytes")}
                    for when in ("start", "update", "epoch")
                },
            },
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="plugin classes")
    parser.add_argument("--worlds", nargs="*", default=WORLDS)
    parser.add_argument("--page", action="store_true", help="write the table into docs/distributed.md")
    options = parser.parse_args()
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        for world in options.worlds:
            how, size = world.split(":")
            found = together(int(size), all_counted, folder, how, options.only, WIDTHS)[0]
            table |= {(world, "", str(width)): found[f"|{width}"] for width in WIDTHS}
            table |= {(world, case.replace(folder, "…"), width): sent for case, width, sent in beyond(found)}
    for (world, case, width), sent in table.items():
        print(json.dumps({"world": world, "case": case, "width": width, **sent}))
    if options.page:
        tables.put("sent", tables.sent(table, WIDTHS))


if __name__ == "__main__":
    main()
