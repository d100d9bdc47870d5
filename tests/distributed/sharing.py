"""What processes find out about their shares of data, for test_launching_together.py."""

import logging
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from weightsmith import ConfigurationError, Trainer
from weightsmith.batches import Pass
from weightsmith.distributed import first_does, is_first, parallel, rank, share
from weightsmith.runs import provisional_run_dir
from weightsmith.shards import is_sharded

SAMPLES = 22


def loader(batch_size=4, generator=None, **options):
    return DataLoader(
        TensorDataset(torch.arange(SAMPLES)), batch_size=batch_size, shuffle=True, generator=generator, **options
    )


def taken(batches):
    return [batch[0].tolist() for batch in batches]


def passes(seeded_apart=False):
    """Two passes over a shared loader, by an order from the global generator, and by one of the loader's own."""
    torch.manual_seed(5 + seeded_apart * rank())
    of_global = share(loader())
    found = [taken(of_global), taken(of_global)]
    torch.manual_seed(100 * rank())
    own = share(loader(generator=torch.Generator().manual_seed(7)), even=False)
    return [*found, taken(own), taken(own), len(of_global), len(own)]


def resumed():
    """What is left of a pass after two batches, and the same in a pass that goes on from there with other streams."""
    torch.manual_seed(5 + rank())
    one = Pass(share(loader()))
    for _ in range(2):
        next(one)
    state = one.state_dict()
    left = taken(one)
    torch.manual_seed(99)
    other = Pass(share(loader()))
    other.load_state_dict(state)
    return left, taken(other)


def refusal(batches, **options):
    try:
        share(batches, **options)
    except ConfigurationError as error:
        return str(error)
    return None


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(2)


def refusals():
    batch = torch.zeros(4, 1)
    return {
        "multiple of 2": refusal(loader(batch_size=3)),
        "IterableDataset": refusal(DataLoader(Stream(), batch_size=2)),
        "batch_size": refusal(DataLoader(TensorDataset(batch), batch_size=None)),
        "not a range": refusal(range(3)),
        "different numbers": refusal([(batch, batch[:2])]),
        "too small": refusal([(batch[:1],)], even=False),
    }


def lists():
    batches = [(torch.arange(4), torch.arange(4) * 10), (torch.arange(3), torch.arange(3) * 10)]
    return [[(a.tolist(), b.tolist()) for a, b in share(batches, even=even)] for even in (True, False)]


def warnings_of(batches):
    """What a run over these batches warns of."""
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger = logging.getLogger("weightsmith")
    logger.addHandler(handler)
    model = parallel(nn.Linear(3, 1))
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss())
    trainer.run(batches, max_epochs=2)
    logger.removeHandler(handler)
    return [line for line in told if "very same first batch" in line]


def folders(parent):
    """The run folder that this process is told, what it hears of a failure on the first, and what stays of it."""
    with provisional_run_dir(parent) as folder:
        is_there = folder.is_dir()
    try:
        with provisional_run_dir(parent) as other:
            first_does(fail)
    except ConfigurationError as error:
        heard = str(error)
    first_does(lambda: None)
    return folder, is_there, heard, other.exists()


def fail():
    raise ConfigurationError("only the first knows")


def placements():
    """Where the weights of a model lie that has a large block, small ones and tied weights."""
    torch.manual_seed(rank())
    tied = nn.Linear(300, 300)
    model = nn.Sequential(nn.Linear(300, 300), nn.ModuleList([tied]), nn.Linear(300, 300), nn.Linear(300, 2))
    model[2].weight = tied.weight
    parallel(model, shard=True)
    states = [type(module).__name__ for module in model.modules()]
    whole = [weight.full_tensor().sum().item() for weight in model.parameters()]
    return states, whole, all(map(is_sharded, model.parameters())), model[2].weight is model[1][0].weight


def everything(parent):
    torch.manual_seed(0)
    batches = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(3)]
    return {
        "passes": passes(seeded_apart=True),
        "resumed": resumed(),
        "refusals": refusals(),
        "lists": lists(),
        "same": warnings_of(batches),
        "shared": warnings_of(share(batches)),
        "folders": folders(Path(parent)),
        "placements": placements(),
        "is_first": is_first(),
    }
