"""What the tests of parts and of copies let several processes do."""

import math

import torch
import torch.distributed as dist
from ignite.engine import Events
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from weightsmith import ConfigurationError, ReplicaDriftError, Trainer, WeightEvents
from weightsmith.distributed import rank, world_size
from weightsmith.events import TrainingState
from weightsmith.joint import any_of_each, joint_norm, joint_norms, largest_of_all
from weightsmith.replicas import checksum, drifted
from weightsmith.shards import gather, own_part, part_of, put_back, spread
from weightsmith.site import Site
from weightsmith.weights import Weight
from weightsmith_plugins import L2, LSUV, ShrinkPerturb, SpectralNorm, WeightNorm


def mesh():
    return init_device_mesh("cpu", (world_size(),))


def sharded(whole, axis=0):
    return nn.Parameter(distribute_tensor(whole, mesh(), [Shard(axis)]))


def site_of(name, parameter):
    return Site(Weight(name, (), nn.Module(), name, (parameter,)), TrainingState(), None, "0")


def wholes(seed, dtype, *, ties):
    """Weights of several shapes, of which some do not divide by any number of processes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 4), (7,), (1, 3), (2, 3, 2), (8, 2)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    if ties:
        drawn = [(4 * values).round() / 4 for values in drawn]
        drawn[0][0] = torch.tensor([0.0, -0.0, math.inf, math.nan])
    return [values.to(dtype) for values in drawn]


def scored(seed, dtype, ties, share):
    """Which values are found largest: by all processes together, and in the whole tensors."""
    whole = wholes(seed, dtype, ties=ties)
    parameters = [sharded(values) if place != 3 else nn.Parameter(values) for place, values in enumerate(whole)]
    sites = [site_of(f"weight{place}", parameter) for place, parameter in enumerate(parameters)]
    here = [own_part(parameter.detach()) for parameter in parameters]
    count = math.floor(share * sum(values.numel() for values in whole))
    found = largest_of_all(torch.cat([part.reshape(-1) for part in here]), [p.numel() for p in here], sites, count)
    pieces = torch.split(found, [part.numel() for part in here])
    joined = [
        piece if site.is_whole else gather(site._part.joined(piece.view(part.shape).to(torch.uint8))).bool()
        for piece, part, site in zip(pieces, here, sites, strict=True)
    ]
    return count, torch.cat([values.reshape(-1) for values in whole]), torch.cat([j.reshape(-1) for j in joined])


def all_scored(cases):
    return [scored(*case) for case in cases]


def norms():
    whole = wholes(0, torch.float32, ties=False)
    parameters = [sharded(values) if place != 3 else nn.Parameter(values) for place, values in enumerate(whole)]
    sites = [site_of(f"weight{place}", parameter) for place, parameter in enumerate(parameters)]
    here = [own_part(parameter.detach()) for parameter in parameters]
    flags = [torch.tensor(rank() == 1 and place == 2) for place in range(5)]
    return whole, joint_norm(here, sites), joint_norms(here, sites), any_of_each(flags, sites)


def parts():
    """Of each sharded tensor: the whole, what came back of it, and what was written."""
    found = []
    for axis, shape in [(0, (5, 4)), (1, (3, 6)), (0, (1, 2)), (0, (2,))]:
        whole = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
        parameter = sharded(whole, axis)
        part = part_of(parameter)
        here = own_part(parameter)
        assert torch.equal(part.of(whole), here)
        assert torch.equal(own_part(spread(whole, parameter)), here)
        site = site_of("weight", parameter)
        back = [gather(parameter).detach(), part.gather(here), site.whole(here)]
        put_back(parameter.detach(), whole + 1)
        back.append(gather(parameter).detach() - 1)
        assert torch.equal(site.total(torch.ones(2)), torch.full((2,), float(world_size())))
        assert site.most(torch.tensor(rank())) == world_size() - 1
        found.append((whole, back))
    copied = nn.Parameter(distribute_tensor(torch.ones(3), mesh(), [Replicate()]))
    assert part_of(copied) is None
    return found


def network():
    torch.manual_seed(rank())  # another start on each process
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


def batches(count=4):
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(8, 3, generator=generator) for _ in range(count)]
    return [batch[rank() :: world_size()] for batch in drawn]


def copies(kind, accumulate, updates=2):
    """The state of a run on copies, and how many messages with gradients were sent, by wrapper and engine."""
    model = network()
    if kind == "wrapped":
        model = DistributedDataParallel(model)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        step=lambda trainer, batch: trainer.update(lambda: model(batch).square().mean()),
        accumulate=accumulate,
        seed=0,
    )
    trainer.run(batches(updates * accumulate + 1), max_epochs=1)  # the last window is cut short
    return {name: value.clone() for name, value in model.state_dict().items()}


def unused(kind):
    """The gradients where one process alone uses a layer, and none another."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "once": nn.Linear(2, 2), "never": nn.Linear(2, 2)})

    def step(trainer, batch):
        out = model["used"](batch)
        return trainer.update((model["once"](out) if rank() == 1 else out).square().mean())

    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), step=step, seed=0)
    trainer.run([torch.ones(2, 2)], max_epochs=1)
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def drifting():
    """What the check says of copies that a handler lets drift, and of those that nobody does."""
    model = network()
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        step=lambda trainer, batch: trainer.update(model(batch).square().mean()),
        seed=0,
    )
    trainer.run(batches(), max_epochs=1)
    before = drifted(trainer.models, trainer.optimizers)

    @trainer.on(WeightEvents.UPDATE_COMPLETED)
    @torch.no_grad()
    def spoil():
        model[3].weight[0, 0] += 1e-7 * rank()

    try:
        trainer.run(batches(), max_epochs=2)
    except ReplicaDriftError as error:
        return before, str(error)
    return before, None


