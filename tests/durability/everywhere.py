"""Stops a run of three epochs after every single iteration, resumes it, and compares: weights, optimizer, memory,
random states and the trace of events, to the bit. With loaders of all sorts, and with stacks of plugins drawn at
random."""

import argparse
import functools
import gc
import itertools
import random
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", category=DeprecationWarning)

import torch  # noqa: E402
import weightsmith_plugins as w  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from weightsmith import ConfigurationError, linear  # noqa: E402

import runs  # noqa: E402

LAST = runs.EPOCHS * runs.ITERATIONS


def seeded():
    return torch.Generator().manual_seed(5)


def stateful(**options):
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(runs.dataset(), batch_size=4, shuffle=True, **options)


class Short:
    """Says that it has one batch more than it gives."""

    def __len__(self):
        return runs.ITERATIONS

    def __iter__(self):
        return iter(batches()[:-1])


class Long:
    """Gives one batch more than it says."""

    def __len__(self):
        return runs.ITERATIONS - 1

    def __iter__(self):
        return iter(batches())


def batches():
    inputs, targets = runs.dataset().tensors
    return list(zip(inputs.split(4), targets.split(4), strict=True))


def endless():
    """A generator, which has no beginning to go back to but its own."""
    yield from itertools.cycle(batches())


LOADERS = {
    "shuffled": runs.loader,
    "with a generator": lambda: runs.loader(generator=seeded()),
    "augmented": lambda: DataLoader(runs.dataset(augmented=True), batch_size=4, shuffle=True),
    "a list": batches,
    "shorter than it says": Short,
    "longer than it says": Long,
    "2 workers": lambda: runs.loader(num_workers=2),
    "2 workers that live on": lambda: runs.loader(num_workers=2, persistent_workers=True),
    "2 workers that live on, with a generator": lambda: runs.loader(
        num_workers=2, persistent_workers=True, generator=seeded()
    ),
    "stateful": stateful,
    "stateful, 2 workers": lambda: stateful(num_workers=2),
    "stateful, with a generator": lambda: stateful(generator=seeded()),
}

SETTINGS = {
    "accumulated": {"accumulate": 3, "plugins": [w.Perturb(1e-3), w.L2(1e-3)]},
    "bfloat16": {"precision": "bfloat16"},
    "SGD": {"optimizer": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)},
    "LBFGS": {"optimizer": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3), "schedules": False},
}


def stops_early(trainer):
    trainer.add_event_handler(runs.Events.ITERATION_COMPLETED(once=8), lambda: trainer.terminate())


def stops_at_an_epochs_end(trainer):
    trainer.add_event_handler(runs.Events.EPOCH_COMPLETED(once=2), lambda: trainer.terminate())


def cuts_an_epoch_short(trainer):
    trainer.add_event_handler(runs.Events.ITERATION_COMPLETED(once=8), lambda: trainer.terminate_epoch())


def skips_the_end_of_an_epoch(trainer):
    event = runs.Events.ITERATION_COMPLETED(once=8)
    trainer.add_event_handler(event, lambda: trainer.terminate_epoch(skip_epoch_completed=True))


ENDS = [stops_early, stops_at_an_epochs_end, cuts_an_epoch_short, skips_the_end_of_an_epoch]

SETTINGS |= {
    "two optimizers": {
        "make": runs.make_gan,
        "accumulate": 2,
        "plugins": [w.L2(0.1, where="critic"), w.Clamp(-0.1, 0.1, where="critic"), w.Noise(0.1), w.PluginEffect()],
    },
    **{end.__name__.replace("_", " "): {"prepare": end} for end in ENDS},
}

LENGTHS = {
    "epochs of a generator": {"data": endless, "run": {"max_epochs": 3, "epoch_length": 4}},
    "epochs without data": {
        "data": lambda: None,
        "make": runs.make_of_nothing,
        "run": {"max_epochs": 3, "epoch_length": 4},
    },
    "epochs of another length": {"run": {"max_epochs": 5, "epoch_length": 3}},
    "a number of iterations": {"run": {"max_iters": 13}},
}

