"""What processes do together in test_troubles.py: each meets something that the others do not."""

import contextlib
import errno
import itertools
import logging
import math
import os
import signal
import warnings
from dataclasses import field
from unittest import mock

warnings.filterwarnings("ignore", category=DeprecationWarning)

import torch
import torch.distributed as dist
from ignite.engine import Events
from saving import WAYS, batches, network, parallel, trainer_of, whole_weights
from torch.utils.data import DataLoader
from weightsmith import Trainer, WeightEditor
from weightsmith.checkpoint import find, read_manifest, saved_in
from weightsmith.distributed import rank, share, world_size
from weightsmith.selection import Where
from weightsmith.shards import own_part
from weightsmith_plugins import Checkpoints


def told(work):
    """The type and the words of what ``work()`` raises; where it raises nothing, that."""
    try:
        work()
    except BaseException as error:
        return type(error).__name__, f"{error} {' '.join(getattr(error, '__notes__', []))}"
    return "nothing", ""


# -------------------------------------------------------------------- signals


def stopped_by_signals(folder):
    """For each way: process 1 gets SIGTERM in one iteration, process 0 in a later one or never. Where they end, with
    which words, and where they end when they go on; and the end of a run that is left in peace."""
    ends = {}
    for how in WAYS:
        for name, asked in {"both": {1: 4, 0: 5}, "one": {1: 4}, "in the last": {1: 15}}.items():
            run_dir = folder / f"{how}-{name}"
            trainer = trainer_of(how, run_dir=run_dir, draws=True)

            def ask(trainer, asked=asked):
                if asked.get(rank()) == trainer.state.iteration:
                    os.kill(os.getpid(), signal.SIGTERM)

            trainer.add_event_handler(Events.ITERATION_STARTED, ask)
            raised = told(lambda trainer=trainer: trainer.run(batches(), max_epochs=3))
            second = trainer_of(how, run_dir=run_dir, draws=True)
            second.resume(run_dir)
            second.run(batches(), max_epochs=3)
            ends[how, name] = raised[0], trainer.state.iteration, whole_weights(second)
        undisturbed = trainer_of(how, draws=True)
        undisturbed.run(batches(), max_epochs=3)
        ends[how] = whole_weights(undisturbed)
    return ends


# -------------------------------------------------------------------- what is not finite


def plain_trainer(how, **options):
    torch.manual_seed(0)
    model = parallel(network(False), how)

    def step(trainer, batch):
        return trainer.update(model(batch[rank() :: world_size()]).square().mean())

    return Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), step=step, seed=0, **options)


def met_a_nan(folder):
    """Process 1 alone meets a NaN in the second batch, once."""
    ends = {}
    for how in WAYS:
        for policy in ("skip", "restore"):
            data = [batch.clone() for batch in batches()]
            data[1][1] = math.nan  # of two processes, the second has the odd rows
            trainer = plain_trainer(
                how, nonfinite=policy, run_dir=folder / f"{how}-{policy}", plugins=[Checkpoints("1 updates")]
            )
            warned = []

            def keep(_, words, warned=warned):
                warned.append(words)

            watching = mock.patch.object(logging.getLogger("weightsmith.finiteness"), "warning", keep)
            back = trainer.load_own_state

            def mend(*arguments, back=back, data=data, **options):
                data[1][1] = 0.5  # the data are in order after going back
                return back(*arguments, **options)

            with watching, mock.patch.object(trainer, "load_own_state", mend):
                trainer.run(data, max_epochs=1)
            rate = trainer.optimizers["optimizer"].param_groups[0]["lr"]
            ends[how, policy] = trainer.state.updates["optimizer"], rate, whole_weights(trainer), warned
    return ends


def spoilt_a_weight(folder):
    """Process 1 alone, after the last iteration of an epoch, has a weight that is not finite."""
    ends = {}
    for how in WAYS:
        trainer = plain_trainer(how, run_dir=folder / f"spoilt-{how}", plugins=[Checkpoints("1 updates")])

        @trainer.on(Events.ITERATION_COMPLETED(once=5))
        def spoil(trainer=trainer):
            if rank() == 1:
                with torch.no_grad():
                    own_part(trainer.weights()["2.weight"])[0, 0] = math.nan

        ends[how] = told(lambda trainer=trainer: trainer.run(batches(), max_epochs=2))
        ends[how] += ([path.name for path in saved_in(folder / f"spoilt-{how}" / "checkpoints")],)
    return ends