def adversaries(how):
    """A generator and a discriminator, with an optimizer each, on the parts of a batch."""
    torch.manual_seed(0)
    models = {"generator": nn.Linear(2, 3), "discriminator": nn.Linear(3, 1)}
    if how == "shards":
        models = {name: fully_shard(model, mesh=mesh(), reshard_after_forward=True) for name, model in models.items()}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.1) for name, model in models.items()}

    def step(trainer, batch):
        generator, discriminator = trainer.models["generator"], trainer.models["discriminator"]
        fake = generator(batch)
        trainer.update(discriminator(fake.detach()).square().mean(), "discriminator")
        trainer.update((1 - discriminator(fake)).square().mean(), "generator")

    trainer = Trainer(models, optimizers, step=step, seed=0, accumulate=2)
    generator = torch.Generator().manual_seed(5)
    trainer.run([torch.randn(8, 2, generator=generator)[rank() :: world_size()] for _ in range(6)], max_epochs=1)
    return {name: gather(weight.detach()).clone() for name, weight in trainer.weights().items()}


def searched(how):
    """Weights after steps of LBFGS, whose line search goes by the loss: of one's own part it would go another way."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    if how == "shards":
        model = fully_shard(model, mesh=mesh(), reshard_after_forward=True)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1, max_iter=4, line_search_fn="strong_wolfe")

    def step(trainer, batch):
        return trainer.update(lambda: (model(batch) - 1).square().mean())

    trainer = Trainer(model, optimizer, step=step, seed=0, plugins=[L2(0.01)])
    trainer.run(batches(), max_epochs=1)
    return {name: gather(weight.detach()).clone() for name, weight in trainer.weights().items()}


def windowed(how, plugin, attached_at=None):
    """Weights after windows of two micro-batches; the plugin comes into an open one, if it does not start the run."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    if how == "shards":
        model = fully_shard(model, mesh=mesh(), reshard_after_forward=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(trainer, batch):
        return trainer.update(lambda: model(batch.double()).square().mean())

    plugins = [] if attached_at else [plugin]
    trainer = Trainer(model, optimizer, step=step, seed=0, accumulate=2, plugins=plugins)
    if attached_at:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=attached_at), lambda: trainer.attach(plugin))
    trainer.run(batches(7), max_epochs=1)
    return {name: gather(weight.detach()).clone() for name, weight in trainer.weights().items()}


WINDOWED = {"WeightNorm": (WeightNorm(), None), "SpectralNorm": (SpectralNorm(), 3), "L2": (L2(0.1), 3)}


def windows(how):
    return {name: windowed(how, *settings) for name, settings in WINDOWED.items()}


def as_torch_shards():
    """With torch's default, whose root stays whole after a forward pass: how LSUV starts it, and what the model gives
    after an edit."""
    torch.manual_seed(0)
    model = fully_shard(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), mesh=mesh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with torch.no_grad():
        model(torch.ones(1, 3))
    seen = []

    def step(trainer, batch):
        out = model(batch)
        seen.append(float(out.abs().max()))
        return trainer.update(out.square().mean())

    plugins = [LSUV(), ShrinkPerturb(0.0, 0.0, at="EPOCH_COMPLETED")]
    trainer = Trainer(model, optimizer, step=step, seed=0, plugins=plugins)
    norms = []

    @trainer.on(Events.EPOCH_STARTED)
    def note():
        norms.append([float(gather(weight.detach()).norm()) for weight in trainer.weights("*.weight").values()])

    @trainer.on(Events.EPOCH_COMPLETED)
    @torch.no_grad()
    def look():
        model(batches()[0])

    trainer.run(batches(), max_epochs=2)
    return norms[0], seen[-1]


def refusals():
    """What is said of LBFGS on shards."""
    model = fully_shard(nn.Linear(3, 5), mesh=mesh())
    try:
        Trainer(model, torch.optim.LBFGS(model.parameters()), nn.MSELoss())
    except ConfigurationError as error:
        return str(error)
    return ""


def looked_at_in_between():
    """Weights where a step looks at the wrapped model without a gradient, and trains the model inside."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    model = DistributedDataParallel(network)

    def step(trainer, batch):
        with torch.no_grad():
            model(batch)
        return trainer.update(network(batch).square().mean())

    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), step=step, seed=0)
    trainer.run(batches(), max_epochs=1)
    return network.weight.detach().clone()


def hybrid():
    """What the check for drift says of copies of shards that begin differently, before and after one is spoilt."""
    torch.manual_seed(rank() // 2)  # another start for each copy
    shape = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    model = fully_shard(nn.Linear(3, 4), mesh=shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(
        model, optimizer, step=lambda trainer, batch: trainer.update(model(batch).square().mean()), seed=0
    )
    trainer.run(batches(), max_epochs=1)
    before = drifted(trainer.models, trainer.optimizers)
    own_part(model.weight)[:1] += 1e-7 * (rank() // 2)
    return before, drifted(trainer.models, trainer.optimizers)


def everything():
    """All of it in one go: a process costs seconds to start."""
    return {
        "parts": parts(),
        "norms": norms(),
        "copies": {(kind, n): copies(kind, n) for kind in ("plain", "wrapped") for n in (1, 3)},
        "unused": unused("plain"),
        "drifting": drifting(),
        "searched": searched("copies"),
        "windows": {how: windows(how) for how in ("copies", "shards")},
        "torch's shards": as_torch_shards(),
        "refusals": refusals(),
        "looked at": looked_at_in_between(),
        "adversaries": {how: adversaries(how) for how in ("copies", "shards")},
        "sums": [checksum(torch.arange(5.0)), checksum(torch.arange(5.0).flip(0))],
        "backend": dist.get_backend(),
    }
