"""What processes do together in test_saving.py."""

import warnings

warnings.filterwarnings("ignore", category=DeprecationWarning)

import torch
from ignite.engine import Events
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from weightsmith import Trainer
from weightsmith.checkpoint import manifest
from weightsmith.distributed import first_does, rank, world_size
from weightsmith.randomness import random_states
from weightsmith.shards import gather, own_part
from weightsmith_plugins import EMA, Losses, MaxNorm

WAYS = ("copies", "shards")
EPOCH = 5
SAVED_AT = 7  # inside the second epoch, and with accumulate=3 inside a window


def network(draws):
    """With layers that draw and that gather statistics of their own batch, or without; one bias is shorter than 4."""
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(7), nn.Tanh(), nn.Dropout(0.3)] if draws else [nn.Tanh()]
    return nn.Sequential(nn.Linear(4, 7), *middle, nn.Linear(7, 3))


def parallel(model, how):
    if how == "copies":
        return DistributedDataParallel(model)
    if how == "shards":
        return fully_shard(model, mesh=init_device_mesh("cpu", (world_size(),)))
    return model


def trainer_of(how, *, draws=False, **options):
    model = parallel(network(draws), how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)

    def step(trainer, batch):
        share = batch[rank() :: world_size()]
        return trainer.update(model(share).square().mean())

    plugins = [MaxNorm(0.5), EMA(0.9), Losses(), *options.pop("plugins", ())]
    trainer = Trainer(model, optimizer, step=step, plugins=plugins, seed=5, accumulate=3, keep=[schedule], **options)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: schedule.step())
    return trainer


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 4, generator=generator) for _ in range(EPOCH)]


def whole_weights(trainer):
    return {name: gather(weight.detach()).clone() for name, weight in trainer.weights().items()}


def everything(trainer):
    """All that goes on: what this process holds of weights, buffers, gradients, what is remembered, where generators
    stand."""
    found = {f"weight {name}": own_part(weight).clone() for name, weight in trainer.weights().items()}
    model = trainer.model.module if isinstance(trainer.model, DistributedDataParallel) else trainer.model
    found |= {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}
    for parameter, state in next(iter(trainer.optimizers.values())).state.items():
        for key, value in state.items():
            found[f"optimizer {len(found)} {key} {tuple(parameter.shape)}"] = own_part(value).clone()
    for binding in trainer._attachments.bindings(EMA):
        for target in binding.all_targets():
            found[f"mean {target.weight.name}"] = target.site.state["mean"].clone()
    states = random_states()
    found |= {"torch": states["torch"], "python": states["python"]["words"], "numpy": states["numpy"]["keys"]}
    return found


def run_and_save(how, path, **options):
    """A whole run, which saves itself on the way; what there is at its end."""
    trainer = trainer_of(how, **options)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=SAVED_AT), lambda: trainer.save(path))
    trainer.run(batches(), max_epochs=3)
    return trainer


def go_on(how, path, **options):
    trainer = trainer_of(how, **options)
    torch.manual_seed(99 + rank())  # what the checkpoint must put right
    assert trainer.resume(path) == path
    assert trainer.state.iteration == SAVED_AT
    trainer.run(batches(), max_epochs=3)
    return trainer


# -------------------------------------------------------------------- the same number of processes


def saved_on_two(folder):
    """For each way, a run that draws, undisturbed and gone on with; a run that does not draw, saved for others."""
    ends = {}
    for how in WAYS:
        undisturbed = everything(run_and_save(how, folder / f"{how}-drawing", draws=True))
        resumed = everything(go_on(how, folder / f"{how}-drawing", draws=True))
        differing = [key for key in undisturbed if not torch.equal(undisturbed[key], resumed[key])]
        plain = run_and_save(how, folder / how)
        with plain.averaged():
            means = whole_weights(plain)
        plain.export(folder / f"{how}.safetensors")
        plain.export(folder / f"{how}-means.safetensors", averaged=True)
        ends[how] = {
            "keys": set(undisturbed),
            "differing": differing,
            "torch": undisturbed["torch"],
            "weights": whole_weights(plain),
            "means": means,
        }
    for how, other in zip(WAYS, reversed(WAYS), strict=True):
        ends[how]["as the other way"] = whole_weights(go_on(other, folder / how))
    return ends


def saved_on_one(folder):
    """Runs of two that go on from the checkpoint of one process."""
    return {how: whole_weights(go_on(how, folder / "one")) for how in WAYS}


def gone_on_with_on_four(folder):
    """Runs of four that go on from checkpoints of two; and what processes draw next there."""
    ends = {}
    for how in WAYS:
        trainer = trainer_of(how)
        trainer.resume(folder / how)
        ends[f"{how} draws"] = random_states()["torch"]
        trainer.run(batches(), max_epochs=3)
        ends[how] = whole_weights(trainer)
    return ends


def taken_of(folder, newest):
    """Which checkpoint a run goes on from, with the files of which this process sums up the content on the way: of
    intact ones; and with each file of the newest damaged in turn."""
    summed, original = [], manifest._sum
    manifest._sum = lambda path: summed.append(path.name) or original(path)
    taken = {}
    for name in [None, *manifest.read_manifest(newest)["files"]]:
        first_does(lambda name=name: spoil(newest / name) if name else None)
        summed.clear()
        taken[name] = trainer_of("copies").resume(folder).name, tuple(summed)
        first_does(lambda name=name: spoil(newest / name) if name else None)
    manifest._sum = original
    return taken


def spoil(path):
    """Turn one bit of a file over; done again, it is as it was."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