# -------------------------------------------------------------------- what cannot be written


def kept_from_writing(folder):
    """What is refused on one process, all are told."""
    ends = {"locked": told(lambda: trainer_of("copies", run_dir=folder / "locked").run(batches(), max_epochs=1))}
    ends["a file"] = told(lambda: trainer_of("copies").save(folder / "file" / "inside"))
    trainer = trainer_of("shards", run_dir=folder / "full", plugins=[Checkpoints("1 updates", keep=9)])

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    broken = mock.patch("weightsmith.checkpoint.several.torch.save", full)
    in_parts = mock.patch("weightsmith.checkpoint.parts.safetensors.torch.save_file", full)

    @trainer.on(Events.ITERATION_STARTED)
    def fill_the_disk(trainer=trainer):
        if rank() == 1:
            {3: broken.start, 4: broken.stop, 8: in_parts.start, 9: in_parts.stop}.get(
                trainer.state.iteration, lambda: None
            )()

    trainer.run(batches(), max_epochs=2)
    ends["saved"] = sorted(path.name for path in saved_in(folder / "full" / "checkpoints"))
    with mock.patch("weightsmith.checkpoint.several.torch.save", full if rank() == 1 else torch.save):
        ends["full"] = told(lambda: trainer.save(folder / "full" / "checkpoints" / "00000010"))
    dist.barrier()  # the first has tidied up by now
    found = find(folder / "full")
    ends["found"] = found.name, read_manifest(found)["iteration"]
    ends["left"] = sorted(path.name for path in (folder / "full" / "checkpoints").iterdir())
    return ends


def resumed_what_does_not_fit(folder):
    """One process has another model than the others: all are told, and nothing is loaded."""
    first = trainer_of("copies", run_dir=folder / "fits")
    first.run(batches(), max_epochs=1)
    first.save(folder / "fits" / "checkpoints" / "00000005")
    second = trainer_of("copies")
    before = whole_weights(second)
    if rank() == 1:
        second.model.module[0].register_buffer("more", torch.zeros(2))
    ends = told(lambda: second.resume(folder / "fits"))
    return *ends, all(torch.equal(before[name], weight) for name, weight in whole_weights(second).items())


# -------------------------------------------------------------------- what must be the same on all


class DrawsByItself(WeightEditor):
    """Add noise from the global generator."""

    where: Where = field(default="*.weight", kw_only=True)

    def edit(self, weight, gradient, site):
        return weight + torch.randn_like(weight)


def disagreed(folder):
    """Processes are given other data, or another folder, or a plugin draws what the others do not."""
    other = folder / "other" if rank() else None
    endless = DataLoader(torch.zeros(4), batch_sampler=itertools.repeat([0, 1]))
    return {
        "batches": told(lambda: trainer_of("copies").run(batches()[rank() :], max_epochs=1)),
        "epochs": told(lambda: trainer_of("copies").run(batches(), max_epochs=1 + rank())),
        "folder": told(lambda: trainer_of("copies", run_dir=other).run(batches(), max_epochs=1)),
        "draws": told(lambda: trainer_of("shards", plugins=[DrawsByItself()]).run(batches(), max_epochs=1)),
        "endless": told(lambda: share(endless)),
    }


# -------------------------------------------------------------------- crashes


def crashed(folder):
    """For each way, a step fails, from which on every message to another process would be an error."""
    ends = {}
    for how in WAYS:
        trainer = trainer_of(how, run_dir=folder / f"crash-{how}")
        with contextlib.ExitStack() as stack:

            @trainer.on(Events.ITERATION_COMPLETED(once=4))
            def crash():
                for name in ("all_gather_object", "broadcast_object_list", "all_reduce", "all_gather", "barrier"):
                    asked = AssertionError(f"asked the others: {name}")
                    stack.enter_context(mock.patch.object(dist, name, side_effect=asked))
                raise ValueError("on purpose")

            ends[how] = told(lambda trainer=trainer: trainer.run(batches(), max_epochs=1))
    return ends


def in_trouble(folder):
    """All of these, one after another."""
    works = (
        stopped_by_signals,
        met_a_nan,
        spoilt_a_weight,
        kept_from_writing,
        resumed_what_does_not_fit,
        disagreed,
        crashed,
    )
    return {work.__name__: work(folder) for work in works}
