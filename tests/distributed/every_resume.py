"""Every built-in plugin in a run of several processes that is saved, and gone on with in another trainer."""

from agreement import BATCH, cases, network, parallel, whole

import torch
from ignite.engine import Events
from weightsmith import ConfigurationError, Trainer
from weightsmith.distributed import rank, world_size


def trainer_of(case, how, run_dir):
    model = parallel(network(case, "suite"), how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step(trainer, batch):
        share = batch[rank() :: world_size()]
        return trainer.update(lambda: model(share).square().mean())

    return Trainer(model, optimizer, step=step, plugins=[case.plugin], seed=0, run_dir=run_dir)


def state_of(trainer):
    remembered = [state.get("memory", {}) for state in trainer.own_state()["plugins"].values()]
    return whole([{name: weight.detach() for name, weight in trainer.weights().items()}, remembered])


def end_of(case, how, folder, *, resumed):
    """What a run of five updates ends with, that is saved after the third, or goes on from there."""
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn((BATCH, *case.inputs[1:]), generator=generator) for _ in range(3)]
    trainer = trainer_of(case, how, folder / ("resumed" if resumed else "run"))
    if resumed:
        trainer.resume(folder / "saved")
    else:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda: trainer.save(folder / "saved"))
    trainer.run(batches, max_iters=6)
    return state_of(trainer)


def is_equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    return len(one) == len(other) and all(map(is_equal, one, other))


def differing(folder, ways):
    """The cases that end otherwise when they go on, or that could not; and how many there were."""
    found, tried = {}, 0
    for how in ways:
        for number, case in enumerate(cases(folder)):
            place = folder / how / str(number)
            try:
                whole_run = end_of(case, how, place, resumed=False)
            except ConfigurationError:  # it cannot work so, and says so on all of them
                continue
            tried += 1
            try:
                if not is_equal(whole_run, end_of(case, how, place, resumed=True)):
                    found[how, str(case)] = "ends otherwise"
            except Exception as error:
                found[how, str(case)] = f"{type(error).__name__}: {error}"
    return tried, found