POOL = [
    lambda: w.L1(1e-3),
    lambda: w.L2(linear(1e-2, 0.0)),
    lambda: w.ElasticNet(1e-3, 1e-3, mode="proximal"),
    lambda: w.L2SP(0.1),
    lambda: w.ClipNorm(1.0),
    lambda: w.AdaptiveClip(0.1),
    lambda: w.Centralize(),
    lambda: w.Noise(0.01),
    lambda: w.Freeze(where="head", before=4),
    lambda: w.SharpnessAware(0.05),
    lambda: w.Perturb(0.01, every=2),
    lambda: w.ShrinkPerturb(0.9, 0.01, every=4),
    lambda: w.Lookahead(0.5, every=3),
    lambda: w.ResetDormant(0.5, interval=2, where="hidden"),
    lambda: w.MaxNorm(0.8, where="conv.weight"),
    lambda: w.Clamp(-0.2, 0.2, where="head.weight", mode="forward"),
    lambda: w.UnitNorm(where="hidden.weight", every=3),
    lambda: w.MagnitudePruning(linear(0.0, 0.6, over=8), where="hidden.weight"),
    lambda: w.RigL(0.5, fraction=0.3, where="hidden.weight"),
    lambda: w.WeightNorm(where="head.weight"),
    lambda: w.SpectralNorm(where="conv.weight"),
    lambda: w.FakeQuantize(4, where="hidden.weight"),
    lambda: w.LowRankAdapter(2, where="head.weight"),
    lambda: w.EMA(0.9),
    lambda: w.SWA(after=5),
    lambda: w.PluginEffect("epoch"),
    lambda: w.GradientNorms(),
    lambda: w.UpdateHistograms(),
    lambda: w.DormantUnits(),
    lambda: w.Losses(),
    lambda: w.KaimingNormal(),
]


def stack(seed):
    """Plugins drawn at random that get along with each other."""
    chance = random.Random(seed)
    while True:
        plugins = [make() for make in chance.sample(POOL, chance.randint(3, 8))]
        options = {"plugins": plugins, "accumulate": chance.choice([1, 1, 2])}
        try:
            trainer = runs.make(**options)
            trainer.run(runs.loader(), max_epochs=1)
        except ConfigurationError:
            continue
        return options


def mismatches(
    data=runs.loader, iterations=range(1, LAST + 1), run=None, make=runs.make, prepare=lambda trainer: None, **options
):
    """How often the run was stopped, and at which iterations it went on differently."""
    run = run or {"max_epochs": runs.EPOCHS}
    used = []

    def fresh():
        used.append(data())
        return used[-1]

    def made():
        trainer = make(**options)
        prepare(trainer)
        return trainer

    whole = made()
    trace = runs.traced(whole)
    whole.run(fresh(), **run)
    end, found, stops = runs.contents(whole), {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for iteration in iterations:
            first, second = made(), made()
            before = runs.traced(first)
            if not runs.killed_at(first, iteration, Path(folder) / "saved", fresh(), **run):
                continue
            stops += 1
            second.resume(Path(folder) / "saved")
            after = runs.traced(second)
            second.run(fresh(), **run)
            differences = runs.differences(end, runs.contents(second))
            if before + after[1:] != trace:  # every process has its STARTED
                differences.append("the trace of events")
            if differences:
                found[iteration] = differences
            shut(used)
    return stops, found


def shut(loaders):
    """End the workers of loaders that were left in the middle, for which torch takes its time."""
    for loader in loaders:
        iterator = getattr(loader, "_iterator", None)
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
    loaders.clear()
    gc.collect()


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--stacks", type=int, default=20)
    options = arguments.parse_args()
    cases = {f"loader: {name}": functools.partial(mismatches, data) for name, data in LOADERS.items()}
    cases |= {f"setting: {name}": functools.partial(mismatches, **chosen) for name, chosen in SETTINGS.items()}
    cases |= {f"length: {name}": functools.partial(mismatches, **run) for name, run in LENGTHS.items()}
    total = wrong = 0
    for name, case in cases.items():
        stops, found = case()
        total, wrong = total + stops, wrong + len(found)
        print(f"{name:50} {stops:3} stops, {len(found)} differ {dict(list(found.items())[:1]) or ''}", flush=True)
    for seed in range(options.stacks):
        chosen = stack(seed)
        stops, found = mismatches(**chosen)
        total, wrong = total + stops, wrong + len(found)
        names = " ".join(type(plugin).__name__ for plugin in chosen["plugins"])
        print(f"stack {seed:2}: {stops:3} stops, {len(found)} differ {found or ''}  {names}", flush=True)
    print(f"{total} runs stopped and resumed: {total - wrong} of {total} end bit for bit, with the same events")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
