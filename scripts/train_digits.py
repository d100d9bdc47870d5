"""Train a small convolutional network on scikit-learn's handwritten digits, with one plugin of each kind."""

import sys
from pathlib import Path
from typing import Any

import torch
import weightsmith_plugins as w
from ignite.engine import Events
from ignite.metrics import Accuracy, Loss
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from real_data import Digits
from torch import nn
from torch.utils.data import DataLoader
from weightsmith import Average, Plugin, linear
from weightsmith.cli import Launch, script
from weightsmith.shards import gather


class DigitNet(nn.Sequential):
    """Two convolutions and two linear layers for 8 × 8 images; 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(32 * 4 * 4, 64)
        self.relu3 = nn.ReLU()
        self.head = nn.Linear(64, 10)


def shaping(l2: float, max_norm: float, head_bound: float) -> list[Plugin]:
    """What shapes the weights: one plugin of each kind."""
    return [
        w.Orthogonal(gain=2**0.5),
        w.L2(l2),
        w.ClipNorm(1.0),
        w.Perturb(linear(1e-3, 0.0), where="hidden.weight"),
        w.MaxNorm(max_norm, where=["conv1.weight", "conv2.weight", "hidden.weight"]),
        w.Clamp(-head_bound, head_bound, where="head.weight", mode="forward"),
        w.EMA(0.99),
    ]


WATCHING = (
    w.WeightHistograms(),
    w.GradientHistograms(),
    w.Losses(),
    w.LearningRates(),
    w.PenaltyCosts(),
    w.Violations(),
    w.TensorBoard(),
    w.Checkpoints(best="accuracy"),
)


@script(epochs=20, runs=Path(__file__).parents[1] / "runs" / "digits")
def train(
    launch: Launch,
    batch_size: PositiveInt = 32,
    learning_rate: PositiveFloat = 2e-3,
    l2: NonNegativeFloat = 1e-4,
    max_norm: PositiveFloat = 1.5,
    head_bound: PositiveFloat = 0.3,
) -> dict[str, Any]:
    """Train a small convolutional network on handwritten digits, with one weightsmith plugin of each kind.

    Args:
        launch: the options that all scripts have.
        batch_size: digits per update.
        learning_rate: Adam's step size, per update.
        l2: charge per squared weight, in units of the loss.
        max_norm: largest norm of the weights into one unit, for all layers but the head.
        head_bound: largest weight by magnitude that the head computes with.

    Returns:
        The metrics of the last epoch, those of the averaged weights if there is an average, and the run's folder.
    """
    training = launch.share(DataLoader(Digits("training", launch.seed), batch_size=batch_size, shuffle=True))
    validation = launch.share(DataLoader(Digits("validation", launch.seed), batch_size=360), even=False)
    network = DigitNet()
    model = launch.parallel(network)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    shapers = shaping(l2, max_norm, head_bound)
    trainer = launch.trainer(model, optimizer, nn.CrossEntropyLoss(), shaping=shapers, watching=WATCHING)
    metrics = {"accuracy": Accuracy(), "validation_loss": Loss(nn.CrossEntropyLoss())}
    trainer.validate_on(validation, metrics)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: trainer.state.metrics.update(sizes(network)))
    launch.train(trainer, training)
    found = {**trainer.state.metrics, "run_dir": trainer.run_dir}
    print(f"validation accuracy {found['accuracy']:.2%}")
    if any(isinstance(plugin, Average) for plugin in trainer.plugins):
        with trainer.averaged():
            found["averaged_accuracy"] = trainer.evaluate(validation, metrics)["accuracy"]
        print(f"averaged weights    {found['averaged_accuracy']:.2%}")
    return found


@torch.no_grad()
def sizes(network: DigitNet) -> dict[str, float]:
    """The largest L2 norm of the weights into one unit, over all layers but the head, and the head's largest weight."""
    *others, head = (gather(part.weight) for part in (network.conv1, network.conv2, network.hidden, network.head))
    largest_norm = max(weight.flatten(1).norm(dim=1).max() for weight in others)
    return {"largest_unit_norm": largest_norm.item(), "largest_head_weight": head.abs().max().item()}


if __name__ == "__main__":
    sys.exit(train.main())
