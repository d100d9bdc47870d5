"""Runs to interrupt: made anew at will, compared to the bit."""

import copy
import functools

import numpy as np
import torch
from ignite.engine import Events
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from weightsmith import Trainer, WeightEvents
from weightsmith.checkpoint import collect

ITERATIONS = 5
EPOCHS = 3


class Net(nn.Module):
    """A little of everything that remembers or draws: batch norm, dropout, a frozen weight, an unsaved buffer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.2)
        self.hidden = nn.Linear(4 * 4 * 4, 6)
        self.frozen = nn.Linear(6, 6)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, inputs):
        self.calls += 1
        found = self.dropout(torch.relu(self.norm(self.conv(inputs)))).flatten(1)
        return self.head(self.frozen(torch.tanh(self.hidden(found))))


class Augmented(TensorDataset):
    """Draws from the global generators of NumPy and torch, as augmentations do."""

    def __getitem__(self, place):
        inputs, target = super().__getitem__(place)
        return inputs + 0.01 * torch.randn(()) + float(np.random.rand()) * 0.01, target


def dataset(count=ITERATIONS * 4, augmented=False):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(count, 1, 4, 4, generator=generator)
    targets = torch.randint(0, 3, (count,), generator=generator)
    return (Augmented if augmented else TensorDataset)(inputs, targets)


def loader(**options):
    return DataLoader(dataset(), batch_size=4, shuffle=True, **options)


def make(plugins=(), optimizer=None, *, seed=11, schedules=True, **options):
    torch.manual_seed(1)
    model = Net()
    chosen = (optimizer or (lambda p: torch.optim.AdamW(p, lr=1e-2)))(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(chosen, 0.05, total_steps=200) if schedules else None
    keep = {"schedule": schedule} if schedules else {}
    trainer = Trainer(model, chosen, nn.CrossEntropyLoss(), plugins=plugins, seed=seed, keep=keep, **options)
    if schedules:
        trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, lambda: schedule.step())
    return trainer


def make_gan(plugins=(), **options):
    """Two models and two optimizers, of which one is updated every second iteration."""
    torch.manual_seed(2)
    generator = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 16))
    models = {"generator": generator, "critic": nn.Linear(16, 1)}
    optimizers = {name: torch.optim.Adam(model.parameters(), lr=1e-2) for name, model in models.items()}

    def step(trainer, batch):
        real = batch[0].flatten(1)
        fake = models["generator"](torch.randn(len(real), 3))
        wins = models["critic"](fake.detach()).mean() - models["critic"](real).mean()
        trainer.update(wins, optimizer="critic")
        if trainer.state.iteration % 2:
            trainer.update(-models["critic"](fake).mean(), optimizer="generator")

    return Trainer(models, optimizers, step=step, plugins=plugins, seed=4, **options)


def make_of_nothing(plugins=(), **options):
    """A model that is trained without data."""
    torch.manual_seed(2)
    model = nn.Linear(3, 2)

    def step(trainer, _):
        trainer.update(model(torch.randn(4, 3)).square().mean())

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Trainer(model, optimizer, step=step, plugins=plugins, seed=4, **options)


def traced(trainer):
    """The trainer's events as they fire, each with its counts."""
    trace = []

    def note(trainer, *_, event, **__):
        trace.append((event.name, trainer.state.epoch, trainer.state.iteration, trainer.state.update))

    for event in [*Events, *WeightEvents]:
        if event not in (Events.EXCEPTION_RAISED, WeightEvents.PLUGIN_STARTED, WeightEvents.PLUGIN_COMPLETED):
            trainer.add_event_handler(event, functools.partial(note, event=event))
    return trace


class Killed(BaseException):
    """Ends a run as a kill does: nothing of it is cleaned up by the engine."""


def killed_at(trainer, iteration, path, data, **options):
    """Run until after the checkpoint of an iteration; whatever comes then is lost."""

    def kill():
        if trainer.state.iteration >= iteration:
            trainer.save(path)
            trainer.at_safe_point(die)

    def die():
        raise Killed

    trainer.add_event_handler(Events.ITERATION_COMPLETED, kill)
    try:
        trainer.run(data, **options)
    except Killed:
        return True
    return False


def contents(trainer):
    """All that the run consists of, to be compared."""
    found = copy.deepcopy(collect(trainer, in_order=True))
    return {"weights": found.weights, **found.state}


def differences(one, other, where="", leave=("beginning",)):
    """Where two nested values are not the same to the bit."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        same = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.dtype == other.dtype
        same = same and one.shape == other.shape and torch.equal(bits(one), bits(other))
        return [] if same else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{where}.{key}" for key in one.keys() ^ other.keys()]
        for key in [key for key in one if key in other and key not in leave]:
            found += differences(one[key], other[key], f"{where}.{key}", leave)
        return found
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for place, pair in pairs for d in differences(*pair, f"{where}[{place}]", leave)]
    return [] if repr(one) == repr(other) else [where]


def flat(value):
    """The value as numbers and texts alone, exactly."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), bytes(bits(value).flatten().tolist()).hex()
    if isinstance(value, dict):
        return sorted(((repr(key), flat(item)) for key, item in value.items() if key != "beginning"), key=repr)
    return [flat(item) for item in value] if isinstance(value, (list, tuple)) else repr(value)


def bits(tensor):
    kept = tensor.detach().contiguous()
    return kept.view(torch.uint8) if kept.ndim else kept.reshape(1).view(torch.uint8)
