"""Every built-in plugin in a run of several processes that is saved, and gone on with in another trainer.

Prints which end otherwise than the undisturbed run, with copies of the weights and with sharded ones.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from agreement import BATCH, cases, network, parallel, whole
from ignite.engine import Events
from weightsmith import ConfigurationError, Trainer
from weightsmith.distributed import rank, world_size
from worlds import together


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
    """What a run of six updates ends with, that is saved after the fourth, or goes on from there."""
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
        for number, case in enumerate(cases()):
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


def main():
    with tempfile.TemporaryDirectory() as folder:
        for tried, found in together(2, differing, Path(folder), ("copies", "shards")):
            print(f"{tried} runs, of which {len(found)} went on otherwise")
            for (how, case), problem in found.items():
                print(f"{how}  {case}: {problem}")


if __name__ == "__main__":
    main()
