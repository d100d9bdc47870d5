"""What people ask for first: each as a plugin, beside the PyTorch that does the same by hand, and checked equal."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import weightsmith_plugins as w
from ignite.metrics import Accuracy
from jsonargparse.typing import PositiveFloat
from real_data import Digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.data import DataLoader
from weightsmith import Constraint, Initializer, Penalty, Plugin, PluginContractError, Site, Trainer, WeightEditor
from weightsmith.cli import Launch, script


class SetTo(Initializer):
    """Set weights: each is ``value``."""

    value: float = 0.01

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return torch.full_like(weight, self.value)


class ScaleBy(Initializer):
    """Scale weights: w ← factor · w, with the weight that the layer was made with."""

    factor: float = 0.5

    def draw(self, weight: Tensor, site: Site) -> Tensor:
        return self.factor * weight


class SignStep(WeightEditor):
    """Edit weights from gradients: w ← w − rate · sign(g) after every update."""

    rate: float = 1e-4

    def edit(self, weight: Tensor, gradient: Tensor, site: Site) -> Tensor:
        return weight - self.rate * gradient.sign()


class ClampTo(Constraint):
    """Clamp weights: −limit ≤ w ≤ limit; with ``mode="forward"`` the layer computes with clamped weights."""

    limit: float = 0.1

    def project(self, weight: Tensor, site: Site) -> Tensor:
        return weight.clamp(-self.limit, self.limit)


class ChargeMagnitude(Penalty):
    """L1: strength · Σ|w|."""

    strength: float = 1e-3

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        return self.strength * weight.abs().sum()


class ChargeSquare(Penalty):
    """L2: strength · Σw²."""

    strength: float = 1e-3

    def cost(self, weight: Tensor, site: Site) -> Tensor:
        return self.strength * weight.square().sum()


class ClampedLinear(nn.Linear):
    """By hand: a layer that clamps its weights in the forward pass."""

    def forward(self, inputs: Tensor) -> Tensor:
        return linear(inputs, self.weight.clamp(-0.1, 0.1), self.bias)


def network(first: type[nn.Linear] = nn.Linear) -> nn.Sequential:
    """From 64 pixels to 10 classes."""
    return nn.Sequential(nn.Flatten(), first(64, 32), nn.ReLU(), nn.Linear(32, 10))


@dataclass(frozen=True)
class ByHand:
    """A training loop that people write, with a place for each edit."""

    start: Callable[[Tensor], object] = lambda _: None
    charge: Callable[[Tensor], Tensor | float] = lambda _: 0.0
    after_step: Callable[[Tensor], object] = lambda _: None
    layer: type[nn.Linear] = nn.Linear

    def train(self, batches: Iterable[Any], epochs: int) -> Tensor:
        """The first layer's weight after so many epochs."""
        model = network(self.layer)
        weight = model[1].weight
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with torch.no_grad():
            self.start(weight)
        for _ in range(epochs):
            for images, labels in batches:
                optimizer.zero_grad()
                (cross_entropy(model(images), labels) + self.charge(weight)).backward()
                optimizer.step()
                with torch.no_grad():
                    self.after_step(weight)
        return weight.detach().clamp(-0.1, 0.1) if self.layer is ClampedLinear else weight.detach()


PAIRS: dict[str, tuple[Plugin, ByHand]] = {
    "set to 0.01": (SetTo(0.01, where="1.weight"), ByHand(start=lambda w: w.fill_(0.01))),
    "scale by 0.5": (ScaleBy(0.5, where="1.weight"), ByHand(start=lambda w: w.mul_(0.5))),
    "step along signs": (SignStep(1e-4, where="1.weight"), ByHand(after_step=lambda w: w.sub_(1e-4 * w.grad.sign()))),
    "clamp in forward": (ClampTo(0.1, where="1.weight", mode="forward"), ByHand(layer=ClampedLinear)),
    "L1": (ChargeMagnitude(1e-3, where="1.weight"), ByHand(charge=lambda w: 1e-3 * w.abs().sum())),
    "L2": (ChargeSquare(1e-3, where="1.weight"), ByHand(charge=lambda w: 1e-3 * w.square().sum())),
}


def by_plugin(plugin: Plugin, batches: Iterable[Any], epochs: int) -> Tensor:
    """The first layer's weight after so many epochs, as its layer computes with it."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    Trainer(model, optimizer, nn.CrossEntropyLoss(), plugins=[plugin]).run(batches, max_epochs=epochs)
    return model[1].weight.detach()


WATCHING = (w.WeightHistograms(), w.PluginEffect("epoch"), w.Losses(), w.TensorBoard(), w.Checkpoints())


@script(epochs=3, runs=Path(__file__).parents[1] / "runs" / "customise_weights")
def train(launch: Launch, tolerance: PositiveFloat = 1e-5) -> dict[str, Any]:
    """Train a small network on handwritten digits once with each plugin and once by hand, compare the weights, and then
    train with all plugins at once.

    Args:
        launch: the options that all scripts have.
        tolerance: largest difference of two weights that counts as rounding.

    Returns:
        For each edit the largest difference between plugin and hand; the accuracy with all of them; the run's folder.
    """
    images, labels = Digits("training", launch.seed).tensors
    batches = list(zip(images.split(32), labels.split(32), strict=True))
    differences = {}
    for name, (plugin, by_hand) in PAIRS.items():
        torch.manual_seed(launch.seed)
        expected = by_hand.train(batches, launch.epochs)
        torch.manual_seed(launch.seed)
        differences[name] = (by_plugin(plugin, batches, launch.epochs) - expected).abs().max().item()
        is_equal = differences[name] <= tolerance
        print(f"{name:18} largest difference {differences[name]:.1e}: {'equal' if is_equal else 'DIFFERENT'}")
    if max(differences.values()) > tolerance:
        raise PluginContractError("a plugin did something else than the loop by hand")
    torch.manual_seed(launch.seed)
    model = launch.parallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    shapers = [plugin for plugin, _ in PAIRS.values()]
    trainer = launch.trainer(model, optimizer, nn.CrossEntropyLoss(), shaping=shapers, watching=WATCHING)
    validation = DataLoader(Digits("validation", launch.seed), batch_size=360)
    trainer.validate_on(launch.share(validation, even=False), {"accuracy": Accuracy()})
    launch.train(trainer, launch.share(batches))
    return {**trainer.state.metrics, "differences": differences, "run_dir": trainer.run_dir}


if __name__ == "__main__":
    sys.exit(train.main())
